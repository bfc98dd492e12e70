"""Steps of a completion by its text and by its tokens, and functions of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.rewards.calling import Reward, RewardError
from rlax_llm.rewards.steps import Step, load_step_reward, locate_steps, score_steps, split_steps

PIECES = ["a", "b.", ".", "..", " ", "c d", "e.f"]


def spelled(ids):
    return "".join(PIECES[i] for i in ids)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(range(len(PIECES))), min_size=1, max_size=12))
def test_every_character_that_is_not_blank_is_in_one_step_and_steps_end_with_their_separators(ids):
    text = spelled(ids)
    steps = locate_steps(spelled, ids, text, ".")
    ends = [step.end for step in steps]
    assert ends == sorted(set(ends)) and ends[-1] == len(ids) - 1
    for step in steps[:-1]:
        before, upto = spelled(ids[: step.end]), spelled(ids[: step.end + 1])
        assert upto.count(".") > before.count(".")  # its separator is whole with this token
    assert "".join(step.text for step in steps).replace(".", "").replace(" ", "") == text.replace(".", "").replace(
        " ", ""
    )
    if text.strip(" ."):
        assert all(step.text.strip() for step in steps)
        assert len(steps) <= len([piece for piece in text.split(".") if piece.strip()])


def test_the_last_step_ends_with_the_last_token_whatever_is_cut_off_its_text():
    ids = [0, 1, 5, 0, 3]
    assert locate_steps(spelled, ids, spelled(ids), ".") == [Step("ab", 1), Step("c da", 4)]
    assert locate_steps(spelled, ids, "ab.c", ".") == [Step("ab", 1), Step("c", 4)]  # a stop text was cut off
    assert locate_steps(spelled, [0, 6, 0], "ae.fa", ".") == [Step("ae", 1), Step("fa", 2)]
    assert locate_steps(spelled, [6, 1], "e.fb.", ".") == [Step("e", 0), Step("fb", 1)]
    assert locate_steps(lambda ids: "x.y." * len(ids), [0, 1], "x.y.x.y.", ".") == [Step("x.y", 0), Step("x.y", 1)]
    assert locate_steps(spelled, [], "", ".") == []
    assert split_steps("a\n\nb", "\n\n") == [Step("a", 3), Step("b", 4)]


def test_a_function_of_steps_gets_row_and_steps_of_its_own():
    row, steps = {"prompt": "p", "answer": 3}, ["a", "bc"]

    def read(row, steps):
        found = [row.pop("answer") * len(steps), None]
        steps.clear()
        return found

    found = score_steps(Reward("f", read), row, steps, 0)
    assert found[0] == 6 and math.isnan(found[1])
    assert row == {"prompt": "p", "answer": 3} and steps == ["a", "bc"]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "reward 'f' returned 1 scores for 2 steps of row 4."),
        (1.0, "reward 'f' returned a float, wanted a list of 2 scores."),
        ([1.0, "x"], "reward 'f' returned 'x' for step 1 of row 4, wanted a number or None."),
        ([math.inf, 1.0], "reward 'f' returned inf for step 0 of row 4, wanted a finite number, or None to abstain."),
    ],
)
def test_what_is_no_number_for_each_step_is_named(returned, said):
    with pytest.raises(RewardError) as caught:
        score_steps(Reward("f", lambda row, steps: returned), {}, ["a", "b"], 4)
    assert str(caught.value) == said


def test_a_function_is_found_by_its_name(tmp_path):
    (tmp_path / "mine.py").write_text("def good(row, steps):\n    return [len(step) for step in steps]\n")
    reward = load_step_reward(f"{tmp_path}/mine.py:good")
    assert reward.name == "good" and score_steps(reward, {}, ["ab"], 0) == [2.0]
    with pytest.raises(RewardError, match=r"step reward 'good': wanted MODULE:FUNCTION or FILE.py:FUNCTION"):
        load_step_reward("good")
