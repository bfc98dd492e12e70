from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.data.batches import demonstration_rows, labeled_rows, pair_rows, stepwise_rows
from rlax_llm.data.encoding import DemonstrationTokens, LabeledTokens, PairTokens, StepwiseTokens
from rlax_llm.data.rows import DataError
from rlax_llm.models.padding import bucket, longest, pad_left, pad_right

PAD = 0
IDS = st.lists(st.integers(1, 9), min_size=1, max_size=14)


def literal(prompt, completion, learned, widths):
    """One row, cell by cell: tokens, valid and mask."""
    before, after = widths[0] - len(prompt), widths[1] - len(completion)
    tokens = [PAD] * before + prompt + completion + [PAD] * after
    valid = [False] * before + [True] * len(prompt + completion) + [False] * after
    mask = [False] * widths[0] + learned + [False] * after
    return tokens, valid, mask


def check(completions, wanted):
    """Completions against literal rows, with what no sampler knows."""
    tokens, valid, mask = (np.array(column) for column in zip(*wanted, strict=True))
    np.testing.assert_array_equal(completions.tokens, tokens)
    np.testing.assert_array_equal(completions.valid, valid)
    np.testing.assert_array_equal(completions.mask, mask)
    assert completions.tokens.dtype == jnp.int32
    assert completions.valid.dtype == completions.mask.dtype == completions.truncated.dtype == bool
    np.testing.assert_array_equal(completions.log_probs, np.zeros(tokens.shape))
    assert completions.kept is None
    np.testing.assert_array_equal(completions.truncated, np.zeros(len(tokens), bool))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(IDS, IDS, IDS), min_size=1, max_size=6))
def test_pairs_are_two_rows_to_a_prompt(rows):
    batch = pair_rows([PairTokens(*row, margin=float(len(row[0]))) for row in rows], PAD)
    widths = bucket(longest([row[0] for row in rows])), bucket(longest([side for row in rows for side in row[1:]]))
    wanted = [literal(row[0], side, [True] * len(side), widths) for row in rows for side in row[1:]]
    check(batch.completions, wanted)
    assert batch.prompt_width == widths[0]
    assert batch.margins.tolist() == [len(row[0]) for row in rows]
    assert batch.margins.dtype == jnp.float32


def test_pairs_without_margins_have_none():
    assert pair_rows([PairTokens([1], [2], [3])], PAD).margins is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), IDS), min_size=2, max_size=8).filter(lambda r: len({p for p, _ in r}) > 1))
def test_mismatched_rows_are_of_another_prompt_of_the_whole_batch(rows):
    size = len(rows)
    batch = labeled_rows([LabeledTokens([prompt], ids, prompt == 1) for prompt, ids in rows], PAD)
    meetings = [sum(rows[b][0] == rows[b - offset][0] for b in range(size)) for offset in range(1, size)]
    offset = 1 + meetings.index(min(meetings))
    widths = 8, bucket(longest([ids for _, ids in rows]))
    wanted = []
    for b, (prompt, ids) in enumerate(rows):
        other_prompt, other = rows[b - offset]
        wanted.append(literal([prompt], ids, [True] * len(ids), widths))
        wanted.append(literal([prompt], other, [prompt != other_prompt] * len(other), widths))
    check(batch.completions, wanted)
    assert batch.desirable.tolist() == [prompt == 1 for prompt, _ in rows]


def test_pairs_come_apart_meet_no_prompt_of_their_own():
    """The rows of one prompt lie side by side, and a shift by one would pair them."""
    rows = [LabeledTokens([prompt], [5, prompt], True) for prompt in (1, 1, 2, 2, 3, 3)]
    batch = labeled_rows(rows, PAD)
    assert batch.completions.mask.any(-1).all()
    assert batch.completions.tokens[1::2, 9].tolist() == [3, 3, 1, 1, 2, 2]


def test_demonstrations_are_learned_where_they_are_the_assistants():
    rows = [
        DemonstrationTokens([1, 2], [3, 4, 5, 6], [True, False, False, True]),
        DemonstrationTokens([7], [8]),
    ]
    batch = demonstration_rows(rows, PAD, widths=(3, 4))
    wanted = [
        literal([1, 2], [3, 4, 5, 6], [True, False, False, True], (3, 4)),
        literal([7], [8], [True], (3, 4)),
    ]
    check(batch.completions, wanted)
    assert batch.prompt_width == 3
    check(demonstration_rows(rows[1:], PAD).completions, [literal([7], [8], [True], (8, 8))])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=5), st.integers(6, 9))
def test_padding_is_on_the_side_that_is_named(rows, width):
    for pad, place in ((pad_left, lambda row: [0] * (width - len(row)) + row), (pad_right, None)):
        tokens, valid = pad(rows, width, 0)
        wanted = [place(row) if place else row + [0] * (width - len(row)) for row in rows]
        np.testing.assert_array_equal(tokens, np.array(wanted).reshape(-1, width))
        np.testing.assert_array_equal(valid, tokens != 0)


def test_a_batch_of_one_width_needs_one_program():
    for length in (1, 5, 8):
        rows = [PairTokens([1] * length, [2] * length, [3])]
        assert pair_rows(rows, PAD).completions.tokens.shape == (2, 16)
        assert pair_rows(rows, PAD, widths=(32, None)).completions.tokens.shape == (2, 40)


@pytest.mark.parametrize(
    ("build", "rows", "said"),
    [
        (pair_rows, [PairTokens([1] * 3, [2], [3])], "pair_rows: 3 tokens for 2 columns of prompts"),
        (pair_rows, [PairTokens([1], [2], [3] * 4)], "pair_rows: 4 tokens for 2 columns of completions"),
        (
            demonstration_rows,
            [DemonstrationTokens([1], [2] * 3)],
            "demonstration_rows: 3 tokens for 2 columns of compl",
        ),
        (pair_rows, [], "pair_rows: no rows, wanted at least one."),
        (demonstration_rows, [], "demonstration_rows: no rows, wanted at least one."),
        (labeled_rows, [], "labeled_rows: no rows, wanted at least one."),
        (
            stepwise_rows,
            [StepwiseTokens([1], [[2], [3, 4]], [True, False])],
            "stepwise_rows: 3 tokens for 2 columns of",
        ),
    ],
)
def test_rows_that_do_not_fit_are_named(build, rows, said):
    with pytest.raises(DataError) as caught:
        build(rows, PAD, (2, 2))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_of_one_prompt_has_no_mismatched_row(size):
    batch = labeled_rows([LabeledTokens([1], [2, 3], True)] * size, PAD, (2, 2))
    assert batch.completions.tokens.shape == (2 * size, 4)
    assert batch.completions.mask[::2].sum(-1).tolist() == [2] * size
    assert not batch.completions.mask[1::2].any()
