"""A linear policy and a rollout of it, for the tests of updates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.distributions import categorical
from rlax_llm.core.types import Trajectory
from rlax_llm.credit import streams as credits
from rlax_llm.loops.updates import ControlBatch, Learning, no_normalization
from rlax_llm.models.actor_critic import ActorCritic, policy_from_apply

# A power of two: the weights 1/N are float32.
STEPS, BATCH, FEATURES, ACTIONS = 8, 4, 3, 3
COUNT = STEPS * BATCH
ONCE = Learning(epochs=1, minibatches=1, normalize=no_normalization)


def linear() -> ActorCritic:
    """Softmax of ``x W``, and the value ``x w``."""

    def init(key):
        x = jax.random.normal(key, (FEATURES, ACTIONS + 1), float)
        return {"actor": x[:, :-1], "critic": x[:, -1]}

    return policy_from_apply(init, lambda p, x: x @ p["actor"], lambda p, x: x @ p["critic"], categorical)


POLICY = linear()


def a_rollout(params) -> ControlBatch:
    """Streams with ends of both kinds, and values and log-probabilities of the policy itself."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(STEPS, BATCH, FEATURES)))
    rewards, behind = random.normal(size=(2, STEPS, BATCH))
    ends = random.uniform(size=(STEPS, BATCH))
    traces = np.where(ends > 0.9, 0.0, 1.0)
    traces[-1] = 0
    logits, values = POLICY.evaluate(params, (), x, jnp.zeros((STEPS, BATCH), bool))
    actions = jnp.asarray(random.integers(ACTIONS, size=(STEPS, BATCH)))
    given = (rewards, np.where(ends < 0.1, 0.0, 0.9), traces, values, behind)
    starts = jnp.asarray(np.concatenate([np.ones((1, BATCH), bool), ((ends < 0.1) | (ends > 0.9))[:-1]]))
    log_probs = categorical.log_prob(logits, actions)
    return ControlBatch(x, starts, actions, logits, log_probs, Trajectory(*map(jnp.asarray, given)), ())


def flat(x) -> np.ndarray:
    return np.asarray(x).reshape(COUNT, *np.shape(x)[2:])


def stepped(update, params, rollout, key=0):
    return jax.jit(update.step)(params, update.init(params), rollout, jax.random.key(key))


FORMS = {
    "total_return": credits.total_return,
    "return_to_go": credits.return_to_go,
    "return_minus_baseline": credits.return_minus_baseline,
    "q_value": credits.q_value,
    "gae": credits.gae(0.7),
    "td_residual": credits.td_residual,
}
