"""Whole runs of the embedded model, at the smallest size that still does everything."""

import json
import shutil

import jax
import numpy as np
import pytest

from rlax_llm.commands import judging
from rlax_llm.commands.eval.run import run_eval
from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.generate.run import run_generate
from rlax_llm.commands.generate.settings import GenerateSettings
from rlax_llm.commands.grpo import run as runs
from rlax_llm.commands.grpo.phase import GroupPhase
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.learned import LearningWatch
from rlax_llm.commands.preference.settings import DpoSettings
from rlax_llm.commands.sft.run import run_sft
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.core.finite import NOT_FINITE
from rlax_llm.host import checkpoints, phase
from rlax_llm.host.checksums import checksum
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.session import Session
from rlax_llm.models.loading import load_model
from rlax_llm.rewards.calling import Reward, RewardError
from rlax_llm.rewards.functions import exact_answer

TINY = GrpoSettings.of(
    task="arithmetic,largest=9",
    batch_size=4,
    group_size=4,
    steps=4,
    warm_start_steps=3,
    eval_every=2,
    eval_size=8,
    save_every=1,
)
CLOCKS = ("seconds", "tokens_per_second")


def numbers(directory):
    """Metrics without what a clock measured."""
    rows = directory.metrics()
    return [{k: v for k, v in row.items() if not k.endswith(CLOCKS)} for row in rows]


def same_parameters(left, right):
    pair = [load_model(directory.model_path).params for directory in (left, right)]
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), *pair)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return runs.run_grpo(TINY.changed(out=str(tmp_path_factory.mktemp("run") / "whole")))


def test_run_directory_is_complete(whole):
    names = {path.name for path in whole.path.iterdir()}
    expected = {"config.yaml", "metrics.jsonl", "completions.jsonl", "summary.json", "curves.png", "model"}
    assert expected <= names
    summary = json.loads(whole.summary_path.read_text())
    wanted = {"first_reward", "last_reward", "first_held_out_accuracy", "last_held_out_accuracy", "steps", "versions"}
    assert wanted | {"rollout_tokens_per_second", "update_tokens_per_second", "wall_seconds"} <= set(summary)
    assert summary["steps"] == 4 and summary["finished"]
    assert [row["step"] for row in whole.metrics()] == [-2, -1, 0, 1, 2, 3, 4]
    first = next(row for row in whole.metrics() if row["step"] == 1)
    assert first["kl_old"] < 1e-8 and first["kl"] < 1e-8, "on the first update every ratio is 1 and every KL 0"
    completions = whole.completions()
    assert {row["step"] for row in completions} == {0, 1, 2, 3, 4}
    assert sum(row.get("held_out", False) for row in completions) == 16


def test_same_seed_same_run(whole, tmp_path):
    again = runs.run_grpo(TINY.changed(out=str(tmp_path / "again")))
    assert numbers(again) == numbers(whole)
    assert same_parameters(again, whole)
    other = runs.run_grpo(TINY.changed(seed=1, out=str(tmp_path / "other")))
    assert numbers(other) != numbers(whole)


@pytest.mark.parametrize("steps_before", [2, 3, 5])  # in the warm start, at its end, and after it
def test_resumed_equals_uninterrupted(whole, tmp_path, monkeypatch, steps_before):
    count = 0
    advance = Session.advance

    def interrupted(session, *arguments):
        nonlocal count
        advance(session, *arguments)
        count += 1
        if count == steps_before:
            import signal

            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Session, "advance", interrupted)
    out = tmp_path / "cut"
    first = runs.run_grpo(TINY.changed(out=str(out)))
    summary = json.loads(first.summary_path.read_text())
    assert summary["steps"] == steps_before - 3 and not summary["finished"]
    assert (first.model_path / "model.safetensors").is_file()
    monkeypatch.setattr(Session, "advance", advance)
    resumed = runs.run_grpo(TINY.changed(out=str(out), resume=str(out)))
    assert numbers(resumed) == numbers(whole)
    assert resumed.completions() == whole.completions()
    assert same_parameters(resumed, whole)


