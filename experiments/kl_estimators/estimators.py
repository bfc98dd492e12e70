"""k1, k2 and k3 at one policy: their values and the gradients they give, summed over all completions and sampled.

With d_t the log-ratio of a token and D = Σ d_t, an estimator k is taken of the completion, k(D), or of its tokens,
Σ k(d_t); for k1 that is the same. On samples of π, with s_t the letters before token t,

- E ∇½D² is ∇KL(π‖ref), E ∇k3(D) is ∇KL(ref‖π), and E ∇D is 0;
- E ∇Σ ½d_t² is Σ ∇KL(π(·|s_t)‖ref(·|s_t)) with the distribution of s_t held fixed. ∇KL(π‖ref) has beside it
  E Σ_t ∇log π_t Σ_{u>t} d_u: what a token does to the KL of those after it;
- E ∇Σ k3(d_t) is Σ ∇KL(ref(·|s_t)‖π(·|s_t)) with s_t from π held fixed; in ∇KL(ref‖π) it is from ref.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from experiments.letters import PROMPT, Language, drawn, everything, some_prompts
from rlax_llm.core.kl import KlEstimator, k1, k2, k3
from rlax_llm.core.types import Completions, Scored
from rlax_llm.credit.groups import kl_in_score, leave_one_out, per_group
from rlax_llm.models import decoder
from rlax_llm.policy.trust_regions import score_function

Params = Any
Estimate = Callable[[jax.Array, jax.Array], jax.Array]
Loss = Callable[[jax.Array], jax.Array]


def of_tokens(estimator: KlEstimator) -> Estimate:
    """``[…, T] → […]``: the sum of the tokens' estimates."""
    return lambda log_probs, ref_log_probs: estimator(log_probs, ref_log_probs).sum(-1)


def of_completion(estimator: KlEstimator) -> Estimate:
    """``[…, T] → […]``: the estimate from the completion's probability."""
    return lambda log_probs, ref_log_probs: estimator(log_probs.sum(-1), ref_log_probs.sum(-1))


ESTIMATES = {
    "k1": of_tokens(k1),
    "k2 of tokens": of_tokens(k2),
    "k2 of the completion": of_completion(k2),
    "k3 of tokens": of_tokens(k3),
    "k3 of the completion": of_completion(k3),
}
K1, K2_TOKENS, K2, K3_TOKENS, K3 = ESTIMATES
IN_SCORE = "k1 in the score"
FORWARD, REVERSE = "KL(π‖ref)", "KL(ref‖π)"
FORWARD_FIXED, REVERSE_FIXED = "Σ KL(π_t‖ref_t), prefixes fixed", "Σ KL(ref_t‖π_t), prefixes fixed"
LATER = "effect on later tokens"
GRADIENTS = (*ESTIMATES, FORWARD, REVERSE, LATER, FORWARD_FIXED, REVERSE_FIXED)


class Values(NamedTuple):
    """Of estimates of a completion ``[E]``, means over prompts: mean, variance within a prompt, least value."""

    mean: jax.Array
    variance: jax.Array
    least: jax.Array


class Noise(NamedTuple):
    """Of gradients from batches, ``[E + 1]``, the last for k1 in the score.

    Attributes:
        noise: root mean square distance of a batch's gradient from the expected one.
        off: distance of the batches' mean from it, in standard errors.
    """

    noise: jax.Array
    off: jax.Array


def _log_probs(language: Language, rows: Completions, group_size: int, params: Params) -> jax.Array:
    return language.log_probs(group_size)(params, rows)[0]


def _flat(pull: Callable[[jax.Array], tuple[Params]], slopes: jax.Array) -> jax.Array:
    """``slopes [N, …]`` of the log-probabilities as gradients ``[N, P]`` of the parameters."""
    return jax.lax.map(lambda slope: ravel_pytree(pull(slope)[0])[0], slopes)


def next_letters(language: Language, prompt: jax.Array, params: Params) -> jax.Array:
    """Log-probabilities ``[rows, length, letters]`` at every place of every completion, its last letter left open."""
    rows = everything(language, prompt).tokens[:: language.letters, :-1]
    logits = decoder.logits(language.config, params, rows, jnp.ones(rows.shape, bool))
    return jax.nn.log_softmax(logits[:, PROMPT - 1 :])


def chosen(language: Language, prompt: jax.Array, log_probs: jax.Array) -> jax.Array:
    """Those of the letters ``[rows · letters, length]`` of every completion, from those of all next letters."""
    written = everything(language, prompt).tokens[:, PROMPT:, None]
    return jnp.take_along_axis(jnp.repeat(log_probs, language.letters, 0), written, -1)[..., 0]


def toward(language: Language, base: Params, far: Params, distances: jax.Array) -> Params:
    """Policies on the straight line from ``base`` to ``far`` whose KL(π‖base) is about ``distances`` nats."""

    def at(scale: jax.Array) -> Params:
        return jax.tree.map(lambda x, y: x + scale * (y - x), base, far)

    scales = jnp.geomspace(0.02, 1.0, 16)
    nats = jax.lax.map(lambda scale: chain_kl(language, at(scale), base), scales)
    return jax.vmap(at)(jnp.exp(jnp.interp(jnp.log(distances), jnp.log(nats), jnp.log(scales))))


def chain_kl(language: Language, params: Params, base: Params) -> jax.Array:
    """KL(π‖ref) as the sum over places of the divergence of the next letter, which is no mean of an estimate."""

    def one(prompt: jax.Array) -> jax.Array:
        all_p, all_ref = (next_letters(language, prompt, x) for x in (params, base))
        prefixes = jnp.exp(chosen(language, prompt, all_p).sum(-1)).reshape(len(all_p), -1).sum(-1)
        return prefixes @ (jnp.exp(all_p) * (all_p - all_ref)).sum((1, 2))

    return jax.lax.map(one, language.prompts).mean()


