"""Mixtures of experts: which experts a token is sent to, and the products of sorted tokens with their experts' weights.

No token passes through an expert that it is not sent to. Tokens are sorted by expert; accelerators multiply them with
``jax.lax.ragged_dot``. A CPU's form of that passes every token through every expert, so there blocks of tokens pass
their expert one after the other, each the whole of it: what lies between its matrices stays in the cache. Experts of
a base in blocks of codes are multiplied by blocks of tokens everywhere: only the one that a block is sent to is
widened.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.mesh import ROWS, TENSOR, dividing, is_split, parts_along, per_device, place_along, sum_over
from rlax_llm.core.platform import platform
from rlax_llm.models.blocks import Blocks
from rlax_llm.models.config import Clamped, Experts
from rlax_llm.models.narrow import Matrix, Narrow
from rlax_llm.models.row_blocks import Block, ladder_of, over_blocks

SMALLEST, LARGEST = 8, 64  # tokens of a block of one product

Gated = Callable[[jax.Array, jax.Array], jax.Array]
"""``(gate, up) → hidden``, elementwise."""


class Routed(NamedTuple):
    """Where tokens go.

    Attributes:
        experts: ``[…, k]`` int32, the chosen ones, the likeliest first.
        weights: ``[…, k]``, of their results.
    """

    experts: jax.Array
    weights: jax.Array


class Load(NamedTuple):
    """How a router shares tokens out, in sums over them; of several layers, each array is stacked.

    Attributes:
        sent: ``[E]``, the tokens that are sent to each expert.
        probabilities: ``[E]``, of each expert.
        squares: a number, of the squared log-normalizers.
        entropies: a number, nats.
        mismatch: a number, of the shares of tokens' experts that their router would not have chosen; None where it
            chose all of them.
    """

    sent: jax.Array
    probabilities: jax.Array
    squares: jax.Array
    entropies: jax.Array
    mismatch: jax.Array | None = None


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


def route(logits: jax.Array, experts: Experts) -> Routed:
    """The k experts of the largest probability ``softmax(logits)``, weighted by it (arXiv 2101.03961).

    Limiting cases: with ``normalized`` weights, which sum to 1, it is the softmax of the k largest logits (Mixtral);
    with k = E and that, the mixture of all.

    Args:
        logits: ``[…, E]`` of the router.
        experts: how many are chosen, and whether their weights are normalized.

    >>> found = route(jnp.log(jnp.array([[1.0, 3.0, 4.0]])), Experts(3, 2, 8))
    >>> found.experts.tolist(), [f"{weight:.4f}" for weight in found.weights[0]]
    ([[2, 1]], ['0.5714', '0.4286'])
    """
    weights, chosen = jax.lax.top_k(_probabilities(logits), experts.per_token)
    return Routed(chosen.astype(jnp.int32), _shares(weights, experts))


def replay(logits: jax.Array, given: jax.Array, experts: Experts) -> Routed:
    """The experts that a sampler chose, weighted by the router's own probabilities of them (R3, arXiv 2510.11370).

    The choice has no slope; the weights have that of the router. Limiting case: ``route``, of a token that the sampler
    sent where the router would, or of which nobody says.

    Args:
        logits: ``[…, E]`` of the router.
        given: ``[…, k]``, the sampler's by their numbers plus 1, or 0s.
        experts: how many are chosen, and whether their weights are normalized.

    >>> logits, given = jnp.log(jnp.array([[1.0, 3.0, 4.0]] * 2)), jnp.array([[1, 2], [0, 0]])
    >>> found = replay(logits, given, Experts(3, 2, 8))
    >>> found.experts.tolist(), [f"{weight:.2f}" for weight in found.weights[0]]
    ([[0, 1], [2, 1]], ['0.25', '0.75'])
    """
    probabilities = _probabilities(logits)
    own = jax.lax.top_k(probabilities, experts.per_token)[1]
    chosen = jnp.where(given > 0, given.astype(jnp.int32) - 1, own)
    return Routed(chosen, _shares(jnp.take_along_axis(probabilities, chosen, -1), experts))


def _probabilities(logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), -1)


def _shares(probabilities: jax.Array, experts: Experts) -> jax.Array:
    """The weights of chosen experts."""
    return probabilities / probabilities.sum(-1, keepdims=True) if experts.normalized else probabilities


def load_of(logits: jax.Array, routed: Routed, counted: jax.Array) -> Load:
    """How tokens are shared out: sums over them.

    Args:
        logits: ``[…, E]`` of the router.
        routed: where its tokens go.
        counted: ``[…]``, how often each token counts, 0 for none.

    >>> logits = jnp.zeros((3, 4))
    >>> load = load_of(logits, route(logits, Experts(4, 1, 8)), jnp.array([1.0, 1.0, 0.0]))
    >>> load.sent.tolist(), load.probabilities.tolist()
    ([2.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5])
    """
    log_probabilities, normalizer = _log_softmax(logits)
    probabilities = jnp.exp(log_probabilities)
    places = (routed.experts[..., None] == jnp.arange(logits.shape[-1])).sum(-2)
    axes = tuple(range(counted.ndim))
    # A padded token may hold anything, and 0 · inf would be no number.
    there, weight = counted > 0, counted[..., None]
    return Load(
        sent=(places * weight).sum(axes),
        probabilities=jnp.where(there[..., None], probabilities * weight, 0.0).sum(axes),
        squares=jnp.where(there, jnp.square(normalizer) * counted, 0.0).sum(),
        entropies=-jnp.where(there, (probabilities * log_probabilities).sum(-1) * counted, 0.0).sum(),
    )


def mismatch_of(logits: jax.Array, routed: Routed, counted: jax.Array) -> jax.Array:
    """The share of a token's experts that its router would not have chosen, summed over tokens.

    Limiting case: 0 of ``route``.

    Args:
        logits: ``[…, E]`` of the router.
        routed: where its tokens go.
        counted: ``[…]``, how often each token counts, 0 for none.

    >>> logits, sent = jnp.log(jnp.array([[1.0, 3.0, 4.0]] * 2)), jnp.array([[0, 1], [1, 2]])
    >>> float(mismatch_of(logits, Routed(sent, jnp.ones((2, 2))), jnp.ones(2)))
    0.5
    """
    own = jax.lax.top_k(logits, routed.experts.shape[-1])[1]
    chosen = (routed.experts[..., :, None] == own[..., None, :]).any(-1)
    return ((1.0 - chosen.mean(-1)) * counted).sum()


def _log_softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    normalizer = jax.nn.logsumexp(wide, -1)
    return wide - normalizer[..., None], normalizer


def balance_loss(sent: jax.Array, probabilities: jax.Array) -> jax.Array:
    """``E · Σ_e f_e · P_e``, the load-balancing loss of a router (arXiv 2101.03961, eq. 4).

    The gradient is that of P: what most tokens are sent to becomes less likely. Limiting case: k, where all experts
    have alike.

    Args:
        sent: f, ``[E]``, the share of the tokens that each expert has; they sum to k, the experts of a token.
        probabilities: P, ``[E]``, the mean probability of each.

    >>> float(balance_loss(jnp.full(4, 0.5), jnp.full(4, 0.25))), float(balance_loss(jnp.eye(4)[0], jnp.eye(4)[0]))
    (2.0, 4.0)
    """
    return sent.shape[-1] * (jax.lax.stop_gradient(sent) * probabilities).sum()


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
    return _Taken(tokens, choices, (_rows_at(flat, tokens), share, _at(weights, block.expert)))


def _rows_at(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="fill", fill_value=0)


def _at(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)


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
            jax.tree.map(partial(_add_at, block.expert), total[2], of_weights),
        )

    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), weights)
    zeros = (jnp.zeros_like(flat), jnp.zeros_like(shares.reshape(-1)), sums)
    of_tokens, of_shares, of_weights = over_blocks(ladder, shares.size, choices.sizes, step, zeros)
    of_weights = jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), of_weights, weights)
    return of_tokens, of_shares.reshape(shares.shape), of_weights


def _add_at(index: jax.Array, total: jax.Array, added: jax.Array) -> jax.Array:
    so_far = jax.lax.dynamic_index_in_dim(total, index, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(total, so_far + added, index, 0)


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


def sorted_product(x: jax.Array, weights: Matrix | Blocks, sizes: jax.Array) -> jax.Array:
    """``x[n] · weights[e(n)]`` of rows that are sorted by expert; zeros for rows beyond the last expert's.

    Limiting case: one expert is a matrix product.

    Args:
        x: ``[R, D]``, the first ``sizes[0]`` rows of expert 0, then those of expert 1, and so on.
        weights: ``[E, D, F]``; a wider one is rounded to x's dtype here. A ``Narrow`` one, with a scale for each
            output of an expert, has no derivative: it is a sampler's. One in ``Blocks`` has none of its own, and x has:
            an expert is widened where a block of its rows is multiplied, on the way forth and again on the way back.
        sizes: ``[E]`` int32.

    Returns:
        ``[R, F]`` in x's dtype.

    >>> weights = jnp.arange(2.0)[:, None, None] + jnp.ones((2, 1, 1))
    >>> sorted_product(jnp.ones((4, 1)), weights, jnp.array([1, 2])).tolist()
    [[1.0], [2.0], [2.0], [0.0]]
    """
    rows = block_of(x.shape[0], weights.shape[0])
    if isinstance(weights, Blocks):
        return _blocks_product(rows, x, weights, sizes)
    block = rows if platform() == "cpu" else None
    if isinstance(weights, Narrow):
        found = _rows_times(block, x, weights.values, sizes, False)
        return (found * weights.scales[_experts_of(x.shape[0], sizes), 0]).astype(x.dtype)
    return _product(block, x, weights.astype(x.dtype), sizes)


def _experts_of(rows: int, sizes: jax.Array) -> jax.Array:
    """``[R]``, of each row; the last one's beyond it."""
    found = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(rows), side="right")
    return jnp.minimum(found, sizes.shape[0] - 1)


