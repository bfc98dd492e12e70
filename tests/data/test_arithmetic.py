import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.data.arithmetic import ALPHABET, Problems, digit_rows, word_rows
from rlax_llm.data.rows import DataError
from rlax_llm.rewards.functions import integer_answer


def problem(prompt):
    """Operator if it can be told, and operands without order."""
    text = prompt if isinstance(prompt, str) else prompt[0]["content"]
    return tuple(sorted(map(int, re.findall(r"\d+", text)))), re.sub(r"[\d=]", "", text) if isinstance(
        prompt, str
    ) else ""


@settings(max_examples=30)
@given(st.integers(0, 3), st.integers(1, 12), st.sampled_from(["+", "-", "*", "+-", "+-*"]), st.integers(0, 9))
def test_a_small_space_is_used_whole_and_split_by_problem(smallest, span, operators, seed):
    problems = Problems(smallest, smallest + span, operators)
    train, held_out = digit_rows(problems, 2, seed)
    everything = {
        f"{a}{operator}{b}="
        for operator in operators
        for a in range(smallest, smallest + span + 1)
        for b in range(smallest, smallest + span + 1)
        if operator != "-" or a >= b
    }
    prompts = [row["prompt"] for row in train + held_out]
    assert len(prompts) == len(set(prompts))
    assert set(prompts) <= everything
    assert len(everything) - len(prompts) <= 1  # the other order of the last problem held out
    assert not {problem(row["prompt"]) for row in train} & {problem(row["prompt"]) for row in held_out}
    for row in train + held_out:
        assert row["answer"] == row["completion"] == str(eval(row["prompt"][:-1]))
        assert set(row["prompt"] + row["completion"]) <= set(ALPHABET)


@pytest.mark.parametrize("rows", [digit_rows, word_rows])
def test_a_large_space_is_sampled_without_repeats_and_split_by_problem(rows):
    train, held_out = rows(Problems(0, 10**9, "+*", most=2000), 100, 3)
    assert len(held_out) == 100
    assert 1800 <= len(train) <= 1900
    trained, kept = ({problem(row["prompt"]) for row in side} for side in (train, held_out))
    assert not trained & kept
    assert (train, held_out) == rows(Problems(0, 10**9, "+*", most=2000), 100, 3)
    assert held_out != rows(Problems(0, 10**9, "+*", most=2000), 100, 4)[1]


def test_words_ask_one_exact_problem_in_several_wordings():
    train, held_out = word_rows(Problems(2, 30, "+"), 50, 0)
    assert len({re.sub(r"\d+", "N", row["prompt"][0]["content"]) for row in train}) >= 4
    assert not {problem(row["prompt"])[0] for row in train} & {problem(row["prompt"])[0] for row in held_out}
    for row in train:
        assert [message["role"] for message in row["prompt"]] == ["user"]
        assert sum(problem(row["prompt"])[0]) == int(row["answer"])
    answers = [row["answer"] for row in train]
    assert integer_answer([], [row["completion"] for row in train], answer=answers) == [1.0] * len(train)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"largest": 0}, "operands from 0 to 0, wanted whole numbers, the first 0 or more and the second above it."),
        (
            {"smallest": -1},
            "operands from -1 to 99, wanted whole numbers, the first 0 or more and the second above it.",
        ),
        (
            {"largest": 1.5},
            "operands from 0 to 1.5, wanted whole numbers, the first 0 or more and the second above it.",
        ),
        ({"operators": "+/"}, "operators are '+/', wanted one or more of +-*."),
        ({"operators": ""}, "operators are '', wanted one or more of +-*."),
        ({"largest": 10**9 + 1}, "largest is 1000000001, wanted at most 1000000000."),
        ({"most": 3}, "most is 3, wanted at least 4."),
    ],
)
def test_problems_out_of_range_are_errors(arguments, said):
    with pytest.raises(DataError) as caught:
        Problems(**arguments)
    assert str(caught.value) == f"arithmetic: {said}"
