from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import PolicyBatch, Trajectory
from rlax_llm.credit import streams as credits
from rlax_llm.policy.objectives import Objective, policy_loss
from rlax_llm.recipes import control as control_recipes

pytestmark = pytest.mark.usefixtures("float64")

RECIPES = {
    "reinforce": control_recipes.reinforce(),
    "q_actor_critic": control_recipes.q_actor_critic(),
    "a2c": control_recipes.a2c(),
    "ppo": control_recipes.ppo(),
    "ppo_penalty": control_recipes.ppo_penalty(),
}


def trajectory(steps: int = 6) -> Trajectory:
    rewards, values = np.random.default_rng(0).normal(size=(2, steps))
    discounts, traces = np.full(steps, 0.9), np.ones(steps)
    discounts[2] = traces[-1] = 0
    return Trajectory(*map(jnp.asarray, (rewards, discounts, traces, values, np.append(values[1:], 0.3))))


def differing(a: Objective, b: Objective) -> set[str]:
    return {name for name in Objective._fields if getattr(a, name) is not getattr(b, name)}


def batch(shift: float) -> PolicyBatch:
    random = np.random.default_rng(1)
    old, advantages = random.normal(size=(2, 1, 12)) - 1
    log_probs = old + shift * random.normal(size=(1, 12))
    every = np.ones((1, 12), bool)
    return PolicyBatch(*map(jnp.asarray, (log_probs, old, advantages, every, every / 12)))


def test_every_recipe_differs_from_its_parent_where_it_says_so():
    reinforce = RECIPES["reinforce"]
    assert differing(RECIPES["q_actor_critic"], reinforce) == {"advantage"}
    assert differing(RECIPES["a2c"], reinforce) == {"advantage"}
    assert differing(RECIPES["ppo"], RECIPES["a2c"]) == {"advantage", "trust_region"}
    assert differing(RECIPES["ppo_penalty"], RECIPES["a2c"]) == {"advantage", "trust_region"}
    assert all(recipe.kl is None for recipe in RECIPES.values())


CREDITS = {
    "reinforce": credits.return_to_go,
    "q_actor_critic": credits.q_value,
    "a2c": credits.return_minus_baseline,
    "ppo": credits.gae(0.95),
    "ppo_penalty": credits.gae(0.95),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_papers_credit(name):
    found, wanted = RECIPES[name].advantage(trajectory()), CREDITS[name](trajectory())
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("recipe", [control_recipes.a2c, control_recipes.ppo, control_recipes.ppo_penalty])
def test_the_trace_goes_into_the_credit(recipe):
    found = recipe(0.3).advantage(trajectory())
    np.testing.assert_allclose(found, credits.gae(0.3)(trajectory()), rtol=1e-12)


@pytest.mark.parametrize(
    "form", [credits.total_return, credits.return_to_go, credits.return_minus_baseline, credits.td_residual]
)
def test_reinforce_takes_any_weight(form):
    assert control_recipes.reinforce(form).advantage is form


LOSSES = {
    "reinforce": lambda r, log_ratio, a: -a * log_ratio,
    "a2c": lambda r, log_ratio, a: -a * log_ratio,
    "ppo": lambda r, log_ratio, a: -np.minimum(a * r, a * np.clip(r, 0.8, 1.2)),
    "ppo_penalty": lambda r, log_ratio, a: -a * r,
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_recipes_loss_is_its_papers(name):
    given = batch(0.3)
    log_ratio = np.asarray(given.log_probs - given.old_log_probs)
    expected = LOSSES[name](np.exp(log_ratio), log_ratio, np.asarray(given.advantages)).mean()
    np.testing.assert_allclose(policy_loss(RECIPES[name], given)[0], expected, rtol=1e-9)


def gradient(recipe: Objective, given: PolicyBatch) -> jax.Array:
    return jax.grad(lambda x: policy_loss(recipe, given._replace(log_probs=x))[0])(given.log_probs)


@pytest.mark.parametrize("name", RECIPES)
def test_on_policy_all_have_the_gradient_of_reinforce(name):
    given = batch(0.0)
    np.testing.assert_allclose(gradient(RECIPES[name], given), -given.advantages / 12, rtol=1e-12)


def test_a_wide_clip_is_no_clip():
    given = batch(0.5)
    wide, none = (gradient(x, given) for x in (control_recipes.ppo(eps=1e6), control_recipes.ppo_penalty()))
    np.testing.assert_allclose(wide, none, rtol=1e-12)
    assert np.abs(gradient(control_recipes.ppo(eps=0.01), given) - none).max() > 0.01


def test_trace_and_clip_may_be_traced():
    given, lambdas = batch(0.3), jnp.array([0.2, 0.9])
    traced = jax.vmap(lambda x: control_recipes.ppo(x).advantage(trajectory()))(lambdas)
    clipped = jax.vmap(lambda x: policy_loss(control_recipes.ppo(eps=x), given)[0])(lambdas)
    for i, x in enumerate(lambdas.tolist()):
        np.testing.assert_allclose(traced[i], credits.gae(x)(trajectory()), rtol=1e-12)
        np.testing.assert_allclose(clipped[i], policy_loss(control_recipes.ppo(eps=x), given)[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: control_recipes.a2c(2.0), "gae: lambda_ is 2.0, wanted a number from 0 to 1"),
        (lambda: control_recipes.ppo(-1.0), "gae: lambda_ is -1.0, wanted a number from 0 to 1"),
        (lambda: control_recipes.ppo_penalty(1.1), "gae: lambda_ is 1.1, wanted a number from 0 to 1"),
        (lambda: control_recipes.ppo(eps=-0.1), "clip: "),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
