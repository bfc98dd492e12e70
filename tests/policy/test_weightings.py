from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlax_llm.policy.weightings import fixed_length, sequence_mean, sequence_sum, token_mean, top_entropy

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


def entropies_kept(entropy: np.ndarray, mask: np.ndarray, share: float) -> np.ndarray:
    """The chosen tokens no lower than the interpolated quantile of the chosen ones, in float64."""
    chosen = [float(entropy[b, t]) for b in range(ROWS) for t in range(COLUMNS) if mask[b, t]]
    threshold = np.quantile(chosen, 1 - share) if chosen else np.inf
    return mask & (entropy >= threshold)


ENTROPY = {
    share: jax.jit(lambda entropy, mask, share=share: top_entropy(entropy, mask, share)) for share in (0.25, 1.0)
}


@pytest.mark.parametrize("share", ENTROPY)
@few
@given(mask=masks, seed=st.integers(0, 99), garbage=st.sampled_from([0.0, np.nan, np.inf]))
def test_top_entropy_keeps_the_upper_quantile_of_the_chosen(share, mask, seed, garbage):
    entropy = np.random.default_rng(seed).exponential(size=mask.shape).astype(np.float32)
    kept = ENTROPY[share](np.where(mask, entropy, garbage), mask)
    np.testing.assert_array_equal(kept, entropies_kept(entropy, mask, share))


@pytest.mark.parametrize("share", ENTROPY)
def test_top_entropy_keeps_ties_and_never_an_unknown_one(share):
    mask = np.ones((ROWS, COLUMNS), bool)
    third = np.full((ROWS, COLUMNS), 1 / 3)
    np.testing.assert_array_equal(ENTROPY[share](third, mask), mask)
    np.testing.assert_array_equal(ENTROPY[share](third, ~mask), ~mask)
    third[0, 0] = np.nan
    np.testing.assert_array_equal(ENTROPY[share](third, mask), ~np.isnan(third))


@few
@given(mask=masks, seed=st.integers(0, 99))
def test_top_entropy_in_the_denominator_or_in_the_advantages(mask, seed):
    entropy, losses = np.random.default_rng(seed).exponential(size=(2, ROWS, COLUMNS)).astype(np.float32)
    kept = np.asarray(ENTROPY[0.25](entropy, mask))
    ours = (np.asarray(JITTED["token_mean"](kept)) * losses).sum()
    peers = (np.asarray(JITTED["token_mean"](mask)) * np.where(kept, losses, 0)).sum()
    np.testing.assert_allclose(peers * mask.sum(), ours * kept.sum(), rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_outside_its_range_is_named(share):
    with pytest.raises(ValueError, match=rf"top_entropy: share is {share}, wanted a number in \(0, 1\]"):
        top_entropy(jnp.ones((2, 2)), jnp.ones((2, 2), bool), share)


def test_entropy_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"top_entropy: mask has shape \(2, 4\), entropy has \(2, 3\)"):
        top_entropy(jnp.ones((2, 3)), jnp.ones((2, 4), bool), 0.5)
