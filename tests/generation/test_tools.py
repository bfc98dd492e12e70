"""What ``turns.py`` says of text: calls in it, and the calculator."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.generation.turns import LARGEST_NUMBER, Tool, calculator, first_call


@given(st.lists(st.sampled_from(["<c>", "</c>", "<f>", "</f>", "x", "<", ">", "/c>"]), max_size=12).map("".join))
@settings(max_examples=200, deadline=None)
def test_more_text_never_changes_the_first_call(text):
    """What makes the cut independent of the tokens behind it."""
    tools = [Tool("c", "<c>", "</c>", str), Tool("f", "<f>", "</f>", str)]
    calls = [first_call(text[:end], tools) for end in range(len(text) + 1)]
    known = [call for call in calls if call is not None]
    assert calls == [None] * (len(calls) - len(known)) + known[:1] * len(known)


numbers = st.one_of(
    st.integers(0, 99).map(str),
    st.sampled_from(["0.5", ".25", "3.", "1e3", "2E-2"]),
    st.tuples(st.integers(0, 99), st.integers(-2, 3)).map(lambda pair: f"{pair[0]}**{pair[1]}"),
)
expressions = st.recursive(
    numbers,
    lambda parts: st.one_of(
        st.tuples(parts, st.sampled_from(["+", "-", "*", "/", "//", "%", " - "]), parts).map("".join),
        parts.map(lambda part: f"({part})"),
        parts.map(lambda part: f"-{part}"),
        parts.map(lambda part: f"+({part} )"),
    ),
    max_leaves=6,
)


@given(expressions)
@settings(max_examples=300, deadline=None)
def test_the_calculator_is_python(expression):
    answer = calculator.answer(expression)
    try:
        value = eval(expression, {"__builtins__": {}})
    except ZeroDivisionError:
        assert answer == "error: division by zero"
        return
    if isinstance(value, int):
        assert answer == str(value)
    else:
        assert float(answer) == pytest.approx(value, rel=1e-14, abs=0)


NO_ARITHMETIC = [
    "",
    "x",
    "1+",
    "()",
    "(1",
    "012",
    "2(3)",
    "1e",
    "e",
    "1.e5.e",
    "1 2",
    "3++",
    "*1",
    "True",
    "1j",
    "1,2",
    "1\n2",
    "\0",
]
NO_ARITHMETIC += ["__import__('os')", "1 if 2 else 3"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("12*3", "36"),
        (" \n2 + 2 ", "4"),
        ("6/3", "2"),
        ("-0.0", "0"),
        ("1e20*10", "1e+21"),
        ("2**332", str(2**332)),
        ("(-1)**99999999999", "-1"),
        (str(LARGEST_NUMBER), str(LARGEST_NUMBER)),
        ("2**333", "error: number too large"),
        ("9**9**9**9", "error: number too large"),
        ("1e99*1e99", "error: number too large"),
        ("1e999-1e999", "error: number too large"),
        ("10.0**400", "error: number too large"),
        ("0**-1", "error: division by zero"),
        ("1%0.0", "error: division by zero"),
        ("(-8)**0.5", "error: not a real number"),
        ("1+" * 101 + "1", "error: longer than 200 characters"),
        ("(" * 95 + "1" + ")" * 95, "1"),
        ("-" * 199 + "1", "-1"),
        *((text, "error: not an arithmetic expression") for text in NO_ARITHMETIC),
    ],
)
def test_the_calculator_at_its_edges(text, answer):
    assert calculator.answer(text) == answer
