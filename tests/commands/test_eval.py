"""``rlax-llm eval``: several sets, measures by prompt, and one model against another."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlax_llm.cli.main import main
from rlax_llm.commands.eval.against import (
    Comparison,
    compare,
    is_eval,
    other_settings,
    solved_by_prompt,
    solved_in,
    verdict,
)
from rlax_llm.commands.eval.measured import Measured, entry, measures, parts_by
from rlax_llm.commands.eval.run import run_eval
from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.eval.tables import comparison_grid, mean_row, results_grid
from rlax_llm.commands.grids import in_markdown
from rlax_llm.data.rows import DataError
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.rewards.calling import RewardError
from rlax_llm.rewards.measures import Interval

LIMITS = {"model": "char", "max_prompt_tokens": 16, "max_new_tokens": 4}
REWARD = """
def has_an_eight(prompts, completions, **columns):
    return [float("8" in text) for text in completions]
"""


def measured(solved, name="sums", prompts=None) -> Measured:
    solved = np.array(solved, bool)
    count = len(solved)
    rows = [{"prompt": prompt, "level": i % 2} for i, prompt in enumerate(prompts or map(str, range(count)))]
    rewards = np.where(solved, 1.0, 0.0)
    return Measured(name, rows, solved, rewards, solved.mean(-1).round(), 3 * np.ones(solved.shape), ~solved)


def test_one_completion_has_accuracy_and_several_their_measures():
    assert list(measures(measured([[1], [0]]))) == ["accuracy"]
    found = measures(measured([[1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]))
    assert list(found) == ["avg@6", "maj@6", "pass@2", "pass@4", "pass@6"]
    assert found["avg@6"].mean == pytest.approx(1 / 6) and found["pass@6"].mean == 0.5
    assert found["pass@2"].mean == pytest.approx((1 - 6 / 15) / 2)
    assert all(low <= mean <= high for mean, low, high in found.values())


def test_a_set_in_the_summary():
    one = measured([[1, 1], [0, 1]])
    one.rewards[0] = [np.nan, 0.5]
    found = entry(one)
    assert found["prompts"] == 2 and found["completions"] == 4 and found["without_score"] == 1
    assert found["reward"]["mean"] == 0.5, "the mean over prompts of 0.5 and (0 + 1) / 2"
    assert found["mean_length"] == 3.0 and found["truncated"] == 0.25
    json.dumps(found)


def test_parts_of_a_set_are_those_of_a_column():
    parts = parts_by(measured([[1], [0], [1], [0]]), "level")
    assert [(part.name, part.solved.mean()) for part in parts] == [("sums, level 0", 1.0), ("sums, level 1", 0.0)]
    assert parts_by(parts[0], "subject") == []


def test_tables_have_a_line_for_each_set_and_a_mean():
    sets = [measured([[1, 0, 1, 1]] * 3), measured([[0, 0, 0, 0]], "a|b")]
    narrow, wide = (results_grid("m", sets, everything) for everything in (False, True))
    assert narrow.header == ["task", "prompts", "avg@4", "maj@4", "pass@4", "reward", "tokens", "cut"]
    assert "pass@2" in wide.header
    assert mean_row(sets, narrow.header)[:5] == ["mean of the tasks", "4", "0.375", "0.500", "0.500"]
    assert "| a\\|b | 1 | 0.000 [0.000, 0.793] |" in in_markdown(narrow)


def test_models_are_compared_on_the_prompts_of_both():
    """Equal prompts are told apart by their order; sets and prompts that one lacks are counted and do not decide."""
    own = [measured([[1], [1], [1], [0]], prompts=["a", "a", "b", "c"]), measured([[1]] * 4, "more")]
    other = [measured([[0, 0], [1, 1], [0, 1]], prompts=["a", "a", "c"]), measured([[0]] * 5, "more")]
    sums, more, both = compare(solved_by_prompt(own), solved_by_prompt(other))
    assert sums[:3] == ("sums", 3, 1) and (sums.better, sums.worse) == (1, 1)
    assert sums.difference.mean == pytest.approx((1 + 0 - 0.5) / 3)
    assert (more.own, more.other, more.p) == (1.0, 0.0, 0.125) and both.prompts == 7 and both.unpaired == 1
    assert "| all | 7 |" in in_markdown(comparison_grid("against", [sums, more, both]))
    with pytest.raises(ValueError, match="no prompt in common: sums here, more there"):
        compare(solved_by_prompt(own[:1]), solved_by_prompt(other[1:]))


@pytest.mark.parametrize(
    ("mean", "better", "worse", "p", "said"),
    [
        (0.2, 20, 2, 0.001, "This model is better: .* p = 0.001"),
        (-0.2, 2, 20, 0.001, "This model is worse"),
        (0.2, 20, 0, 1e-6, "This model is better: .* p < 0.0001"),
        (0.1, 3, 2, 0.9, "No difference is shown: .* p = 0.9"),
        (0.0, 0, 0, 1.0, "solve the same prompts"),
    ],
)
def test_the_verdict_is_a_sentence(mean, better, worse, p, said):
    import re

    found = Comparison("all", 30, 0, 0.5, 0.5 - mean, Interval(mean, mean - 0.1, mean + 0.1), better, worse, p)
    assert re.search(said, verdict(found))


def test_files_of_gsm8k_and_math_are_measured_beside_a_task(tmp_path, capsys):
    """They need no reward; a column has lines of its own; and the earlier eval is found equal to itself."""
    sums = [{"question": f"{n}+1=", "answer": f"It is\n#### {n + 1}", "level": n % 2} for n in range(4)]
    problems = [{"problem": f"1+{n}=", "solution": f"So \\boxed{{{n + 1}}}", "level": "easy"} for n in range(3)]
    files = []
    for name, rows in (("gsm8k", sums), ("math", problems)):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = str(tmp_path / "eval")
    given = LIMITS | {"data": [str(path) for path in files], "task": "arithmetic", "size": 4, "by": "level"}
    summary = run_eval(EvalSettings.of(**given, samples=2, temperature=1.0, out=out))
    assert [own["task"] for own in summary["tasks"]] == ["gsm8k.jsonl", "math.jsonl", "arithmetic"]
    assert [own["prompts"] for own in summary["tasks"]] == [4, 3, 4]
    assert [len(own["by"]) for own in summary["tasks"]] == [2, 1, 0]
    shown = capsys.readouterr()
    assert "gsm8k.jsonl, level 1" in shown.out and "mean of the tasks" in shown.out
    assert "GSM8K's columns; the prompt is the question" in shown.err
    directory = RunDirectory.reopen(out)
    assert len(directory.completions()) == 22 and "| math.jsonl | 3 |" in (directory.path / "summary.md").read_text()
    again = run_eval(EvalSettings.of(**given, samples=2, temperature=1.0, against=out))
    assert [one["difference"]["mean"] for one in again["against"]["tasks"]] == [0.0] * 4
    for command in ("eval", "sft"):
        assert main([command, "--model", "char", "--task", "arithmetic", "--out", out]) == 2
        assert (
            capsys.readouterr().err.splitlines()[-1]
            == f"error: {out} already holds results (summary.json); choose another --out."
        )
    assert len(directory.completions()) == 22
    assert is_eval(out) and set(solved_in(out)) == {"gsm8k.jsonl", "math.jsonl", "arithmetic"}
    assert other_settings(out, {**directory.config(), "temperature": 0.5}) == (
        f"{out} was measured with temperature 1.0, not 0.5."
    )


def test_another_model_is_measured_on_the_same_prompts(tmp_path, capsys):
    (tmp_path / "own.py").write_text(REWARD)
    given = LIMITS | {"reward": f"{tmp_path}/own.py:has_an_eight", "size": 16}
    summary = run_eval(EvalSettings.of(**given, against="char"))
    (compared,) = summary["against"]["tasks"]
    assert 0 < compared["own"] == compared["other"] < 1 and (compared["prompts"], compared["p"]) == (16, 1.0)
    assert "The two solve the same prompts." in capsys.readouterr().out


def test_what_cannot_be_compared_or_measured_is_told(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {"command": "grpo"})
    run.release()
    with pytest.raises(ValueError, match="the directory of grpo, wanted a model or the directory of an eval; give"):
        run_eval(EvalSettings.of(**LIMITS, against=str(tmp_path / "run")))
    with pytest.raises(
        ValueError, match=r"--against is nosuch, wanted a model or the directory of an eval\. .*'nosuch'"
    ):
        run_eval(EvalSettings.of(**LIMITS, against="nosuch", task="no such task either"))
    with pytest.raises(DataError, match="arithmetic is there twice; name it once"):
        run_eval(EvalSettings.of(**LIMITS, task=["arithmetic", "arithmetic"]))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    with pytest.raises(DataError, match=r"^data is given without reward, and .*rows.jsonl has none of its own"):
        run_eval(EvalSettings.of(**LIMITS, data=str(tmp_path / "rows.jsonl")))


def test_of_a_category_what_cannot_be_made_is_left_out(monkeypatch, capsys):
    """One task's prompts are in other characters than the model's; it is named, and the eval goes on."""
    monkeypatch.setattr(
        "rlax_llm.commands.eval.sets.task_names", lambda spec: ["arithmetic", "reasoning-gym:chain_sum"]
    )
    assert main(["eval", "--model", "char", "--task", "reasoning-gym:all", "--size", "4"]) == 0
    shown = capsys.readouterr()
    assert "reasoning-gym:chain_sum is left out: " in shown.err and "arithmetic" in shown.out


def test_a_column_that_no_file_has_is_told_before_anything_is_measured(tmp_path, capsys):
    files = []
    for name, row in (("plain", {}), ("level", {"level": 1})):
        files.append(str(tmp_path / f"{name}.jsonl"))
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "1+1=", "answer": "2", **row}) + "\n")
    given = LIMITS | {"reward": "exact_answer"}
    with pytest.raises(
        DataError, match=r"--by is 'levle', and not all rows of plain.jsonl, level.jsonl .*; did you mean 'l"
    ):
        run_eval(EvalSettings.of(**given, data=files, by="levle"))
    run_eval(EvalSettings.of(**given, data=files, by="level"))
    shown = capsys.readouterr()
    assert "plain.jsonl: not all rows have the column 'level'" in shown.err and "level.jsonl, level 1" in shown.out


def test_a_mistake_in_the_last_set_is_told_before_the_first_is_measured(tmp_path, capsys):
    earlier = RunDirectory.create(tmp_path / "earlier", {"command": "eval"})
    with pytest.raises(ValueError, match="whose eval has not ended"):
        earlier.log_completions([{"step": 0, "task": "sums", "row": 0, "prompt": "1+1=", "solved": True}])
        run_eval(EvalSettings.of(**LIMITS, against=str(earlier.path)))
    earlier.write_summary({"finished": True})
    with pytest.raises(ValueError, match="no prompt in common: arithmetic here, sums there"):
        run_eval(EvalSettings.of(**LIMITS, against=str(earlier.path)))
    with pytest.raises(DataError, match="task is 'arithmetc', which is unknown"):
        run_eval(EvalSettings.of(**LIMITS, task=["arithmetic", "arithmetc"], out=str(tmp_path / "none")))
    assert "accuracy" not in capsys.readouterr().out and not (tmp_path / "none").exists()


def test_what_was_measured_before_an_error_stays(tmp_path, capsys):
    (tmp_path / "own.py").write_text(REWARD.replace("    return", "    assert columns['answer'][0] == '2'\n    return"))
    for name, answer in (("one", "2"), ("two", "3")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "1+1=", "answer": answer}) + "\n")
    files, out = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")], str(tmp_path / "out")
    given = LIMITS | {"reward": f"{tmp_path}/own.py:has_an_eight", "out": out}
    with pytest.raises(RewardError, match="AssertionError"):
        run_eval(EvalSettings.of(**given, data=files))
    assert f"Not finished; what was measured is in {out}/completions.jsonl" in capsys.readouterr().out
    assert [row["task"] for row in RunDirectory.reopen(out).completions()] == ["one.jsonl"]
    run_eval(EvalSettings.of(**given, data=files[:1]))
    assert len(RunDirectory.reopen(out).completions()) == 1, "it gives way to a new one"
