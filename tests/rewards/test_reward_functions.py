import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlax_llm.rewards.functions import exact_answer, integer_answer, last_integer

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


def test_an_answer_without_an_integer_is_an_error():
    with pytest.raises(ValueError, match="the answer 'many' holds no integer"):
        integer_answer([""], ["3"], answer=["many"])
