"""Each diagnosis has a run that is made to have it, and healthy runs have none."""

import json
import math
import re
from pathlib import Path

import pytest

from rlax_llm.cli.main import main
from rlax_llm.commands.doctor.finding import CONTROL, EVERY, GROUPS, LANGUAGE
from rlax_llm.commands.doctor.run import advice, as_json, told
from rlax_llm.commands.doctor.table import DIAGNOSES, examine, faults
from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.settings import keys
from rlax_llm.commands.table import commands
from rlax_llm.host.evidence import Evidence, read_evidence
from rlax_llm.host.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
HEALTHY = ROOT / "tests" / "healthy_runs"
BY_NAME = {diagnosis.name: diagnosis for diagnosis in DIAGNOSES}
SPOKEN = ["12", "7", "33", "4"]


def spoken(evidence, texts=SPOKEN, rewards=(1.0, 0.0, 0.0, 1.0)):
    """A group of completions at every step."""
    return [
        {
            "step": row["step"],
            "prompt": "1+6=",
            "completion": text,
            "reward": reward,
            "length": len(text),
            "truncated": 0,
        }
        for row in evidence.rows
        for text, reward in zip(texts, rewards, strict=True)
    ]


@pytest.fixture(scope="module")
def runs():
    """Runs of the defaults of each command, a row for every twentieth part of each, and what is like them."""
    found = {place.name: read_evidence(place) for place in sorted(HEALTHY.iterdir())}
    losses = [{"step": i, "loss": 3 / i} for i in range(1, 13)]
    return found | {"sft": Evidence(Path("sft"), {"command": "sft"}, losses)}


def edited(evidence, settings=(), summary=(), completions=None, **metrics):
    """The run with other settings, and metrics that are a number or a function of the way done, from 0 to 1.

    Names have ``__`` for their slash.
    """
    count = len(evidence.rows) - 1
    rows = [
        row | {name.replace("__", "/"): of(i / count) if callable(of) else of for name, of in metrics.items()}
        for i, row in enumerate(evidence.rows)
    ]
    found = evidence._replace(
        settings={**evidence.settings, **dict(settings)}, rows=rows, summary={**evidence.summary, **dict(summary)}
    )
    return found if completions is None else found._replace(completions=completions(found))


def falling(start, end):
    return lambda done: start + (end - start) * done


def fading(done):
    return 0.001**done


