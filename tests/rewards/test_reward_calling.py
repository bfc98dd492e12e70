import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlax_llm.rewards.calling import Reward, RewardError, check_columns, score

ROWS = [{"prompt": f"p{i}", "answer": str(i), "completion": "shown"} for i in range(3)]
TEXTS = ["0", "1", "x"]


def reward(function, name="f", weight=1.0):
    return Reward(name, function, weight)


def returning(value):
    return reward(lambda prompts, completions, **_: value)


def message(function_or_rewards, rows=ROWS, texts=TEXTS):
    rewards = function_or_rewards if isinstance(function_or_rewards, list) else [function_or_rewards]
    with pytest.raises(RewardError) as caught:
        score(rewards, rows, texts)
    return str(caught.value)


def test_the_total_is_the_weighted_sum_over_the_rewards_that_apply():
    first = reward(lambda prompts, completions, **_: [1, None, None], "first", weight=2.0)
    second = reward(lambda prompts, completions, **_: np.array([0.5, 3, np.nan])[:2].tolist() + [None], "second", 0.5)
    scores = score([first, second], ROWS, TEXTS)
    np.testing.assert_array_equal(scores.total, np.array([2.25, 1.5, np.nan], np.float32))
    np.testing.assert_array_equal(scores.by_name["first"], np.array([1, np.nan, np.nan], np.float32))
    assert scores.total.dtype == np.float32
    assert list(scores.by_name) == ["first", "second"]


def test_a_function_gets_lists_of_its_own_in_the_prompts_own_form():
    seen = []

    def spy(prompts, completions, **columns):
        seen.append(copy.deepcopy((prompts, completions, columns)))
        columns["answer"].clear()
        completions.clear()
        return (np.float32(1), True)

    chat = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": "p", "answer": 1, "completion": "c"}, {"prompt": chat, "answer": 2, "completion": "c"}]
    scores = score([reward(spy, "one"), reward(spy, "two")], rows, ["a", "b"])
    expected = (["p", chat], ["a", [{"role": "assistant", "content": "b"}]], {"answer": [1, 2]})
    assert seen == [expected, expected]
    assert scores.total.tolist() == [2.0, 2.0]


def test_no_rows_give_no_scores():
    assert score([returning([])], [], []).total.shape == (0,)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, 2.0], "reward 'f' returned 2 scores for 3 completions."),
        (None, "reward 'f' returned a NoneType, wanted a list of 3 scores."),
        ([0, math.nan, 1], "reward 'f' returned nan for row 1, wanted a finite number, or None to abstain."),
        ([0, 1, math.inf], "reward 'f' returned inf for row 2, wanted a finite number, or None to abstain."),
        ([0, 1, 1e39], "reward 'f' returned 1e+39 for row 2, wanted a finite number, or None to abstain."),
        (["1", 1, 1], "reward 'f' returned '1' for row 0, wanted a number or None."),
        ([1, [1], 1], "reward 'f' returned [1] for row 1, wanted a number or None."),
        (
            [1, (0, "a", "b"), 1],
            "reward 'f' returned (0, 'a', 'b') for row 1, wanted a number, None, (number, text), or "
            "{'score': number, 'feedback': text}.",
        ),
    ],
)
def test_what_is_not_a_score_for_each_row_is_an_error(returned, said):
    assert message(returning(returned)) == said


def test_what_is_said_beside_scores_is_kept_for_each_row():
    """The scores are those without it; of several functions the texts stand on lines of their own."""
    first = reward(lambda prompts, completions, **_: [(1, "fine"), 0.5, (None, None)], "first")
    second = reward(
        lambda prompts, completions, **_: [{"score": 2, "feedback": "or not"}, {"feedback": "late"}, 3], "second", 0.0
    )
    scores = score([first, second], ROWS, TEXTS)
    plain = score([reward(lambda prompts, completions, **_: [1, 0.5, None], "first")], ROWS, TEXTS)
    np.testing.assert_array_equal(scores.total, plain.total)
    np.testing.assert_array_equal(scores.by_name["second"], np.array([2, np.nan, 3], np.float32))
    assert scores.feedback == ("fine\nor not", "late", None) and plain.feedback is None
    assert scores.rows(np.array([2, 0])).feedback == (None, "fine\nor not")
    assert message(returning([(1, 2), 0, 0])) == (
        "reward 'f' returned feedback of type int for row 0, wanted a text or None."
    )


def test_an_exception_names_its_row_and_stays_in_the_chain():
    def parse(prompts, completions, **_):
        return [float(int(text)) for text in completions]

    with pytest.raises(RewardError) as caught:
        score([reward(parse)], ROWS, TEXTS)
    said = "reward 'f' raised ValueError: invalid literal for int() with base 10: 'x' on row 2."
    assert str(caught.value) == said
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_exception_on_no_single_row_says_so():
    def alone(prompts, completions, **_):
        assert len(prompts) == 1
        return [0.0]

    assert message(reward(alone)).endswith("on the whole batch, but on no single row of it.")


