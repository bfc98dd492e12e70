"""Whole recipes against literal transcriptions of their papers, from scores to the gradient, in NumPy alone."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.kl import k3
from rlax_llm.core.types import Known, PolicyBatch, Scored
from rlax_llm.credit.groups import centered, per_group
from rlax_llm.policy.objectives import policy_loss
from rlax_llm.policy.trust_regions import score_function
from rlax_llm.policy.weightings import sequence_mean, token_mean
from rlax_llm.recipes import group as recipes
from rlax_llm.recipes import mixed, variants

pytestmark = pytest.mark.usefixtures("float64")

P, G, T, LIMIT = 2, 4, 5, 6


def data(seed: int) -> tuple[np.ndarray, ...]:
    """Scores ``[P, G]``; current, behavior and reference log-probabilities and mask ``[P, G, T]``."""
    random = np.random.default_rng(seed)
    current = -random.exponential(size=(P, G, T))
    old, ref = current + 0.25 * random.normal(size=(2, P, G, T))
    mask = np.arange(T) < random.integers(1, T + 1, size=(P, G, 1))
    return random.normal(size=(P, G)), current, old, ref, mask


def literal_grpo(current, scores, old, ref, mask, low=0.2, high=0.2, beta=0.04, mean="sequence"):
    """GRPO's equation 3 (arXiv 2402.03300) and, by its arguments, DAPO's equation 8 (arXiv 2503.14476)."""
    total = 0.0
    for p in range(P):
        deviation = np.sqrt(((scores[p] - scores[p].mean()) ** 2).sum() / (G - 1))
        for g in range(G):
            advantage = (scores[p, g] - scores[p].mean()) / (deviation + 1e-4)
            for t in range(T):
                if not mask[p, g, t]:
                    continue
                ratio = np.exp(current[p, g, t] - old[p, g, t])
                surrogate = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
                back = ref[p, g, t] - current[p, g, t]
                term = surrogate - beta * (np.exp(back) - back - 1)
                total += term / (P * G * mask[p, g].sum() if mean == "sequence" else mask.sum())
    return -total


def literal_dapo(current, scores, old, ref, mask):
    return literal_grpo(current, scores, old, ref, mask, high=0.28, beta=0.0, mean="token")


def literal_dr_grpo(current, scores, old, ref, mask):
    """Dr.GRPO (arXiv 2503.20783): the sum over tokens, divided by a constant, of plain centered scores."""
    total = 0.0
    for p, g, t in np.ndindex(P, G, T):
        if mask[p, g, t]:
            advantage, ratio = scores[p, g] - scores[p].mean(), np.exp(current[p, g, t] - old[p, g, t])
            total += min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage) / (P * G * LIMIT)
    return -total


def literal_rloo(current, scores, old, ref, mask):
    """RLOO (arXiv 2402.14740, equation 8, with the KL in the reward): whole completions, mean over them."""
    total = 0.0
    for p in range(P):
        shaped = [
            scores[p, g] - 0.05 * sum(old[p, g, t] - ref[p, g, t] for t in range(T) if mask[p, g, t]) for g in range(G)
        ]
        for g in range(G):
            baseline = sum(shaped[j] for j in range(G) if j != g) / (G - 1)
            log_ratio = sum(current[p, g, t] - old[p, g, t] for t in range(T) if mask[p, g, t])
            total += (shaped[g] - baseline) * log_ratio / (P * G)
    return -total


RECIPES = {
    "grpo": (recipes.grpo(), literal_grpo),
    "dapo": (recipes.dapo(), literal_dapo),
    "dr_grpo": (recipes.dr_grpo(LIMIT), literal_dr_grpo),
    "rloo": (recipes.rloo(), literal_rloo),
}


def loss_of(objective, current, scores, old, ref, mask):
    """The library's path from scores to the loss, as ``group_loop`` takes it."""
    advantages = objective.advantage(Scored(scores, old, mask, ref))[:, :, None]
    rows = [x.reshape(P * G, T) for x in (current, old, jnp.broadcast_to(advantages, mask.shape), mask)]
    return policy_loss(objective, PolicyBatch(*rows, objective.weighting(rows[-1]), ref.reshape(P * G, T)))[0]


