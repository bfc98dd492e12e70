"""Drawing one token per row from logits, with the log-probability and the set of the distribution that was drawn from.

Drawing inverts the cumulative distribution in two levels (a block of the vocabulary, then a token in it): two uniform
numbers per row instead of V Gumbel variables. Top-k, top-p and min-p are thresholds on the tempered logits, found
without sorting the vocabulary; ties at the cut are kept. What was kept is handed on as a set of tokens, because a
threshold means nothing to another model: logits are defined up to a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from numbers import Integral, Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core import checks
from rlax_llm.core.arguments import describe_argument
from rlax_llm.core.keys import folded
from rlax_llm.core.logit_bias import LogitBias, bias_vector, check_logit_bias
from rlax_llm.core.mapping import map_in_cache
from rlax_llm.core.token_sets import to_bits

BLOCK = 256  # tokens; near √V for the vocabularies in use
HALVINGS = 30  # of some 13 nats: finer than float32 tells two logits apart


class Draw(NamedTuple):
    """One draw per row.

    Attributes:
        tokens: ``[B]`` int32.
        log_probs: ``[B]`` float32, nats, of the distribution drawn from.
        kept: ``[B, ceil(V/32)]`` uint32, the tokens that could be drawn, as ``token_sets.to_bits`` packs them; None
            from a sampler that never cuts.
    """

    tokens: jax.Array
    log_probs: jax.Array
    kept: jax.Array | None = None


Sampler = Callable[..., Draw]
"""``(keys [B], logits [B, V]) → Draw``: a row's draw is a function of its own key and logits.

