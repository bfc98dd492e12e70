"""Further terms of a policy loss, each ``coef · Σ weights · loss`` over tokens of its own.

A term reads the same batch as the trust region does. Its weights are taken over the whole batch, once per optimizer
step, so micro-batches change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.types import Metrics, PolicyBatch
from rlax_llm.policy.weightings import Weighting, token_mean

Where = Callable[[PolicyBatch], jax.Array]


@check_arguments
def chosen(batch: PolicyBatch) -> jax.Array:
    """The tokens that the policy chose.

    Args:
        batch: its ``mask`` is read.

    >>> one = jnp.ones((1, 1))
    >>> chosen(PolicyBatch(one, one, one, one > 0)).tolist()
    [[True]]
    """
    return batch.mask


@check_arguments
def given(batch: PolicyBatch) -> jax.Array:
    """The tokens that stand in the batch and that the policy did not choose: demonstrations, a tool's answers.

    Args:
        batch: its ``given`` is read.

    Raises:
        ValueError: where the batch has none.

    >>> one = jnp.ones((1, 1))
    >>> given(PolicyBatch(one, one, one, one < 0, given=one > 0)).tolist()
    [[True]]
    """
    if batch.given is None:
        raise ValueError(
            "policy_loss: a term reads given tokens, got a batch without any; give completions.given, True on what "
            "is to be imitated, or leave the term out."
        )
    return batch.given


@check_arguments
def rewarded(threshold: float | jax.Array = 0.0) -> Where:
    """The tokens that the policy chose in completions that score above a threshold: VAPO's positive examples.

    Args:
        threshold: in the scores' units; may be traced.

    Raises:
        ValueError: by the function, where the batch has no scores.

    >>> one = jnp.ones((2, 1))
    >>> batch = PolicyBatch(one, one, one, one > 0, scores=jnp.array([[1.0], [0.0]]))
    >>> rewarded(0.5)(batch).tolist()
    [[True], [False]]
    """

    def where(batch: PolicyBatch) -> jax.Array:
        if batch.scores is None:
            raise ValueError(
                "policy_loss: a term reads scores, got a batch without any; give the scores of its completions, or "
                "leave the term out."
            )
        return batch.mask & (batch.scores > threshold)

    return where


class Term(NamedTuple):
    """``coef · Σ weights · loss``, a summand of a policy loss.

    Attributes:
        name: of its metric, ``Σ weights · loss`` without the coefficient.
        loss: ``PolicyBatch → [B, T]``, elementwise; what it finds outside its own tokens is 0.
        coef: may be traced.
        where: ``PolicyBatch → [B, T]`` bool, its tokens; it reads neither ``log_probs`` nor ``entropy``.
        weighting: ``[B, T]`` bool of these tokens to weights.
        corrects: whether it holds the policy to the one that drew each token, by ``old_log_probs``, so that tokens of
            older policies need no ratio and no correction besides.
    """

    name: str
    loss: Callable[[PolicyBatch], jax.Array]
    coef: float | jax.Array
    where: Where = chosen
    weighting: Weighting = token_mean
    corrects: bool = False


@check_arguments
def reads_given(terms: tuple[Term, ...]) -> bool:
    """Whether a term has tokens among those that stand in a batch and that the policy did not choose.

    Args:
        terms: of an objective.

    >>> reads_given((Term("nll", likelihood(), 1.0, given),)), reads_given((Term("nll", likelihood(), 1.0),))
    (True, False)
    """
    one = jnp.ones((1, 1))
    batch = PolicyBatch(one, one, one, one < 0, given=one > 0, scores=one, staleness=0 * one)
    return any(bool(term.where(batch).any()) for term in terms)


@check_arguments
def term_weights(terms: tuple[Term, ...], batch: PolicyBatch) -> tuple[jax.Array, ...]:
    """The weights of each term, of the whole batch.

    Args:
        terms: of an objective.
        batch: whole; its ``log_probs`` are not read.

    >>> one = jnp.ones((1, 2))
    >>> [w.tolist() for w in term_weights((Term("nll", likelihood(), 1.0),), PolicyBatch(one, one, one, one > 0))]
    [[[0.5, 0.5]]]
    """
    return tuple(_weights(term, batch) for term in terms)


def _weights(term: Term, batch: PolicyBatch) -> jax.Array:
    tokens = term.where(batch)
    checks.returned_shape("policy_loss", f"the term {term.name}'s where", tokens, batch.mask.shape, "token")
    weights = term.weighting(tokens)
    checks.returned_shape("policy_loss", f"the term {term.name}'s weighting", weights, batch.mask.shape, "token")
    return jnp.where(tokens, weights, 0.0)


@check_arguments
def terms_loss(terms: tuple[Term, ...], batch: PolicyBatch) -> tuple[jax.Array | float, Metrics]:
    """``Σ coef · Σ weights · loss`` over the terms, and each without its coefficient, by name.

    Args:
        terms: of an objective.
        batch: with ``terms``, their weights over the whole batch; None takes those of this batch.

    >>> one = jnp.ones((1, 2))
    >>> terms_loss((Term("nll", likelihood(), 0.5),), PolicyBatch(-one, one, one, one > 0))[0].tolist()
    0.5
    """
    weights = term_weights(terms, batch) if batch.terms is None else batch.terms
    total, told = 0.0, {}
    for term, own in zip(terms, weights, strict=True):
        found = term.loss(_only(batch, own != 0))
        checks.returned_shape("policy_loss", f"the term {term.name}", found, batch.mask.shape, "token")
        told[term.name] = jnp.where(own != 0, own * found, 0.0).sum()
        total = total + term.coef * told[term.name]
    return total, told


def _only(batch: PolicyBatch, tokens: jax.Array) -> PolicyBatch:
    """The batch with zeros, and zero gradients, outside some tokens."""

    def cleaned(x: Any) -> Any:
        return x if x is None or x.dtype == bool else jnp.where(tokens, x, 0.0)

    return PolicyBatch(*(cleaned(x) for x in batch._replace(terms=None)))


@check_arguments
def certain(probabilities: jax.Array) -> jax.Array:
    """Every token alike: maximum likelihood.

    Args:
        probabilities: of the tokens.

    >>> certain(jnp.array([0.2])).tolist()
    [1.0]
    """
    return jnp.ones_like(probabilities)


@check_arguments
def undecided(probabilities: jax.Array) -> jax.Array:
    """``p · (1 − p)``: what is neither known nor far off weighs most (CHORD, arXiv 2508.11408, eq. 7).

    Args:
        probabilities: of the tokens.

    >>> undecided(jnp.array([0.5, 1.0])).tolist()
    [0.25, 0.0]
    """
    return probabilities * (1 - probabilities)


@check_arguments
def likelihood(confidence: Callable[[jax.Array], jax.Array] = certain) -> Callable[[PolicyBatch], jax.Array]:
    """``− sg(confidence(p)) · log p`` of a token, nats: imitation.

    Limiting cases: ``certain`` is the negative log-likelihood; p itself has the gradient of ``−p``.

    Args:
        confidence: of a token's probability under the policy, without a gradient.

    >>> one = jnp.ones((1, 1))
    >>> likelihood()(PolicyBatch(-one, one, one, one > 0)).tolist()
    [[1.0]]
    """

    def loss(batch: PolicyBatch) -> jax.Array:
        weight = jax.lax.stop_gradient(confidence(jnp.exp(batch.log_probs)))
        return -weight * batch.log_probs

    return loss


@check_arguments
def shaped_advantage(gamma: float | jax.Array = 0.1) -> Callable[[PolicyBatch], jax.Array]:
    """``− A · p / (p + γ)``: credit for tokens that another policy chose (LUFFY, arXiv 2504.14945, eq. 7).

    The ratio to a policy that is not known is taken as p; shaping it raises the slope of rare tokens. Limiting cases:
    for γ → ∞ γ times it is ``−A · p``; for γ = 0 there is no gradient.

    Args:
        gamma: > 0; may be traced.

    >>> one = jnp.ones((1, 1))
    >>> round(float(shaped_advantage(0.1)(PolicyBatch(0 * one, one, one, one > 0))[0, 0]), 4)
    -0.9091
    """

    def loss(batch: PolicyBatch) -> jax.Array:
        likely = jnp.exp(batch.log_probs)
        return -batch.advantages * likely / (likely + gamma)

    return loss


@check_arguments
def squared_ratio(batch: PolicyBatch) -> jax.Array:
    """``(log π/π_old)²`` of a token, nats²: twice ``k2``, what keeps a policy near the sampler without a clip.

    With coefficient τ it is Kimi K2.5's (arXiv 2602.02276); with β/2 beside the score function, DRO's (arXiv
    2405.19107).

    Args:
        batch: ``log_probs`` and ``old_log_probs`` are read.

    >>> one = jnp.ones((1, 1))
    >>> squared_ratio(PolicyBatch(-one, -3 * one, one, one > 0)).tolist()
    [[4.0]]
    """
    return jnp.square(batch.log_probs - batch.old_log_probs)


@check_arguments
def negative_entropy(batch: PolicyBatch) -> jax.Array:
    """``−H`` of the policy where each token was chosen, nats: an entropy bonus as a term.

    Args:
        batch: its ``entropy`` is read.

    Raises:
        ValueError: where the batch has none.

    >>> one = jnp.ones((1, 1))
    >>> negative_entropy(PolicyBatch(one, one, one, one > 0, entropy=2 * one)).tolist()
    [[-2.0]]
    """
    if batch.entropy is None:
        raise ValueError("policy_loss: a term reads the entropy, got a batch without it; give entropy.")
    return -batch.entropy
