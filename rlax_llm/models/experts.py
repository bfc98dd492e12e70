"""Mixtures of experts: what the experts that a token is sent to make of it.

No token passes through an expert that it is not sent to: tokens are sorted by expert, and multiplied with one matrix
of theirs after the other (``sorted_products.py``). A CPU's form of that would pass every token through every expert, so
there blocks of tokens pass their expert one after the other, each the whole of it: what lies between its matrices
stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.mesh import ROWS, TENSOR, dividing, is_split, parts_along, per_device, place_along, sum_over
from rlax_llm.core.platform import platform
from rlax_llm.models.blocks import Blocks
from rlax_llm.models.config import Clamped
from rlax_llm.models.narrow import Matrix, Narrow
from rlax_llm.models.routers import Routed
from rlax_llm.models.row_blocks import Block, added_at, ladder_of, over_blocks, taken_at
from rlax_llm.models.sorted_products import sorted_product

Gated = Callable[[jax.Array, jax.Array], jax.Array]
"""``(gate, up) → hidden``, elementwise."""


class Biases(NamedTuple):
    """Of all experts: ``gate`` and ``up [E, F]``, ``down [E, D]``."""

    gate: jax.Array
    up: jax.Array
    down: jax.Array


class Weights(NamedTuple):
    """Of all experts: ``gate`` and ``up [E, D, F]``, ``down [E, F, D]``, and their biases, or None."""

    gate: Matrix | Blocks
    up: Matrix | Blocks
    down: Matrix | Blocks
    biases: Biases | None = None


def gated_by(activation: Callable[[jax.Array], jax.Array]) -> Gated:
    """``activation(gate) · up``.

    >>> gated_by(jax.nn.relu)(jnp.array([-1.0, 2.0]), jnp.array([3.0, 3.0])).tolist()
    [0.0, 6.0]
    """
    return lambda gate, up: activation(gate) * up


def clamped(numbers: Clamped) -> Gated:
    """``(up + 1) · gate · σ(slope · gate)`` of a gate that is at most a limit, and an up within it on both sides.

    Limiting case: with a slope of 1 and without a limit it is ``silu(gate) · (up + 1)``.

    Args:
        numbers: slope and limit.

    >>> clamped(Clamped(slope=1e3, limit=2.0))(jnp.array([0.0, 1.0, 9.0]), jnp.array([1.0, -9.0, 9.0])).tolist()
    [0.0, -1.0, 6.0]
    """

    def hidden(gate: jax.Array, up: jax.Array) -> jax.Array:
        below = jnp.minimum(gate, numbers.limit)
        within = jnp.clip(up, -numbers.limit, numbers.limit)
        return (within + 1) * (below * jax.nn.sigmoid(numbers.slope * below))

    return hidden


def mixture(x: jax.Array, routed: Routed, weights: Weights, gated: Gated) -> jax.Array:
    """``Σ_j w_j · down_e(gated(gate_e x, up_e x))`` over the experts ``e = e_j`` of each token.

    Limiting case: one expert, of weight 1, is a gated MLP. Under a mesh each device computes its own experts of its
    own tokens.

    Args:
        x: ``[B, S, D]``.
        routed: of all tokens, ``[B, S, k]`` each.
        weights: of all experts, in x's dtype or a wider one.
        gated: what is made of an expert's gate and its up projection.

    Returns:
        ``[B, S, D]``.

    >>> one = Weights(jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)), jnp.ones((1, 3, 2)))
    >>> routed = Routed(jnp.zeros((1, 1, 1), jnp.int32), jnp.ones((1, 1, 1)))
    >>> mixture(jnp.ones((1, 1, 2)), routed, one, jnp.multiply).tolist()
    [[[12.0, 12.0]]]
    """
    rows = dividing(x.shape, (ROWS,))
    own = dividing(weights.gate.shape[:1], (TENSOR,))
    return per_device(partial(_own_mixture, gated), (rows, rows, own), rows)(x, routed, weights)


class _Sorted(NamedTuple):
    """The choices of tokens by their expert.

    Attributes:
        choices: ``[R]``, of T tokens with k each: token · k + which of its choices.
        experts: ``[R]``, rising; the number of experts for those that are on another device.
        sizes: ``[E]``, the choices of each expert.
    """

    choices: jax.Array
    experts: jax.Array
    sizes: jax.Array


def _own_mixture(gated: Gated, x: jax.Array, routed: Routed, weights: Weights) -> jax.Array:
    flat = x.reshape(-1, x.shape[-1])
    count = weights.gate.shape[0]
    chosen = _numbered(routed.experts.reshape(-1), count)
    order = jnp.argsort(chosen, stable=True).astype(jnp.int32)
    sizes = jnp.bincount(chosen, length=count).astype(jnp.int32)
    shares = routed.weights.reshape(flat.shape[0], -1).astype(x.dtype)
    narrow = any(isinstance(matrix, Blocks | Narrow) for matrix in weights[:3])
    way = _by_products
    if not narrow and platform() == "cpu":
        # Here and not on the way back, which is traced where nobody knows of other devices' experts.
        way = partial(_by_blocks, ladder_of(shares.size, count * parts_along(TENSOR)))
    total = way(gated, _Sorted(order, chosen[order], sizes), flat, shares, weights)
    return sum_over(total, TENSOR).reshape(x.shape)


def _by_products(gated: Gated, choices: _Sorted, flat: jax.Array, shares: jax.Array, weights: Weights) -> jax.Array:
    """All rows times their gates, their ups, and their downs."""

    def projected(name: str, x: jax.Array) -> jax.Array:
        found = sorted_product(x, getattr(weights, name), choices.sizes)
        if weights.biases is None:
            return found
        # Nothing for rows of experts that are on another device.
        bias = getattr(weights.biases, name).at[choices.experts].get(mode="fill", fill_value=0)
        return (found + bias).astype(x.dtype)

    token = choices.choices // shares.shape[1]
    taken = flat[token]
    hidden = gated(projected("gate", taken), projected("up", taken))
    found = projected("down", hidden) * shares.reshape(-1)[choices.choices][:, None]
    return jnp.zeros_like(flat).at[token].add(found)


def _numbered(chosen: jax.Array, count: int) -> jax.Array:
    """The experts by their number on this device; those of others come behind all of them, and are not computed."""
    if not is_split(TENSOR):
        return chosen
    local = chosen - place_along(TENSOR) * count
    return jnp.where((local >= 0) & (local < count), local, count)


def _one_expert(gated: Gated, x: jax.Array, shares: jax.Array, own: Weights) -> jax.Array:
    """What an expert adds to its tokens. Shares come before ``down``: so their slopes need no product of it."""
    nothing = jnp.zeros((), x.dtype)
    biases = own.biases or Biases(nothing, nothing, nothing)

    def times(x: jax.Array, matrix: Any) -> jax.Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.matmul(x, matrix.astype(x.dtype), preferred_element_type=wide)

    gate = (times(x, own.gate) + biases.gate).astype(x.dtype)
    up = (times(x, own.up) + biases.up).astype(x.dtype)
    found = times(gated(gate, up) * shares[:, None], own.down)
    return (found + shares[:, None] * biases.down).astype(x.dtype)


class _Taken(NamedTuple):
    """What a block reads and where that lies; beyond its arrays where a row is not the expert's.

    Attributes:
        tokens: ``[B]``.
        choices: ``[B]``.
        read: the arguments of ``_one_expert`` behind the first.
    """

    tokens: jax.Array
    choices: jax.Array
    read: tuple[jax.Array, jax.Array, Weights]


def _taken(block: Block, choices: jax.Array, flat: jax.Array, shares: jax.Array, weights: Weights) -> _Taken:
    size = block.there.shape[0]
    choices = jnp.where(block.there, jax.lax.dynamic_slice_in_dim(choices, block.start, size), shares.size)
    tokens = choices // shares.shape[1]
    share = _rows_at(shares.reshape(-1), choices)
    return _Taken(tokens, choices, (_rows_at(flat, tokens), share, taken_at(weights, block.expert)))


def _rows_at(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="fill", fill_value=0)


_Ladder = tuple[int, ...]
_Given = tuple[jax.Array, jax.Array, Weights]
"""Tokens, shares and weights."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_blocks(
    ladder: _Ladder, gated: Gated, choices: _Sorted, flat: jax.Array, shares: jax.Array, weights: Weights
) -> jax.Array:
    """``_by_products``, a block of rows after another through the whole of its expert."""
    padded = jnp.pad(choices.choices, (0, ladder[-1]))  # so that no block ends them

    def step(total: jax.Array, block: Block) -> jax.Array:
        taken = _taken(block, padded, flat, shares, weights)
        return total.at[taken.tokens].add(_one_expert(gated, *taken.read), mode="drop")

    return over_blocks(ladder, shares.size, choices.sizes, step, jnp.zeros_like(flat))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _slopes_by_blocks(ladder: _Ladder, gated: Gated, choices: _Sorted, given: _Given, slope: jax.Array) -> _Given:
    """Those of what was given: nothing else is kept of the forward pass."""
    padded = jnp.pad(choices.choices, (0, ladder[-1]))
    flat, shares, weights = given

    def step(total: _Given, block: Block) -> _Given:
        taken = _taken(block, padded, *given)
        _, pull = jax.vjp(partial(_one_expert, gated), *taken.read)
        of_tokens, of_shares, of_weights = pull(_rows_at(slope, taken.tokens))
        return (
            total[0].at[taken.tokens].add(of_tokens, mode="drop"),
            total[1].at[taken.choices].set(of_shares, mode="drop"),
            jax.tree.map(partial(added_at, block.expert), total[2], of_weights),
        )

    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), weights)
    zeros = (jnp.zeros_like(flat), jnp.zeros_like(shares.reshape(-1)), sums)
    of_tokens, of_shares, of_weights = over_blocks(ladder, shares.size, choices.sizes, step, zeros)
    of_weights = jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), of_weights, weights)
    return of_tokens, of_shares.reshape(shares.shape), of_weights