Where a request has penalties, it is given ``penalize`` too, a function of logits to be called before the temperature.
"""
Penalize = Callable[[jax.Array], jax.Array]


def unchanged(logits: jax.Array) -> jax.Array:
    """The logits, without a penalty."""
    return logits


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """A key for each row ``[B]``: the key folded with the row's number, or the keys of rows as they are.

    A row's draws thus depend on its own key alone, and not on the rows beside it.

    Args:
        key: a typed PRNG key, or one for each row.
        rows: B.

    Raises:
        ValueError: for keys of another number of rows.

    >>> row_keys(jax.random.key(0), 3).shape, row_keys(jax.random.split(jax.random.key(0), 3), 3).shape
    ((3,), (3,))
    """
    if key.ndim == 0:
        return folded(key, np.arange(rows))
    if key.shape != (rows,):
        raise ValueError(f"key: got keys of shape {key.shape}, wanted one key, or one for each of {rows} rows.")
    return key


def chosen_keys(keys: jax.Array, places: Any) -> jax.Array:
    """Some of the keys, taken on the host: no program is compiled for each number of them.

    Args:
        keys: typed PRNG keys, of any shape.
        places: whole numbers, or what else indexes an array.

    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> bool((chosen_keys(keys, [2, 0]) == keys[jnp.array([2, 0])]).all())
    True
    """
    numbers: Any = np.asarray(jax.random.key_data(keys))
    return jax.random.wrap_key_data(numbers[places], impl=jax.random.key_impl(keys))


def greedy(
    key: jax.Array | None, logits: jax.Array, logit_bias: LogitBias = (), penalize: Penalize = unchanged
) -> Draw:
    """The most likely token, the first of ties; its log-probability is that of the full distribution.

    Limiting case: ``Categorical(temperature → 0)`` draws the same token.

    Args:
        key: not read.
        logits: ``[B, V]``.
        logit_bias: pairs of a token id and what is added to its logit; −inf bans the token.
        penalize: what penalties make of the logits behind the bias.

    >>> greedy(None, jnp.array([[0.0, 2.0, 1.0]])).tokens.tolist()
    [1]
    """
    del key
    logits = penalize(_biased("greedy", logits, logit_bias))
    tokens = jnp.argmax(logits, -1)
    log_probs = jnp.take_along_axis(logits, tokens[:, None], -1)[:, 0] - jax.nn.logsumexp(logits, -1)
    return Draw(tokens.astype(jnp.int32), log_probs)


def _biased(where: str, logits: jax.Array, logit_bias: LogitBias) -> jax.Array:
    biases = bias_vector(where, logit_bias, logits.shape[-1])
    return logits if biases is None else logits + biases


@dataclass(frozen=True)
class Categorical:
    """Draw from ``softmax((logits + bias) / temperature)``, cut to some of its likeliest tokens.

    The order is that of transformers: the bias, penalties, the temperature, ``top_k``, ``top_p`` of what that left,
    ``min_p``. Only the mass that ``top_p`` counts depends on the order of cuts (engines that take ``min_p`` first count
    less); otherwise the cuts commute, each being a threshold on the tempered logits, and the highest decides.

    Attributes:
        temperature: > 0, dimensionless.
        top_k: tokens kept, or None for all.
        top_p: mass kept, in (0, 1], of what ``top_k`` left; or None for all.
        min_p: in (0, 1]: tokens with ``p ≥ min_p · max p`` are kept (arXiv 2407.01082); or None for all.
        logit_bias: pairs of a token id and what is added to its logit, nats before the temperature; −inf bans the
            token. The learner takes the same temperature and bias.

    >>> draw = Categorical(top_k=1)(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]]))
    >>> draw.tokens.tolist(), draw.log_probs.tolist(), draw.kept.tolist()
    ([1], [0.0], [[2]])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        self._check_kinds()
        checks.positive("Categorical", temperature=self.temperature)
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Categorical: top_k is {self.top_k}, wanted at least 1, or None to keep every token.")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"Categorical: {name} is {share}, wanted a number in (0, 1], or None for no cut.")
        check_logit_bias("Categorical", self.logit_bias)
        # Hashable, as what a compilation depends on must be.
        object.__setattr__(self, "logit_bias", tuple((int(token), float(bias)) for token, bias in self.logit_bias))

    def _check_kinds(self) -> None:
        """Raise for what no compilation can depend on, such as logits that were given to the class."""
        kinds = {"temperature": Real, "top_k": Integral, "top_p": Real, "min_p": Real}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                wanted = "a whole number" if kind is Integral else "a Python number"
                raise ValueError(
                    f"Categorical: {name} {describe_argument(value)}, wanted {wanted}; Categorical(…) makes a sampler, "
                    "which draws by sampler(key, logits)."
                )

    def __call__(self, key: jax.Array, logits: jax.Array, penalize: Penalize = unchanged) -> Draw:
        """Draw one token for each row of ``logits [B, V]``, by one key for all or a key for each.

        Args:
            key: one, or one for each row.
            logits: of the model.
            penalize: what penalties make of the logits behind the bias.
        """
        biased = penalize(_biased("Categorical", logits.astype(jnp.float32), self.logit_bias))
        # Relative to the likeliest before they are divided: a low temperature would magnify the rounding of both.
        tempered = (biased - biased.max(-1, keepdims=True)) / self.temperature
        return inverse_cdf(key, tempered, self._kept(tempered))

    def _kept(self, tempered: jax.Array) -> jax.Array | None:
        """The tokens ``[B, V]`` at or above the highest threshold, or None where there is none."""
        thresholds = []
        top_p = self.top_p or 1.0
        if self.top_k is not None and self.top_k < tempered.shape[-1]:
            thresholds.append(top_k_threshold(tempered, self.top_k, top_p))
        elif top_p < 1:
            thresholds.append(top_p_threshold(tempered, top_p))
        if self.min_p is not None:
            thresholds.append(tempered.max(-1) + jnp.log(self.min_p))
        if not thresholds:
            return None
        return (tempered >= reduce(jnp.maximum, thresholds)[:, None]) & (tempered > -jnp.inf)


def inverse_cdf(key: jax.Array, tempered: jax.Array, kept: jax.Array | None = None) -> Draw:
    """Draw from ``softmax(tempered)`` restricted to a set of tokens, by two-level inversion.

    Args:
        key: a typed PRNG key, or one for each row.
        tempered: ``[B, V]`` float32.
        kept: ``[B, V]`` bool, or None for all.

    >>> inverse_cdf(jax.random.key(0), jnp.array([[0.0, 9.0]]), jnp.array([[True, False]])).tokens.tolist()
    [0]
    """
    possible = tempered if kept is None else jnp.where(kept, tempered, -jnp.inf)
    top = possible.max(-1)
    weights = jnp.exp(possible - top[:, None])
    tokens, mass = _invert_in_blocks(key, weights)
    logit = jnp.take_along_axis(tempered, tokens[:, None], -1)[:, 0]
    return Draw(tokens, logit - top - jnp.log(mass), None if kept is None else to_bits(kept))


