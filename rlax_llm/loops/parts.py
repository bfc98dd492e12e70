"""Rows of a batch in parts: one in memory at a time, and each without its padding.

Limiting case: whatever the parts are, what is computed of them is what the whole batch gives, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.core.mesh import ROWS, devices_along, spread
from rlax_llm.core.types import Completions, Metrics, Params, Room
from rlax_llm.models.scoring import ByTokens, in_room


def split(batch: Any, micro_batches: int) -> Any:
    """Micro-batches on axis 0; each takes of every device's rows an equal share, so that no row is moved.

    Args:
        batch: arrays with the rows on axis 0.
        micro_batches: divides their number.

    Raises:
        ValueError: at trace time, for rows that micro-batches do not divide.

    >>> split(jnp.arange(4), 2).tolist()
    [[0, 1], [2, 3]]
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % micro_batches:
        raise ValueError(f"micro_batches is {micro_batches}, wanted a divisor of the batch's {rows} rows.")
    lanes = _lanes(rows, micro_batches)

    def take(x: jax.Array) -> jax.Array:
        shares = x.reshape(lanes, micro_batches, -1, *x.shape[1:]).swapaxes(0, 1)
        return spread(shares.reshape(micro_batches, -1, *x.shape[1:]), None, ROWS)

    return jax.tree.map(take, batch)


def join(parts: jax.Array) -> jax.Array:
    """The rows of ``split`` in their order again.

    >>> join(split(jnp.arange(4), 2)).tolist()
    [0, 1, 2, 3]
    """
    micro_batches, lanes = parts.shape[0], _lanes(parts.shape[0] * parts.shape[1], parts.shape[0])
    shares = parts.reshape(micro_batches, lanes, -1, *parts.shape[2:]).swapaxes(0, 1)
    return shares.reshape(-1, *parts.shape[2:])


def _lanes(rows: int, micro_batches: int) -> int:
    """The devices that rows lie over; 1 where they do not divide, and lie whole on each."""
    devices = devices_along(*ROWS)
    return devices if rows % (devices * micro_batches) == 0 else 1


def _without_padding(function: Callable[[Any], Any], by: ByTokens) -> Callable[[Any], Any]:
    """``function`` of a part, in the least room that holds its completions."""

    def of_part(rows: Any) -> Any:
        rooms = by.rooms(rows)
        if len(rooms) == 1:
            return function(rows)

        def within(room: Room | None) -> Callable[[Any], Any]:
            return lambda rows: function(in_room(rows, room))

        return jax.lax.switch(by.room_of(rows), [within(room) for room in rooms], rows)

    return of_part


def summed_gradient(
    loss: Callable[[Params, Any], tuple[jax.Array, Metrics]],
    params: Params,
    batch: Any,
    micro_batches: int,
    by: ByTokens | None = None,
) -> tuple[Params, Metrics]:
    """Gradient and metrics of a loss that is a sum over rows, one micro-batch in memory at a time.

    Args:
        loss: ``(params, rows) → (scalar, metrics)``, both sums over the rows.
        params: any pytree.
        batch: arrays with the rows on axis 0.
        micro_batches: divides the number of rows.
        by: how parts are computed without their padding; None computes all columns.

    Returns:
        The gradient and the summed metrics; equal for every ``micro_batches`` and ``by`` up to rounding.

    Raises:
        ValueError: at trace time, for rows that micro-batches do not divide.
    """
    gradient = jax.grad(loss, has_aux=True)
    return summed(lambda rows: gradient(params, rows), batch, micro_batches, by)


def summed(
    function: Callable[[Any], Any],
    batch: Any,
    micro_batches: int,
    by: ByTokens | None = None,
) -> Any:
    """The sum over a batch's parts of what a function makes of each, as ``summed_gradient`` takes them.

    Args:
        function: of some rows, to any pytree of sums over them.
        batch: arrays with the rows on axis 0.
        micro_batches: divides the number of rows.
        by: how parts are computed without their padding; None computes all columns.

    >>> float(summed(jnp.sum, jnp.arange(4.0), 2))
    6.0
    """
    return _added(function if by is None else _without_padding(function, by), batch, micro_batches)


def _added(function: Callable[[Any], Any], batch: Any, micro_batches: int) -> Any:
    """The sum of a function of each micro-batch."""
    if micro_batches == 1:
        return function(batch)

    def add(total: Any, rows: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(rows)), None

    parts = split(batch, micro_batches)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def tokens_of(log_probs: Callable[..., Any]) -> ByTokens | None:
    """How parts are computed without their padding; None of a function that computes all columns."""
    return log_probs if isinstance(log_probs, ByTokens) else None


def fixed_log_probs(
    log_probs: Callable[[Params, Completions], tuple[jax.Array, ...]],
    params: Params,
    completions: Completions,
    micro_batches: int = 1,
) -> jax.Array:
    """Log-probabilities of completions without a gradient, one micro-batch in memory at a time: a reference's.

    Adapters read all of their inputs, whatever ``completions.dropout``, and tokens are sent to the experts that the
    model would choose itself, wherever the policy sent them (``completions.routed``).

    Args:
        log_probs: ``(params, completions) → (log_probs, …)``, each ``[B, T]``, nats; the first is taken.
        params: what ``log_probs`` reads, whole.
        completions: ``[B, T]``.
        micro_batches: divides the number of rows.

    Returns:
        ``[B, T]``, nats.
    """
    alone = completions._replace(routed=None)
    return _fixed(lambda rows: log_probs(params, rows)[:1], tokens_of(log_probs), alone, micro_batches)[0]


def fixed_scores(
    log_probs: Callable[[Params, Completions], tuple[jax.Array, ...]],
    params: Params,
    completions: Completions,
    micro_batches: int = 1,
) -> list[jax.Array]:
    """``fixed_log_probs`` of the policy itself, through the experts that its sampler chose, and the entropies.

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy, …)``, both ``[B, T]``, nats; two at most are taken.
        params: what ``log_probs`` reads, whole.
        completions: ``[B, T]``.
        micro_batches: divides the number of rows.

    Returns:
        ``[B, T]`` each, nats.
    """
    return _fixed(lambda rows: log_probs(params, rows)[:2], tokens_of(log_probs), completions, micro_batches)


def _fixed(
    function: Callable[[Completions], tuple[jax.Array, ...]],
    by: ByTokens | None,
    completions: Completions,
    micro_batches: int,
) -> list[jax.Array]:
    completions = completions._replace(dropout=None)  # adapters leave nothing out where there is no gradient
    score = function if by is None else _without_padding(function, by)
    parts = jax.lax.map(score, split(completions, micro_batches))
    return [jax.lax.stop_gradient(join(x)) for x in parts]
