from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.core.divergences import reverse_kl
from rlax_llm.data.batches import demonstration_rows
from rlax_llm.data.encoding import DemonstrationTokens
from rlax_llm.data.packing import best_fit, pack
from rlax_llm.data.rows import DataError
from rlax_llm.loops.policy import supervised_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.distilling import compared_rows
from rlax_llm.models.packing import packed_log_probs
from rlax_llm.models.scoring import row_log_probs
from rlax_llm.models.segments import positions_of

V, PAD, WIDTH = 13, 0, 80
CONFIG = DecoderConfig(V, 16, 24, 2, 4, 2, 4)
hidden = jax.jit(decoder.hidden_states, static_argnums=0)


def demonstrations(seed: int = 0, size: int = 20) -> list[DemonstrationTokens]:
    """Rows of random lengths, some of several turns."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(size):
        prompt, completion = (random.integers(1, V, n).tolist() for n in random.integers(1, 30, 2))
        learned = random.integers(0, 2, len(completion)).astype(bool).tolist() if index % 3 == 0 else None
        rows.append(DemonstrationTokens(prompt, completion, learned))
    return rows


def by_row(rows, packed):
    """For each demonstration its cells in the packed batch, found by the literal order of best fit."""
    lengths = [len(row.prompt) + len(row.completion) for row in rows]
    cells = {}
    for bin_index, members in enumerate(best_fit(lengths, packed.tokens.shape[1])):
        start = 0
        for index in members:
            cells[index] = (bin_index, slice(start, start + lengths[index]))
            start += lengths[index]
    return [cells[index] for index in range(len(rows))]


def test_packed_rows_hold_every_demonstration_once():
    rows = demonstrations()
    packed = pack(rows, PAD, WIDTH)
    positions = np.asarray(positions_of(packed.valid, packed.segments))
    packed = jax.device_get(packed)
    seen = np.zeros(packed.tokens.shape, int)
    for row, cell in zip(rows, by_row(rows, packed), strict=True):
        length = len(row.prompt) + len(row.completion)
        assert packed.tokens[cell].tolist() == row.prompt + row.completion
        assert packed.mask[cell].tolist() == [False] * len(row.prompt) + (row.learned or [True] * len(row.completion))
        assert positions[cell].tolist() == list(range(length))
        assert len(set(packed.segments[cell].tolist())) == 1
        seen[cell] += 1
    np.testing.assert_array_equal(seen, packed.valid)
    np.testing.assert_array_equal(packed.segments > 0, packed.valid)
    assert packed.tokens.shape[0] < len(rows) / 2
    # Neighbors differ, so that no segment runs on into the next.
    for segments in np.asarray(packed.segments):
        own = segments[segments > 0]
        assert (np.diff(own) >= 0).all()
        assert len(set(own.tolist())) == own.max()


def test_packed_log_probs_are_those_of_rows_on_their_own():
    rows, params = demonstrations(), decoder.init_decoder(CONFIG, jax.random.key(0))
    alone, packed = demonstration_rows(rows, PAD), pack(rows, PAD, WIDTH)
    width = alone.prompt_width
    separate = jax.device_get(jax.jit(row_log_probs(CONFIG))(params, alone.completions))
    together = jax.device_get(jax.jit(packed_log_probs(CONFIG))(params, packed))
    for of_packed, of_alone in zip(together, separate, strict=True):  # log-probabilities, entropies
        for index, (row, (bin_index, cells)) in enumerate(zip(rows, by_row(rows, packed), strict=True)):
            here = of_packed[bin_index, cells][len(row.prompt) :]
            there = of_alone[index, width : width + len(row.completion)]
            np.testing.assert_allclose(here, there, atol=1e-5)
            assert np.count_nonzero(here) == sum(row.learned or [True] * len(row.completion))


def test_packed_rows_are_compared_with_another_model_as_rows_on_their_own():
    rows = demonstrations()[:4]
    params, other = (decoder.init_decoder(CONFIG, jax.random.key(seed)) for seed in (0, 1))
    alone, packed = demonstration_rows(rows, PAD).completions, pack(rows, PAD, WIDTH)
    of_packed = compared_rows(CONFIG, reverse_kl, segments=lambda rows: rows.segments)

    @jax.jit
    def found(params, other):
        log_p, log_q = (jax.nn.log_softmax(decoder.logits(CONFIG, x, *alone[:2])) for x in (params, other))
        literal = jnp.pad((jnp.exp(log_p) * (log_p - log_q)).sum(-1)[:, :-1], ((0, 0), (1, 0)))
        apart = compared_rows(CONFIG, reverse_kl)(params, other, alone)
        expected = (*row_log_probs(CONFIG)(params, alone), jnp.where(alone.mask, literal, 0.0))
        return of_packed(params, other, packed), apart, expected

    together, apart, expected = jax.device_get(found(params, other))
    for here, there, literal in zip(together, apart, expected, strict=True):  # log-probabilities, entropies, KLs
        np.testing.assert_allclose(there, literal, atol=1e-5)
        np.testing.assert_allclose(here.sum(), there.sum(), rtol=1e-5)
        assert np.count_nonzero(here) == np.count_nonzero(there) > 0


def test_a_supervised_step_on_packed_rows_is_that_on_rows_of_their_own():
    rows, params = demonstrations(1), decoder.init_decoder(CONFIG, jax.random.key(1))
    packed, alone = pack(rows, PAD, WIDTH), demonstration_rows(rows, PAD).completions
    results = []
    for log_probs, batch in ((packed_log_probs(CONFIG, remat=True), packed), (row_log_probs(CONFIG), alone)):
        init, step = supervised_loop(log_probs, optax.sgd(1.0))
        results.append(jax.device_get(jax.jit(step)(init(params), batch)))
    (state, metrics), (wanted, wanted_metrics) = results
    np.testing.assert_allclose(metrics["loss"], wanted_metrics["loss"], rtol=1e-5)
    assert metrics["grad_norm"] > 0.1
    # A step of rate 1 moves by the gradient.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), state.params, wanted.params)


def test_one_segment_is_the_plain_row():
    tokens = jnp.array([[1, 2, 3, 4, 5]])
    valid = jnp.array([[True, True, True, True, False]])
    params = decoder.init_decoder(CONFIG, jax.random.key(0))
    one = hidden(CONFIG, params, tokens, valid, segments=jnp.array([[1, 1, 1, 1, 0]]))
    np.testing.assert_allclose(one[:, :4], hidden(CONFIG, params, tokens, valid)[:, :4], atol=1e-6)


def test_a_segment_sees_no_other():
    tokens, segments = jnp.array([[1, 2, 3, 4, 5]]), jnp.array([[1, 1, 2, 2, 2]])
    params, valid = decoder.init_decoder(CONFIG, jax.random.key(0)), jnp.ones((1, 5), bool)
    one = hidden(CONFIG, params, tokens, valid, segments=segments)
    other = hidden(CONFIG, params, tokens.at[0, :2].set(jnp.array([7, 8])), valid, segments=segments)
    np.testing.assert_array_equal(one[:, 2:], other[:, 2:])
    assert (one[:, :2] != other[:, :2]).any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 30))
def test_best_fit_is_its_literal_description(lengths, width):
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = [width - sum(lengths[i] for i in members) for members in bins]
        fitting = [left for left in room if left >= lengths[index]]
        if fitting:
            # Bins that are equally full are alike; the one that was filled last is taken.
            chosen = [i for i, left in enumerate(room) if left == min(fitting)]
            bins[chosen[0]].append(index)
        else:
            bins.append([index])
    found = best_fit(lengths, width)
    assert sorted(index for members in found for index in members) == list(range(len(lengths)))
    contents = [sorted(tuple(lengths[i] for i in members) for members in packing) for packing in (found, bins)]
    assert len(contents[0]) == len(contents[1])
    assert sorted(map(sum, contents[0])) == sorted(map(sum, contents[1]))


def test_best_fit_takes_the_fullest_bin_with_room():
    assert best_fit([6, 5, 4, 3, 2], width=10) == [[0, 2], [1, 3, 4]]


def test_a_hundred_thousand_rows_fill_their_bins():
    lengths = np.random.default_rng(0).integers(10, 500, 100_000)
    bins = best_fit(lengths.tolist(), width=1024)
    assert len(bins) < 1.01 * lengths.sum() / 1024


def test_rows_that_do_not_fit_are_named():
    with pytest.raises(DataError) as caught:
        pack([DemonstrationTokens([1], [2, 3], None, "line 4")], PAD, 2)
    assert str(caught.value) == "pack: line 4 has 3 tokens, width is 2; raise it or leave the row out."
    with pytest.raises(DataError, match=r"pack: no rows, wanted at least one\."):
        pack([], PAD, 2)