DEAD = {"frac_reward_zero_std": 0.97}
MADE = [
    ("no score", "grpo", {"completions__unscored_ratio": 0.4}),
    ("no score", "ppo", {"completions": lambda run: spoken(run, rewards=(None, 1.0, 0.0, None))}),
    ("all failed", "grpo", {**DEAD, "accuracy": 0.0, "reward": 0.0}),
    ("all failed", "grpo", {"sampling__kept": 0.02, "accuracy": 0.01, "reward": 0.01}),
    ("all failed", "ppo", {"reward_std": 0.0, "accuracy": 0.0, "reward": 0.0}),
    ("groups without a difference", "ppo", {"reward_std": 0.0, "accuracy": 0.0, "reward": 2.0}),
    ("all solved", "ppo", {"reward_std": 0.0, "accuracy": 1.0, "reward": 1.0}),
    ("all solved", "grpo", {**DEAD, "accuracy": 0.99, "reward": 0.99}),
    ("groups without a difference", "grpo", {**DEAD, "accuracy": 0.0, "reward": 0.5}),
    ("groups without a difference", "grpo", {**DEAD, "completions": lambda run: spoken(run, ["7"] * 4, [1.0] * 4)}),
    ("a format that is never met", "grpo", {"rewards__format__mean": 0.0, "rewards__format__std": 0.0}),
    ("the stop token is never drawn", "grpo", {"completions__clipped_ratio": 1.0}),
    (
        "the stop token is never drawn",
        "ppo",
        {"completions__clipped_ratio": 1.0, "settings": {"min_new_tokens": 6, "max_new_tokens": 6}},
    ),
    ("most completions are cut", "grpo", {"completions__clipped_ratio": falling(0.2, 0.9)}),
    ("a template that does not fit", "grpo", {"completions": lambda run: spoken(run, ["7<|im_end|>", "7", "8", "9"])}),
    ("a template that does not fit", "ppo", {"completions": lambda run: spoken(run, ["7\nUser: 3+3=", "7", "8", "9"])}),
    ("length without gain", "grpo", {"completions__mean_length": falling(20, 60), "accuracy": 0.4}),
    (
        "length without gain",
        "grpo",
        {
            "completions__mean_length": falling(2, 6),
            "accuracy": 0.4,
            "completions": lambda run: spoken(run, ["1", "22", "333", "4444"], [1.0, 2.0, 3.0, 4.0]),
        },
    ),
    ("a tool that is never called", "grpo", {"tools__call_frequency": 0.0, "settings": {"tool": "calculator"}}),
    ("ended by an error", "grpo", {"summary": {"stopped": "grpo: a number is not finite after step 3."}}),
    ("numbers that are not finite", "grpo", {"policy_loss": None, "grad_norm": math.nan}),
    ("numbers that are not finite", "ppo", {"loss__value_avg": lambda done: None if done > 0.7 else 1.0}),
    ("numbers that are not finite", "sft", {"loss": lambda done: None if done > 0.7 else 1 - done}),
    ("numbers that are not finite", "control", {"value_loss": math.nan}),
    ("a learning rate too small for the precision", "grpo", {"lost_updates": 0.8}),
    ("a policy that stands still", "grpo", {"kl": 1e-8}),
    ("a policy that stands still", "ppo", {"kl_per_token": 1e-8}),
    ("a KL term that holds the policy", "grpo", {"kl": 0.005, "reward": 0.3, "settings": {"kl_coef": 10.0}}),
    ("a KL term that holds the policy", "ppo", {"objective__non_score_reward": -2.0, "objective__scores": 0.3}),
    ("a sampler that is another policy", "grpo", {"sampler__ess": falling(0.9, 0.1), "sampler__kl_k3": 0.7}),
    ("a clip that stops everything", "grpo", {"clip_ratio__region_mean": falling(0.1, 0.9)}),
    ("a clip that stops everything", "ppo", {"policy__clipfrac_avg": 0.6}),
    ("a clip that stops everything", "control", {"clip_fraction": 0.6}),
    ("entropy collapse", "grpo", {"entropy": fading, "accuracy": 0.4}),
    ("a reference gone far", "grpo", {"kl": falling(0.0, 4.0)}),
    ("learned by heart", "grpo", {"held_out_accuracy": falling(0.5, 0.4)}),
    ("a loss of 0", "grpo", {}),
    ("margins that do not move", "dpo", {"rewards__margins": 0.001}),
    ("margins that do not move", "reward", {"margin": 0.001}),
    ("accuracy at chance", "dpo", {"rewards__accuracies": 0.5, "held_out_accuracy": 0.5}),
    ("accuracy at chance", "reward", {"accuracy": 0.4}),
    (
        "chosen responses that fall",
        "dpo",
        {"rewards__chosen": falling(0.0, -5.0), "rewards__margins": falling(0.0, 1.0)},
    ),
    ("labels of one kind", "kto", {"count__rejected": 0.0}),
    ("a loss that does not fall", "sft", {"loss": 2.5}),
    ("overfitting", "sft", {"held_out_loss": lambda done: 1 + (done - 0.5) ** 2}),
    ("no episode ends", "control", {"episodes": 0.0}),
    ("returns that do not rise", "control", {"episode_return_seeds": lambda done: [-200.0] * 3}),
    ("a step that goes too far", "control", {"kl_old": fading, "episode_return_seeds": lambda done: [9.0, 10.0, 9.5]}),
    ("a KL radius that accepts no step", "trpo", {"accepted": 0.05, "rejected": 10.0, "cg_residual": 0.1}),
    ("a KL limit that stops everything", "control", {"stopped": 0.95}),
    (
        "certain and not better",
        "control",
        {"entropy": fading, "episode_return_seeds": lambda done: [9.0, 10.0, 9.5]},
    ),
    (
        "a critic that explains nothing",
        "control",
        {"explained_variance": -0.1, "episode_return_seeds": lambda done: [9.0, 10.0, 9.5]},
    ),
]
WITH = {
    "certain and not better": {"returns that do not rise"},
    "a critic that explains nothing": {"returns that do not rise"},
}
"""What a run of a diagnosis has too, as it is a part of it."""


