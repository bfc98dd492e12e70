"""A policy and a value model that are tables, completions for them, and one step of ``rlhf_loop`` on these."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlax_llm.core.types import Completions, ScoredCompletions
from rlax_llm.loops.rlhf import RlhfLearning, rlhf_loop
from rlax_llm.recipes import control as control_recipes

V, B, T, PROMPT = 5, 8, 6, 2
PPO = control_recipes.ppo(eps=0.2)
ONCE = RlhfLearning(epochs=1)
KEY = jax.random.key(0)
SGD = {"policy": optax.sgd(1.0), "value": optax.sgd(1.0)}
ADAM = {"policy": optax.adam(0.05), "value": optax.adam(0.1)}


def table(params, completions: Completions):
    """A policy that is a table of logits by the token before."""
    log_p = jax.nn.log_softmax(params["logits"])[jnp.roll(completions.tokens, 1, -1)]
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    return jnp.take_along_axis(log_p, completions.tokens[..., None], -1)[..., 0], entropy


def table_values(params, completions: Completions):
    """A value model that is a table by the token before."""
    return params["values"][jnp.roll(completions.tokens, 1, -1)]


def parameters(seed: int = 0):
    random = np.random.default_rng(seed)
    policy = {"logits": jnp.asarray(random.normal(size=(V, V)))}
    return {"policy": policy, "value": {"values": jnp.asarray(random.normal(size=V))}}


REFERENCE = np.random.default_rng(9).normal(size=(V, V))


def batch(mask=None, seed: int = 1, drift: float = 0.3, truncated=None) -> Completions:
    """Off-policy completions, of several lengths or of the given mask."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, V, (B, T))
    if mask is None:
        columns = np.arange(T)
        mask = (columns >= PROMPT) & (columns < PROMPT + random.integers(1, T - PROMPT + 1, (B, 1)))
    last = np.where(mask.any(-1), T - np.argmax(mask[:, ::-1], -1), PROMPT)
    valid = np.arange(T) < last[:, None]
    current = np.asarray(table(jax.tree.map(np.asarray, parameters()["policy"]), SimpleTokens(tokens))[0])
    old = current + drift * random.normal(size=tokens.shape)
    return Completions(
        jnp.asarray(tokens, jnp.int32),
        jnp.asarray(valid),
        jnp.asarray(mask),
        jnp.asarray(np.where(mask, old, 0.0)),
        jnp.zeros(B, bool) if truncated is None else jnp.asarray(truncated),
    )


class SimpleTokens:
    """What the tables read of completions."""

    def __init__(self, tokens):
        self.tokens = tokens


def scores_of(seed: int = 2):
    return jnp.asarray(np.random.default_rng(seed).normal(size=B))


def stepped(shaping, learning, completions, scores, *, optimizers=SGD, objective=PPO, params=None, **given):
    """One step on the tables, with the reference that is given, or as log-probabilities of ``REFERENCE``."""
    init, step = rlhf_loop(table, table_values, objective, optimizers, shaping, learning)
    known, steps = given.pop("ref_log_probs", None), given.pop("step_rewards", None)
    if known is None and not given:
        given = {"reference": {"logits": jnp.asarray(REFERENCE)}}
    scored = ScoredCompletions(completions, scores, known, steps)
    return jax.jit(step)(init(params or parameters()), scored, key=KEY, **given)


def assert_same(found, expected, tolerance=1e-10):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
