"""Credit inside a group that differs from token to token: baselines of least variance, turns in equal states, steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.masked import at_least_float32
from rlax_llm.core.types import Scored
from rlax_llm.credit.batches import has_score, returns_to_go
from rlax_llm.credit.groups import (
    Advantage,
    GroupEstimator,
    best_of_group,
    check_rows,
    has_rival,
    known_of,
    lifted_estimator,
    max_leave_one_out,
    pass_at_k,
    z_score,
)
from rlax_llm.credit.returns import discounted_returns
from rlax_llm.credit.shaping import step_payments

_OF_COMPLETIONS = (best_of_group, max_leave_one_out, pass_at_k)


@check_arguments
def token_energy(log_probs: jax.Array, collisions: jax.Array) -> jax.Array:
    """Squared norm of a token's gradient with respect to its logits, ``1 − 2p + Σ_v p_v²`` (arXiv 2602.07078).

    It is ``‖e_y − p‖²``. Limiting cases: 0 for a certain token; near 2 for one that another was expected in place of.

    Args:
        log_probs: of the chosen tokens, any shape, nats.
        collisions: ``Σ_v p_v²`` of the distributions that they were drawn from, same shape.

    Returns:
        Same shape, not negative.

    Raises:
        ValueError: for shapes that differ.

    >>> token_energy(jnp.log(jnp.array([0.5, 1.0])), jnp.array([0.5, 1.0])).tolist()
    [0.5, 0.0]
    """
    checks.same_shape("token_energy", log_probs=log_probs, collisions=collisions)
    return jnp.maximum(1 - 2 * jnp.exp(log_probs) + collisions, 0.0)


@check_arguments
def optimal_token_baseline(kl_coef: float = 0.0, discount: float = 1.0) -> Advantage:
    """Each token's return minus the baseline of least variance there, ``A_t = G_t − Σ_i G_t W_t / Σ_i W_t`` (OTB).

    W_t sums ``token_energy`` up to and with token t: a completion's squared gradient so far, without a backward pass.
    Both sums are over the group's completions that go on to t (arXiv 2602.07078). Limiting cases: with equal energies,
    and without a KL, the deviation from the mean of those that go on; ``length_centered`` is the same idea with one
    number for a completion, its length.

    Args:
        kl_coef: of ``returns_to_go``; with 0 no reference is needed.
        discount: γ of one token, 0 … 1.

    Returns:
        An estimator ``Scored → [P, G, T]``, which reads ``known.collisions``; 0 for a NaN score, where the policy did
        not choose, and in a group with fewer than two scored members.

    Raises:
        ValueError: at trace time, without ``known.collisions``, and where ``kl_coef`` is not 0 without a reference.

    >>> from rlax_llm.core.types import Known
    >>> log_probs = jnp.log(jnp.array([[[0.5], [0.75]]]))
    >>> known = Known(collisions=jnp.array([[[0.5], [0.625]]]))
    >>> scored = Scored(jnp.array([[1.0, 0.0]]), log_probs, jnp.ones((1, 2, 1), bool), known=known)
    >>> [round(x, 2) for x in optimal_token_baseline()(scored).ravel().tolist()]
    [0.2, -0.8]
    """
    to_go = returns_to_go(kl_coef, discount)

    def advantage(scored: Scored) -> jax.Array:
        check_rows("optimal_token_baseline", scored)
        collisions = known_of("optimal_token_baseline", scored, "collisions")
        returns = to_go(scored)
        taken = scored.mask & jax.vmap(has_rival)(scored.scores)[..., None]
        energy = jnp.where(taken, token_energy(scored.log_probs, collisions), 0.0)
        weights = jnp.where(taken, jnp.cumsum(at_least_float32(energy), -1), 0.0)
        total = weights.sum(1, keepdims=True)
        # Where all that go on were certain throughout nothing is learned, whatever the baseline.
        baseline = (weights * returns).sum(1, keepdims=True) / jnp.where(total > 0, total, 1.0)
        return jnp.where(taken, returns - baseline, 0.0)

    return advantage


@check_arguments
def anchored(turn_returns: jax.Array, anchors: jax.Array, estimator: GroupEstimator = z_score) -> jax.Array:
    """Each turn's advantage among the group's turns that begin in the same state: ``estimator`` of their returns.

    Limiting cases: states that are all different give 0; one turn each from one state is ``estimator`` of the group.

    Args:
        turn_returns: ``[G, K]``, NaN where there is no such turn.
        anchors: ``[G, K]`` int32, equal where the states are.
        estimator: ``[N] → [N]``, of returns with NaN for those that do not count.

    Returns:
        ``[G, K]``; 0 for a turn that is the only one from its state.

    Raises:
        ValueError: for shapes that differ.

    >>> from rlax_llm.credit.groups import centered
    >>> returns, states = jnp.array([[1.0, 5.0], [3.0, 7.0]]), jnp.array([[0, 1], [0, 2]])
    >>> anchored(returns, states, centered).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    checks.same_shape("anchored", turn_returns=turn_returns, anchors=anchors)
    returns, states = turn_returns.ravel(), anchors.ravel()

    def one(place: jax.Array) -> jax.Array:
        return estimator(jnp.where(states == states[place], returns, jnp.nan))[place]

    return jax.vmap(one)(jnp.arange(returns.size)).reshape(turn_returns.shape)


