"""Files by their whole paths, so that a run goes on from any directory."""

import pytest

from rlax_llm.cli.configuration import parse
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.places import whole_paths
from rlax_llm.commands.settings import as_dict
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.rewards.loading import load_rewards


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jsonl", "graded.py", "a+b.jsonl"):
        (tmp_path / name).write_text("def good(prompts, completions, **_): return [1.0] * len(prompts)\n")
    for name in ("judge", "char", "pack"):
        (tmp_path / name).mkdir()
    (tmp_path / "pack" / "inner.py").write_text("")
    return tmp_path


def test_what_is_there_gets_its_whole_path_and_what_is_not_stays(folder):
    given = {"data": "mine.jsonl", "reward_model": "./judge", "model": "char", "seed": 3, "value_model": None}
    assert whole_paths(given) == {"data": f"{folder}/mine.jsonl", "reward_model": f"{folder}/judge"}
    assert whole_paths({"data": "none.jsonl", "model": "owner/name", "reward_model": "x" * 300}) == {}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("graded.py:good", "{}/graded.py:good"),
        ("graded:good", "{}/graded.py:good"),  # a module is looked up in the working directory first
        ("exact_answer + 0.5*graded.py:good", "exact_answer + 0.5*{}/graded.py:good"),
        ("exact_answer + 0.2*format=a.*b", "exact_answer + 0.2*format=a.*b"),
        ("rlax_llm.rewards.functions:exact_answer", "rlax_llm.rewards.functions:exact_answer"),
        ("pack.inner:good", "pack.inner:good"),
    ],
)
def test_rewards_are_named_by_their_files(folder, spec, wanted):
    assert whole_paths({"reward": spec})["reward"] == wanted.format(folder)


def test_rewards_so_named_are_the_same(folder, monkeypatch):
    spec = "0.5*graded.py:good + exact_answer"
    found = whole_paths({"reward": spec})["reward"]
    monkeypatch.chdir("/")
    assert [(r.name, r.weight) for r in load_rewards(found)] == [("good", 0.5), ("exact_answer", 1.0)]


def test_a_run_goes_on_from_another_directory_and_the_same_file_in_other_words_is_no_change(folder, monkeypatch):
    config = GrpoSettings.of(data="mine.jsonl", reward="graded:good", warm_start_steps=0)
    RunDirectory.create("run", as_dict(config)).release()
    run = f"{folder}/run"
    wanted = config.changed(out=run, resume=run)
    for words in ((), ("--data", "./mine.jsonl"), ("--data", f"{folder}/mine.jsonl", "--reward", "graded.py:good")):
        assert parse(GrpoSettings, ("--resume", run, *words), "") == wanted
    monkeypatch.chdir("/")
    assert parse(GrpoSettings, ("--resume", run), "") == wanted
    with pytest.raises(ValueError, match=r"--data mine\.jsonl conflicts with the run"):
        parse(GrpoSettings, ("--resume", run, "--data", "mine.jsonl"), "")