def test_an_error_in_a_reward_loses_nothing(tmp_path, monkeypatch):
    calls = 0
    honest = judging.score

    def failing(*arguments):
        nonlocal calls
        calls += len(arguments[1]) == TINY.rollout.rows  # evaluations have fewer rows
        if calls == 3:
            raise RewardError("reward 'mine' raised ZeroDivisionError on row 2.")
        return honest(*arguments)

    monkeypatch.setattr(judging, "score", failing)
    out = tmp_path / "failed"
    with pytest.raises(RewardError, match="row 2"):
        runs.run_grpo(TINY.changed(save_every=0, out=str(out)))
    directory = RunDirectory.reopen(out)
    assert [row["step"] for row in directory.metrics()][-1] == 2
    assert json.loads(directory.summary_path.read_text())["steps"] == 2
    assert (directory.checkpoints_path / "5").is_dir() and directory.model_path.is_dir()


def test_completions_of_the_beginning_are_written_once(whole, tmp_path, monkeypatch):
    """Where the checkpoint that a run goes on from is the warm start's last."""
    config = TINY.changed(out=str(tmp_path / "cut"))

    def fail(*_):
        raise ValueError("no luck")

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="no luck"):
        patched.setattr(GroupPhase, "step", fail)
        runs.run_grpo(config)
    resumed = runs.run_grpo(config.changed(resume=config.run.out))
    assert resumed.completions() == whole.completions() and numbers(resumed) == numbers(whole)
    assert json.loads(resumed.summary_path.read_text())["finished"]


def test_numbers_that_are_not_finite_end_the_run_and_the_last_good_model_stays(whole, tmp_path, monkeypatch):
    seen = []

    def second(metrics):
        seen.append(metrics[NOT_FINITE])
        return "gradient" if len(seen) == TINY.run.warm_start_steps + 2 else None

    monkeypatch.setattr(phase, "not_finite_part", second)
    out = tmp_path / "run"
    with pytest.raises(RunFailed, match=r"grpo: the gradient of step 2 is not finite.*is the model after step 1, the"):
        runs.run_grpo(TINY.changed(out=str(out)))
    directory = RunDirectory.reopen(out)
    summary = json.loads(directory.summary_path.read_text())
    assert (summary["steps"], summary["finished"]) == (1, False) and "not finite" in summary["stopped"]
    assert [row["step"] for row in directory.metrics()][-1] == 1
    assert checkpoints.latest(directory.checkpoints_path) == TINY.run.warm_start_steps + 1
    assert seen == [0.0] * len(seen)
    kept = checkpoints.read_manifest(directory.checkpoints_path / "4")
    sums = {entry["name"]: entry["checksum"] for entry in kept if entry["name"].startswith("params/")}
    exported = jax.tree_util.tree_leaves_with_path({"params": load_model(directory.model_path).params})
    assert sums == {checkpoints._name(path): checksum(np.asarray(leaf)) for path, leaf in exported}
    monkeypatch.undo()
    resumed = runs.run_grpo(TINY.changed(out=str(out), resume=str(out)))
    assert numbers(resumed) == numbers(whole) and same_parameters(resumed, whole)


def test_a_run_in_which_nothing_was_scored_has_failed(tmp_path, capsys):
    (tmp_path / "silent.py").write_text("def silent(prompts, completions, **_):\n    return [None] * len(prompts)\n")
    config = TINY.changed(reward=f"{tmp_path}/silent.py:silent", steps=2, out=str(tmp_path / "run"))
    with pytest.raises(RunFailed, match="grpo: no completion had a score in any of the 2 steps"):
        runs.run_grpo(config)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not summary["finished"] and "no completion had a score" in summary["stopped"]
    assert capsys.readouterr().err.count("warning: grpo: no completion of step 1 has a score") == 1
    with pytest.raises(RewardError, match="every weight is 0"):
        judging.Judge([Reward("exact_answer", exact_answer, 0.0)])


def test_a_run_whose_completions_were_all_left_out_has_failed():
    """The filter leaves nothing of cut completions: no step was an optimizer's."""

    def check(watch, rows):
        watch.check([{"step": 0}, *({"step": 1} | row for row in rows)])

    cut, unscored, whole = (
        {"reward": x, "completions/clipped_ratio": y} for x, y in ((1.0, 1), (None, 0.5), (1.0, 0.5))
    )
    filtered, plain = LearningWatch("grpo", overlong_filter=True), LearningWatch("grpo")
    with pytest.raises(RunFailed, match="grpo: every completion of all 2 steps was cut or had no score, and overlong"):
        check(filtered, [cut, unscored])
    with pytest.raises(RunFailed, match="grpo: no completion had a score in any of the 2 steps"):
        check(filtered, [unscored, unscored])
    check(filtered, [cut, whole])
    check(plain, [cut, cut])
    assert filtered.nothing(cut, 3) == "every completion of step 3 was cut, which overlong_filter leaves out"


