"""TRPO (arXiv 1502.05477) as *direction × search*, on any pytree, in ``jit``, ``vmap`` and ``scan``.

A *direction* is ``(matvec, gradient) → Direction`` (``fisher.py``), a *search* is ``(evaluate, params, step)
→ Search``. ``trpo_step`` composes one of each; ``line_search`` is the search as an Optax transformation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core import checks
from rlax_llm.core.distributions import Distribution
from rlax_llm.core.trees import Tree, cast_like, dot
from rlax_llm.natural.fisher import DirectionRule, Linearize, Matvec, fisher_vector_product
from rlax_llm.policy.trust_regions import unclipped


class Trial(NamedTuple):
    """What a search knows of a candidate.

    Attributes:
        improvement: decrease of the surrogate, actual.
        expected: decrease of the surrogate, to first order.
        kl: divergence of the candidate from the policy at the start, nats.
    """

    improvement: jax.Array
    expected: jax.Array
    kl: jax.Array


class Search(NamedTuple):
    """Where a search ended.

    Attributes:
        params: the accepted candidate, or exactly the parameters at the start.
        accepted: bool.
        fraction: of the step that was taken, 0 where nothing was accepted.
        rejected: int32, candidates that were turned down: the number of halvings.
        trial: of the accepted candidate; zeros, those of no step, where nothing was accepted.
    """

    params: Tree
    accepted: jax.Array
    fraction: jax.Array
    rejected: jax.Array
    trial: Trial


class Problem(NamedTuple):
    """What a step in policy space reads of the task; ``policy_problem`` makes one.

    Attributes:
        surrogate: ``params → scalar``, minimized.
        divergence: ``params → scalar``, nats, from the policy at the start; 0 there.
        matvec: Fisher-vector product at the start.
    """

    surrogate: Callable[[Tree], jax.Array]
    divergence: Callable[[Tree], jax.Array]
    matvec: Matvec


Evaluate = Callable[[Tree, jax.Array], Trial]
SearchRule = Callable[[Evaluate, Tree, Tree], Search]
Accept = Callable[[Trial], Any]


class NaturalStep(NamedTuple):
    """An algorithm that takes one natural-gradient step per batch: as an ``Objective`` names one of gradient steps.

    Attributes:
        advantage: the credit, of groups or of a stream.
        direction: of the step.
        search: along it.
    """

    advantage: Callable[[Any], Any]
    direction: DirectionRule
    search: SearchRule


def improves_within(kl_radius: float | jax.Array, share: float | jax.Array = 0.0) -> Accept:
    """TRPO's acceptance: the surrogate improves, by ``share`` of the linear prediction, and ``KL ≤ kl_radius``.

    Limiting cases: share 0 asks for any improvement (arXiv 1502.05477, appendix C); an infinite radius is Armijo's
    rule. A value that is not a number is never accepted.

    Args:
        kl_radius: > 0, nats; may be traced.
        share: ≥ 0, of the improvement that the gradient predicts.

    Returns:
        A function ``Trial → bool``.

    Raises:
        ValueError: for a value out of its range.

    >>> accept = improves_within(0.01)
    >>> bool(accept(Trial(jnp.array(0.5), jnp.array(0.6), jnp.array(0.02))))
    False
    """
    checks.positive("improves_within", kl_radius=kl_radius)
    checks.not_negative("improves_within", share=share)

    def accept(trial: Trial) -> jax.Array:
        enough = (trial.improvement > 0) & (trial.improvement >= share * trial.expected)
        return enough & (trial.kl <= kl_radius)

    return accept


def backtracking_search(accept: Accept, shrink: float | jax.Array = 0.5, trials: int | jax.Array = 10) -> SearchRule:
    """Take the first of ``params + shrinkᵏ · step``, k = 0, 1, …, that is accepted; else stay exactly where we are.

    Limiting cases: a step that is accepted at once costs one evaluation; ``full_step`` accepts everything.

    Args:
        accept: ``Trial → bool``, such as ``improves_within``.
        shrink: between 0 and 1.
        trials: ≥ 1, the most candidates.

    Returns:
        A function ``(evaluate, params, step) → Search``, where ``evaluate`` is ``(candidate, fraction) → Trial``.

    Raises:
        ValueError: for a shrink outside (0, 1) or fewer than one trial.

    >>> search = backtracking_search(lambda trial: trial.kl <= 1)
    >>> found = search(lambda x, fraction: Trial(x, x, x * x), jnp.array(0.0), jnp.array(3.0))
    >>> float(found.params), float(found.fraction), int(found.rejected)
    (0.75, 0.25, 2)
    """
    if isinstance(shrink, (int, float)) and not 0 < shrink < 1:
        raise ValueError(f"backtracking_search: shrink is {shrink}, wanted a number between 0 and 1.")
    checks.at_least_one("backtracking_search", trials=trials)

    def search(evaluate: Evaluate, params: Tree, step: Tree) -> Search:
        checks.same_tree("backtracking_search", params=params, step=step)

        def attempt(state: _Attempt) -> _Attempt:
            whole = jnp.ones_like(state.fraction)
            fraction = jnp.where(state.tried == 0, whole, state.fraction * shrink).astype(whole.dtype)
            # The candidate that was judged is the one that is returned, to the last bit.
            candidate = cast_like(optax.tree.add_scale(params, fraction, step), params)
            trial = evaluate(candidate, fraction)
            return _Attempt(state.tried + 1, fraction, jnp.asarray(accept(trial), bool), candidate, trial)

        def unsettled(state: _Attempt) -> jax.Array:
            return ~state.accepted & (state.tried < trials)

        last = jax.lax.while_loop(unsettled, attempt, _no_attempt(evaluate, params))
        kept = jax.tree.map(lambda new, old: jnp.where(last.accepted, new, old), last.candidate, params)
        measured = (last.fraction, last.trial)
        fraction, trial = jax.tree.map(lambda x: jnp.where(last.accepted, x, jnp.zeros_like(x)), measured)
        return Search(kept, last.accepted, fraction, last.tried - last.accepted, trial)

    return search


class _Attempt(NamedTuple):
    """How many candidates were tried, and the last of them."""

    tried: jax.Array
    fraction: jax.Array
    accepted: jax.Array
    candidate: Tree
    trial: Trial


def _no_attempt(evaluate: Evaluate, params: Tree) -> _Attempt:
    one = jnp.ones((), jnp.result_type(jnp.float32, *jax.tree.leaves(params)))
    measured = jax.eval_shape(evaluate, params, one)
    return _Attempt(
        tried=jnp.zeros((), jnp.int32),
        fraction=one,
        accepted=jnp.array(False),
        candidate=jax.tree.map(jnp.asarray, params),
        trial=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), measured),
    )


full_step: SearchRule = backtracking_search(lambda trial: True, trials=1)


def policy_problem(
    policy: Callable[[Tree], Tree],
    distribution: Distribution,
    params: Tree,
    actions: jax.Array,
    advantages: jax.Array,
    weights: jax.Array,
    linearize: Linearize = jax.linearize,
) -> Problem:
    """TRPO's problem at ``params``: ``Σ w · (−A π/π_old)``, ``Σ w · KL(π_old‖π)`` and the Fisher-vector product.

    The surrogate is ``trust_regions.unclipped``; its decrease is the first-order bound on the gain in return
    (arXiv 1502.05477, eq. 14). Limiting cases: at ``params`` the surrogate's gradient is the policy gradient and the
    divergence is 0 with gradient 0; a weight of 0 leaves its row out.

    Args:
        policy: ``params → parameters`` of distributions ``[N…]``, the observations closed over.
        distribution: such as ``distributions.categorical``.
        params: where the step starts: the behavior policy.
        actions: one for each distribution.
        advantages: ``[N…]``.
        weights: ``[N…]`` ≥ 0, as ``Σ weights · loss``; ``1/N`` for the mean.
        linearize: as ``fisher_vector_product`` takes it.

    Returns:
        The problem.

    Raises:
        ValueError: where the shapes do not fit.
    """
    checks.same_shape("policy_problem", weights=weights, advantages=advantages)
    counted = jnp.asarray(weights) != 0

    def counted_policy(params: Tree) -> Tree:
        # Replaced before a distribution reads it: its gradient at NaN or inf would be NaN even under a weight of 0.
        def replaced(leaf: jax.Array) -> jax.Array:
            return jnp.where(counted.reshape(counted.shape + (1,) * (leaf.ndim - counted.ndim)), leaf, 0)

        return jax.tree.map(replaced, policy(params))

    old = jax.lax.stop_gradient(policy(params))
    old_log_probs = distribution.log_prob(old, actions)
    checks.same_shape("policy_problem", weights=weights, log_probs=old_log_probs)

    def total(losses: jax.Array) -> jax.Array:
        return jnp.where(counted, weights * losses, 0.0).sum()

    def surrogate(params: Tree) -> jax.Array:
        log_ratio = distribution.log_prob(counted_policy(params), actions) - old_log_probs
        return total(unclipped(jnp.where(counted, log_ratio, 0.0), advantages))

    def divergence(params: Tree) -> jax.Array:
        return total(distribution.kl(old, counted_policy(params)))

    return Problem(
        surrogate, divergence, fisher_vector_product(policy, params, distribution.fisher, weights, linearize)
    )


def _evaluate(
    surrogate: Callable[[Tree], jax.Array],
    divergence: Callable[[Tree], jax.Array],
    loss: jax.Array,
    slope: jax.Array,
) -> Evaluate:
    """Trials against the loss at the start and its derivative along the step."""
    return lambda candidate, fraction: Trial(loss - surrogate(candidate), -fraction * slope, divergence(candidate))


def trpo_step(
    params: Tree, problem: Problem, direction: DirectionRule, search: SearchRule
) -> tuple[Tree, dict[str, jax.Array]]:
    """One step of TRPO: ``params − fraction · direction(∇surrogate)``, the fraction by ``search`` (arXiv 1502.05477).

    Limiting cases: ``full_step`` is the natural policy gradient at a fixed radius; a surrogate without gradient, or one
    that is not finite, leaves the parameters exactly as they are under any search that asks for an improvement.

    Args:
        params: pytree of floats.
        problem: at ``params``; see ``policy_problem``.
        direction: such as ``natural_direction(kl_radius)``.
        search: such as ``backtracking_search(improves_within(kl_radius))``.

    Returns:
        New parameters, and metrics: ``kl`` (nats), ``improvement`` and ``expected_improvement`` of the surrogate,
        ``accepted``, ``fraction``, ``rejected`` (see ``Search``), ``cg_residual`` and ``cg_iterations``.

    >>> from rlax_llm.core.distributions import categorical
    >>> from rlax_llm.natural.fisher import natural_direction
    >>> params, actions, advantages = jnp.zeros((2, 3)), jnp.array([0, 1]), jnp.array([1.0, -1.0])
    >>> problem = policy_problem(lambda logits: logits, categorical, params, actions, advantages, jnp.full(2, 0.5))
    >>> search = backtracking_search(improves_within(0.01))
    >>> new, metrics = trpo_step(params, problem, natural_direction(0.01), search)
    >>> bool(metrics["accepted"]), bool(metrics["improvement"] > 0), bool(metrics["kl"] <= 0.01)
    (True, True, True)
    """
    loss, gradient = jax.value_and_grad(problem.surrogate)(params)
    found = direction(problem.matvec, gradient)
    step = jax.tree.map(jnp.negative, found.step)
    evaluate = _evaluate(problem.surrogate, problem.divergence, loss, dot(gradient, step))
    result = search(evaluate, params, step)
    return result.params, {
        "kl": result.trial.kl,
        "improvement": result.trial.improvement,
        "expected_improvement": result.trial.expected,
        "accepted": result.accepted,
        "fraction": result.fraction,
        "rejected": result.rejected,
        "cg_residual": found.residual,
        "cg_iterations": found.iterations,
    }


def line_search(search: SearchRule) -> optax.GradientTransformationExtraArgs:
    """A search as an optimizer: updates become the fraction of themselves that ``search`` accepts, or exactly 0.

    ``optax.chain(natural_gradient(direction), line_search(search))`` is ``trpo_step``. It keeps no state.

    Args:
        search: such as ``backtracking_search(improves_within(kl_radius))``.

    Returns:
        A transformation whose ``update`` takes ``surrogate`` and ``divergence`` as extra arguments: with what
        ``natural_gradient`` takes, ``update(gradient, state, params, **problem._asdict())``.

    Raises:
        ValueError: by ``update``, where ``params``, ``surrogate`` or ``divergence`` is not given.
    """

    def update(
        updates: Tree, state: optax.OptState, params: Tree = None, *, surrogate=None, divergence=None, **_: Any
    ) -> tuple[Tree, optax.OptState]:
        if params is None or surrogate is None or divergence is None:
            raise ValueError(
                "line_search: params, surrogate or divergence is missing; give update all three, "
                "update(gradient, state, params, **problem._asdict())."
            )
        loss, gradient = jax.value_and_grad(surrogate)(params)
        result = search(_evaluate(surrogate, divergence, loss, dot(gradient, updates)), params, updates)
        moved = jax.tree.map(lambda u: jnp.where(result.accepted, result.fraction * u, 0.0), updates)
        return cast_like(moved, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
