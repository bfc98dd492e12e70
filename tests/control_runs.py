"""Small policies and whole runs, for the tests of control."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core.distributions import categorical
from rlax_llm.loops.control import control_loop
from rlax_llm.models.actor_critic import ActorCritic, policy_from_apply


def linear(width: int, actions: int = 2) -> ActorCritic:
    def init(key):
        return {"actor": jnp.zeros((width, actions)), "critic": jnp.zeros(width)}

    return policy_from_apply(init, lambda p, x: x @ p["actor"], lambda p, x: x @ p["critic"], categorical)


def scanned(environment, policy, update, collecting, iterations):
    init, step = control_loop(environment, policy, update, collecting)

    def run(key):
        start, later = jax.random.split(key)
        return jax.lax.scan(step, init(start), jax.random.split(later, iterations))

    return run