@pytest.mark.parametrize(("name", "run", "changes"), MADE, ids=[f"{name}-{run}" for name, run, _ in MADE])
def test_a_run_that_is_made_to_have_it_has_it_and_nothing_else(runs, name, run, changes):
    found = examine(edited(runs[run], **changes))
    faulty = {one.diagnosis.name for one in found if one.diagnosis.fault}
    if BY_NAME[name].fault:
        assert faulty == {name} | WITH.get(name, set())
    else:
        assert name in {one.diagnosis.name for one in found}
        assert not faulty
    for one in found:
        assert not one.finding.what[0].islower()
        assert one.finding.what.endswith((".", ":"))
        assert one.change.endswith((".", ")"))
        assert "nan" not in one.finding.what


def test_every_diagnosis_has_such_a_run():
    assert {name for name, _, _ in MADE} == set(BY_NAME)
    assert len(BY_NAME) == len(DIAGNOSES)
    assert set(GROUPS) | set(LANGUAGE) | set(CONTROL) == set(EVERY)


def test_the_first_step_that_is_not_finite_is_named_and_few_steps_suffice(runs):
    rows = [{"step": step, "loss": 1.0 if step == 1 else None} for step in (1, 2, 3)]
    (found,) = examine(Evidence(Path("a"), {"command": "sft"}, rows))
    assert found.finding.what == "From step 2 to the last, 3, these are not finite: loss."
    # A step that had nothing to learn from has no loss, and the steps after it have one.
    assert not faults(edited(runs["grpo"], policy_loss=lambda done: None if 0.4 < done < 0.9 else 0.0))
    assert not faults(edited(runs["grpo"], policy_loss=lambda done: None if done == 1 else 0.0))


def test_what_is_to_be_changed_can_be_given():
    kinds = commands()
    for diagnosis in DIAGNOSES:
        flags = {name.strip("-").replace("-", "_") for name in re.findall(r"--[a-z-]+", diagnosis.change)}
        known = {name for command in diagnosis.commands for name in keys(kinds[command].settings)}
        assert flags <= known, (diagnosis.name, flags - known)


def test_healthy_runs_have_none(runs):
    found = {name: [one.diagnosis.name for one in faults(run)] for name, run in runs.items()}
    assert not any(found.values()), found
    for place in ("grpo_default", "grpo_smollm2"):
        assert not faults(read_evidence(ROOT / "experiments" / place))


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """Steps that float32 cannot hold."""
    place = tmp_path_factory.mktemp("grpo")
    (place / "short.py").write_text(
        "def short(prompts, completions, **columns):\n    return [-len(c) for c in completions]\n"
    )
    sizes = {"batch_size": 4, "group_size": 4, "steps": 6, "eval_size": 4, "eval_every": 0, "save_every": 0}
    settings = GrpoSettings.of(
        task="arithmetic,largest=9",
        reward=f"{place}/short.py:short",
        warm_start_steps=0,
        learning_rate=1e-11,
        out=str(place / "run"),
        **sizes,
    )
    return run_grpo(settings).path