@partial(jax.jit, static_argnums=0)
def library(objective, current, *rest):
    """Loss and gradient with respect to the current log-probabilities."""
    return jax.value_and_grad(lambda x: loss_of(objective, x, *rest))(current)


def numeric_gradient(function, current: np.ndarray, step: float = 1e-6) -> np.ndarray:
    gradient = np.zeros_like(current)
    for index in np.ndindex(current.shape):
        moved = [current.copy(), current.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        gradient[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return gradient


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_recipe_is_its_paper(name, seed):
    objective, literal = RECIPES[name]
    scores, current, *rest = data(seed)
    value, gradient = library(objective, current, scores, *rest)
    # The weights are float32, hence 1e-7; everything else is in float64.
    np.testing.assert_allclose(value, literal(current, scores, *rest), rtol=1e-6, atol=1e-7)
    numeric = numeric_gradient(lambda x: literal(x, scores, *rest), current)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)
    assert np.abs(gradient).max() > 1e-3


def test_maxrl_is_its_paper():
    """arXiv 2602.02710: the score over the group's mean, less 1, in GRPO's clip and mean over completions."""
    scores, current, *rest = data(9)
    scores = np.abs(scores) + 0.1

    def literal(current):
        total = 0.0
        for p, g in np.ndindex(P, G):
            advantage = scores[p, g] / scores[p].mean() - 1
            chosen = np.flatnonzero(rest[2][p, g])
            ratios = np.exp(current[p, g, chosen] - rest[0][p, g, chosen])
            total -= np.mean(np.minimum(ratios * advantage, np.clip(ratios, 0.8, 1.2) * advantage)) / (P * G)
        return total

    value, gradient = library(mixed.maxrl(), current, scores, *rest)
    np.testing.assert_allclose(value, literal(current), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, numeric_gradient(literal, current), rtol=1e-6, atol=1e-8)


def test_topr_is_its_paper_and_reinforce_on_policy():
    """arXiv 2503.14286: whole completions, the good ones plain, the bad ones by at most their ratio."""
    scores, current, old, ref, mask = data(10)
    old += 0.2  # the policy has left most of them
    advantages = scores - scores.mean(-1, keepdims=True)
    ratios = np.exp(np.where(mask, current - old, 0.0).sum(-1))
    weights = np.where(advantages > 0, 1.0, np.minimum(ratios, 1.0))
    assert weights.min() < 0.9
    _, gradient = library(mixed.topr(), current, scores, old, ref, mask)
    np.testing.assert_allclose(gradient, -(weights * advantages)[..., None] * mask / (P * G), rtol=1e-6, atol=1e-9)
    _, on_policy = library(mixed.topr(), current, scores, current, ref, mask)
    _, rloo = library(recipes.rloo(0), current, scores, current, ref, mask)
    np.testing.assert_allclose(on_policy, rloo * (G - 1) / G, rtol=1e-6, atol=1e-9)


def test_remax_is_its_paper_and_centers_where_the_greedy_score_is_the_mean():
    """arXiv 2310.10505: the score less that of the greedy completion, of whole completions."""
    scores, current, old, ref, mask = data(11)

    def gradient(baselines):
        def credit(scored):
            return variants.remax().advantage(scored._replace(known=Known(baselines=jnp.asarray(baselines))))

        return library(variants.remax()._replace(advantage=credit), current, scores, old, ref, mask)[1]

    greedy = np.array([0.3, -1.0])
    wanted = -(scores - greedy[:, None])[..., None] * mask / (P * G)
    np.testing.assert_allclose(gradient(greedy), wanted, rtol=1e-6, atol=1e-9)
    rloo = library(recipes.rloo(0), current, scores, old, ref, mask)[1]
    np.testing.assert_allclose(gradient(scores.mean(-1)), rloo * (G - 1) / G, rtol=1e-6, atol=1e-9)


def test_dr_grpo_gradient_on_policy_is_the_plain_policy_gradient():
    scores, current, _, ref, mask = data(2)
    _, gradient = library(recipes.dr_grpo(LIMIT), current, scores, current, ref, mask)
    expected = -(scores - scores.mean(-1, keepdims=True))[:, :, None] * mask / (P * G * LIMIT)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-12)
    # RLOO without KL is Dr.GRPO times G / (G - 1), and times the constant length.
    _, other = library(recipes.rloo(0), current, scores, current, ref, mask)
    np.testing.assert_allclose(other, np.asarray(gradient) * LIMIT * G / (G - 1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_equal_scores_teach_nothing(name):
    _, current, old, _, mask = data(3)
    objective = recipes.rloo(0) if name == "rloo" else RECIPES[name][0]._replace(kl=None)
    value, gradient = library(objective, current, np.full((P, G), 1e6 + 0.1), old, old, mask)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((P, G, T)))


@pytest.mark.parametrize("name", RECIPES)
def test_a_missing_score_gives_its_row_no_gradient(name):
    scores, current, old, ref, mask = data(4)
    scores[0, 1] = np.nan
    value, gradient = library(RECIPES[name][0]._replace(kl=None), current, scores, old, ref, mask)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[0, 1], np.zeros(T))
    assert np.abs(gradient[0, 0]).max() > 0


