"""Four-model PPO on completions as a pure ``(init, step)`` pair: policy, value model, frozen reference, and scores.

The scores come from outside, from a reward model or any function. One step is one program: the reference's
log-probabilities, rewards and advantages of the whole batch, then epochs of minibatches over policy and value model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import k2
from rlax_llm.core.masked import masked_mean
from rlax_llm.core.trees import check_trainable, join_trees
from rlax_llm.core.types import Completions, CreditedCompletions, Metrics, Params, PolicyBatch, ScoredCompletions
from rlax_llm.credit.values import ClippedValueLoss, clipped_value_loss, explained_variance
from rlax_llm.loops.balance import Routers, router_metrics, routers
from rlax_llm.loops.minibatches import Passes, epochs, lost_share, optimizer_step
from rlax_llm.loops.parts import fixed_log_probs, summed_gradient, tokens_of
from rlax_llm.loops.policy import Loop, learned_batch, reference_log_probs
from rlax_llm.loops.rlhf_credit import Shaping, reward_metrics, token_credit, token_rewards
from rlax_llm.loops.telling import Telling, nothing_more
from rlax_llm.models.scoring import LogProbs
from rlax_llm.policy.objectives import Objective, policy_loss
from rlax_llm.policy.terms import term_weights
from rlax_llm.policy.trust_regions import slopes
from rlax_llm.policy.weightings import token_mean

Values = Callable[[Params, Completions], jax.Array]
Optimizers = Mapping[str, optax.GradientTransformation]
MODELS = ("policy", "value")


class RlhfState(NamedTuple):
    """What a step changes.

    Attributes:
        params: what is trained, ``{"policy": …, "value": …}``.
        opt_state: the optimizers', ``{"policy": …, "value": …}``.
        step: scalar int32, batches learned from.
        kl_coef: scalar, β of the next batch.
    """

    params: Params
    opt_state: Any
    step: jax.Array
    kl_coef: jax.Array


class RlhfLearning(NamedTuple):
    """How often a batch of completions is learned from, and how the value model is.

    Attributes:
        epochs: times that each row is learned from.
        minibatches: optimizer steps in an epoch.
        micro_batches: parts that the rows of a minibatch are taken in; changes the memory and nothing else.
        group_size: rows that stay together, where ``log_probs`` computes a prompt once for all its completions.
        value_loss: ``(values, old_values, targets) → loss``, elementwise.
        value_coef: weight of the value model's loss.
        warmup_steps: first steps that teach the value model alone; may be traced.
        telling: ``advantages → metrics``, what a step tells of the advantages that it learns from, normalized.
    """

    epochs: int = 4
    minibatches: int = 1
    micro_batches: int = 1
    group_size: int = 1
    value_loss: ClippedValueLoss = clipped_value_loss(0.2)
    value_coef: float | jax.Array = 0.1
    warmup_steps: int | jax.Array = 0
    telling: Telling = nothing_more


class Experience(NamedTuple):
    """What the epochs read, the rows on axis 0.

    Attributes:
        completions: as sampled.
        mask: ``[B, T]`` bool, the tokens that teach.
        advantages: ``[B, T]``, normalized.
        values: ``[B, T]``, before the first optimizer step.
        targets: ``[B, T]``, the value model's.
        ref_log_probs: ``[B, T]``, or None where the loss has no KL term.
        scores: ``[B]``, as they came, for terms that read them.
    """

    completions: Completions
    mask: jax.Array
    advantages: jax.Array
    values: jax.Array
    targets: jax.Array
    ref_log_probs: jax.Array | None
    scores: jax.Array

    def learned(self) -> PolicyBatch:
        """What the policy's loss reads."""
        taught = self.completions._replace(mask=self.mask)
        return learned_batch(CreditedCompletions(taught, self.advantages, self.ref_log_probs, scores=self.scores))


class _Loop(NamedTuple):
    """The arguments of ``rlhf_loop``."""

    log_probs: LogProbs
    values: Values
    objective: Objective
    optimizers: Optimizers
    shaping: Shaping
    learning: RlhfLearning


def _check_settings(shaping: Shaping, learning: RlhfLearning) -> None:
    counts = ("epochs", "minibatches", "micro_batches", "group_size")
    checks.at_least_one("rlhf_loop", **{name: getattr(learning, name) for name in counts})
    checks.not_negative("rlhf_loop", value_coef=learning.value_coef, warmup_steps=learning.warmup_steps)
    checks.not_negative("rlhf_loop", **{"kl.coef": shaping.kl.coef, "discount": shaping.discount})
    for name in ("trace", "value_trace"):
        trace = getattr(shaping, name)
        if isinstance(trace, (int, float)) and not 0 <= trace <= 1:
            raise ValueError(f"rlhf_loop: {name} is {trace}, wanted a number from 0 to 1, or a function of the length.")


