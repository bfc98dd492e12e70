import json

import pytest

from rlax_llm.data.tasks import DataError, Held, file_task, load_task, measured_task
from rlax_llm.rewards.calling import RewardError, score


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i}", "answer": i} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "shown.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"{i}", "completion": "c"}) for i in range(5))
    )
    (tmp_path / "mine.py").write_text("def echo(prompts, completions, answer):\n    return [2.0 for _ in answer]\n")
    return tmp_path


@pytest.mark.parametrize(
    "spec", ["arithmetic", "arithmetic-words,largest=9,operators=+*", "reasoning-gym:chain_sum,max_terms=2,size=20"]
)
def test_demonstrations_of_every_built_in_task_are_solved_by_its_own_reward(spec):
    task = load_task(spec, held_out_size=10, seed=1)
    assert task.name == spec
    assert len(task.held_out) == 10
    totals = score(task.rewards, task.held_out, [row["completion"] for row in task.held_out]).total
    assert all(task.solved(float(total)) for total in totals)
    assert not any(task.solved(float(total)) for total in score(task.rewards, task.held_out, ["?"] * 10).total)


def test_settings_reach_the_task():
    task = load_task("arithmetic, largest=3, operators=*", held_out_size=1)
    assert len(task.train) in (14, 15)
    assert len(load_task("reasoning-gym:chain_sum,size=7", held_out_size=1).train) == 7
    settings = "probs=[0.25,0.25,0.25,0.25,0,0,0,0]"
    assert (
        load_task("arithmetic", held_out_size=3, seed=1).held_out != load_task("arithmetic", held_out_size=3).held_out
    )
    with pytest.raises(DataError, match="unexpected keyword argument 'probs'"):
        load_task(f"reasoning-gym:chain_sum,{settings}")


def test_a_file_comes_with_a_reward(folder):
    task = file_task("rows.jsonl", "mine.py:echo", Held(2))
    assert (task.name, len(task.train), len(task.held_out)) == ("rows.jsonl", 3, 2)
    assert score(task.rewards, task.train, ["x"] * 3).total.tolist() == [2.0] * 3


def test_a_file_with_demonstrations_needs_no_reward(folder):
    assert file_task("shown.jsonl", None, Held(2)).rewards == ()


def test_rows_are_held_out_or_not_or_those_of_another_file(folder):
    place = folder / "rows.jsonl"
    (folder / "one.jsonl").write_text(json.dumps({"prompt": "0", "answer": 0}))
    for held, train, held_out in [
        (Held(2), 3, 2),
        (Held(0), 5, 0),
        (Held(None, "one.jsonl"), 5, 1),
        (Held(4, "rows.jsonl"), 5, 4),
    ]:
        task = file_task("rows.jsonl", "mine.py:echo", held)
        assert (len(task.train), len(task.held_out)) == (train, held_out)
    assert len(file_task("one.jsonl", "mine.py:echo", Held(0)).train) == 1, "one prompt is a data set"
    assert list(task.held_out) == [row for row in task.train if row in list(task.held_out)], "in their order"
    (folder / "other.jsonl").write_text(json.dumps({"prompt": "0", "anwser": 0}))
    with pytest.raises(RewardError, match=r"missing a required argument: 'answer'.*; did you mean 'anwser'\?$"):
        file_task(place, "mine.py:echo", Held(None, "other.jsonl"))
    assert len(load_task("reasoning-gym:chain_sum,size=7", held_out_size=0).train) == 7
    assert len(load_task("arithmetic,largest=9", held_out_size=0).train) == 100


@pytest.mark.parametrize(("size", "measured"), [(None, 5), (256, 5), (2, 2)])
def test_a_file_is_measured_whole_or_as_far_as_asked_for(folder, size, measured):
    task = measured_task("rows.jsonl", "mine.py:echo", Held(size))
    assert (len(task.train), len(task.held_out)) == (0, measured)


def test_rows_that_a_run_cannot_use_are_left_out_before_it_begins(folder):
    def without_threes(rows):
        if any("3" in row["prompt"] for row in rows):
            raise DataError("a three; leave it out.")
        return rows

    task = file_task("rows.jsonl", "mine.py:echo", Held(1), without_threes)
    assert len(task.train) == 3
    assert task.reports == ("rows.jsonl: 1 of 5 rows left out: 1 because a three (line 4)",)
    task = load_task("arithmetic,largest=3", held_out_size=2, use=without_threes)
    assert not any("3" in row["prompt"] for row in (*task.train, *task.held_out))
    assert "arithmetic,largest=3, training: " in task.reports[0]


def test_a_reward_of_ones_own_replaces_that_of_a_task(folder):
    assert [reward.name for reward in load_task("arithmetic", reward="mine:echo").rewards] == ["echo"]


def test_a_sum_of_rewards_replaces_that_of_a_task(folder):
    task = load_task("arithmetic", reward="0.5*exact_answer + 0*words=1", held_out_size=5)
    assert [(reward.name, reward.weight) for reward in task.rewards] == [("exact_answer", 0.5), ("words", 0.0)]
    found = score(task.rewards, task.held_out, [row["answer"] for row in task.held_out])
    assert found.total.tolist() == [0.5] * 5
    assert found.by_name["words"].tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "arithmetc",
            "unknown; the tasks are arithmetic, arithmetic-words, reasoning-gym:NAME; did you mean 'arithmetic'?",
        ),
        (
            "reasoning-gym",
            "unknown; the tasks are arithmetic, arithmetic-words, reasoning-gym:NAME; "
            "did you mean 'reasoning-gym:NAME'?",
        ),
        ("xyz", "unknown; the tasks are arithmetic, arithmetic-words, reasoning-gym:NAME."),
        ("arithmetic,", "'' after a comma, wanted key=value."),
        ("arithmetic,9", "'9' after a comma, wanted key=value."),
        ("arithmetic,largest=2,largest=3", "largest is set twice."),
        (
            "arithmetic,larget=2",
            "no setting 'larget'; there are smallest, largest, operators, most; did you mean 'largest'?",
        ),
        ("reasoning-gym:chain_sum,seed=1", "seed is not a setting; it is the run's own seed."),
    ],
)
def test_a_specification_that_cannot_be_read_is_named(spec, said):
    with pytest.raises(DataError) as caught:
        load_task(spec)
    assert str(caught.value) in (f"task {spec!r}: {said}", f"task is {spec!r}, which is {said}")


def test_a_reward_that_does_not_fit_is_named(folder):
    with pytest.raises(RewardError, match=r"reward 'echo' does not accept .* \(none\): missing .*'answer'"):
        file_task("shown.jsonl", "mine:echo", Held(1))
    with pytest.raises(DataError, match="load_task: seed is -1, wanted 0 or more"):
        load_task("arithmetic", seed=-1)
