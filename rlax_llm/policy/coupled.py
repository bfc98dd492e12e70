"""Loss terms that read more than the log-ratio: the mask, the probabilities themselves, or the whole batch.

An ``Objective`` takes a ``Coupled`` wherever it takes a trust region or a KL estimator. A term with statistics of the
batch (``clip_cov``, ``kl_cov``) says that it is ``whole``: loops refuse to give it a part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.exponentials import expm1_then_line
from rlax_llm.core.kl import KlEstimator, absolute, top_k_kl
from rlax_llm.core.masked import masked_deviation, masked_mean
from rlax_llm.core.types import PolicyBatch
from rlax_llm.policy.corrections import off_policy_mask
from rlax_llm.policy.ratios import Ratio, sequence_ratio, summed_ratio
from rlax_llm.policy.trust_regions import TrustRegion, cispo, slopes, unclipped


class Coupled(NamedTuple):
    """A loss term of the log-ratio and the batch.

    Attributes:
        loss: ``(log_ratio, batch) → loss``, all of the batch's layout. ``policy_loss`` hands it a batch whose entries
            are 0 where ``mask`` is False (``keep_chosen``).
        whole: it reads several rows at once, so that rows can be taken neither in parts nor in another order.
        members: demonstrations are members of their groups, with scores among the others': ``batch.given`` tells their
            tokens from those that the policy chose, and their ``old_log_probs`` are 0, as nobody's.
    """

    loss: Callable[[jax.Array, PolicyBatch], jax.Array]
    whole: bool = False
    members: bool = False


@check_arguments
def keep_chosen(batch: PolicyBatch) -> PolicyBatch:
    """The batch with zeros, and zero gradients, where the policy did not choose, whatever stands there.

    Args:
        batch: arrays of one shape.

    Returns:
        The same batch, its mask unchanged.

    >>> nan = jnp.array([jnp.nan])
    >>> keep_chosen(PolicyBatch(nan, nan, nan, jnp.array([False]), nan)).log_probs.tolist()
    [0.0]
    """
    numbers = batch._asdict()
    mask, given, terms = (numbers.pop(name) for name in ("mask", "given", "terms"))
    cleaned = {name: None if x is None else jnp.where(mask, x, 0.0) for name, x in numbers.items()}
    return PolicyBatch(mask=mask, given=given, terms=terms, **cleaned)  # pyright: ignore[reportArgumentType]


@check_arguments
def of_chosen(
    loss: Callable[[jax.Array, PolicyBatch], jax.Array], whole: bool = False, members: bool = False
) -> Coupled:
    """A term that never reads what the policy did not choose.

    Args:
        loss: ``(log_ratio, batch) → loss``.
        whole: of ``Coupled``.
        members: of ``Coupled``.

    >>> nan = jnp.array([jnp.nan])
    >>> of_chosen(lambda log_ratio, batch: log_ratio).loss(nan, PolicyBatch(nan, nan, nan, jnp.array([False]))).tolist()
    [0.0]
    """

    def of_these(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        return loss(jnp.where(batch.mask, log_ratio, 0.0), keep_chosen(batch))

    return Coupled(of_these, whole, members)


@check_arguments
def as_coupled(trust_region: TrustRegion | Coupled) -> Coupled:
    """An elementwise trust region as a ``Coupled``, which it is the special case of.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``, or a ``Coupled``, which stays as it is.

    >>> as_coupled(unclipped).whole
    False
    """
    if isinstance(trust_region, Coupled):
        return trust_region
    return Coupled(lambda log_ratio, batch: trust_region(log_ratio, batch.advantages))


@check_arguments
def gmpo(eps_low: float = 0.4, eps_high: float | None = None) -> Coupled:
    """``−A`` times the geometric mean of the completion's token ratios, each clipped first (arXiv 2507.20673).

    A token's log-ratio is at most ``eps_high`` where A > 0 and at least ``−eps_low`` elsewhere. Take ``token_ratio`` as
    the objective's ratio and ``sequence_mean`` as its weighting. Limiting case: ``sequence_ratio`` with
    ``unclipped`` for wide halves.

    Args:
        eps_low: half-width of the clip below a log-ratio of 0, nats.
        eps_high: half-width above; ``eps_low`` where None.

    Returns:
        A ``Coupled`` trust region.

    Raises:
        ValueError: for a half-width that is not positive.

    >>> row = jnp.zeros((1, 2))
    >>> gmpo().loss(row, PolicyBatch(row, row, row + 1, row == 0, row)).tolist()
    [[-1.0, -1.0]]
    """
    high = eps_low if eps_high is None else eps_high
    checks.positive("gmpo", eps_low=eps_low, eps_high=high)

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        clipped = jnp.where(batch.advantages > 0, jnp.minimum(log_ratio, high), jnp.maximum(log_ratio, -eps_low))
        geometric = sequence_ratio(clipped, jnp.zeros_like(clipped), batch.mask)
        return unclipped(geometric, batch.advantages)

    return of_chosen(loss)


def _dropped(
    trust_region: TrustRegion | Coupled, kept: Callable[[jax.Array, PolicyBatch], jax.Array], whole: bool = False
) -> Coupled:
    """A trust region whose loss and gradient are 0 where ``kept`` is False."""
    inner = as_coupled(trust_region)

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        return jnp.where(kept(log_ratio, batch), inner.loss(log_ratio, batch), 0.0)

    return of_chosen(loss, whole or inner.whole, inner.members)


@check_arguments
def mask_total_variation(trust_region: TrustRegion | Coupled, eps_low: float, eps_high: float | None = None) -> Coupled:
    """A trust region without the tokens whose probability moved too far in A's direction (arXiv 2602.04879).

    A token is kept where ``π − π_old ≤ eps_high`` (A > 0) or ``π − π_old ≥ −eps_low`` (otherwise), so that rare tokens
    may move by large ratios and likely ones may not. Limiting case: ``trust_region`` itself for half-widths of 1.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``, or a ``Coupled``.
        eps_low: half-width below, of the token's probability.
        eps_high: half-width above; ``eps_low`` where None.

    Returns:
        A ``Coupled`` trust region.

    Raises:
        ValueError: for a half-width that is not positive.

    >>> rare, likely = jnp.log(jnp.array([[0.25, 0.5]])), jnp.log(jnp.array([[0.5, 1.0]]))
    >>> batch = PolicyBatch(likely, rare, rare * 0 + 1, rare < 0, rare)
    >>> mask_total_variation(unclipped, 0.25).loss(likely - rare, batch).round(2).tolist()
    [[-2.0, 0.0]]
    """
    high = eps_low if eps_high is None else eps_high
    checks.positive("mask_total_variation", eps_low=eps_low, eps_high=high)

    def kept(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        del log_ratio
        change = jnp.exp(batch.log_probs) - jnp.exp(batch.old_log_probs)
        return jnp.where(batch.advantages > 0, change <= high, change >= -eps_low)

    return _dropped(trust_region, kept)


@check_arguments
def mask_probability_change(trust_region: TrustRegion | Coupled, limit: float) -> Coupled:
    """A trust region without the tokens whose probability moved by more than a limit, whichever way.

    Limiting cases: ``trust_region`` itself for a limit of 1; it leaves out what ``mask_total_variation`` does, and what
    moved against A.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``, or a ``Coupled``.
        limit: of ``|π − π_old|``.

    Returns:
        A ``Coupled`` trust region.

    Raises:
        ValueError: for a limit that is not positive.

    >>> rare, likely = jnp.log(jnp.array([[0.25, 0.5]])), jnp.log(jnp.array([[0.5, 1.0]]))
    >>> batch = PolicyBatch(likely, rare, rare * 0 - 1, rare < 0, rare)
    >>> mask_probability_change(unclipped, 0.25).loss(likely - rare, batch).round(2).tolist()
    [[2.0, 0.0]]
    """
    checks.positive("mask_probability_change", limit=limit)

    def kept(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        del log_ratio
        return jnp.abs(jnp.exp(batch.log_probs) - jnp.exp(batch.old_log_probs)) <= limit

    return _dropped(trust_region, kept)


@check_arguments
def mask_group_variation(trust_region: TrustRegion | Coupled, limit: float, group_size: int) -> Coupled:
    """A trust region that, for a prompt the policy has moved far on, keeps what moves it back and no other token.

    A prompt's distance bounds its total variation: ``½ · mean |π/π_old − 1|``, the mean over a completion's tokens and
    then over the group's completions. Where it is above ``limit`` a token is kept only if ``A · (π − π_old) ≤ 0``.
    Limiting cases: ``trust_region`` itself for an infinite limit; for one of 0, where a group has moved at all, the
    tokens that move back.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``, or a ``Coupled``.
        limit: δ, largest distance of a prompt.
        group_size: G, completions of a prompt, consecutive rows.

    Returns:
        A ``Coupled`` trust region of whole groups.

    Raises:
        ValueError: for a negative limit or a group size below 1; at trace time, for rows that are not whole groups.

    >>> old, now = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.5], [0.5, 0.75]]))
    >>> batch = PolicyBatch(now, old, old * 0 + 1, old < 0)
    >>> mask_group_variation(unclipped, 0.1, 2).loss(now - old, batch).round(2).tolist()
    [[-0.5, -1.0], [-1.0, 0.0]]
    """
    checks.at_least_one("mask_group_variation", group_size=group_size)
    checks.not_negative("mask_group_variation", limit=limit)

    def kept(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        _check_groups("mask_group_variation", log_ratio, group_size)
        moved = jnp.abs(expm1_then_line(batch.log_probs - batch.old_log_probs))
        of_rows = 0.5 * jax.vmap(masked_mean)(moved, batch.mask)
        there = batch.mask.any(-1)
        of_prompts = jax.vmap(masked_mean)(*(x.reshape(-1, group_size) for x in (of_rows, there)))
        within = jnp.repeat(of_prompts <= limit, group_size)[:, None]
        return within | (batch.advantages * (batch.log_probs - batch.old_log_probs) <= 0)

    return _dropped(trust_region, kept, whole=True)


def _check_groups(name: str, log_ratio: jax.Array, group_size: int) -> None:
    if log_ratio.ndim != 2 or log_ratio.shape[0] % group_size:
        raise ValueError(
            f"{name}: log_ratio has shape {log_ratio.shape}, wanted [B, T] of whole groups of {group_size} rows; take "
            "micro-batches of whole groups."
        )


@check_arguments
def dppo_tv(eps_low: float, eps_high: float | None = None, ceiling: float = 20.0) -> Coupled:
    """Divergence PPO by total variation, ``mask_total_variation`` of ``cispo`` (arXiv 2602.04879).

    Limiting case: ``cispo`` for half-widths of 1.

    Args:
        eps_low: half-width below, of the token's probability.
        eps_high: half-width above; ``eps_low`` where None.
        ceiling: largest weight, as in ``cispo``.

    Returns:
        A ``Coupled`` trust region.

    Raises:
        ValueError: for a half-width or a ceiling that is not positive.

    >>> rare, likely = jnp.log(jnp.array([[0.25, 0.5]])), jnp.log(jnp.array([[0.5, 1.0]]))
    >>> batch = PolicyBatch(likely, rare, rare * 0 + 1, rare < 0, rare)
    >>> dppo_tv(0.25).loss(likely - rare, batch).tolist()
    [[-1.386..., 0.0]]
    """
    checks.positive("dppo_tv", eps_low=eps_low, eps_high=eps_low if eps_high is None else eps_high)
    return mask_total_variation(cispo(ceiling=ceiling), eps_low, eps_high)


@check_arguments
def dppo_kl(limit_low: float, limit_high: float | None = None, ceiling: float = 20.0) -> Coupled:
    """Divergence PPO by the KL of "this token or another": ``cispo`` where it is small or the token moves back.

    A token is kept where ``KL(coin(π_old)‖coin(π))`` is at most its limit, or π is on the other side of π_old than A
    pushes it to (arXiv 2602.04879). Limiting case: ``cispo`` for infinite limits.

    Args:
        limit_low: largest divergence where A ≤ 0, nats.
        limit_high: largest divergence where A > 0, nats; ``limit_low`` where None.
        ceiling: largest weight, as in ``cispo``.

    Returns:
        A ``Coupled`` trust region.

    Raises:
        ValueError: for a limit or a ceiling that is not positive.

    >>> rare, likely = jnp.log(jnp.array([[0.25, 0.125]])), jnp.log(jnp.array([[0.5, 0.5]]))
    >>> batch = PolicyBatch(likely, rare, rare * 0 + 1, rare < 0, rare)
    >>> dppo_kl(0.25).loss(likely - rare, batch).tolist()
    [[-1.386..., 0.0]]
    """
    high = limit_low if limit_high is None else limit_high
    checks.positive("dppo_kl", limit_low=limit_low, limit_high=high)

    def kept(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        divergence = top_k_kl(batch.old_log_probs[..., None], batch.log_probs[..., None])
        above = (divergence <= high) | (batch.log_probs <= batch.old_log_probs)
        below = (divergence <= limit_low) | (batch.log_probs >= batch.old_log_probs)
        return jnp.where(batch.advantages > 0, above, below)

    return _dropped(cispo(ceiling=ceiling), kept)


@check_arguments
def mask_off_policy(trust_region: TrustRegion | Coupled, threshold: float) -> Coupled:
    """A trust region without the completions of negative advantage that the policy has left (``off_policy_mask``).

    ``old_log_probs`` are those that the tokens were drawn with. The KL term, if any, still reads every completion.
    Limiting case: ``trust_region`` itself for an infinite threshold.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``, or a ``Coupled``.
        threshold: of the mean of ``log π_old − log π`` over the completion, nats per token.

    Returns:
        A ``Coupled`` trust region.

    >>> row = jnp.array([[-1.0]])
    >>> mask_off_policy(unclipped, 0.5).loss(row, PolicyBatch(row * 2, row, row, row < 0, row)).tolist()
    [[0.0]]
    """

    def kept(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        del log_ratio
        return off_policy_mask(batch.log_probs, batch.old_log_probs, batch.advantages, batch.mask, threshold)

    return _dropped(trust_region, kept)


@check_arguments
def token_covariance(log_probs: jax.Array, advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """Each token's term of the covariance of A and log π, ``(A − mean A) · (log π − mean log π)`` (arXiv 2505.22617).

    Tokens with a large one are what makes the entropy fall. Limiting case: 0 where all advantages are equal.

    Args:
        log_probs: the current policy's, any layout, nats; not differentiated.
        advantages: same shape.
        mask: same shape, True where the policy chose; means are over these tokens.

    Returns:
        Same shape, in the advantages' units times nats; 0 where ``mask`` is False.

    >>> token_covariance(jnp.array([-1.0, -3.0]), jnp.array([2.0, 0.0]), jnp.array([True, True])).tolist()
    [1.0, 1.0]
    """
    return masked_deviation(advantages, mask) * masked_deviation(jax.lax.stop_gradient(log_probs), mask)


def _largest(values: jax.Array, share: float, mask: jax.Array) -> jax.Array:
    """True on the largest values, as many as ``share`` of the mask's True entries and at least one."""
    order = jnp.argsort(jnp.argsort(-values.ravel())).reshape(values.shape)
    return order < jnp.maximum(jnp.floor(share * mask.sum()), 1)


