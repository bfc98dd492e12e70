"""A policy objective is a point in a product of five functions, and one loss serves them all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import KlEstimator, k3
from rlax_llm.core.types import PolicyBatch
from rlax_llm.policy.coupled import Coupled, keep_chosen
from rlax_llm.policy.ratios import Ratio
from rlax_llm.policy.terms import Term, reads_given, terms_loss
from rlax_llm.policy.trust_regions import TrustRegion, slopes
from rlax_llm.policy.weightings import Weighting, token_mean


class Objective(NamedTuple):
    """Five functions; ``_replace`` states how one algorithm differs from another.

    Attributes:
        advantage: ``Scored → [P, G]`` or ``[P, G, T]``, credit from scores, or a ``Remembering`` that keeps something
            from step to step; in control ``Trajectory → [T]``.
        ratio: ``(log_probs, old_log_probs, mask) → log_ratio``.
        trust_region: ``(log_ratio, advantages) → loss``, elementwise; or a ``Coupled``, which reads the whole batch.
        weighting: ``mask → weights``, the aggregation.
        kl: ``(log_probs, ref_log_probs) → loss``, or a ``Coupled``, or None where the loss has no KL term.
        terms: further summands of the loss, each with tokens, weights and a coefficient of its own.
    """

    advantage: Callable[[Any], jax.Array] | Any
    ratio: Ratio
    trust_region: TrustRegion | Coupled
    weighting: Weighting
    kl: KlEstimator | Coupled | None = None
    terms: tuple[Term, ...] = ()


@check_arguments
def reads_whole_batches(objective: Objective) -> bool:
    """Whether a part of the loss reads several rows at once, so that they cannot be taken in parts.

    Args:
        objective: five functions.

    >>> from rlax_llm.recipes import group as recipes
    >>> reads_whole_batches(recipes.gmpo())
    False
    """
    return any(isinstance(part, Coupled) and part.whole for part in (objective.trust_region, objective.kl))


@check_arguments
def shown_as(objective: Objective) -> Literal["", "demonstrations", "members"]:
    """What demonstrations are to a loss: members of their groups, tokens beside these that a term reads, or nothing.

    Args:
        objective: five functions.

    >>> from rlax_llm.recipes import group, mixed
    >>> shown_as(mixed.luffy()), shown_as(mixed.chord()), shown_as(group.dapo())
    ('members', 'demonstrations', '')
    """
    if isinstance(objective.trust_region, Coupled) and objective.trust_region.members:
        return "members"
    return "demonstrations" if reads_given(objective.terms) else ""


def _loss_of(term: Callable | Coupled, log_ratio: jax.Array, batch: PolicyBatch, *arguments: Any) -> jax.Array:
    """A term's loss: of its own arguments, or of the whole batch where it is coupled to it."""
    return term.loss(log_ratio, batch) if isinstance(term, Coupled) else term(*arguments)


def _sums(objective: Objective, batch: PolicyBatch) -> tuple[jax.Array, jax.Array]:
    """The weights of the loss and those of the metrics, the batch's own where none were given; 0 outside the mask."""
    weights = objective.weighting(batch.mask) if batch.weights is None else batch.weights
    checks.returned_shape("policy_loss", "objective.weighting", weights, batch.mask.shape, "token")
    uniform = token_mean(batch.mask) if batch.uniform is None else batch.uniform
    return jnp.where(batch.mask, weights, 0.0), jnp.where(batch.mask, uniform, 0.0)


