"""Print `docs/guides/doctor.md` from the diagnoses themselves.

python docs/print_diagnoses.py > docs/guides/doctor.md
"""

import textwrap

from rlax_llm.commands.doctor.finding import CONTROL, EVERY, LANGUAGE, PREFERENCES
from rlax_llm.commands.doctor.table import DIAGNOSES

HEADER = """# Why does it not learn?

`rlax-llm doctor RUN` reads what a run has left (`metrics.jsonl`, `completions.jsonl`, `config.yaml`,
`summary.json`), says in words what is wrong, with the figures that show it, and what to change. It changes nothing,
and a run may still be going on.

A character model that has seen nothing cannot add:

```sh
rlax-llm grpo --warm-start-steps 0 --steps 20 --batch-size 16 --eval-size 32 --out runs/cold
rlax-llm doctor runs/cold
```

```text
runs/cold: grpo, 20 steps, 160 completions read

EXAMPLE
2 of 19 diagnoses.
```

The exit code is 0 where nothing is found, and the doctor then says what it looked for; 1 where something is; 2
where there is no run. Several runs may be given, `--json` prints an object for each, and a run in which something
is found says so in its last line.

## Why is my loss 0?

It should be. With one optimizer step on each batch (`--epochs 1 --minibatches 1`) the policy that learns is the one
that sampled: the ratio of every token is 1, so the loss is minus the mean advantage, and the advantages of a group
sum to 0. Its gradient is not 0: it is the policy gradient. So the loss says nothing of the progress. Look at

- `reward`, and `held_out_accuracy` or `held_out_reward`: what is wanted;
- `frac_reward_zero_std`: the share of groups that teach nothing, since all of their scores are the same. At 1
  nothing is learned;
- `grad_norm`: 0 where nothing teaches;
- `kl`: how far the policy has gone; `entropy`: how much it still tries.

The `policy_loss` is without the KL term. Trainers that add it show a loss that begins at 0 and rises as the policy
moves away from its reference, which is no fault either.

## What is looked for

Each is a function of what a run left; a run is judged from five steps on. The *first* and the *last quarter* are
those of the run's steps. Printed from the diagnoses by `docs/print_diagnoses.py`; a test compares.
"""

FOOTER = """
Of your own, in Python:

```python
from pathlib import Path

from rlax_llm.commands.doctor.table import examine
from rlax_llm.host.evidence import Evidence

nothing = {"reward": 0.0, "accuracy": 0.0, "frac_reward_zero_std": 1.0}
rows = [{"step": step, **nothing} for step in range(1, 9)]
run = {"command": "grpo"}  # read_evidence(path) reads one
evidence = Evidence(Path("runs/a"), run, rows)
(found,) = examine(evidence)
print(found.diagnosis.name)
print(found.finding.what)
```

```text
all failed
100 % of the groups of all 8 steps have no difference: all failed; 0 % of the completions are right.
```
"""

FOUND = {
    "all failed": "100 % of the groups of all 20 steps have no difference: all failed; 0 % of the completions are "
    "right; the last that was written down is '269' to '40+36=', reward 0.0.",
    "most completions are cut": "74 % of the completions were cut at 6 tokens; those that ended have 3 on average.",
}
"""What a run of these two commands found."""

NAMES = {EVERY: "all", LANGUAGE: "language", PREFERENCES: "preferences", CONTROL: "control"}


def example() -> str:
    """What the doctor prints, in lines that fit a page."""
    changes = {one.name: one.change for one in DIAGNOSES}
    parts = []
    for name, what in FOUND.items():
        lines = [
            textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ")
            for text in (what, f"→ {changes[name]}")
        ]
        parts.append("\n".join([f"✗ {name}", *lines]))
    return "\n\n".join(parts) + "\n"


def table() -> str:
    """A row for each diagnosis."""
    rows = ["| diagnosis | commands | how it is seen | what to change |", "|---|---|---|---|"]
    for one in DIAGNOSES:
        commands = NAMES.get(one.commands, ", ".join(one.commands))
        name = one.name if one.fault else f"{one.name} (no fault)"
        cells = [cell.replace("|", "\\|") for cell in (name, commands, one.sign, one.change)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """The whole page."""
    return f"{HEADER.replace('EXAMPLE', example())}\n{table()}{FOOTER}"


if __name__ == "__main__":
    print(page(), end="")