@check_arguments
def clip_cov(
    trust_region: TrustRegion,
    key: jax.Array,
    share: float = 2e-4,
    covariance_floor: float = 1.0,
    covariance_ceiling: float = 5.0,
) -> Coupled:
    """Clip-Cov: no loss on a random few of the tokens whose covariance lies between two bounds (arXiv 2505.22617).

    Tokens that ``trust_region`` (``clip()`` in the paper) clips already are not drawn. The key is folded with the bits
    of the batch's old log-probabilities: one constant key draws afresh for every batch, and the draw can be repeated.
    Limiting case: ``trust_region`` itself where no covariance lies between the bounds.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``.
        key: of ``jax.random``; may be traced.
        share: of the chosen tokens, at least one token is drawn.
        covariance_floor: bound of ``token_covariance`` below, exclusive, in its units.
        covariance_ceiling: bound above, exclusive.

    Returns:
        A ``Coupled`` trust region, with statistics of the batch that it is given.

    Raises:
        ValueError: for a share that is not positive, or a ceiling that does not exceed the floor.

    >>> row = jnp.array([[-1.0, -5.0]])
    >>> term = clip_cov(unclipped, jax.random.key(0))
    >>> losses = term.loss(row * 0, PolicyBatch(row, row, row + 3, row < 0, row))
    >>> int((losses == 0).sum())
    1
    """
    checks.positive("clip_cov", share=share, **{"ceiling − floor": covariance_ceiling - covariance_floor})

    def kept(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        covariance = token_covariance(batch.log_probs, batch.advantages, batch.mask)
        clipped = (slopes(trust_region, log_ratio, batch.advantages) == 0) & (batch.advantages != 0)
        between = (covariance_floor < covariance) & (covariance < covariance_ceiling)
        candidates = batch.mask & between & ~clipped
        bits = jax.lax.bitcast_convert_type(batch.old_log_probs.astype(jnp.float32), jnp.uint32)
        fresh = jax.random.fold_in(key, bits.sum(dtype=jnp.uint32))
        draws = jax.random.uniform(fresh, candidates.shape, jnp.float32)
        return ~(candidates & _largest(jnp.where(candidates, draws, -1.0), share, batch.mask))

    return _dropped(trust_region, kept, whole=True)


@check_arguments
def kl_cov(trust_region: TrustRegion, kl_coef: float = 1.0, share: float = 2e-4) -> Coupled:
    """KL-Cov: ``+ kl_coef · |log π − log π_old|`` on the tokens of largest covariance (arXiv 2505.22617).

    ``trust_region`` is ``unclipped`` in the paper. On the first update after a rollout the term has no gradient.
    Limiting case: ``trust_region`` itself for ``kl_coef = 0``.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``.
        kl_coef: weight of the term, per nat; peers use 0.1 and 1.
        share: of the chosen tokens, at least one, taken by ``token_covariance``.

    Returns:
        A ``Coupled`` trust region, with statistics of the batch that it is given.

    Raises:
        ValueError: for a negative coefficient or a share that is not positive.

    >>> row = jnp.array([[-1.0, -3.0]])
    >>> batch = PolicyBatch(row, row - 1, jnp.array([[1.0, -2.0]]), row < 0, row)
    >>> kl_cov(lambda log_ratio, advantages: 0 * advantages, 0.5).loss(row * 0 + 1, batch).tolist()
    [[0.5, 0.0]]
    """
    checks.not_negative("kl_cov", kl_coef=kl_coef)
    checks.positive("kl_cov", share=share)

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        covariance = token_covariance(batch.log_probs, batch.advantages, batch.mask)
        largest = batch.mask & _largest(jnp.where(batch.mask, covariance, -jnp.inf), share, batch.mask)
        penalty = kl_coef * absolute(log_ratio, jnp.zeros_like(log_ratio))
        return trust_region(log_ratio, batch.advantages) + jnp.where(largest, penalty, 0.0)

    return of_chosen(loss, whole=True)


@check_arguments
def weigh_by_ratio(penalty: KlEstimator) -> Coupled:
    """KL term on samples of π_old, multiplied by the ratio: ``r · penalty(log π, log π_ref)``, r differentiated too.

    With ``kl_penalty(k3, β)`` value and gradient are unbiased for β · KL(π‖π_ref), however far π has moved; on policy
    too, since the gradient through r turns k3's forward KL into the reverse one (DeepSeek-V3.2, arXiv 2512.02556). The
    ratio is the objective's. Limiting case: the value of ``penalty`` where r = 1.

    Args:
        penalty: ``(log_probs, ref_log_probs) → loss``, as a rule a ``kl_penalty``, which refuses k1 here as everywhere.

    Returns:
        A ``Coupled`` KL term.

    Raises:
        ValueError: at trace time, for a batch without ``ref_log_probs``.

    >>> row = jnp.array([[-1.0]])
    >>> batch = PolicyBatch(row, row, row, row < 0, row, row * 2)
    >>> float(weigh_by_ratio(absolute).loss(row * 0, batch)[0, 0])
    1.0
    """

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        if batch.ref_log_probs is None:
            raise ValueError("importance_corrected: a KL term needs ref_log_probs, got None; give the reference's.")
        return unclipped(log_ratio, -penalty(batch.log_probs, batch.ref_log_probs))

    return of_chosen(loss)


@check_arguments
def against_reference(trust_region: TrustRegion, ratio: Ratio = summed_ratio) -> Coupled:
    """A trust region of the log-ratio to the frozen reference, ``log π/π_ref``, in place of that to the sampler.

    It adds ``log π_old/π_ref`` at the level of the objective's ratio. Limiting case: ``trust_region`` itself where the
    completions are the reference's own.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``.
        ratio: the objective's; ``summed_ratio`` reads whole completions.

    Returns:
        A ``Coupled`` trust region.

    Raises:
        ValueError: at trace time, for a batch without ``ref_log_probs``.

    >>> row = jnp.array([[-1.0]])
    >>> batch = PolicyBatch(row, row, 0 * row, row < 0, ref_log_probs=3 * row)
    >>> against_reference(lambda log_ratio, advantages: log_ratio).loss(row * 0, batch).tolist()
    [[2.0]]
    """

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        if batch.ref_log_probs is None:
            raise checks.NoReference("against_reference: ref_log_probs is None; give the reference's.")
        return trust_region(log_ratio + ratio(batch.old_log_probs, batch.ref_log_probs, batch.mask), batch.advantages)

    return of_chosen(loss)


@check_arguments
def centered_in_group(trust_region: TrustRegion, group_size: int) -> Coupled:
    """A trust region of each completion's log-ratio less the mean of its group's.

    What is common to a prompt's completions, the partition function, falls out (GVPO, arXiv 2504.19599). A completion
    without a token or a score is in no mean, and pays nothing. Limiting cases: ``trust_region`` itself before the first
    optimizer step, where all log-ratios are 0; 0 log-ratios for groups of one.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``; the ratio is one of whole completions.
        group_size: G, completions of a prompt, consecutive rows.

    Returns:
        A ``Coupled`` trust region of whole groups.

    Raises:
        ValueError: for a group size below 1; at trace time, for rows that are not whole groups.

    >>> rows = jnp.array([[1.0], [3.0]])
    >>> batch = PolicyBatch(rows, 0 * rows, 0 * rows, rows > 0)
    >>> centered_in_group(lambda log_ratio, advantages: log_ratio, 2).loss(rows, batch).tolist()
    [[-1.0], [1.0]]
    """
    checks.at_least_one("centered_in_group", group_size=group_size)

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        _check_groups("centered_in_group", log_ratio, group_size)
        there = batch.mask.any(-1)
        if batch.scores is not None:
            there &= ~(jnp.isnan(batch.scores) & batch.mask).any(-1)
        of_rows = log_ratio.sum(-1) / jnp.maximum(batch.mask.sum(-1), 1)
        by_group = (x.reshape(-1, group_size) for x in (of_rows, there))
        deviation = jax.vmap(masked_deviation)(*by_group).reshape(-1, 1)
        paid = trust_region(jnp.where(batch.mask, deviation, 0.0), batch.advantages)
        return jnp.where(batch.mask & there[:, None], paid, 0.0)

    return of_chosen(loss, whole=True)
