"""Where the optimum is known, PPO reaches it: π* ∝ π_ref · exp(r / β) over whole completions.

Each run samples from its own policy, pays β · k1 in the reward and is one scan; several β are one program. The distance
is the total variation to π* over all completions, that of the reference from π* being the distance to go.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.commands.ppo.phase import learning_of, objective_of, shaping_of
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.core.masked import whiten
from rlax_llm.core.types import Completions, ScoredCompletions
from rlax_llm.loops.rlhf import MODELS, RlhfLearning, rlhf_loop
from rlax_llm.loops.rlhf_credit import KlInReward, Shaping
from rlax_llm.loops.updates import no_normalization, plain_value_loss
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import logits as decoder_logits
from rlax_llm.models.scalar import init_scalar, token_values
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.recipes import control as control_recipes

V = 5
BETAS = jnp.array([0.25, 0.5, 1.0, 2.0])
PPO = control_recipes.ppo(eps=0.2)
LEARNING = RlhfLearning(epochs=2, minibatches=2, value_loss=plain_value_loss, value_coef=1.0)


def completions_of(tokens, log_probs) -> Completions:
    """A prompt of one token, 0, and completions that are cut at their length."""
    rows, length = tokens.shape
    prompted = jnp.concatenate([jnp.zeros((rows, 1), jnp.int32), tokens.astype(jnp.int32)], 1)
    mask = jnp.broadcast_to(jnp.arange(length + 1) > 0, prompted.shape)
    log_probs = jnp.pad(log_probs, ((0, 0), (1, 0)))
    return Completions(prompted, jnp.ones_like(mask), mask, log_probs, jnp.ones(rows, bool))


def every_completion(length: int) -> jax.Array:
    return jnp.stack(jnp.meshgrid(*[jnp.arange(V)] * length, indexing="ij"), -1).reshape(-1, length)


def place(tokens):
    """Where each state is in a table: by position and the token before; the prompt's token is 0."""
    return jnp.arange(tokens.shape[1]) * V + jnp.roll(tokens, 1, -1)


def table(params, completions):
    log_p = jax.nn.log_softmax(params["logits"])[place(completions.tokens)]
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    return jnp.take_along_axis(log_p, completions.tokens[..., None], -1)[..., 0], entropy


def table_values(params, completions):
    return params["values"][place(completions.tokens)]


def exact(log_probs, params, length: int) -> jax.Array:
    """Log-probabilities of every completion."""
    everything = every_completion(length)
    completions = completions_of(everything, jnp.zeros(everything.shape))
    return jnp.where(completions.mask, log_probs(params, completions)[0], 0.0).sum(-1)


def run(log_probs, values, params, reward, length, rows, steps, rate, shaping, beta, key):
    """Total variation of the policy to π* after each step, π*'s distance from the reference, and the metrics."""
    rate = optax.cosine_decay_schedule(rate, steps * LEARNING.epochs * LEARNING.minibatches)
    optimizers = {"policy": optax.adam(rate), "value": optax.adam(rate)}
    shaping = shaping._replace(kl=KlInReward(beta))
    init, step = rlhf_loop(log_probs, values, PPO, optimizers, shaping, LEARNING)
    reference = exact(log_probs, params["policy"], length)
    best = jax.nn.softmax(reference + reward / beta)
    everything = every_completion(length)

    def body(state, key):
        log_p = exact(log_probs, state.params["policy"], length)
        drawn = jax.random.categorical(key, log_p, shape=(rows,))
        completions = completions_of(everything[drawn], jnp.zeros((rows, length)))
        old = jnp.where(completions.mask, log_probs(state.params["policy"], completions)[0], 0.0)
        sampled = ScoredCompletions(completions._replace(log_probs=old), reward[drawn])
        state, metrics = step(state, sampled, key=jax.random.fold_in(key, 1), reference=params["policy"])
        return state, metrics | {"distance": 0.5 * jnp.abs(jnp.exp(log_p) - best).sum()}

    _, metrics = jax.lax.scan(body, init(params), jax.random.split(key, steps))
    return metrics | {"to_go": 0.5 * jnp.abs(jnp.exp(reference) - best).sum()}


def over_betas(*arguments, betas=BETAS):
    return jax.jit(jax.vmap(partial(run, *arguments)))(betas, jax.random.split(jax.random.key(1), len(betas)))


def tables(length: int, seed: int = 0):
    random = np.random.default_rng(seed)
    states = V * (length + 1)
    policy = {"logits": jnp.asarray(random.normal(size=(states, V)), jnp.float32)}
    reward = jnp.asarray(random.normal(size=V**length), jnp.float32)
    return {"policy": policy, "value": {"values": jnp.zeros(states)}}, reward


