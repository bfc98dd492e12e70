"""A model without a decoder, a softmax over arms at every position, and rollouts of it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from rlax_llm.core.types import Completions, Groups

ARMS, P, G, T = 5, 4, 4, 3


def bandit(params, completions: Completions):
    """Log-probabilities and entropies of a softmax over arms, the same at every position: a model without a decoder."""
    log_p = jax.nn.log_softmax(params["logits"])
    entropy = -(jnp.exp(log_p) * log_p).sum()
    return log_p[completions.tokens], jnp.full(completions.tokens.shape, entropy)


class Arms(nn.Module):
    """The same as a Linen module."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        return nn.log_softmax(nn.Dense(ARMS, use_bias=False, param_dtype=jnp.float64)(jnp.ones(2)))[tokens]


def linen(params, completions: Completions):
    return Arms().apply(params, completions.tokens), jnp.zeros(completions.tokens.shape)


def zero_params(logits=None):
    return {"logits": jnp.zeros(ARMS) if logits is None else jnp.asarray(logits)}


def completions_of(tokens, log_probs, mask=None) -> Completions:
    mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
    return Completions(tokens, mask, mask, log_probs, jnp.zeros(tokens.shape[0], bool))


def rollout(log_probs, params, key) -> Groups:
    """Draw tokens from the policy itself, and score the share of the last arm in a completion."""
    everything = completions_of(jnp.arange(ARMS)[None], jnp.zeros((1, ARMS)))
    logits = log_probs(params, everything)[0][0]
    tokens = jax.random.categorical(key, logits, shape=(P * G, T)).astype(jnp.int32)
    completions = completions_of(tokens, logits[tokens])
    return Groups(completions, (tokens == ARMS - 1).mean(-1).reshape(P, G))


def fixed(seed: int = 0, drift: float = 0.2):
    """Off-policy completions of several lengths with scores, and parameters."""
    random = np.random.default_rng(seed)
    params, tokens = random.normal(size=ARMS), random.integers(0, ARMS, (P * G, T)).astype(np.int32)
    mask = np.arange(T) < random.integers(1, T + 1, (P * G, 1))
    old = log_softmax(params)[tokens] + drift * random.normal(size=tokens.shape)
    completions = completions_of(jnp.asarray(tokens), jnp.asarray(np.where(mask, old, 0.0)), mask)
    return zero_params(params), completions, jnp.asarray(random.normal(size=(P, G)))