def _check_batch(learning: RlhfLearning, key: jax.Array | None, batch: ScoredCompletions) -> None:
    checks.record("rlhf_loop", "batch", batch, ScoredCompletions)
    if learning.minibatches > 1 and key is None:
        raise ValueError("rlhf_loop: several minibatches are drawn at random and key is None; give step a key.")
    scores = batch.scores
    rows = batch.completions.tokens.shape[0]
    if jnp.shape(scores) != (rows,):
        raise ValueError(
            f"rlhf_loop: scores has shape {jnp.shape(scores)}, wanted [B] = ({rows},), one for each row of completions."
        )
    checks.same_shape("rlhf_loop", tokens=batch.completions.tokens, step_rewards=batch.step_rewards)
    parts = learning.minibatches * learning.group_size
    if rows % parts:
        raise ValueError(
            f"rlhf_loop: minibatches {learning.minibatches} · group_size {learning.group_size} is {parts}, wanted a "
            f"divisor of the batch's {rows} rows; change one of them."
        )
    if rows // learning.minibatches % learning.micro_batches:
        raise ValueError(
            f"rlhf_loop: micro_batches is {learning.micro_batches}, wanted a divisor of the "
            f"{rows // learning.minibatches} rows of a minibatch."
        )


def _check_models(name: str, models: Mapping[str, Any]) -> None:
    if set(models) != set(MODELS):
        raise ValueError(f"rlhf_loop: {name} has the entries {sorted(models)}, wanted 'policy' and 'value'.")


def _value_terms(learning: RlhfLearning, rows: Experience, values: jax.Array, weights: tuple) -> tuple:
    """The value model's loss, and the share of tokens whose value its clip holds where it is."""
    values = jnp.where(rows.mask, values, 0.0)

    def loss(values: jax.Array, targets: jax.Array) -> jax.Array:
        return learning.value_loss(values, rows.values, targets)

    held = (slopes(loss, values, rows.targets) == 0) & (values != rows.targets)
    total = (weights[0] * loss(values, rows.targets)).sum()
    return total, {"value_loss": total, "value_clip_fraction": (weights[1] * held).sum()}


def _loss(loop: _Loop, frozen: Params | None, routed: Routers) -> Callable:
    """``(params, (rows, weights)) → (loss, metrics)``, all of them sums over the rows."""

    def loss(params: Params, part: tuple[Experience, tuple]) -> tuple[jax.Array, Metrics]:
        rows, weights = part
        models, old = join_trees(params, frozen), rows.completions.log_probs
        (current, entropy), cost, told = routed(models["policy"], rows.completions)
        batch = rows.learned()._replace(log_probs=current, entropy=entropy)
        batch = batch._replace(weights=weights[0], uniform=weights[1], terms=weights[2])
        total, metrics = policy_loss(loop.objective, batch)
        now = loop.values(models["value"], rows.completions)
        value_loss, value_metrics = _value_terms(loop.learning, rows, now, weights)

        def by_token(x: jax.Array) -> jax.Array:
            return jnp.where(rows.mask, weights[1] * x, 0.0).sum()

        beyond = jnp.expm1(jnp.where(rows.mask, current - old, 0.0))  # the ratio less 1: its spread loses no digits
        metrics |= {"entropy": by_token(entropy), "approx_kl": by_token(k2(current, old))} | value_metrics
        metrics |= {"ratio": by_token(beyond), "ratio_var": by_token(jnp.square(beyond))} | told
        return total + cost + loop.learning.value_coef * value_loss, jax.lax.stop_gradient(metrics)

    return loss


def _gradient(loop: _Loop, frozen: Params | None, params: Params, rows: Experience) -> tuple[Params, Metrics]:
    """Of a minibatch, and its metrics."""
    parts, policy = loop.learning.micro_batches, join_trees(params, frozen)["policy"]
    loss = _loss(loop, frozen, routers(loop.log_probs, policy, rows.completions, parts))
    own = term_weights(loop.objective.terms, rows.learned())
    part = (rows, (loop.objective.weighting(rows.mask), token_mean(rows.mask), own))
    gradient, metrics = summed_gradient(loss, params, part, parts, tokens_of(loop.log_probs))
    return gradient, router_metrics(metrics)


