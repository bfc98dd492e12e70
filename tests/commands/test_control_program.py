"""Settings of a control run: what stands for those left open, what is refused, and that floats may be traced."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.commands.control import program as control_config
from rlax_llm.commands.control.program import ControlSettings, build
from rlax_llm.commands.control.settings import DEFAULTS
from rlax_llm.commands.settings import flat
from rlax_llm.core.types import Trajectory
from rlax_llm.credit import streams as credits
from rlax_llm.recipes.registry import recipes

TINY = ControlSettings.of(
    env="probe:time_limit",
    seeds=2,
    steps=32,
    environments=2,
    horizon_steps=8,
    epochs=2,
    minibatches=2,
    hidden=(4,),
    learning_rate=1e-2,
)
OPEN = {
    "weight": "reinforce",
    "eps": "ppo",
    "kl_target": "ppo_penalty",
    "kl_radius": "trpo",
    "damping": "trpo",
    "cg_iterations": "trpo",
}
PLACES = {"out", "resume", "config", "save_every", "max_hours", "profile", "track"}


def run(config):
    program = build(config)
    start, training = jax.random.split(jax.random.key(0))
    state, metrics = jax.lax.scan(program.step, program.init(start), jax.random.split(training, program.iterations))
    return state.params, metrics


def compiled(function, *arguments):
    """Compiled without optimization: the programs here are used once."""
    return jax.jit(function).lower(*arguments).compile(compiler_options={"xla_backend_optimization_level": "0"})


def ran(config):
    return compiled(lambda: run(config))()


def assert_close(got, wanted):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_every_recipe_is_like_one_that_has_settings():
    assert {named.like for named in recipes("control").values()} == set(DEFAULTS)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Breakout-MinAtar", "brax:ant", "probe:time_limit"])
@pytest.mark.parametrize("recipe", recipes("control"))
def test_nothing_that_is_read_stays_open(recipe, env):
    resolved = ControlSettings.of(env=env, recipe=recipe)
    unread = {name for name, reader in OPEN.items() if reader != recipe} | (
        {"entropy_coef", "value_coef", "kl_limit"} if recipe == "trpo" else set()
    )
    if recipe in ("dual_clip", "cispo"):
        unread.remove("eps")
    for name, value in flat(resolved).items():
        assert (value is None) == (name in unread | PLACES), name
    given = {name: value for name, value in flat(resolved).items() if value is not None}
    assert ControlSettings.of(**given) == resolved


def test_what_is_given_wins_and_the_environment_wins_over_the_recipe():
    assert ControlSettings.of(learning_rate=0.5, env="Pendulum-v1").learning.learning_rate == 0.5
    cartpole, pendulum = (ControlSettings.of(env=env) for env in ("CartPole-v1", "Pendulum-v1"))
    assert (cartpole.environment.discount, pendulum.environment.discount) == (0.99, 0.95)
    assert (cartpole.environment.environments, cartpole.environment.horizon_steps) == (4, 128)
    assert cartpole.learning.minibatches == 4
    assert ControlSettings.of(env="Breakout-MinAtar", recipe="sapo").learning.learning_rate == 5e-3


def test_what_other_peers_publish_for_cartpole():
    resolved = ControlSettings.of()
    learning, objective = resolved.learning, resolved.objective
    assert (learning.learning_rate, learning.schedule, learning.max_grad_norm) == (2.5e-4, "linear", 0.5)
    assert (learning.epochs, objective.gae_lambda, objective.eps, objective.value_eps) == (4, 0.95, 0.2, 0.2)
    assert (objective.entropy_coef, objective.value_coef, resolved.run.steps) == (0.01, 0.5, 500_000)


def first(program):
    """The first iteration: ``key → (state before, state after, metrics)``."""

    def both(key):
        start = program.init(key)
        return start, *program.step(start, key)

    return both


@pytest.mark.parametrize("recipe", recipes("control"))
def test_every_recipe_makes_a_program(recipe):
    program = build(TINY.changed(recipe=recipe))
    start, state, metrics = jax.eval_shape(first(program), jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, start)
    assert program.iterations == 2
    assert ("kl_coef" in metrics) == (recipe == "ppo_penalty")
    assert ("cg_residual" in metrics) == (recipe == "trpo")


@pytest.mark.parametrize("recipe", ["reinforce", "cispo", "ppo_penalty", "trpo"])
def test_a_recipe_of_each_kind_learns_a_step(recipe):
    key = jax.random.key(0)
    start, state, _ = compiled(first(build(TINY.changed(recipe=recipe))), key)(key)
    assert int(state.steps) == 16
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    pairs = zip(*map(jax.tree.leaves, (start.params, state.params)), strict=True)
    assert any(not np.array_equal(before, after) for before, after in pairs)


def test_the_weights_of_reinforce(monkeypatch):
    found = []
    monkeypatch.setattr(control_config, "gradient_update", lambda policy, objective, *_: found.append(objective))
    monkeypatch.setattr(control_config, "control_loop", lambda *_: (None, None))
    by_name = ("total_return", "return_to_go", "return_minus_baseline", "q_value", "td_residual")
    for name in (*by_name, "gae"):
        build(ControlSettings.of(recipe="reinforce", weight=name, gae_lambda=0.5))
    assert [objective.advantage for objective in found[:5]] == [getattr(credits, name) for name in by_name]
    row = jnp.arange(4.0)
    trajectory = Trajectory(row, row / 4, row / 4, row**2, 1 + row)
    assert_close(found[5].advantage(trajectory), credits.gae(0.5)(trajectory))


BASE = {
    "learning_rate": 1e-2,
    "eps": 0.01,
    "gae_lambda": 0.9,
    "entropy_coef": 0.01,
    "discount": 0.99,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
    "kl_limit": 1.0,
    "value_eps": 0.1,
}
OTHER = {
    "learning_rate": 3e-2,
    "eps": 0.3,
    "gae_lambda": 0.0,
    "entropy_coef": 0.5,
    "discount": 0.5,
    "value_coef": 5.0,
    "max_grad_norm": 0.01,
    "kl_limit": 1e-5,
    "value_eps": 0.001,
}


def assert_vmap_is_each_run_on_its_own(config, base, other):
    """Row 0 is the base, row i changes one float: each row is the run on its own, and none is the base."""
    rows = [base, *({**base, name: value} for name, value in other.items())]
    stacked = {name: jnp.array([row[name] for row in rows]) for name in base}

    def params_of(point):
        return run(config.changed(**point))[0]

    together = compiled(jax.vmap(params_of), stacked)(stacked)
    single = compiled(params_of, jax.tree.map(lambda x: x[0], stacked))
    for index, changed in enumerate(["nothing", *other]):
        row = jax.tree.map(lambda x, i=index: x[i], together)
        assert_close(row, single(jax.tree.map(lambda x, i=index: x[i], stacked)))
        same = all(np.array_equal(leaf[index], leaf[0]) for leaf in jax.tree.leaves(together))
        assert same == (changed == "nothing"), changed
    assert_close(jax.tree.map(lambda x: x[0], together), ran(config.changed(**base))[0])


def test_vmap_over_every_float():
    assert_vmap_is_each_run_on_its_own(TINY, BASE, OTHER)


def test_vmap_over_the_trust_region_of_trpo():
    config = TINY.changed(recipe="trpo", steps=16)
    other = {"kl_radius": 0.1, "damping": 1.0}
    assert_vmap_is_each_run_on_its_own(config, {"kl_radius": 0.001, "damping": 0.1}, other)


def test_memory_and_shared_layers_make_other_policies():
    def shapes(**settings):
        program = build(TINY.changed(**settings))
        state = jax.eval_shape(program.init, jax.random.key(0))
        return jax.eval_shape(program.step, state, jax.random.key(1))[0]

    assert set(shapes().params) == {"actor", "critic"}
    assert set(shapes(shared=(4,)).params) == {"actor", "critic", "torso"}
    remembering = shapes(memory=3)
    assert "cell" in remembering.params["torso"] and remembering.runner.carry.shape == (2, 3)
    assert ControlSettings.of(memory=8).network.hidden == (64,)
    assert ControlSettings.of(memory=8, environments=2).learning.minibatches == 2


def test_zero_is_off():
    off = TINY.changed(max_grad_norm=0.0, kl_limit=0.0, value_eps=0.0)
    wide = TINY.changed(max_grad_norm=1e9, kl_limit=1e9, value_eps=1e9)
    (params, metrics), (wide_params, wide_metrics) = ran(off), ran(wide)
    assert "stopped" in wide_metrics and "stopped" not in metrics
    assert_close(params, wide_params)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "trop"}, "there is no recipe 'trop'; did you mean 'trpo'\\? There are reinforce, "),
        ({"seeds": 0}, "control: seeds is 0, wanted at least 1."),
        ({"environments": 0}, "environments is 0"),
        ({"eval_steps": -1}, "eval_steps is -1, wanted at least 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, wanted a number greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"discount": 1.5}, "discount is 1.5, wanted a number from 0 to 1."),
        ({"gae_lambda": -0.5}, "gae_lambda is -0.5"),
        ({"kl_limit": -1.0}, "kl_limit is -1.0, wanted at least 0, which is off."),
        ({"hidden": (8, 0)}, r"hidden is \(8, 0\), wanted widths of at least 1"),
        ({"minibatches": 3}, "minibatches is 3, wanted a divisor of the 512 steps of a rollout"),
        ({"memory": 8, "minibatches": 3}, "minibatches is 3, wanted a divisor of the 4 environments"),
        ({"steps": 511}, "steps is 511, wanted at least one rollout: 4 environments × 128 steps = 512"),
        ({"memory": 8, "recipe": "trpo"}, "memory is 8 with recipe trpo, whose actor and critic share nothing"),
        ({"shared": (8,), "recipe": "trpo"}, r"shared is \(8,\) with recipe trpo"),
        ({"memory": 8, "hidden": (8, 8)}, r"with memory 8 hidden is \(8, 8\) and shared is \(\), wanted one width"),
        ({"eps": 0.1, "recipe": "trpo"}, "eps is given, and recipe trpo does not read it; leave it out, or "),
        ({"weight": "gae"}, "weight is given, and recipe ppo does not read it"),
    ],
)
def test_mistakes_are_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message if "\\" in message else re.escape(message)) as raised:
        ControlSettings.of(**settings)
    assert "\n" not in str(raised.value)


def test_an_unknown_environment_names_the_nearest():
    with pytest.raises(ValueError, match="no environment 'CartPol-v1'; did you mean 'CartPole-v1'"):
        build(ControlSettings.of(env="CartPol-v1"))