@pytest.mark.parametrize(("length", "bound"), [(1, 0.01), (2, 0.02)])
def test_a_table_reaches_the_optimum_of_the_penalized_reward(length, bound):
    params, reward = tables(length)
    shaping = Shaping(trace=1.0, value_trace=1.0, advantages=no_normalization)
    metrics = over_betas(table, table_values, params, reward, length, 128, 120, 0.05, shaping)
    assert np.all(metrics["to_go"] > 10 * bound)
    np.testing.assert_array_less(metrics["distance"][:, -1], bound)
    # The harder the KL is charged, the less of it is used.
    used = metrics["kl"][:, -20:].mean(-1)
    assert np.all(np.diff(used) < 0) and np.all(used > 0)
    assert np.all(metrics["explained_variance"][:, -20:].mean(-1) > 0) or length == 1


def test_whitened_advantages_and_a_lambda_below_one_reach_it_too():
    params, reward = tables(2)
    shaping = Shaping(trace=0.95, value_trace=0.95, advantages=whiten)
    metrics = over_betas(table, table_values, params, reward, 2, 128, 120, 0.05, shaping)
    np.testing.assert_array_less(metrics["distance"][:, -1], 0.02)


@pytest.mark.parametrize("recipe", ["ppo", "vapo"])
def test_every_recipe_goes_from_chance_to_solved(recipe):
    """One completion of 25 scores 1: what the command makes of each recipe, over eight seeds."""
    settings = PpoSettings.of(recipe=recipe, kl_coef=0.0, value_warmup_steps=2, steps=80)
    shaping, objective = shaping_of(settings.objective), objective_of(settings.objective)
    learning = learning_of(settings.learning, settings.rollout)._replace(epochs=2, minibatches=2, group_size=1)
    init, step = rlhf_loop(table, table_values, objective, dict.fromkeys(MODELS, optax.adam(0.05)), shaping, learning)
    everything, start = every_completion(2), {"policy": {"logits": jnp.zeros((3 * V, V))}}
    start["value"] = {"values": jnp.zeros(3 * V)}

    def solved(key):
        best = jax.random.randint(key, (), 0, V**2)

        def body(state, key):
            log_p = exact(table, state.params["policy"], 2)
            drawn = jax.random.categorical(key, log_p, shape=(64,))
            old = completions_of(everything[drawn], jnp.zeros((64, 2)))
            old = old._replace(log_probs=jnp.where(old.mask, table(state.params["policy"], old)[0], 0.0))
            scored = ScoredCompletions(old, (drawn == best).astype(float))
            return step(state, scored, key=key)[0], jnp.exp(log_p[best])

        return jax.lax.scan(body, init(start), jax.random.split(key, 80))[1]

    shares = jax.jit(jax.vmap(solved))(jax.random.split(jax.random.key(0), 8))
    np.testing.assert_allclose(shares[:, :3], 1 / V**2, rtol=1e-5)  # the value model's warm-up
    assert np.all(shares[:, -1] > 0.95)


DECODER = DecoderConfig(V, 16, 24, 1, 2, 2, 8, tie_embeddings=False, max_positions=8)


def test_a_decoder_with_a_scalar_value_model_reaches_it():
    random = np.random.default_rng(0)

    def draw(path, shape):
        return jnp.asarray(random.normal(size=shape) * 0.3 + (path[-1].key.endswith("norm")), jnp.float32)

    policy = jax.tree_util.tree_map_with_path(draw, DECODER.parameter_shapes, is_leaf=lambda x: isinstance(x, tuple))
    everything = completions_of(every_completion(2), jnp.zeros((V**2, 2)))
    log_probs, values = group_log_probs(DECODER, (1, 1)), token_values(DECODER, (1, 1))
    # The sampler's distribution, by a plain forward pass.
    log_p = jax.nn.log_softmax(decoder_logits(DECODER, policy, everything.tokens, everything.valid))[:, :-1]
    plain = jnp.take_along_axis(log_p, everything.tokens[:, 1:, None], -1)[..., 0].sum(-1)
    np.testing.assert_allclose(exact(log_probs, policy, 2), plain, atol=1e-5)
    params = {"policy": policy, "value": init_scalar(policy, jax.random.key(0), jax.nn.initializers.zeros)}
    # With a smaller β its shared weights forget completions of π* before they have been drawn often enough.
    betas = jnp.array([0.75, 1.0, 2.0])
    metrics = over_betas(log_probs, values, params, tables(2)[1], 2, 128, 150, 0.01, Shaping(), betas=betas)
    assert np.all(metrics["to_go"] > 0.14)
    np.testing.assert_array_less(metrics["distance"][:, -1], 0.05)