def _descent(loop: _Loop, frozen: Params | None, warming: jax.Array) -> Callable:
    """``((params, opt_state), rows) → …``, one optimizer step of each model; while ``warming`` of the value alone."""

    def minibatch(now: tuple, rows: Experience) -> tuple[tuple, Metrics]:
        params, opt_state = now
        gradient, metrics = _gradient(loop, frozen, params, rows)
        moved = {}
        for name in MODELS:
            moved[name] = optimizer_step(loop.optimizers[name], gradient[name], params[name], opt_state[name])
        lost = lost_share(gradient["policy"], params["policy"], moved["policy"][0])
        still = (params["policy"], opt_state["policy"])
        moved["policy"] = jax.tree.map(lambda old, new: jnp.where(warming, old, new), still, moved["policy"])
        norms = {"grad_norm": optax.global_norm(gradient["policy"]), "lost_updates": lost}
        norms |= {"value_grad_norm": optax.global_norm(gradient["value"])}
        return tuple({name: moved[name][i] for name in MODELS} for i in (0, 1)), metrics | norms

    return minibatch


def _fixed(loop: _Loop, function: LogProbs, model: Params, completions: Completions) -> jax.Array:
    parts = loop.learning.minibatches * loop.learning.micro_batches
    return fixed_log_probs(function, model, completions, parts)


def _twice(values: Values) -> LogProbs:
    """Values as the first of several arrays, without their padding where they are computed so."""

    def twice(params: Params, rows: Completions) -> tuple[jax.Array, jax.Array]:
        found = values(params, rows)
        return found, found

    by = tokens_of(values)
    return twice if by is None else by._replace(score=twice)


def _reference(
    loop: _Loop, batch: ScoredCompletions, reference: Params | None, frozen: Params | None
) -> jax.Array | None:
    """The reference's log-probabilities, or None where there is none and none is needed."""
    given = reference is not None or batch.ref_log_probs is not None

    def score(params: Params) -> jax.Array:
        return _fixed(loop, loop.log_probs, join_trees({"policy": params}, frozen)["policy"], batch.completions)

    needed = given or loop.shaping.kl.charged
    return reference_log_probs("rlhf_loop", score, batch, reference, needed, "a Shaping with kl=KlInReward(0)")


def _experience(
    loop: _Loop, state: RlhfState, batch: ScoredCompletions, scores: jax.Array, ref_log_probs: Any, frozen: Any
) -> tuple[Experience, Metrics]:
    """What the epochs read of a batch, whose scores are shaped, and what there is to say of it."""

    def critic(completions: Completions) -> jax.Array:
        return _fixed(loop, _twice(loop.values), join_trees(state.params, frozen)["value"], completions)

    shaping, completions = loop.shaping, batch.completions
    mask = completions.mask & ~jnp.isnan(scores)[:, None]
    values, bootstrap = shaping.ending(critic, completions)
    values, bootstrap = jnp.where(mask, values, 0.0), jnp.where(mask.any(-1), bootstrap, 0.0)
    charged = (completions.log_probs, ref_log_probs, mask, state.kl_coef)
    rewards = token_rewards(shaping, scores, *charged, step_rewards=batch.step_rewards)
    credit = token_credit(shaping, rewards, values, bootstrap, mask)
    advantages = jnp.where(mask, shaping.advantages(credit.advantages, mask), 0.0)
    in_loss = None if loop.objective.kl is None else ref_log_probs
    return Experience(completions, mask, advantages, values, credit.targets, in_loss, batch.scores), {
        "advantage_mean": masked_mean(credit.advantages, mask),
        "explained_variance": explained_variance(values, credit.targets, mask),
    }


def _next_kl_coef(loop: _Loop, state: RlhfState, metrics: Metrics, still: jax.Array) -> jax.Array:
    """β after a step; ``still`` where the policy was not to move, and so says nothing of β."""
    if not loop.shaping.kl.charged:
        return state.kl_coef
    return jnp.where(still, state.kl_coef, loop.shaping.kl.control(state.kl_coef, metrics["kl"]))