@pytest.mark.parametrize("name", RECIPES)
def test_order_within_a_group_does_not_matter(name):
    arrays = data(5)
    order = [2, 0, 3, 1]
    value, gradient = library(RECIPES[name][0], *(arrays[i] for i in (1, 0, 2, 3, 4)))
    moved_value, moved = library(RECIPES[name][0], *(arrays[i][:, order] for i in (1, 0, 2, 3, 4)))
    np.testing.assert_allclose(moved_value, value, rtol=1e-9)
    np.testing.assert_allclose(moved, gradient[:, order], rtol=1e-9, atol=1e-14)


def test_the_family():
    """A recipe differs from its parent in what it says, and in nothing else."""
    grpo, dapo, dr_grpo = recipes.grpo(0), recipes.dapo(), recipes.dr_grpo(LIMIT)
    assert grpo.kl is None
    assert dapo.advantage is not None
    assert grpo.weighting is sequence_mean
    assert dapo.weighting is token_mean
    assert dr_grpo.kl is None
    assert recipes.rloo().trust_region is score_function
    scores, current, old, ref, mask = data(6)
    same = dapo._replace(trust_region=grpo.trust_region, weighting=sequence_mean)
    np.testing.assert_array_equal(
        library(same, current, scores, old, ref, mask)[1], library(grpo, current, scores, old, ref, mask)[1]
    )
    same = dr_grpo._replace(weighting=sequence_mean)
    other = grpo._replace(advantage=per_group(centered))
    np.testing.assert_array_equal(
        library(same, current, scores, old, ref, mask)[1], library(other, current, scores, old, ref, mask)[1]
    )


@pytest.mark.parametrize(
    "recipe", [recipes.grpo, recipes.rloo, lambda eps: recipes.dapo(0.1 + eps)], ids=["grpo", "rloo", "dapo"]
)
def test_hyper_parameters_may_be_traced(recipe):
    scores, current, *rest = data(7)
    losses = jax.jit(jax.vmap(lambda coef: loss_of(recipe(coef), current, scores, *rest)))(jnp.array([0.0, 0.5]))
    expected = [library(recipe(coef), current, scores, *rest)[0] for coef in (0.0, 0.5)]
    np.testing.assert_allclose(losses, expected, rtol=1e-9)


def test_penalty_of_grpo_is_k3():
    p, q = -np.random.default_rng(8).exponential(size=(2, 9))
    np.testing.assert_allclose(recipes.grpo(0.7).kl(p, q), 0.7 * k3(p, q), rtol=1e-12)