@check_arguments
def step_wise(episode: Advantage, step_coef: float = 1.0, estimator: GroupEstimator = z_score) -> Advantage:
    """Credit of the whole episode, and of each turn among the turns from the same state: ``A = A_E + ω · A_S``.

    GiGPO (arXiv 2505.10978). Turns are ``known.turns``, the states that they begin in ``known.anchors``, their returns
    ``known.turn_returns``. Limiting cases: ``episode`` itself for ω = 0, or where no state comes twice; with one turn
    each, whose return is the score, 1 + ω times ``per_group(estimator)``.

    Args:
        episode: of whole completions, such as ``per_group(z_score)``.
        step_coef: ω ≥ 0.
        estimator: of the returns of turns from one state.

    Returns:
        An estimator ``Scored → [P, G, T]``.

    Raises:
        ValueError: for a negative coefficient; at trace time, without what is to be known.

    >>> from rlax_llm.core.types import Known
    >>> from rlax_llm.credit.groups import centered, per_group
    >>> known = Known(
    ...     turns=jnp.array([[[0, 1], [0, 1]]]),
    ...     anchors=jnp.array([[[0, 1], [0, 2]]]),
    ...     turn_returns=jnp.array([[[2.0, 1.0], [0.0, 0.0]]]),
    ... )
    >>> scored = Scored(jnp.array([[1.0, 0.0]]), None, jnp.ones((1, 2, 2), bool), known=known)
    >>> step_wise(per_group(centered), estimator=centered)(scored).tolist()
    [[[1.5, 0.5], [-1.5, -0.5]]]
    """
    checks.not_negative("step_wise", step_coef=step_coef)

    def advantage(scored: Scored) -> jax.Array:
        check_rows("step_wise", scored)
        turns, anchors, returns = (known_of("step_wise", scored, name) for name in ("turns", "anchors", "turn_returns"))
        returns = jnp.where(has_score(scored.scores)[..., None], returns, jnp.nan)
        of_turns = jax.vmap(lambda x, y: anchored(x, y, estimator))(returns, anchors)
        of_tokens = jnp.take_along_axis(of_turns, turns, -1)
        whole = episode(scored)
        whole = whole[..., None] if whole.ndim == 2 else whole
        return whole + step_coef * of_tokens

    return advantage