def _learned(
    loop: _Loop,
    state: RlhfState,
    batch: Experience,
    key: jax.Array | None,
    frozen: Params | None,
    warming: jax.Array,
) -> tuple[tuple, Metrics]:
    """Parameters and optimizer states after all epochs, and means over the optimizer steps."""
    learning = loop.learning
    passes = Passes(learning.epochs, learning.minibatches, learning.group_size)
    start = (state.params, state.opt_state)
    rows = batch.mask.shape[0]
    now, steps = epochs(_descent(loop, frozen, warming), start, batch, rows, passes, key)
    learned = jax.tree.map(jnp.mean, steps)
    return now, learned | {
        "ratio": 1 + learned["ratio"],
        "ratio_var": learned["ratio_var"] - jnp.square(learned["ratio"]),
    }


@check_arguments
def rlhf_loop(
    log_probs: LogProbs,
    values: Values,
    objective: Objective,
    optimizers: Optimizers,
    shaping: Shaping,
    learning: RlhfLearning,
) -> Loop[RlhfState, ScoredCompletions]:
    """RLHF-PPO (arXiv 1909.08593, 2203.02155): ``init(params)`` and ``step(state, scored, *, key, reference, frozen)``.

    A step's rewards, advantages and targets are fixed before its first optimizer step; each optimizer step then
    descends ``policy_loss + value_coef · Σ weights · value_loss`` on a minibatch of rows. The old log-probabilities are
    those in ``completions``, the sampler's. A row with a NaN score, or without a chosen token, teaches neither model.
    Of a batch with ``step_rewards`` each step is paid at its end (``shaping.step_payments``).

    The two models have each their optimizer, so that a warm-up leaves the policy's as it was before the first step,
    its moments and its count included; β stays then too.

    Limiting case: one epoch of one minibatch with both λ 1, values of 0 and unnormalized advantages is ``policy_loop``
    on ``returns_to_go``.

    Args:
        log_probs: ``(policy, completions) → (log_probs, entropy)``, both ``[B, T]``, nats, at the sampler's
            temperature; the reference is put through the same function.
        values: ``(value model, completions) → [B, T]``, of the state before each token.
        objective: of the policy, such as ``control_recipes.ppo()``; its ``advantage`` is not read.
        optimizers: ``{"policy": …, "value": …}``, any Optax transformations.
        shaping: from scores to advantages.
        learning: epochs, minibatches and the value model's loss.

    Returns:
        The pair. ``init`` takes ``{"policy": …, "value": …}``. A batch is ``ScoredCompletions``; ``key`` orders its
        minibatches. The reference comes as the batch's ``ref_log_probs`` or as ``reference``, parameters like the
        policy's; ``frozen`` has what is not trained, ``{"policy": …, "value": …}``, to be joined with what is.
        Metrics: those of ``reward_metrics``; ``kl_coef`` of this step, ``advantage_mean`` before it is normalized,
        ``explained_variance`` of the values before the update; and means over the optimizer steps: those of
        ``policy_loss``, ``value_loss``, ``value_clip_fraction``, ``entropy``, ``approx_kl`` (k2 per token, nats),
        ``ratio`` and ``ratio_var`` over tokens, ``grad_norm`` (the policy's) and ``value_grad_norm``.

    Raises:
        ValueError: for settings out of range; at trace time, for other models than these two, scores that are not
            ``[B]``, minibatches that do not divide the rows, or a KL term without a reference.
    """
    loop = _Loop(log_probs, values, objective, optimizers, shaping, learning)
    _check_settings(shaping, learning)
    _check_models("optimizers", optimizers)

    def init(params: Params) -> RlhfState:
        _check_models("params", params)
        check_trainable("rlhf_loop", params)
        opt_state = {name: optimizers[name].init(params[name]) for name in MODELS}
        return RlhfState(params, opt_state, jnp.int32(0), jnp.asarray(shaping.kl.coef, float))

    def step(
        state: RlhfState,
        batch: ScoredCompletions,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[RlhfState, Metrics]:
        _check_batch(learning, key, batch)
        completions = batch.completions
        ref_log_probs = _reference(loop, batch, reference, frozen)
        scores = shaping.scores(batch.scores, completions.truncated)
        metrics = reward_metrics(shaping, scores, completions, ref_log_probs, state.kl_coef)
        experience, described = _experience(loop, state, batch, scores, ref_log_probs, frozen)
        warming = state.step < learning.warmup_steps
        (params, opt_state), learned = _learned(loop, state, experience, key, frozen, warming)
        kl_coef = _next_kl_coef(loop, state, metrics, warming | ~experience.mask.any())
        metrics |= described | learned | {"kl_coef": state.kl_coef} | learning.telling(experience.advantages)
        return RlhfState(params=params, opt_state=opt_state, step=state.step + 1, kl_coef=kl_coef), metrics

    return init, step
