from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlax_llm.weightings import fixed_length, sequence_mean, sequence_sum, token_mean

few = settings(max_examples=40, deadline=None)
ROWS, COLUMNS, LIMIT = 4, 5, 9
masks = arrays(bool, (ROWS, COLUMNS))
JITTED = {f.__name__: jax.jit(f) for f in (token_mean, sequence_mean, sequence_sum)}
JITTED["fixed_length"] = jax.jit(fixed_length(LIMIT))
each = pytest.mark.parametrize("name", JITTED)


def aggregated(name: str, mask: np.ndarray, losses: np.ndarray) -> float:
    """Each paper's aggregation of token losses, row by row; rows without a token are not there."""
    rows = [[losses[b, t] for t in range(mask.shape[1]) if mask[b, t]] for b in range(mask.shape[0])]
    rows = [row for row in rows if row]
    if not rows:
        return 0.0
    if name == "token_mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if name == "sequence_mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    if name == "sequence_sum":
        return sum(map(sum, rows)) / len(rows)
    return sum(map(sum, rows)) / (len(rows) * LIMIT)


@each
@few
@given(mask=masks, seed=st.integers(0, 99))
def test_weighted_sum_is_the_papers_aggregation(name, mask, seed):
    losses = np.random.default_rng(seed).normal(size=mask.shape)
    weights = np.asarray(JITTED[name](mask))
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights[~mask], 0)
    np.testing.assert_allclose((weights * losses).sum(), aggregated(name, mask, losses), rtol=1e-6, atol=1e-6)


@each
@few
@given(mask=masks, order=st.permutations(range(ROWS + 2)))
def test_rows_without_a_token_change_nothing(name, mask, order):
    more = np.concatenate([mask, np.zeros((2, COLUMNS), bool)])[order]
    expected = np.concatenate([JITTED[name](mask), np.zeros((2, COLUMNS))])[order]
    np.testing.assert_array_equal(JITTED[name](more), expected)


@each
@few
@given(mask=masks)
def test_columns_of_padding_change_nothing(name, mask):
    padded = np.pad(mask, ((0, 0), (1, 2)))
    np.testing.assert_array_equal(np.asarray(JITTED[name](padded))[:, 1:-2], JITTED[name](mask))


@each
def test_an_empty_batch_has_no_weight(name):
    np.testing.assert_array_equal(JITTED[name](np.zeros((ROWS, COLUMNS), bool)), np.zeros((ROWS, COLUMNS)))


@few
@given(mask=masks)
def test_means_sum_to_one(mask):
    for name in ("token_mean", "sequence_mean"):
        np.testing.assert_allclose(np.sum(JITTED[name](mask)), float(mask.any()), rtol=1e-6)


@few
@given(length=st.integers(1, COLUMNS), seed=st.integers(0, 9))
def test_sequence_mean_is_token_mean_for_equal_lengths(length, seed):
    row = np.arange(COLUMNS) < length
    mask = np.random.default_rng(seed).permuted(np.tile(row, (ROWS, 1)), axis=1)
    np.testing.assert_allclose(JITTED["sequence_mean"](mask), JITTED["token_mean"](mask), rtol=1e-6)
    np.testing.assert_allclose(fixed_length(length)(mask), JITTED["sequence_mean"](mask), rtol=1e-6)


@few
@given(mask=masks)
def test_sequence_sum_and_fixed_length_differ_by_the_constant(mask):
    total = JITTED["sequence_sum"](mask)
    np.testing.assert_allclose(JITTED["fixed_length"](mask) * LIMIT, total, rtol=1e-6)
    np.testing.assert_array_equal(fixed_length(1)(mask), total)
    rows = max(mask.any(-1).sum(), 1)
    np.testing.assert_allclose(total * rows, mask, rtol=1e-6)


def test_more_tokens_than_float32_counts_exactly():
    mask = np.ones((1, 2**24 + 1), bool)
    np.testing.assert_allclose(np.asarray(token_mean(mask))[0, :3], 1 / (2**24 + 1), rtol=1e-6)