def exact_values(language: Language, params: Params, base: Params) -> Values:
    """By enumeration."""

    def one(prompt: jax.Array) -> Values:
        log_p, log_ref = (chosen(language, prompt, next_letters(language, prompt, x)) for x in (params, base))
        p = jnp.exp(log_p.sum(-1))
        values = jnp.stack([estimate(log_p, log_ref) for estimate in ESTIMATES.values()])
        mean = values @ p
        return Values(mean, jnp.square(values - mean[:, None]) @ p, values.min(-1))

    found = jax.lax.map(one, language.prompts)
    return Values(found.mean.mean(0), found.variance.mean(0), found.least.min(0))


def sampled_values(language: Language, params: Params, base: Params, key: jax.Array, count: int) -> Values:
    """From ``count`` completions of every prompt."""
    rows = drawn(language, params, language.prompts, key, count)
    log_p, log_ref = (_log_probs(language, rows, count, x) for x in (params, base))
    values = jnp.stack([estimate(log_p, log_ref) for estimate in ESTIMATES.values()])
    values = values.reshape(len(ESTIMATES), -1, count)
    return Values(values.mean((1, 2)), values.var(-1, ddof=1).mean(-1), values.min((1, 2)))


def losses_of(language: Language, prompt: jax.Array, all_p: jax.Array, all_ref: jax.Array) -> dict[str, Loss]:
    """Losses, of the next letters' log-probabilities, whose gradients are those asked for.

    Probabilities that are given are those of the samples; those of the argument are differentiated.
    """
    log_p, log_ref = (chosen(language, prompt, x) for x in (all_p, all_ref))
    p, ref = jnp.exp(log_p.sum(-1)), jnp.exp(log_ref.sum(-1))
    ratios = log_p - log_ref
    later = jnp.cumsum(ratios[:, ::-1], 1)[:, ::-1] - ratios
    prefixes = p.reshape(len(all_p), -1).sum(-1)

    def of_chosen(loss: Loss) -> Loss:
        return lambda x: loss(chosen(language, prompt, x))

    losses = {name: of_chosen(lambda x, f=estimate: p @ f(x, log_ref)) for name, estimate in ESTIMATES.items()}
    return losses | {
        FORWARD: of_chosen(lambda x: jnp.exp(x.sum(-1)) @ (x - log_ref).sum(-1)),
        REVERSE: of_chosen(lambda x: ref @ (log_ref - x).sum(-1)),
        LATER: of_chosen(lambda x: p @ (x * later).sum(-1)),
        FORWARD_FIXED: lambda x: prefixes @ (jnp.exp(x) * (x - all_ref)).sum((1, 2)),
        REVERSE_FIXED: lambda x: prefixes @ (jnp.exp(all_ref) * (all_ref - x)).sum((1, 2)),
    }


def expected_gradients(language: Language, params: Params, base: Params) -> dict[str, jax.Array]:
    """Expected gradients of the estimates as losses, and those of the divergences, flat, by enumeration."""

    def one(prompt: jax.Array) -> dict[str, jax.Array]:
        all_p, pull = jax.vjp(partial(next_letters, language, prompt), params)
        losses = losses_of(language, prompt, all_p, next_letters(language, prompt, base))
        return dict(zip(losses, _flat(pull, jnp.stack([jax.grad(loss)(all_p) for loss in losses.values()]))))

    return jax.tree.map(partial(jnp.mean, axis=0), jax.lax.map(one, language.prompts))


class Batches(NamedTuple):
    """How many batches, of how many prompts, with how many completions each."""

    number: int = 32
    prompts: int = 8
    group_size: int = 8


def sampled_gradients(
    language: Language,
    models: tuple[Params, Params],
    expected: dict[str, jax.Array],
    key: jax.Array,
    batches: Batches,
) -> Noise:
    """What batches of samples give for the policy and reference in ``models``."""
    params, base = models

    def one(key: jax.Array) -> jax.Array:
        which, draw = jax.random.split(key)
        rows = drawn(language, params, some_prompts(language, which, batches.prompts), draw, batches.group_size)
        log_p, pull = jax.vjp(partial(_log_probs, language, rows, batches.group_size), params)
        log_ref = _log_probs(language, rows, batches.group_size, base)
        grouped = (batches.prompts, batches.group_size, -1)
        scored = Scored(
            jnp.zeros(grouped[:2]), log_p.reshape(grouped), rows.mask.reshape(grouped), log_ref.reshape(grouped)
        )
        advantages = kl_in_score(per_group(leave_one_out), 1.0)(scored).reshape(-1, 1)
        losses = [lambda x, f=estimate: f(x, log_ref).mean() for estimate in ESTIMATES.values()]
        in_score = jax.grad(lambda x: score_function(x, jnp.broadcast_to(advantages, x.shape)).sum(-1).mean())
        slopes = jnp.stack([*(jax.grad(loss)(log_p) for loss in losses), in_score(log_p)])
        return _flat(pull, slopes)

    found = jax.lax.map(one, jax.random.split(key, batches.number))
    errors = found - jnp.stack([expected[name] for name in (*ESTIMATES, FORWARD)])
    noise = jnp.sqrt(jnp.square(errors).sum(-1).mean(0))
    return Noise(noise, jnp.linalg.norm(errors.mean(0), axis=-1) / (noise / jnp.sqrt(batches.number)))