def test_columns_must_fit_the_function():
    said = message(reward(lambda prompts, completions: [0, 0, 0]))
    assert said == (
        "reward 'f' does not accept the columns of the data (answer): got an unexpected keyword argument 'answer'; "
        "it is called as f(prompts, completions, **columns)."
    )
    check_columns(reward(lambda prompts, completions, answer, level=0: []), ["prompt", "completion", "answer"])


def test_arguments_that_do_not_belong_together_are_errors():
    good = returning([0, 0, 0])
    assert message([]) == "score: no reward was given; give at least one."
    assert message([good, good]) == "score: two rewards are named 'f'; give each a name of its own."
    assert message(good._replace(weight=math.inf)) == "reward 'f' has weight inf, wanted a finite number."
    assert message(good, texts=["a"]) == "score: 1 completions for 3 rows; give one for each row."
    assert message(good, rows=[*ROWS[:2], {"prompt": "p"}]) == (
        "score: row 2 differs from row 0 in column 'answer'; all rows need the same."
    )
    assert message(good, rows=[{"answer": 1}], texts=["a"]) == "score: row 0 has no column 'prompt'."


@given(st.lists(st.tuples(*[st.sampled_from([None, -1.5, 0.0, 2.0])] * 3), min_size=1))
def test_a_weight_of_0_logs_and_decides_nothing(table):
    rows = [{"prompt": ""}] * len(table)
    columns = list(zip(*table))
    rewards = [
        Reward(name, lambda prompts, completions, at=at, **_: list(columns[at]), weight)
        for at, (name, weight) in enumerate([("a", 1.0), ("logged", 0.0), ("b", -2.0)])
    ]
    scores = score(rewards, rows, [""] * len(rows))
    without = score([rewards[0], rewards[2]], rows, [""] * len(rows))
    np.testing.assert_array_equal(scores.total, without.total)
    np.testing.assert_array_equal(scores.by_name["logged"], np.array(columns[1], np.float32))
    assert np.isnan(score([rewards[1]], rows, [""] * len(rows)).total).all()


def number(prompts, completions, **_):
    return [float(int(text)) for text in completions]


def test_the_rows_that_raise_are_reported_and_have_no_score():
    said = []
    second = Reward("second", lambda prompts, completions, **_: [0.5] * len(prompts))
    scores = score([reward(number), second], ROWS, ["4", "x", "6"], said.append)
    np.testing.assert_array_equal(scores.by_name["f"], np.array([4, np.nan, 6], np.float32))
    # The other reward alone would tell a right answer that could not be checked from one that could.
    np.testing.assert_array_equal(scores.total, np.array([4.5, np.nan, 6.5], np.float32))
    assert scores.failed.tolist() == [False, True, False]
    logged = score([reward(number)._replace(weight=0.0), second], ROWS, ["4", "x", "6"], [].append)
    assert logged.total.tolist() == [0.5] * 3 and not logged.failed.any()
    assert said == ["reward 'f' raised ValueError: invalid literal for int() with base 10: 'x' on row 1."]


@given(st.lists(st.sampled_from(["7", "x"]), min_size=1, max_size=8))
def test_a_row_is_scored_as_it_would_be_alone(texts):
    said = []
    rows = [{"prompt": ""}] * len(texts)
    if "7" not in texts:
        with pytest.raises(RewardError, match=rf"'x' and scored none of the rows \({len(texts)}\)\."):
            score([reward(number)], rows, texts, said.append)
    else:
        total = score([reward(number)], rows, texts, said.append).total
        assert [None if math.isnan(found) else found for found in total] == [{"7": 7}.get(text) for text in texts]
    assert [sentence.rsplit(" ", 1)[1] for sentence in said] == [f"{i}." for i, text in enumerate(texts) if text == "x"]


def test_what_is_said_survives_a_row_that_raises():
    def told(prompts, completions, **_):
        return [(float(int(text)), f"saw {text}") for text in completions]

    assert score([reward(told)], ROWS, TEXTS, [].append).feedback == ("saw 0", "saw 1", None)


def test_rows_that_only_raise_together_are_reported_and_keep_their_scores():
    def alone(prompts, completions, **_):
        if len(prompts) > 1:
            raise NotImplementedError
        return [0.5]

    said = []
    assert score([reward(alone)], ROWS, TEXTS, said.append).total.tolist() == [0.5] * 3
    assert said == ["reward 'f' raised NotImplementedError on the whole batch, but on no single row of it."]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([0.0, 1.0], "reward 'f' returned 2 scores for 1 completions."),
        ([math.nan], "reward 'f' returned nan for row 1, wanted a finite number, or None to abstain."),
    ],
)
def test_misuse_stays_an_error_row_by_row(returned, said):
    def odd(prompts, completions, **_):
        assert len(prompts) == 1
        return returned if completions == ["1"] else [0.0]

    with pytest.raises(RewardError) as caught:
        score([reward(odd)], ROWS, TEXTS, lambda reason: None)
    assert str(caught.value) == said


def test_a_reward_that_says_it_cannot_be_used_is_not_tried_again():
    calls = []

    def missing(prompts, completions, **_):
        calls.append(len(prompts))
        raise RewardError("no such package")

    with pytest.raises(RewardError, match=r"^no such package$"):
        score([reward(missing)], ROWS, TEXTS, lambda reason: None)
    assert calls == [3]
