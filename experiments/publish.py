"""Copy what a run shows into `experiments/NAME`: figure, numbers, and completions before and after training.

rlax-llm grpo --out runs/words ...
python experiments/publish.py runs/words experiments/grpo_smollm2
"""

import json
import shutil
import sys
from pathlib import Path

SHOWN = 12


def question(prompt):
    """The text of a prompt, which may be a list of messages."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def cell(text):
    """Text as one cell of a Markdown table."""
    return text.replace("\n", " ⏎ ").replace("|", "\\|")


def samples(completions):
    """A Markdown table of the first held-out prompts, answered before and after training."""
    held_out = [row for row in completions if row.get("held_out")]
    first, last = min(row["step"] for row in held_out), max(row["step"] for row in held_out)
    before, after = ([row for row in held_out if row["step"] == step] for step in (first, last))
    lines = [f"| prompt | before (step {first}) | reward | after (step {last}) | reward |", "|---|---|---|---|---|"]
    for old, new in list(zip(before, after, strict=True))[:SHOWN]:
        answers = f"{cell(old['completion'])} | {old['reward']:g} | {cell(new['completion'])} | {new['reward']:g}"
        lines.append(f"| {cell(question(old['prompt']))} | {answers} |")
    return "\n".join(lines) + "\n"


def main(run, target):
    """Publish the run directory `run` in the directory `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "summary.json", "metrics.jsonl", "curves.png"):
        shutil.copyfile(run / name, target / name)
    completions = [json.loads(line) for line in (run / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
    (target / "samples.md").write_text(samples(completions), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
