"""DAPO's integer answers: forms whose letters give the answer back, and rows that ask for the sum."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlax_llm.data.integers import integer_form, with_integer_answers
from rlax_llm.data.rows import DataError
from rlax_llm.data.sifting import number_rows
from rlax_llm.rewards.functions import integer_answer

WHOLE = st.integers(1, 10**6)
TEMPLATES = [
    r"{}\sqrt{{{}}}",
    r"\frac{{{}+{}\sqrt{{{}}}}}{{{}}}",
    r"{}\pi",
    r"({}-{}\pi)/{}",
    r"\sqrt{{{}}}-{}",
    r"{}*{}",
]


@given(st.integers(-(10**9), 10**9))
def test_an_integer_is_itself_however_it_is_written(n):
    latex = f"{n:,}".replace(",", r",\!")
    for written in (
        f"{n}",
        f"{n:,}",
        latex,
        f"{n:,}".replace(",", "{,}"),
        f"${n}$",
        f"\\boxed{{{n}}}",
        f" {n}. ",
        f"\\( {n} \\)",
        f"{n}.0",
        f"{n:,}".replace(",", r"\,"),
        f"{n:,}".replace(",", " "),
        f"{n:,}".replace(",", "\u202f"),
        f"-\\${-n:,}" if n < 0 else f"\\${n:,}",
    ):
        assert integer_form(written) == ("", n)


@given(st.integers(-(10**4), 10**4), WHOLE)
def test_a_fraction_is_the_sum_of_its_lowest_terms(above, below):
    """Against the greatest common divisor; and alike in every spelling."""
    common = math.gcd(above, below)
    low, high = below // common, abs(above) // common
    sign = "-" if above < 0 else ""
    wanted = ("", above // below) if low == 1 else (sign + r"\frac{m}{n}", high + low)
    a = abs(above)
    for written in (f"{sign}{a}/{below}", rf"{sign}\frac{{{a}}}{{{below}}}", rf"${sign}\dfrac{{{a}}}{{{below}}}$"):
        assert integer_form(written) == wanted


@given(st.decimals(-1000, 1000, places=3, allow_nan=False))
def test_a_decimal_is_the_fraction_that_it_is(number):
    assert integer_form(f"{number:f}") == integer_form(f"{int(number * 1000)}/1000")


@given(st.sampled_from(TEMPLATES), st.lists(WHOLE, min_size=4, max_size=4))
def test_the_letters_of_a_form_give_the_answer_back(template, numbers):
    used = numbers[: template.count("{}")]
    answer = template.format(*used)
    found = integer_form(answer)
    assert found is not None
    form, total = found
    assert total == sum(used)
    values = dict(zip("mnpqrs", map(str, used)))
    letters = r"(?<![a-z])[mnpqrs](?![a-z])"
    assert re.sub(letters, lambda letter: values[letter.group()], form).replace(r"\pi{}", r"\pi") == answer


def test_latex_without_braces_reads_as_with_them():
    assert integer_form(r"2\sqrt3") == integer_form(r"2\sqrt{3}") == (r"m\sqrt{n}", 5)
    for written in (r"\frac34", r"\frac 34", r"\frac3{4}", r"\frac{3}4", r"\frac 3 {4}"):
        assert integer_form(written) == integer_form(r"\frac{3}{4}") == (r"\frac{m}{n}", 7)
    assert integer_form(r"2+\frac1{2}") == (r"m+\frac{n}{p}", 5)


@pytest.mark.parametrize(
    "answer",
    [
        "1 1/2",
        r"3\,1/2",
        r"3\,4",
        "3{,}14",
        "3,14",
        "1.234.567",
        "None",
        "nan",
        "True",
        "1e5",
        "3 4",
        r"5\ 7/8",
        "1, 234",
        "(1,234)",
        r"\frac{10}{15}+\sqrt{2}",
        r"\frac{6}{8}\pi",
        r"2/4-\sqrt{3}",
    ]
    + ["x+1", r"\pi", "", "(1,2)", "2^{10}", "two", r"5\text{ cm}", "1/0", r"\sin{2}", "50%"],
)
def test_what_a_rule_cannot_check_has_no_form(answer):
    assert integer_form(answer) is None


def test_rows_ask_for_the_sum_and_the_reward_accepts_it():
    rows = [
        {"prompt": [{"role": "user", "content": "Area?"}], "answer": r"2\sqrt{3}", "completion": "2√3", "level": 1},
        {"prompt": [{"role": "user", "content": "Count?"}], "answer": 7, "completion": "7", "level": 2},
        {"prompt": [{"role": "user", "content": "Who?"}], "answer": "Ann", "completion": "Ann", "level": 3},
    ]
    before = json.dumps(rows)
    table = number_rows("the rows", rows).then(with_integer_answers)
    kept = list(table)
    assert [row["level"] for row in kept] == [1, 2]
    assert table.report() == "the rows: 1 of 3 rows left out: 1 because the answer 'Ann' has no integer form (row 3)"
    assert kept[0]["prompt"][0]["content"].endswith("integers m, n, in simplest terms. Give the value of m + n.")
    assert kept[1]["prompt"] == rows[1]["prompt"]
    assert integer_answer(["", ""], ["m + n = 5", "7"], answer=[row["answer"] for row in kept]) == [1.0, 1.0]
    assert all("completion" not in row for row in kept) and json.dumps(rows) == before


def test_the_question_asks_for_the_sum_where_an_answer_is_begun_and_of_text_in_parts():
    parts = [{"type": "text", "text": text} for text in ("What is 3/4 ", "of 1?")]
    question = {"role": "user", "content": parts}
    begun = {"role": "assistant", "content": "It is"}
    asked, answered = with_integer_answers([{"prompt": [question, begun], "answer": "3/4"}])[0]["prompt"]
    assert asked["content"].startswith("What is 3/4 of 1?\nThe answer has the form") and answered == begun


@pytest.mark.parametrize(
    ("answer", "total"),
    [(42.0, 42), (np.float32(42), 42), (1e22, 10**22), (0.75, 7), (["7"], 7), ("12 000", 12000), (r"\$32,348", 32348)]
    + [(None, None), (math.nan, None), (True, None), ("N/A", None), ("", None), (["4", "5"], None), ({"a": 1}, None)],
)
def test_answers_of_any_type_are_read_or_left_out(answer, total):
    rows = [{"prompt": "?", "answer": 1}, {"prompt": "?", "answer": answer}]
    kept = number_rows("it", rows).then(with_integer_answers)
    left_out = len(kept.left_out)
    assert ([row["answer"] for row in kept], left_out) == (([1], 1) if total is None else ([1, total], 0))


def test_mistakes_are_told():
    with pytest.raises(DataError, match="the rows, row 1: no column 'answer', which integer_answers reads"):
        number_rows("the rows", [{"prompt": "1"}]).then(with_integer_answers)
    with pytest.raises(DataError, match="the rows, row 1: the answer 'x' has no integer form"):
        number_rows("the rows", [{"prompt": "1", "answer": "x"}]).then(with_integer_answers)