def _forth_by_blocks(
    ladder: _Ladder, gated: Gated, choices: _Sorted, flat: jax.Array, shares: jax.Array, weights: Weights
) -> tuple[jax.Array, tuple[_Sorted, _Given]]:
    return _by_blocks(ladder, gated, choices, flat, shares, weights), (choices, (flat, shares, weights))


def _back_by_blocks(ladder: _Ladder, gated: Gated, kept: tuple[_Sorted, _Given], slope: jax.Array) -> tuple:
    return None, *_slopes_by_blocks(ladder, gated, *kept, slope)


def _forth_of_slopes(
    ladder: _Ladder, gated: Gated, choices: _Sorted, given: _Given, slope: jax.Array
) -> tuple[_Given, tuple[_Sorted, _Given, jax.Array]]:
    return _slopes_by_blocks(ladder, gated, choices, given, slope), (choices, given, slope)


def _back_of_slopes(ladder: _Ladder, gated: Gated, kept: tuple[_Sorted, _Given, jax.Array], ways: _Given) -> tuple:
    """Of products, which may be differentiated as often as one likes: Fisher products come here."""
    choices, given, slope = kept

    def slopes(given: _Given, slope: jax.Array) -> _Given:
        return jax.vjp(partial(_by_products, gated, choices), *given)[1](slope)

    return None, *jax.vjp(slopes, given, slope)[1](ways)


_by_blocks.defvjp(_forth_by_blocks, _back_by_blocks)
_slopes_by_blocks.defvjp(_forth_of_slopes, _back_of_slopes)