def test_a_real_run_is_told_of_at_its_end_and_by_the_command(lost, capsys):
    assert main(["doctor", str(lost)]) == 1
    out = capsys.readouterr().out
    assert "\n✗ a learning rate too small for the precision\n  " in out
    assert "of its parameter (learning_rate 1e-11).\n  → Give a --learning-rate some hundred times larger" in out
    assert "\n✗ a policy that stands still\n  After 6 steps at learning_rate 1e-11 the KL to the policy of the" in out
    assert main(["doctor", str(lost), str(lost), "--json"]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == second
    assert {"a learning rate too small for the precision", "a loss of 0"} <= {one["name"] for one in first["found"]}
    assert set(first) == {"run", "command", "steps", "completions", "missing", "looked_for", "found"}
    (line,) = advice(lost)
    assert line.startswith("It does not learn as it should (")
    assert line.endswith(f"a policy that stands still); rlax-llm doctor {lost} says more")


def test_what_was_looked_at_is_said(runs, tmp_path, capsys):
    text = told(runs["control"], examine(runs["control"]))
    assert "Nothing found; looked for: ended by an error; " in text
    assert not as_json(runs["dpo"], [])["found"]
    run = RunDirectory.create(tmp_path / "few", {"command": "grpo"})
    assert main(["doctor", str(run.path)]) == 0
    assert "0 steps are too few to judge by; 5 are enough" in capsys.readouterr().out
    other = RunDirectory.create(tmp_path / "eval", {"command": "eval"})
    assert main(["doctor", str(other.path)]) == 0
    assert "Nothing to look for in a run of eval; give one of grpo, ppo" in capsys.readouterr().out


def test_what_is_damaged_or_not_there_is_named(tmp_path, capsys):
    assert main(["doctor", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no run (no config.yaml in it)" in capsys.readouterr().err
    assert main(["doctor"]) == 2
    assert "doctor: there is no RUN_DIR; give one or more." in capsys.readouterr().err
    run = RunDirectory.create(tmp_path / "run", {"command": "grpo"})
    run.summary_path.write_text("{")
    assert main(["doctor", str(run.path)]) == 2
    assert f"{run.summary_path} cannot be read (JSONDecodeError); mend or delete it." in capsys.readouterr().err
    run.summary_path.write_text("[]")
    assert main(["doctor", str(run.path)]) == 2
    assert "holds no values by name" in capsys.readouterr().err


def test_a_long_file_of_completions_is_read_from_its_end(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {"command": "grpo"})
    run.log_completions([{"step": i, "completion": "é" * 20} for i in range(50)])
    whole = run.completions()
    lines = run.completions_path.read_bytes().splitlines(keepends=True)
    for most in (0, 1, len(lines[-1]) - 1, len(lines[-1]), len(lines[-1]) + len(lines[-2]), 10**9):
        count = 0
        while count < 50 and sum(map(len, lines[49 - count :])) <= most:
            count += 1
        assert run.completions(most) == whole[50 - count :]


def test_what_is_no_run_among_runs_is_passed_over(tmp_path, capsys):
    run = RunDirectory.create(tmp_path / "my run", {"command": "grpo"})
    run.log_metrics(1, {"reward": 0.0})
    run.release()
    (tmp_path / "empty").mkdir()
    for command in ("doctor", "report"):
        assert main([command, str(run.path), str(tmp_path / "empty")]) == 0
        shown = capsys.readouterr()
        assert (
            shown.err == f"Passed over: {tmp_path}/empty holds no run (no config.yaml in it); give the directory "
            "that an earlier run wrote.\n"
        )
        assert command == "report" or (
            f"grpo, 1 step, no completions.jsonl to read, not ended yet (if it was killed, rlax-llm grpo --resume "
            f"'{run.path}' goes on)"
            in shown.out
            and "1 step is too few" in shown.out
        )
    assert main(["doctor", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no run (no config.yaml in it); give one of the runs in it, as {run.path}." in (
        capsys.readouterr().err
    )