def block_of(rows: int, experts: int) -> int:
    """Rows of a block: about half of what an expert has, so that little is padding.

    >>> block_of(8_192, 64), block_of(64, 64)
    (64, 8)
    """
    share = max(rows // (2 * experts), 1)
    return int(np.clip(1 << (share.bit_length() - 1), SMALLEST, LARGEST))


def _padded(x: jax.Array, block: int) -> jax.Array:
    """With rows behind the last, so that no block ends the array."""
    return jnp.pad(x, ((0, block), (0, 0)))


def _ragged(x: jax.Array, other: jax.Array, sizes: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """An accelerator's product of rows that are sorted by expert, with a factor of each expert or with other rows.

    The rows of a factor are contracted, or its columns; where both are rows, those of each expert among themselves.
    """
    groups = [] if contracted[0] == 0 else [0]
    axes = (((contracted[0],), (contracted[1],)), ((), ()))
    numbers = jax.lax.RaggedDotDimensionNumbers(axes, [0], groups)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    @jax.custom_batching.sequential_vmap  # JAX maps no such product whose factors are not all mapped over
    def product(x: jax.Array, other: jax.Array, sizes: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot_general(x, other, sizes, numbers, preferred_element_type=wide)

    return product(x, other, sizes).astype(x.dtype)


def _own(x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows that are of an expert, zeros behind: what ``ragged_dot`` says of those, or adds, is not promised."""
    return jnp.where((jnp.arange(x.shape[0]) < sizes.sum())[:, None], x, 0)


# Three products that are the slopes of one another, so that each may be differentiated again, as Fisher products do:
# ragged_dot's own second derivative is not there. A block of None is an accelerator's way.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(block: int | None, x: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows ``[R, D]`` times their expert's matrix, ``[R, F]``."""
    return _rows_times(block, x, weights, sizes, False)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product_back(block: int | None, slopes: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows ``[R, F]`` times the transpose of their expert's matrix, ``[R, D]``."""
    return _rows_times(block, slopes, weights, sizes, True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _outer(block: int | None, x: jax.Array, slopes: jax.Array, sizes: jax.Array) -> jax.Array:
    """``Σ_n x[n]ᵀ · slopes[n]`` over the rows of each expert, ``[E, D, F]``."""
    if block is None:
        return _ragged(_own(x, sizes), _own(slopes, sizes), sizes, (0, 0))
    given, slopes = _padded(x, block), _padded(slopes, block)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def step(total: jax.Array, own: Block) -> jax.Array:
        read = jnp.where(own.there[:, None], jax.lax.dynamic_slice_in_dim(given, own.start, block), 0)
        slope = jax.lax.dynamic_slice_in_dim(slopes, own.start, block)
        return _add_at(own.expert, total, jnp.matmul(read.T, slope, preferred_element_type=wide))

    zeros = jnp.zeros((sizes.shape[0], x.shape[1], slopes.shape[1]), wide)
    return over_blocks((block,), x.shape[0], sizes, step, zeros).astype(x.dtype)


def _rows_times(
    block: int | None, x: jax.Array, weights: jax.Array | Blocks, sizes: jax.Array, back: bool
) -> jax.Array:
    if block is None:
        assert not isinstance(weights, Blocks)
        return _own(_ragged(_own(x, sizes), weights.astype(x.dtype), sizes, (1, 2 if back else 1)), sizes)
    given = _padded(x, block)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def step(total: jax.Array, own: Block) -> jax.Array:
        read, weight = _expert_at(jax.lax.dynamic_slice_in_dim(given, own.start, block), weights, own.expert)
        found = jnp.matmul(read, weight.T if back else weight, preferred_element_type=wide)
        # Rows of the next expert are written again by its own block.
        return jax.lax.dynamic_update_slice_in_dim(total, jnp.where(own.there[:, None], found, 0), own.start, 0)

    zeros = jnp.zeros((given.shape[0], weights.shape[-2 if back else -1]), wide)
    return over_blocks((block,), x.shape[0], sizes, step, zeros)[: x.shape[0]].astype(x.dtype)


def _expert_at(read: jax.Array, weights: jax.Array | Blocks, expert: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Some rows, and the matrix of their expert in their dtype."""
    own = _at(weights, expert)
    if not isinstance(own, Blocks):
        return read, own.astype(read.dtype)
    # Tied to the rows: a compiler would widen all experts at once, before the loop.
    read, own = jax.lax.optimization_barrier((read, own))
    return read, own.wide().astype(read.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks_product(block: int, x: jax.Array, weights: Blocks, sizes: jax.Array) -> jax.Array:
    """``_product`` with experts that are only read."""
    return _rows_times(block, x, weights, sizes, False)


def _blocks_forth(block: int, x: jax.Array, weights: Blocks, sizes: jax.Array) -> tuple[jax.Array, tuple]:
    return _blocks_product(block, x, weights, sizes), (weights, sizes)


def _blocks_back(block: int, kept: tuple[Blocks, jax.Array], slopes: jax.Array) -> tuple:
    weights, sizes = kept
    return _rows_times(block, slopes, weights, sizes, True), None, None


_blocks_product.defvjp(_blocks_forth, _blocks_back)


def _kept(product: Any) -> Callable[..., Any]:
    """The forward pass of a product, which keeps its factors."""

    def forward(block: int | None, left: jax.Array, right: jax.Array, sizes: jax.Array) -> tuple[jax.Array, tuple]:
        return product(block, left, right, sizes), (left, right, sizes)

    return forward


def _slopes_of_product(block: int | None, kept: tuple, slopes: jax.Array) -> tuple:
    x, weights, sizes = kept
    return _product_back(block, slopes, weights, sizes), _outer(block, x, slopes, sizes), None


def _slopes_of_product_back(block: int | None, kept: tuple, slopes: jax.Array) -> tuple:
    given, weights, sizes = kept
    return _product(block, slopes, weights, sizes), _outer(block, slopes, given, sizes), None


def _slopes_of_outer(block: int | None, kept: tuple, slopes: jax.Array) -> tuple:
    x, given, sizes = kept
    return _product_back(block, given, slopes, sizes), _product(block, x, slopes, sizes), None


_product.defvjp(_kept(_product), _slopes_of_product)
_product_back.defvjp(_kept(_product_back), _slopes_of_product_back)
_outer.defvjp(_kept(_outer), _slopes_of_outer)
