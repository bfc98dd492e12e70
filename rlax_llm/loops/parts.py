"""Rows of a batch in parts: one in memory at a time, and where rows are by themselves each in few columns.

Limiting case: whatever the parts are, what is computed of them is what the whole batch gives, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.mesh import ROWS, devices_along, spread
from rlax_llm.core.types import Completions, Metrics, Params
from rlax_llm.models.scoring import ByLength


class Order(NamedTuple):
    """Where rows come from that were sorted by length and begin with their first token.

    Attributes:
        rows: ``[lanes, B / lanes]`` int32, of each lane's rows the numbers there.
        first: ``[B]`` int32, the column of each row's first token, before they were sorted.
    """

    rows: jax.Array
    first: jax.Array


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


def _sorted(batch: Any, valid: jax.Array, micro_batches: int) -> tuple[Any, Order]:
    """Rows by length, the shortest first on each device; each begins with its first token."""
    rows, columns = valid.shape
    lanes = _lanes(rows, micro_batches)
    first = jnp.argmax(valid, axis=1).astype(jnp.int32)
    source = (jnp.arange(columns) + first[:, None]) % columns
    order = Order(jnp.argsort(valid.sum(1).reshape(lanes, -1), axis=1, stable=True), first)
    return jax.tree.map(lambda x: _picked(_moved(x, source), order.rows), batch), order


def _unsorted(x: jax.Array, order: Order) -> jax.Array:
    """``[B, T]`` as it was before ``_sorted``."""
    source = (jnp.arange(x.shape[1]) - order.first[:, None]) % x.shape[1]
    return _moved(_picked(x, jnp.argsort(order.rows, axis=1)), source)


def _moved(x: jax.Array, source: jax.Array) -> jax.Array:
    """The columns of each row in another order; what has none stays."""
    return x if x.ndim == 1 else jax.vmap(lambda row, of: row[of])(x, source)


def _picked(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows of each lane, by their numbers there."""
    by_lane = x.reshape(rows.shape[0], -1, *x.shape[1:])
    return jax.vmap(lambda own, of: own[of])(by_lane, rows).reshape(x.shape)


def _narrowed(function: Callable[[Any], Any], widths: tuple[int, ...]) -> Callable[[tuple[Any, jax.Array]], Any]:
    """``function`` of a part and where it is valid ``[R, T]``, in as few columns as hold it."""

    def of_part(part: tuple[Any, jax.Array]) -> Any:
        rows, valid = part
        columns = valid.shape[1]
        sizes = [width for width in sorted(widths) if width < columns] + [columns]
        reach = jnp.where(valid, jnp.arange(1, columns + 1), 0).max()
        chosen = jnp.searchsorted(jnp.array(sizes), reach)

        def at(size: int) -> Callable[[Any], Any]:
            return lambda rows: function(jax.tree.map(lambda x: x if x.ndim == 1 else x[:, :size], rows))

        return jax.lax.switch(chosen, [at(size) for size in sizes], rows)

    return of_part


def summed_gradient(
    loss: Callable[[Params, Any], tuple[jax.Array, Metrics]],
    params: Params,
    batch: Any,
    micro_batches: int,
    valid: jax.Array | None = None,
    widths: tuple[int, ...] = (),
) -> tuple[Params, Metrics]:
    """Gradient and metrics of a loss that is a sum over rows, one micro-batch in memory at a time.

    Args:
        loss: ``(params, rows) → (scalar, metrics)``, both sums over the rows.
        params: any pytree.
        batch: arrays with the rows on axis 0, and with widths tokens on axis 1.
        micro_batches: divides the number of rows.
        valid: ``[B, T]`` bool, the tokens of each row; read with widths alone.
        widths: columns that a micro-batch is computed in, the fewest that hold it, or all: its rows are of like length
            and begin with their first token. Of no widths the rows stay as they are.

    Returns:
        The gradient and the summed metrics; equal for every ``micro_batches`` and ``widths`` up to rounding.

    Raises:
        ValueError: at trace time, for rows that micro-batches do not divide.
    """
    gradient = jax.grad(loss, has_aux=True)
    return summed(lambda rows: gradient(params, rows), batch, micro_batches, valid, widths)


def summed(
    function: Callable[[Any], Any],
    batch: Any,
    micro_batches: int,
    valid: jax.Array | None = None,
    widths: tuple[int, ...] = (),
) -> Any:
    """The sum over a batch's parts of what a function makes of each, as ``summed_gradient`` takes them.

    Args:
        function: of some rows, to any pytree of sums over them.
        batch: arrays with the rows on axis 0.
        micro_batches: divides the number of rows.
        valid: ``[B, T]`` bool; read with widths alone.
        widths: columns that a part is computed in; of none the rows stay as they are.

    >>> float(summed(jnp.sum, jnp.arange(4.0), 2))
    6.0
    """
    if not widths:
        return _added(function, batch, micro_batches)
    assert valid is not None
    rows, _ = _sorted((batch, valid), valid, micro_batches)
    return _added(_narrowed(function, widths), rows, micro_batches)


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


def widths_of(log_probs: Callable[..., Any]) -> tuple[int, ...]:
    """The columns that a function computes parts of rows in; none where its rows belong together."""
    return log_probs.widths if isinstance(log_probs, ByLength) else ()


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
    return _fixed(lambda rows: log_probs(params, rows)[:1], widths_of(log_probs), alone, micro_batches)[0]


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
    return _fixed(lambda rows: log_probs(params, rows)[:2], widths_of(log_probs), completions, micro_batches)


def _fixed(
    function: Callable[[Completions], tuple[jax.Array, ...]],
    widths: tuple[int, ...],
    completions: Completions,
    micro_batches: int,
) -> list[jax.Array]:
    columns = completions.tokens.shape[1]
    completions = completions._replace(dropout=None)  # adapters leave nothing out where there is no gradient

    def score(rows: Completions) -> tuple[jax.Array, ...]:
        return tuple(jnp.pad(x, ((0, 0), (0, columns - x.shape[1]))) for x in function(rows))

    if not widths:
        parts = jax.lax.map(score, split(completions, micro_batches))
        return [jax.lax.stop_gradient(join(x)) for x in parts]
    rows, order = _sorted((completions, completions.valid), completions.valid, micro_batches)
    parts = jax.lax.map(_narrowed(score, widths), split(rows, micro_batches))
    return [jax.lax.stop_gradient(_unsorted(join(x), order)) for x in parts]
