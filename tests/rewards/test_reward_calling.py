import copy
import math

import numpy as np
import pytest

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
    ],
)
def test_what_is_not_a_score_for_each_row_is_an_error(returned, said):
    assert message(returning(returned)) == said


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
