"""The routers of mixtures of experts: which experts a token is sent to, how evenly tokens are shared out, and the loss
of that.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.models.config import Experts


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
