"""What a training step adds to its loss for the routers of a mixture of experts, and what it tells of them.

How often experts are chosen is a share of the *whole* batch, so that micro-batches change nothing: where a step is
taken in parts, a pass without a gradient counts before it. What has no mixture, or whose config balances none, passes
through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.types import Metrics, Params
from rlax_llm.loops.parts import summed, tokens_of
from rlax_llm.models.routers import Load, balance_loss
from rlax_llm.models.scoring import Routing, routed_tokens

_SENT = "router/sent"


class Routers(NamedTuple):
    """Log-probabilities apart from what routers cost, of parts of one batch.

    Attributes:
        log_probs: ``(params, completions) → arrays``, and of a balanced mixture a ``Routing`` at their end.
        tokens: a number, those of the batch that count.
        sent: ``[E]``, the share of them that each expert has, over all layers; None where the batch is one part.
    """

    log_probs: Callable[..., Any]
    tokens: jax.Array
    sent: jax.Array | None

    def __call__(self, params: Params, rows: Any) -> tuple[tuple[Any, ...], jax.Array | float, Metrics]:
        """The arrays of some rows, what is added to their loss, and metrics for ``router_metrics``; sums over rows.

        Args:
            params: whole.
            rows: completions, a part of the batch.
        """
        arrays, routing = apart(self.log_probs(params, rows))
        if routing is None:
            return arrays, 0.0, {}
        layers = routing.load.squares.shape[0]
        shares: Load = jax.tree.map(lambda x: x / jnp.maximum(self.tokens, 1.0), routing.load)
        sent = shares.sent.mean(0) if self.sent is None else self.sent
        aux, z = balance_loss(sent, shares.probabilities.mean(0)), shares.squares.sum() / layers
        told = {"router/aux_loss": aux, "router/z_loss": z, "router/entropy": shares.entropies.sum() / layers}
        if shares.mismatch is not None:
            told["router/mismatch"] = shares.mismatch.sum() / layers
        cost = routing.balance.aux_coef * aux + routing.balance.z_coef * z
        return arrays, cost, jax.lax.stop_gradient(told | {_SENT: shares.sent})


def apart(found: tuple[Any, ...]) -> tuple[tuple[Any, ...], Routing | None]:
    """Arrays of tokens, and what stands behind them of routers.

    >>> apart((1, 2))
    ((1, 2), None)
    """
    *arrays, last = found
    return (tuple(arrays), last) if isinstance(last, Routing) else (tuple(found), None)


def routers(log_probs: Callable[..., Any], params: Params, completions: Any, micro_batches: int) -> Routers:
    """What a step needs to know of the whole batch before it takes parts of it.

    Args:
        log_probs: ``(params, completions) → arrays``.
        params: whole.
        completions: the batch.
        micro_batches: parts that it is taken in.
    """

    def sent(rows: Any) -> jax.Array | None:
        routing = apart(log_probs(params, rows))[1]
        return None if routing is None or routing.balance.aux_coef == 0 else routing.load.sent.mean(0)

    tokens = routed_tokens(completions).sum()
    if micro_batches == 1 or jax.eval_shape(sent, completions) is None:
        return Routers(log_probs, tokens, None)
    counted = summed(sent, completions, micro_batches, tokens_of(log_probs))
    return Routers(log_probs, tokens, jax.lax.stop_gradient(counted / jnp.maximum(tokens, 1.0)))


def router_metrics(metrics: Metrics) -> Metrics:
    """Metrics of a whole batch, with ``router/load_max`` in the place of the shares that it is made of.

    It is the largest share that an expert of a layer has of its tokens, times the experts: 1 where all have alike, E/k
    where all tokens go to the same k.

    Args:
        metrics: summed over the parts.

    >>> {name: float(x) for name, x in router_metrics({"router/sent": jnp.array([[1.0, 0.5, 0.5]])}).items()}
    {'router/load_max': 1.5}
    """
    rest = dict(metrics)
    sent = rest.pop(_SENT, None)
    if sent is None:
        return rest
    return rest | {"router/load_max": (sent / sent.mean(-1, keepdims=True)).max()}