def _invert_in_blocks(key: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index ``[B]`` drawn in proportion to ``weights [B, V]``, a block first and then in it; and the sum of them."""
    count, vocabulary = weights.shape
    block = min(BLOCK, vocabulary)
    padded = jnp.pad(weights, ((0, 0), (0, -vocabulary % block))).reshape(count, -1, block)
    masses = padded.sum(-1)
    first, second = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(row_keys(key, count)).T
    chosen = _invert(first, masses)
    inside = jnp.take_along_axis(padded, chosen[:, None, None], 1)[:, 0]
    tokens = (chosen * block + _invert(second, inside)).astype(jnp.int32)
    return tokens, masses.sum(-1)


def _invert(uniform: jax.Array, weights: jax.Array) -> jax.Array:
    """Index ``[B]`` drawn in proportion to ``weights [B, n]``; never one of weight 0, whatever the rounding."""
    cumulative = jnp.cumsum(weights, -1)
    index = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1)
    index = jnp.minimum(index, weights.shape[-1] - 1)
    hit = jnp.take_along_axis(weights, index[:, None], -1)[:, 0] > 0
    return jnp.where(hit, index, jnp.argmax(weights, -1))


def _largest(tempered: jax.Array, count: int) -> jax.Array:
    """The largest logits in order. Behind a barrier: XLA folds a slice of them into its top-k and then sorts all."""
    return jax.lax.optimization_barrier(jax.lax.top_k(tempered, count)[0])


def top_k_threshold(tempered: jax.Array, top_k: int, top_p: float = 1.0) -> jax.Array:
    """Smallest logit ``[B]`` of the ``top_k ≤ V`` largest of ``tempered [B, V]``, or of the nucleus ``top_p`` in them.

    Ties with it are kept. Limiting cases: ``top_p`` 1 keeps all ``top_k``; ``top_p_threshold`` where ``top_k`` is V.

    >>> top_k_threshold(jnp.array([[3.0, 1.0, 2.0, 0.0]]), 2).tolist()
    [2.0]
    >>> top_k_threshold(jnp.array([[3.0, 1.0, 2.0, 0.0]]), 2, 0.5).tolist()
    [3.0]
    """
    largest = _largest(tempered, top_k)
    if top_p >= 1:
        return largest[:, -1]
    high = largest[:, :1]
    total = jnp.where(tempered >= largest[:, -1:], jnp.exp(tempered - high), 0.0).sum(-1, keepdims=True)
    last = (jnp.cumsum(jnp.exp(largest - high), -1) < top_p * total).sum(-1, keepdims=True)
    return jnp.take_along_axis(largest, jnp.minimum(last, top_k - 1), -1)[:, 0]


def top_p_threshold(tempered: jax.Array, top_p: float) -> jax.Array:
    """Smallest logit ``[B]`` of the smallest set of likeliest tokens whose mass is at least ``top_p < 1``; ties with it
    are kept.

    Found by bisection, each row's passes in cache: a sort of a large vocabulary costs several times more.

    >>> top_p_threshold(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), 0.6).tolist() == [float(jnp.log(0.3))]
    True
    """
    return map_in_cache(lambda row: _nucleus(row, top_p), (tempered,), 2 * tempered.shape[-1])


class _Bracket(NamedTuple):
    """Where the last token kept is: relative logits, and the masses of the tokens from there up."""

    low: jax.Array
    high: jax.Array
    mass_low: jax.Array
    mass_high: jax.Array
    halvings: jax.Array


def _nucleus(tempered: jax.Array, top_p: float) -> jax.Array:
    """The largest logit of ``tempered [V]`` at which the mass from there up is at least ``top_p``."""
    weights = jnp.exp(tempered - tempered.max())
    total = weights.sum()

    def several(bracket: _Bracket) -> jax.Array:
        """A token weighs at least exp(low): a lighter bracket than two of them holds one."""
        mass = bracket.mass_low - bracket.mass_high
        return (mass > 1.5 * jnp.exp(bracket.low)) & (bracket.halvings < HALVINGS)

    # Tokens lighter than (1 − top_p) total / V are cut: all of them together weigh less than the cut may.
    low = jnp.log((1 - top_p) * total / tempered.shape[-1]) - 1e-3
    start = _Bracket(low, jnp.float32(1e-3), total, jnp.zeros_like(total), jnp.int32(0))
    found = jax.lax.while_loop(several, lambda bracket: _halve(bracket, weights, top_p * total), start)
    return jnp.where(weights >= jnp.exp(found.low), tempered, jnp.inf).min()


def _halve(bracket: _Bracket, weights: jax.Array, least: jax.Array) -> _Bracket:
    """The half of the bracket in which the mass from there up reaches ``least``."""
    middle = 0.5 * (bracket.low + bracket.high)
    mass = jnp.where(weights >= jnp.exp(middle), weights, 0.0).sum()
    count = bracket.halvings + 1
    upper = _Bracket(middle, bracket.high, mass, bracket.mass_high, count)
    lower = _Bracket(bracket.low, middle, bracket.mass_low, mass, count)
    return jax.tree.map(lambda x, y: jnp.where(mass >= least, x, y), upper, lower)