@check_arguments
def policy_loss(objective: Objective, batch: PolicyBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss ``Σ weights · (trust_region(log_ratio, A) + kl) + Σ terms`` and its metrics.

    Each is a sum that adds over micro-batches. Limiting cases: with ``old_log_probs = log_probs`` the gradient is
    REINFORCE's for every elementwise trust region; on-policy and with advantages that sum to 0 the *value* is about 0,
    which says nothing about learning; with coefficients of 0 the terms change nothing.

    Args:
        objective: five functions.
        batch: arrays of one shape; ``weights`` come from ``objective.weighting``, ``uniform`` from ``token_mean``, both
            of the whole batch, as ``terms`` do from ``term_weights``: give them where this is a part of it.

    Returns:
        The scalar loss, and metrics: ``policy_loss``, weighted as the loss is; and means over tokens, whatever the loss
        weighs: ``kl_old`` (k3 of KL(π_old‖π), by tokens at whatever level the ratio is) and ``kl`` (k3 of the
        reference, where there is one, summed with ``reweighted``) in nats, ``clip_fraction``, the tokens that have an
        advantage and no gradient from the trust region, and of them ``clip_fraction_low`` (A < 0, the ratio too low as
        a rule) and ``clip_fraction_high`` (A > 0), nothing of tokens in the mask that were given; and each term without
        its coefficient, by its name.

    Raises:
        ValueError: at trace time, for shapes that differ, of what the objective's functions return too, or a KL term
            without ``ref_log_probs``.

    >>> from rlax_llm.recipes import group as recipes
    >>> ones = jnp.ones((1, 2))
    >>> loss, metrics = policy_loss(recipes.luspo(), PolicyBatch(-ones, -2 * ones, ones, ones > 0))
    >>> round(float(loss), 4), float(metrics["clip_fraction"])
    (-2.0008, 1.0)
    """
    checks.same_shape("policy_loss", **{name: x for name, x in batch._asdict().items() if name != "terms"})
    if objective.kl is not None and batch.ref_log_probs is None:
        raise ValueError("policy_loss: objective.kl needs ref_log_probs, got None; give them, or set kl=None.")

    further, told = terms_loss(objective.terms, batch)
    weights, uniform = _sums(objective, batch)
    batch = keep_chosen(batch._replace(weights=weights, uniform=uniform))

    weighted = partial(_weighted_sum, weights, batch.mask)
    mean = partial(_weighted_sum, uniform, batch.drawn)

    log_ratio = objective.ratio(batch.log_probs, batch.old_log_probs, batch.mask)
    checks.returned_shape("policy_loss", "objective.ratio", log_ratio, batch.mask.shape, "token")
    # Positions that the policy did not choose are set to ratio 1 before exp: 0 · inf would be NaN in the gradient.
    log_ratio = jnp.where(batch.mask, log_ratio, 0.0)

    def trust_region(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        loss = _loss_of(objective.trust_region, log_ratio, batch, log_ratio, advantages)
        checks.returned_shape("policy_loss", "objective.trust_region", loss, batch.mask.shape, "token")
        return loss

    loss = weighted(trust_region(log_ratio, batch.advantages))
    held = slopes(trust_region, log_ratio, batch.advantages) == 0
    metrics = {"policy_loss": loss, "kl_old": mean(k3(batch.old_log_probs, batch.log_probs))}
    metrics |= _clip_fractions(held, jnp.sign(batch.advantages), mean)
    if batch.ref_log_probs is not None:
        # Tokens that the policy would hardly draw any more have a k3 without bound, and weights of about 0.
        current = uniform if batch.reweighted is None else batch.reweighted
        metrics["kl"] = _weighted_sum(current, batch.drawn, k3(batch.log_probs, batch.ref_log_probs))
        if objective.kl is not None:
            kl = _loss_of(objective.kl, log_ratio, batch, batch.log_probs, batch.ref_log_probs)
            checks.returned_shape("policy_loss", "objective.kl", kl, batch.mask.shape, "token")
            loss = loss + weighted(kl)
    return loss + further, jax.lax.stop_gradient(metrics | told)


def _weighted_sum(weights: jax.Array, mask: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.where(mask, weights * values, 0.0).sum()


def _clip_fractions(held: jax.Array, sign: jax.Array, mean: Callable[[jax.Array], jax.Array]) -> dict[str, jax.Array]:
    """Shares of the tokens that a trust region holds: of those with an advantage, a negative one, a positive one."""
    return {
        "clip_fraction": mean(held & (sign != 0)),
        "clip_fraction_low": mean(held & (sign < 0)),
        "clip_fraction_high": mean(held & (sign > 0)),
    }
