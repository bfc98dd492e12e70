from __future__ import annotations

import pytest

from rlax_llm.data.encoding import DemonstrationTokens, PairTokens
from rlax_llm.data.limits import Limits, keep_prompts_within, keep_within
from rlax_llm.data.rows import DataError
from rlax_llm.data.sifting import Kept, number_rows
from rlax_llm.models.tokenizer import Tokenizer

CHARACTERS = Tokenizer.characters("01+=")
ROWS = [
    PairTokens([1] * 4, [2] * 2, [3] * 5, None, "d, line 1"),
    PairTokens([1] * 9, [2] * 2, [3] * 9, None, "d, line 2"),
    PairTokens([1] * 4, [2] * 2, [3] * 6, None, "d, line 3"),
    PairTokens([1] * 4, [2] * 7, [3] * 2, None, "d, line 4"),
    PairTokens([1] * 5, [2] * 5, [3] * 1, None, "d, line 5"),
]


def table(rows):
    return Kept("d", rows, [row.where for row in rows])


def test_rows_that_are_too_long_are_left_out_counted_and_never_cut():
    kept = table(ROWS).then(keep_within(Limits(max_prompt_tokens=5, max_new_tokens=5, vocab_size=4)))
    assert list(kept) == [ROWS[0], ROWS[4]]
    assert kept.report() == (
        "d: 3 of 5 rows left out: 2 because, as in line 3, the completion has 6 tokens, more than max_new_tokens 5 "
        "(lines 3, 4); 1 because the prompt has 9 tokens, more than max_prompt_tokens 5 (line 2)"
    )


def test_without_limits_nothing_is_left_out_and_nothing_reported():
    kept = table(ROWS).then(keep_within(Limits()))
    assert list(kept) == ROWS
    assert kept.report() == ""


def test_no_row_left_is_an_error():
    with pytest.raises(DataError) as caught:
        table(ROWS[:1]).then(keep_within(Limits(max_prompt_tokens=3)))
    assert str(caught.value) == (
        "d, line 1: the prompt has 4 tokens, more than max_prompt_tokens 3; raise it or leave the row out."
    )


@pytest.mark.parametrize(
    "row", [DemonstrationTokens([9], [1], None, "line 7"), DemonstrationTokens([1], [9], None, "line 7")]
)
def test_a_token_beyond_the_vocabulary_names_the_row(row):
    with pytest.raises(DataError) as caught:
        keep_within(Limits(vocab_size=9))([row])
    assert str(caught.value) == (
        "line 7: token 9 is beyond the model's vocabulary of 9; use the model's own tokenizer."
    )


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("1+1+1=", "the prompt has 6 tokens, more than max_prompt_tokens 5; raise it or leave the row out."),
        ("1+2=", "'2' at position 2 is not in the alphabet '01+='*"),
        ("", "the prompt has no tokens; a completion needs at least one before it."),
        ("===", "token 5 is beyond the model's vocabulary of 5; use the model's own tokenizer."),
        ([{"role": "user", "content": "1"}], "the prompt is a list of messages, wanted a string*"),
    ],
)
def test_a_prompt_that_the_model_cannot_read_is_left_out(prompt, said):
    good = {"prompt": "1+1+0"}
    kept = number_rows("d", [good, {"prompt": prompt}]).then(keep_prompts_within(CHARACTERS, Limits(5, None, 5)))
    assert (list(kept), [one.where for one in kept.left_out]) == ([good], ["d, row 2"])
    start, star, _ = said.partition("*")
    assert kept.left_out[0].said.startswith(f"d, row 2: {start}")
    assert star or kept.left_out[0].said.endswith(start)
