"""Attention as a softmax under an explicit mask, and cases to compare its forms on."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from rlax_llm.models.segments import Form, Reach, Segment, places_of, positions_of, reach_of, segment


class Case(NamedTuple):
    """Rows of a group: which tokens of the shared prompt and of their own are valid, and where sequences change."""

    prompt: list[int]
    own: list[list[int]]
    sequences: list[list[int]] | None = None
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False


CASES = {
    "causal": Case([], [[1] * 7, [1] * 7]),
    "padded on the left": Case([], [[0, 0, 1, 1, 1, 1, 1], [1] * 7]),
    "padded on the right": Case([], [[1, 1, 0, 0, 0, 0, 0], [1] * 7]),
    "of one row": Case([], [[1] * 8]),
    "one query": Case([0, 1, 1], [[1], [1], [1]]),
    "with a hole": Case([0, 1, 1, 0, 1], [[1, 0, 0, 1, 1, 1], [1] * 6]),
    "after a prompt": Case([0, 0, 0, 1, 1], [[1] * 6, [1, 1, 0, 0, 0, 0], [1] * 6]),
    "packed": Case([], [[1] * 8, [1, 1, 1, 1, 1, 1, 0, 0]], [[1, 1, 1, 2, 2, 2, 2, 3], [1, 2, 2, 2, 2, 2, 0, 0]]),
    "in a window": Case([], [[1] * 8, [0, 0, 1, 1, 1, 1, 1, 1]], window=3),
    "in a window across the border": Case([0, 1, 1, 1], [[1] * 7, [1, 1, 1, 0, 0, 0, 0]], window=4),
    "packed in a window": Case([], [[1] * 9], [[1, 1, 1, 1, 1, 2, 2, 2, 2]], window=3),
    "capped": Case([0, 1, 1], [[1] * 5, [1, 1, 1, 0, 0]], soft_cap=0.7),
    "with sinks": Case([0, 1, 1], [[1] * 7, [1, 1, 1, 0, 0, 0, 0]], window=4, sinks=True),
}


def literal_mask(case: Case) -> np.ndarray:
    """``[G, S, W + S]``: a query reads the valid tokens of its sequence up to itself, the last ``window`` of them."""
    width, length = len(case.prompt), len(case.own[0])
    mask = np.zeros((len(case.own), length, width + length), bool)
    for g, own in enumerate(case.own):
        valid = case.prompt + own
        sequence = [1] * len(valid) if case.sequences is None else case.sequences[g]
        for s in range(length):
            at = width + s
            read = [t for t in range(at + 1) if valid[at] and valid[t] and sequence[t] == sequence[at]]
            mask[g, s, read[-(case.window or len(valid)) :]] = True
    return mask


def literal_attention(q, k, v, mask, soft_cap=None, sinks=None) -> np.ndarray:
    """``[G, S, H, d]`` queries, ``[G, T, K, d]`` keys and values, ``[G, S, T]`` mask; 0 for a query without keys.

    A sink ``[H]`` is a column of the softmax that is dropped.
    """
    rows, length, heads, dim = q.shape
    output = np.zeros((rows, length, heads, dim))
    for g, s, h in np.ndindex(rows, length, heads):
        kv = h // (heads // k.shape[2])
        scores = k[g, :, kv] @ q[g, s, h] / math.sqrt(dim)
        scores = scores if soft_cap is None else soft_cap * np.tanh(scores / soft_cap)
        if mask[g, s].any():
            scores = np.append(np.where(mask[g, s], scores, -np.inf), -np.inf if sinks is None else sinks[h])
            output[g, s, h] = softmax(scores)[:-1] @ v[g, :, kv]
    return output


def differentiable_attention(q, k, v, mask, soft_cap=None, sinks=None) -> jax.Array:
    """``literal_attention`` for JAX to differentiate."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = jnp.einsum("gshd,gthd->ghst", q, k) / math.sqrt(q.shape[-1])
    scores = scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(mask[:, None], scores, -1e30)
    if sinks is not None:
        scores = jnp.concatenate([scores, jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))], -1)
    weights = jax.nn.softmax(scores)[..., : k.shape[1]]
    return jnp.einsum("ghst,gthd->gshd", weights, v)


class Numbers(NamedTuple):
    """Queries ``[G, S, H, d]``; keys and values of the prompt ``[2, 1, W, K, d]`` and of rows ``[2, G, S, K, d]``;
    sinks ``[H]``, or None."""

    q: jax.Array
    prompt: jax.Array
    own: jax.Array
    sinks: jax.Array | None = None


def drawn(case: Case, heads: int = 4, key_heads: int = 2, dim: int = 6, dtype=np.float64) -> Numbers:
    random = np.random.default_rng(4)
    rows, length = np.shape(case.own)
    shapes = ((rows, length, heads, dim), (2, 1, len(case.prompt), key_heads, dim), (2, rows, length, key_heads, dim))
    numbers = Numbers(*(jnp.asarray(random.normal(size=shape) * 1.5, dtype) for shape in shapes))
    return numbers._replace(sinks=jnp.linspace(-1.5, 2.5, heads).astype(dtype)) if case.sinks else numbers


def whole_rows(numbers: Numbers) -> tuple[jax.Array, jax.Array]:
    """Keys and values of prompt and row, one after another."""
    prompt = jnp.repeat(numbers.prompt, len(numbers.q), 1)
    keys, values = jnp.concatenate([prompt, numbers.own], 2)
    return keys, values


def parts(case: Case, numbers: Numbers) -> tuple[jax.Array, Reach, list[Segment]]:
    """The arguments of ``attention``."""
    prompt, own = np.array([case.prompt], bool), np.array(case.own, bool)
    valid = jnp.concatenate([jnp.repeat(prompt, len(own), 0), own], 1)
    places = places_of(valid)
    positions = None if case.sequences is None else positions_of(valid, jnp.array(case.sequences))
    width = len(case.prompt)
    segments = [segment(*numbers.own, places[:, width:])]
    if width:
        segments.insert(0, segment(*numbers.prompt, places[:1, :width]))
    return numbers.q, reach_of(places[:, width:], positions), segments


def form_of(case: Case, **blocks: int) -> Form:
    return Form(case.window, case.soft_cap, case.sequences is not None, **blocks)


def assert_literal(case: Case, compute, numbers: Numbers, tolerance: float):
    """Values and slopes are the literal form's, where a query is valid."""
    mask = literal_mask(case)
    read = mask.any(-1)
    slope = np.random.default_rng(5).normal(size=numbers.q.shape) * read[..., None, None]
    near = partial(np.testing.assert_allclose, rtol=0, atol=tolerance)

    def slopes(form):
        def total(numbers):
            mixed = form(numbers)
            return (mixed * slope.astype(mixed.dtype)).sum(), mixed

        return jax.jit(jax.grad(total, has_aux=True))(numbers)

    found, values = slopes(compute)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), numbers)
    expected = literal_attention(wide.q, *map(np.asarray, whole_rows(wide)), mask, case.soft_cap, wide.sinks)
    near(values[read], expected[read])
    with jax.enable_x64(True):
        wanted, _ = slopes(lambda x: differentiable_attention(x.q, *whole_rows(x), mask, case.soft_cap, x.sinks))
    jax.tree.map(near, found, jax.tree.map(np.asarray, wanted))
    assert all(np.isfinite(x).all() for x in (values, *jax.tree.leaves(found)))
