from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rlhf_tables import (
    KEY,
    PPO,
    SGD,
    table_values,
)

from rlax_llm.core.types import ScoredCompletions
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.rlhf import RlhfLearning, rlhf_loop
from rlax_llm.loops.rlhf_credit import KlInReward, Shaping, bootstrapped_at_limit
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scalar import init_scalar, sequence_scores, token_values
from rlax_llm.models.scoring import group_log_probs

DECODER = DecoderConfig(13, 16, 24, 1, 4, 2, 4, max_positions=64)


def random_decoder(seed: int = 0):
    random = np.random.default_rng(seed)

    def draw(path, shape):
        return jnp.asarray(random.normal(size=shape) * 0.3 + (path[-1].key.endswith("norm")), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, DECODER.parameter_shapes, is_leaf=lambda x: isinstance(x, tuple))


def sampled(sampler, params, group: int = 2):
    prompts = jnp.array([[0, 0, 5, 1], [2, 3, 4, 5], [0, 7, 8, 9]], jnp.int32)
    valid = jnp.array([[False, False, True, True], [True] * 4, [False, True, True, True]])
    request = Request(sampler, (3,), 5, group)
    return generate(DECODER, params, (prompts, valid), jax.random.key(2), request)


@pytest.mark.parametrize(
    "sampler",
    [Categorical(), Categorical(0.7), Categorical(0.7, top_k=5), Categorical(1.0, top_p=0.8)],
    ids=["plain", "0.7", "top_k", "top_p"],
)
def test_a_decoders_own_samples_have_ratio_one_and_kl_zero(sampler):
    """The reference sees the sampler's temperature and its cut: with another one its KL is not 0."""
    params = {"policy": random_decoder(), "value": {"values": jnp.zeros(13)}}
    completions = sampled(sampler, params["policy"])
    found = {}
    for temperature in (sampler.temperature, 1.3):
        log_probs = group_log_probs(DECODER, (2, 4), temperature)
        learning = RlhfLearning(epochs=1, group_size=2)
        init, step = rlhf_loop(log_probs, table_values, PPO, SGD, Shaping(), learning)
        batch = ScoredCompletions(completions, jnp.arange(6.0))
        found[temperature] = jax.jit(step)(init(params), batch, key=KEY, reference=params["policy"])[1]
    here = found[sampler.temperature]
    assert abs(here["ratio"] - 1) < 2e-6 and here["ratio_var"] < 1e-11
    for name in ("kl", "kl_per_token", "approx_kl", "clip_fraction"):
        assert abs(here[name]) < 2e-5, name
    assert abs(found[1.3]["kl"]) > 1e-2 and abs(found[1.3]["ratio"] - 1) > 1e-3


def test_a_value_model_may_start_as_the_reward_model():
    """Behind the last token of a completion that was cut, its value is the score that the reward model gives it."""
    policy = random_decoder()
    reward_model = init_scalar(random_decoder(1), jax.random.key(3))
    completions, layout = sampled(Categorical(), policy), (2, 4)
    scores = jax.jit(sequence_scores(DECODER, layout))(reward_model, completions)
    values = partial(token_values(DECODER, layout), reward_model)
    now, behind = jax.jit(partial(bootstrapped_at_limit, values))(completions)
    truncated = np.asarray(completions.truncated)
    assert truncated.any() and not truncated.all()
    np.testing.assert_allclose(behind, np.where(truncated, scores, 0.0), atol=1e-5)
    np.testing.assert_allclose(now, jax.jit(values)(completions), atol=1e-5)

    learning, kl = RlhfLearning(epochs=2, minibatches=3, group_size=2), KlInReward(0.05)
    optimizers = {"policy": optax.adam(1e-3), "value": optax.adam(1e-3)}
    params = {"policy": policy, "value": reward_model}
    shaping = Shaping(kl=kl, ending=bootstrapped_at_limit)
    init, step = rlhf_loop(
        group_log_probs(DECODER, layout), token_values(DECODER, layout), PPO, optimizers, shaping, learning
    )
    state, metrics = jax.jit(step)(init(params), ScoredCompletions(completions, scores), key=KEY, reference=policy)
    assert all(np.isfinite(x) for x in metrics.values())
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), state.params, params)
    assert all(np.asarray(x) > 0 for x in jax.tree.leaves(moved))
