"""Rows that no command can use are left out before its first step; held-out rows may be none, or a file's."""

import json
from pathlib import Path

import pytest

from rlax_llm.cli.main import main
from rlax_llm.commands.data.run import run_data
from rlax_llm.commands.data.settings import DataSettings
from rlax_llm.commands.eval.sets import sources
from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.examples import Encoder, of_file, of_tables
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.learner import language_learner
from rlax_llm.commands.preference.settings import DpoSettings
from rlax_llm.commands.setup import build_model
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.commands.tasks import build_task
from rlax_llm.data.encoding import encode_pairs
from rlax_llm.data.preferences import read_pairs
from rlax_llm.data.rows import DataError
from rlax_llm.host.run_directory import RunDirectory

LONG = "1+" * 30 + "1="
PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
SHOWN = {"prompt": "1+1=", "completion": "2"}
ROWS = {
    "grpo": [{"prompt": "1+1=", "answer": "2"}, {"prompt": LONG, "answer": "31"}],
    "ppo": [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1 €", "answer": "31"}],
    "sft": [SHOWN, SHOWN | {"completion": None}],
    "dpo": [PAIR, PAIR | {"rejected": "2"}],
    "reward": [PAIR, PAIR | {"rejected": ""}],
    "kto": [SHOWN | {"label": True}, SHOWN | {"prompt": LONG, "label": True}, SHOWN | {"label": False}],
}
FLAGS = {
    "grpo": "--reward exact_answer --batch-size 1 --group-size 2 --warm-start-steps 0",
    "ppo": "--reward exact_answer --batch-size 1 --warm-start-steps 0",
}


@pytest.fixture
def file(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize("command", list(ROWS))
def test_one_prompt_is_trained_on_and_the_row_that_cannot_be_is_named(tmp_path, file, capsys, command):
    words = ["--eval-size", "0", "--steps", "1", "--max-new-tokens", "3", "--out", str(tmp_path / "run")]
    words += FLAGS.get(command, "--batch-size 2").split()
    assert main([command, "--data", file("rows.jsonl", ROWS[command]), *words]) == 0
    assert f"rows.jsonl: 1 of {len(ROWS[command])} rows left out: 1 because " in (told := capsys.readouterr().err)
    assert "(line 2)" in told
    directory = RunDirectory.reopen(tmp_path / "run")
    assert [row["step"] for row in directory.metrics()] == [0, 1]
    summary = json.loads(directory.summary_path.read_text())
    assert summary["finished"] and directory.curves_path.exists()
    assert not any("held_out" in name for found in (summary, *directory.metrics()) for name in found)


def test_held_out_rows_of_a_file_of_their_own(file):
    data = file("train.jsonl", [{"prompt": f"{n}=", "answer": str(n)} for n in range(3)])
    held_out = file("test.jsonl", [{"prompt": "0=", "answer": "0"}, {"prompt": LONG, "answer": "0"}])
    config = GrpoSettings.of(data=data, eval_data=held_out, reward="exact_answer")
    model = build_model("grpo", config.model, 0)
    task = build_task(config.task, config.sampling, config.run.seed, model)
    assert (len(task.train), [row["prompt"] for row in task.held_out]) == (3, ["0="])
    assert task.reports[0].startswith(
        f"{held_out}: 1 of 2 rows left out: 1 because the prompt has 62 tokens, more than"
    )


def test_several_files_are_read_in_order_and_what_is_left_out_is_named_with_its_file(file, capsys):
    shown = [{"prompt": f"{n}+1=", "completion": str(n + 1), "answer": str(n + 1)} for n in range(5)]
    files = [file("a.jsonl", shown[:2]), file("b.jsonl", [{"prompt": 3}, *shown[2:]])]
    said = f"{files[0]}, {files[1]}: 1 of 6 rows left out: 1 because the prompt is a number, wanted a string or a list"
    config = GrpoSettings.of(data=files, reward="exact_answer", eval_size=0)
    task = build_task(config.task, config.sampling, 0, build_model("grpo", config.model, 0))
    assert [row["prompt"] for row in task.train] == [row["prompt"] for row in shown]
    assert task.train.places[1:3] == [f"{files[0]}, line 2", f"{files[1]}, line 2"]
    assert task.reports[0].startswith(said) and task.reports[0].endswith(f" ({files[1]}, line 1)")
    config = SftSettings.of(data=files, eval_size=0)
    learner = language_learner(config.model, build_model("sft", config.model, 0), 0)
    assert [row.where for row in of_file(config.task, config.batch, 0, learner).train] == task.train.places
    assert said in capsys.readouterr().err
    with pytest.raises(DataError, match=r"b\.jsonl, line 2: not JSON"):
        (Path(files[1])).write_text('{"prompt": "1=", "completion": "1"}\n{')
        of_file(config.task, config.batch, 0, learner)


def test_held_out_pairs_of_a_file_of_their_own(file, capsys):
    pairs = [PAIR | {"prompt": f"{n}+1="} for n in range(5)]
    given = {"data": file("train.jsonl", pairs), "eval_data": file("test.jsonl", [*pairs, PAIR | {"chosen": "3"}])}
    for size, count in ((None, 5), (3, 3), (9, 5)):
        config = DpoSettings.of(**given, eval_size=size)
        learner = language_learner(config.model, build_model("dpo", config.model, 0), 0)
        split = of_tables(read_pairs, Encoder(encode_pairs, learner, config.batch), config.task, config.run.seed)
        assert (len(split.train), len(split.held_out)) == (5, count)
    assert (
        "test.jsonl: 1 of 6 rows left out: 1 because chosen and rejected are equal (line 6)" in capsys.readouterr().err
    )


def test_the_split_of_a_data_set_is_the_one_that_is_named(tmp_path):
    import datasets

    sums = [{"prompt": f"{n}+1=", "answer": str(n + 1), "completion": str(n + 1)} for n in range(3)]
    parts = {"train": sums[:1], "extra": sums}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    saved.save_to_disk(str(tmp_path / "set"))
    given = {"data": str(tmp_path / "set"), "reward": "exact_answer", "eval_size": 0}
    for split, count in (("train", 1), ("extra", 3)):
        config = GrpoSettings.of(**given, split=split)
        model = build_model("grpo", config.model, 0)
        assert len(build_task(config.task, config.sampling, 0, model).train) == count
    held = {"data": str(tmp_path / "set"), "split": "extra", "eval_split": "train"}
    for given in (held, held | {"eval_data": held["data"]}):
        config = GrpoSettings.of(**given, reward="exact_answer")
        task = build_task(config.task, config.sampling, 0, model)
        assert (len(task.train), list(task.held_out)) == (3, sums[:1])
    config = SftSettings.of(**held)
    learner = language_learner(config.model, build_model("sft", config.model, 0), 0)
    read = of_file(config.task, config.batch, 0, learner)
    assert (len(read.train), len(read.held_out)) == (3, 1)
    datasets.Dataset.from_list(sums).save_to_disk(str(tmp_path / "whole"))
    config = GrpoSettings.of(**held | {"data": str(tmp_path / "whole")}, reward="exact_answer")
    with pytest.raises(DataError, match="whole: eval_split is 'train', and this table has no splits; give held-out"):
        build_task(config.task, config.sampling, 0, model)
    shown = run_data(DataSettings.of(files=given["data"], model="char", split="extra"))
    assert [len(kept) for kept in shown] == [3]


def test_a_file_is_measured_whole(file):
    data = file(
        "test.jsonl", [{"prompt": f"{n}=", "answer": str(n)} for n in range(10)] + [{"prompt": LONG, "answer": ""}]
    )
    for size, count in ((None, 10), (256, 10), (4, 4)):
        config = EvalSettings.of(model="char", data=data, reward="exact_answer", size=size)
        model = build_model("eval", config.model, 0)
        (source,) = sources(config.task, config.sampling, config.run.seed, model)
        found = source.read(model)
        assert len(found.held_out) == count


def test_settings_of_held_out_rows_that_contradict_each_other():
    with pytest.raises(ValueError, match="sft: eval_data is given without data; give both"):
        SftSettings.of(eval_data="a.jsonl")
    with pytest.raises(ValueError, match="sft: eval_split is given without data; give both"):
        SftSettings.of(eval_split="test")
    with pytest.raises(ValueError, match="sft: eval_split is 'train', the split that is learned from; give another"):
        SftSettings.of(data="a.jsonl", eval_split="train")
    with pytest.raises(ValueError, match="sft: eval_data is given and eval_size is 0; leave one out"):
        SftSettings.of(data="a.jsonl", eval_data="a.jsonl", eval_size=0)


@pytest.mark.parametrize(("rows", "held_out"), [(1, 0), (2, 0), (30, 3)])
def test_a_small_file_holds_out_a_tenth_unless_a_number_is_given(file, capsys, rows, held_out):
    shown = [{"prompt": f"{n}+1=", "completion": str(n + 1), "answer": str(n + 1)} for n in range(rows)]
    data = file("own.jsonl", shown)
    said = "3 of 30 rows are held out, a tenth of the prompts" if held_out else "no row is held out of fewer than 10"
    config = GrpoSettings.of(data=data, reward="exact_answer")
    task = build_task(config.task, config.sampling, 0, build_model("grpo", config.model, 0))
    assert (len(task.train), len(task.held_out)) == (rows - held_out, held_out)
    assert f"{data}: {said}" in capsys.readouterr().err
    config = SftSettings.of(data=data)
    learner = language_learner(config.model, build_model("sft", config.model, 0), 0)
    split = of_file(config.task, config.batch, 0, learner)
    assert (len(split.train), len(split.held_out)) == (rows - held_out, held_out)
    assert f"{data}: {said}" in capsys.readouterr().err
    with pytest.raises(
        DataError, match=r"(leaves none to train on|only one prompt).*\(--eval-size 0\).*\(--eval-data\)"
    ):
        of_file(SftSettings.of(data=data, eval_size=rows).task, config.batch, 0, learner)