def test_a_reference_that_is_gone_is_named(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole.path, out)
    shutil.rmtree(out / "checkpoints" / "reference")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*reference/0: the reference that this run is"):
        runs.run_grpo(TINY.changed(steps=6, out=str(out), resume=str(out)))


def test_a_checkpoint_of_the_character_model_is_trained_like_it(whole, tmp_path):
    small = DpoSettings.of(model=str(whole.model_path))
    assert small.optimizer.learning_rate == DpoSettings.of().optimizer.learning_rate
    further = GrpoSettings.of(model=str(whole.model_path))
    assert (further.rollout.batch_size, further.run.warm_start_steps) == (GrpoSettings.of().rollout.batch_size, 0)
    assert DpoSettings.of(model=str(tmp_path)).optimizer.learning_rate < small.optimizer.learning_rate


def test_an_existing_run_is_not_overwritten(whole):
    with pytest.raises(FileExistsError, match="--resume"):
        runs.run_grpo(TINY.changed(out=str(whole.path)))


@pytest.mark.parametrize("recipe", ["dr_grpo", "dapo", "rloo"])
def test_every_recipe_runs_with_micro_batches_and_truncated_sampling(tmp_path, recipe):
    config = TINY.changed(
        recipe=recipe, micro_batch_size=2, top_k=6, top_p=0.9, temperature=0.8, warm_start_steps=1, steps=1
    )
    directory = runs.run_grpo(config.changed(remat=True, out=str(tmp_path / recipe)))
    row = directory.metrics()[-1]
    assert row["kl_old"] < 1e-8 and np.isfinite(row["policy_loss"]) and row["clip_ratio/region_mean"] == 0
    assert ("kl" in row) == (recipe == "rloo")


def test_data_file_with_a_reward_of_ones_own(tmp_path, monkeypatch):
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "goal": i}) + "\n" for i in range(12)))
    (tmp_path / "shortness.py").write_text(
        "def short(prompts, completions, goal, **columns):\n"
        "    return [None if g == 0 else -float(len(c)) for c, g in zip(completions, goal)]\n"
    )
    config = GrpoSettings.of(
        data=str(data), reward=f"{tmp_path}/shortness.py:short", batch_size=2, group_size=2, steps=2,
        warm_start_steps=0, eval_size=3, out=str(tmp_path / "run"),
    )  # fmt: skip
    directory = runs.run_grpo(config)
    assert [row["step"] for row in directory.metrics()] == [0, 1, 2]
    assert directory.metrics()[-1]["reward"] <= 0


def test_warm_start_needs_answers(tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(12)))
    config = GrpoSettings.of(data=str(data), reward="exact_answer", eval_size=3, out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="--warm-start-steps 0"):
        runs.run_grpo(config)


def test_sft_then_eval_and_generate(tmp_path, capsys):
    config = SftSettings.of(
        task="arithmetic", steps=30, batch_size=32, micro_batch_size=16, eval_size=8, eval_every=0,
        out=str(tmp_path / "sft"),
    )  # fmt: skip
    directory = run_sft(config)
    rows = directory.metrics()
    assert rows[-1]["held_out_loss"] < 0.8 * rows[0]["held_out_loss"]
    model = str(directory.model_path)
    capsys.readouterr()
    summary = run_eval(EvalSettings.of(model=model, size=8, max_new_tokens=4, out=str(tmp_path / "eval")))
    assert summary["held_out_accuracy"] == rows[-1]["held_out_accuracy"], "both are greedy on the same split"
    assert len(RunDirectory.reopen(tmp_path / "eval").completions()) == 8
    assert "accuracy" in capsys.readouterr().out
    (answer,) = run_generate(GenerateSettings.of(prompt="1+2=", model=model))  # asks for more than there are positions
    assert answer == capsys.readouterr().out.rstrip("\n")
    many = run_generate(GenerateSettings.of(prompt="1+2=", model=model, max_new_tokens=4, samples=3, temperature=1.0))
    assert len(many) == 3
