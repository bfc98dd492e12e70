import math
import re
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlax_llm.rewards.functions import exact_answer, format_match, integer_answer, last_integer, repetition, word_limit
from rlax_llm.rewards.loading import load_reward, unread_answers

RENDERINGS = [
    "{}",
    "{}.",
    " {}\n",
    "= {}",
    "12 + 7 = {}",
    "**{}**",
    "\\boxed{{{}}}",
    "The answer is: {}!",
    "<answer>{}</answer>",
    "{}.00",
    "first 3, then 2.5, so ({})",
]


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(RENDERINGS), st.sampled_from(["{}", "{:,}"]), st.sampled_from("-−‐")
)
def test_any_rendering_of_any_integer_is_read(number, rendering, style, minus):
    text = rendering.format(style.format(number).replace("-", minus))
    assert last_integer(text) == str(number)
    assert integer_answer([""], [text], answer=[number]) == [1.0]
    assert integer_answer([""], [text], answer=[number + 1]) == [0.0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10-3", "3"),
        ("f(x)-3", "3"),
        ("10 - 3", "3"),
        ("pages 5–9", "9"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("12345,678", "678"),
        ("1 234 567", "1234567"),
        (r"1\,000", "1000"),
        ("2.5e3", "2500"),
        ("25e-1", None),
        ("1e9999", None),
        ("6/2", None),
        ("x_2", None),
        ("2**3", None),
        ("3 km/5", None),
        ("-$5", "-5"),
        ("$1,000,000.00", "1000000"),
        ("007", "7"),
        ("-0", "0"),
        ("2.5", None),
        (".5", None),
        ("no digits", None),
        ("", None),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_the_last_number_decides(text, found):
    assert last_integer(text) == found


def test_answers_are_compared_with_texts_and_messages():
    message = [{"role": "assistant", "content": " 42 "}]
    assert integer_answer(["", ""], [message, "41"], answer=["1,042", 41]) == [0.0, 1.0]
    assert exact_answer(["", "", ""], [message, "42.", "a b"], answer=[42, "42", " a b"]) == [1.0, 0.0, 1.0]
    assert exact_answer([""], [[]], answer=["x"]) == [0.0]


@pytest.mark.parametrize(
    ("answer", "completion", "exact", "integer"),
    [
        (42.0, "42", 1.0, 1.0),
        (np.float32(42), "42", 1.0, 1.0),
        (np.int64(42), " 42\n", 1.0, 1.0),
        (Decimal("42.00"), "42", 1.0, 1.0),
        (-0.0, "0", 1.0, 1.0),
        (1e22, "10000000000000000000000", 1.0, 1.0),
        (1e22, "22", 0.0, 0.0),
        (["42"], "42", 1.0, 1.0),
        ("42", "42.0", 0.0, 1.0),
        (0.5, "0.5", 1.0, None),
        (np.float32(0.1), "0.1", 1.0, None),
        (None, "None", None, None),
        (math.nan, "nan", None, None),
        (math.inf, "inf", None, None),
        (True, "True", None, None),
        (np.False_, "0", None, None),
        ("", "", None, None),
        ("  ", "", None, None),
        ([], "", None, None),
        (["4", "5"], "4", None, None),
        ({"value": 4}, "4", None, None),
        ("N/A", "N/A", 1.0, None),
        ("many", "3", 0.0, None),
        ("3 1/2", "2", 0.0, None),
        ("1/2", "2", 0.0, None),
        ("2^{10}", "10", 0.0, None),
        ("12 000", "12,000", 0.0, 1.0),
        ("12 000", "0", 0.0, 0.0),
        (r"\$32,348", "It is 32 348.", 0.0, 1.0),
        ("10,\\!000", "10000", 0.0, 1.0),
        ("5", "1e5", 0.0, 0.0),
        ("100000", "1e5", 0.0, 1.0),
        ("5", "4 or 5", 0.0, 0.0),
        ("5", "5 or 5.0", 0.0, 1.0),
        ("2", "1/2", 0.0, 0.0),
        ("2", r"\frac{1}{2}", 0.0, 0.0),
        ("10", "2^{10}", 0.0, 0.0),
        ("7", "<answer>7</answer>", 0.0, 1.0),
        ("... so 6 * 7 = <<6*7=42>>42\n#### 42", "42", 0.0, 1.0),
    ],
)
def test_answers_of_any_type_and_completions_as_people_write_them(answer, completion, exact, integer):
    assert exact_answer([""], [completion], answer=[answer]) == [exact]
    assert integer_answer([""], [completion], answer=[answer]) == [integer]


def test_a_list_of_answers_that_cannot_be_read():
    answers = ["42", None, "many", 3.0]
    assert unread_answers(load_reward("integer_answer"), answers) == [None, "many"]
    assert unread_answers(load_reward("exact_answer"), answers) == [None]
    assert unread_answers(load_reward("math_answer"), [*answers, r"\frac{"]) == [None, r"\frac{"]
    assert unread_answers(load_reward("words=3"), answers) == []


LETTERS = st.text("ab<>/ \n", max_size=12)


@given(LETTERS, LETTERS, LETTERS)
def test_a_format_is_matched_by_the_whole_completion(before, inside, after):
    text = f"{before}<a>{inside}</a>{after}"
    message = [{"role": "assistant", "content": text}]
    expected = float(text[:3] == "<a>" and text[-4:] == "</a>")
    assert format_match("<a>.*</a>")(["", ""], [text, message]) == [expected] * 2
    assert format_match(re.escape(text))([""], [text]) == [1.0]
    assert format_match("a")([""], [f"a{inside}a"]) == [0.0]


def literal_words(text, limit):
    count = len(re.findall(r"\S+", text))
    if count <= limit:
        return 0.0
    return -1.0 if count >= 2 * limit else -(count - limit) / limit


@given(st.integers(0, 60), st.integers(1, 25), st.sampled_from([" ", "\n", " \t "]))
@example(10, 5, " ")
@example(5, 5, " ")
def test_words_beyond_the_limit_cost_their_share_of_it(count, limit, space):
    reward = word_limit(limit)
    text, longer = space.join(["w"] * count), space.join(["w"] * (count + 1))
    found, next_one = reward(["", ""], [text, longer])
    assert found == pytest.approx(literal_words(text, limit), abs=1e-12)
    assert next_one <= found
    assert reward([""], [[{"role": "assistant", "content": text}]]) == [found]


def literal_repetition(words, size):
    starts = range(len(words) - size + 1)
    again = [any(words[i : i + size] == words[j : j + size] for j in range(i)) for i in starts]
    return -sum(again) / len(starts) if len(starts) else 0.0


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5))
def test_repetition_is_minus_the_share_of_runs_that_occurred_before(words, size):
    (found,) = repetition(size)([""], [" ".join(words)])
    assert found == pytest.approx(literal_repetition(words, size), abs=1e-12)
    assert -1 < found <= 0
    assert repetition(size)([""], [" ".join(f"{word}{i}" for i, word in enumerate(words))]) == [0.0]
    if len(words) >= size:  # said twice, every run of the first time is a repeat in the second
        (twice,) = repetition(size)([""], [" ".join(words * 2)])
        runs = 2 * len(words) - size + 1
        assert twice <= -(len(words) - size + 1) / runs + 1e-12


@pytest.mark.parametrize(
    ("factory", "argument", "said"),
    [
        (format_match, "[", "is not a regular expression"),
        (word_limit, 0, "wanted at least 1 word"),
        (repetition, 0, "wanted at least 1 word"),
    ],
)
def test_arguments_that_do_not_fit_are_errors(factory, argument, said):
    with pytest.raises(ValueError, match=said):
        factory(argument)