@check_arguments
def compared_steps(scores: jax.Array, step_rewards: jax.Array, mask: jax.Array) -> jax.Array:
    """The rewards that ``process_supervision`` compares: ``step_payments`` of the completions that have a rival.

    Limiting case: without steps, each score at its completion's last token.

    Args:
        scores: ``[P, G]``, NaN for a completion without a score.
        step_rewards: ``[P, G, T]``, at the last token of each step, NaN everywhere else.
        mask: ``[P, G, T]`` bool, True where the policy chose the token.

    Returns:
        ``[P, G, T]``, NaN where nothing is due, for a completion that has no score, and for the only one of a group
        that has one.

    Raises:
        ValueError: for shapes that do not fit.

    >>> nan, mask = jnp.nan, jnp.ones((1, 2, 2), bool)
    >>> rewards = jnp.array([[[1.0, nan], [nan, nan]]])
    >>> compared_steps(jnp.array([[1.0, 1.0]]), rewards, mask).tolist()
    [[[1.0, nan], [nan, 1.0]]]
    """
    taken = mask & jax.vmap(has_rival)(scores)[..., None]
    return step_payments(scores, step_rewards, taken)


@check_arguments
def process_supervision(estimator: GroupEstimator = z_score) -> Advantage:
    """GRPO with process supervision (arXiv 2402.03300, section 4.1.3): a token is worth the steps that end after it.

    ``A_t = Σ_{steps j that end at or after t} r̃_j``, where r̃ is ``estimator`` of the rewards of all steps of all of a
    group's completions together: in the paper ``(r − mean) / std``. Rewards are ``compared_steps`` of the scores: what
    the steps were not paid is paid with the last token. Limiting case: one step in each completion, or none, is
    ``per_group(estimator)``, outcome supervision.

    Args:
        estimator: ``[N] → [N]``, of rewards with NaN where there is none.

    Returns:
        An estimator ``Scored → [P, G, T]``, which reads ``known.step_rewards``; 0 where the policy did not choose, and
        for a completion that has no score, or is the only one of its group that has one.

    Raises:
        ValueError: at trace time, without ``known.step_rewards``.

    >>> from rlax_llm.core.types import Known
    >>> from rlax_llm.credit.groups import centered
    >>> rewards = jnp.array([[[1.0, 0.0, jnp.nan], [jnp.nan, 0.5, jnp.nan]]])
    >>> mask = jnp.array([[[True, True, False], [True, True, False]]])
    >>> scored = Scored(jnp.array([[1.0, 0.5]]), None, mask, known=Known(step_rewards=rewards))
    >>> process_supervision(centered)(scored).tolist()
    [[[0.0, -0.5, 0.0], [0.0, 0.0, 0.0]]]
    """

    def advantage(scored: Scored) -> jax.Array:
        check_rows("process_supervision", scored)
        step_rewards = known_of("process_supervision", scored, "step_rewards")
        rewards = compared_steps(scored.scores, step_rewards, scored.mask)
        normalized = jax.vmap(lambda group: estimator(group.ravel()).reshape(group.shape))(rewards)
        to_go = jax.vmap(jax.vmap(lambda row: discounted_returns(row, 1.0)))(normalized)
        taken = scored.mask & jax.vmap(has_rival)(scored.scores)[..., None]
        return jnp.where(taken, to_go, 0.0)

    return advantage


@check_arguments
def by_step(advantage: Advantage) -> Advantage:
    """An advantage of whole completions as one of their steps: of ``per_group(e)``, ``process_supervision(e)``.

    Args:
        advantage: ``per_group`` of an estimator that compares all rewards with one another, as ``z_score`` does.

    Raises:
        ValueError: for another one.

    >>> from rlax_llm.credit.groups import per_group
    >>> by_step(per_group(pass_at_k))
    Traceback (most recent call last):
    ValueError: by_step: pass_at_k asks which completion is best, and steps are no completions; take another advantage.
    """
    estimator = lifted_estimator(advantage)
    if estimator is None:
        raise ValueError(
            "by_step: the advantage is none of a group's scores by themselves, wanted per_group(estimator); take "
            "another, such as per_group(z_score)."
        )
    if estimator in _OF_COMPLETIONS:
        raise ValueError(
            f"by_step: {estimator.__name__} asks which completion is best, and steps are no completions; take another "
            "advantage."
        )
    return process_supervision(estimator)
