"""A language small enough for exact numbers: two different letters are given, a few letters are to be written.

What is wanted is the prompt's first letter and not its second. All completions can be written down, so a policy's
expected reward and its KL to the reference are sums, not estimates, and so is the best reward that a KL can buy:
π* ∝ π_ref · exp(r / β) over β. The reference, a small decoder, imitates texts that use both letters alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core.types import Completions, Metrics, PairedCompletions, Params, ScoredCompletions
from rlax_llm.generation.engine import generate_at_once
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.policy import supervised_loop
from rlax_llm.loops.preference import reward_loop
from rlax_llm.loops.rlhf import RlhfLearning, rlhf_loop
from rlax_llm.loops.rlhf_credit import KlInReward, Shaping
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scalar import init_scalar, sequence_scores, token_values
from rlax_llm.models.scoring import LogProbs, group_log_probs
from rlax_llm.preference.links import logistic
from rlax_llm.recipes.control import ppo

PROMPT = 2
"""Letters of a prompt."""


class Language(NamedTuple):
    """The language and its reference.

    Attributes:
        letters: of the alphabet.
        length: letters of a completion.
        hidden: width of the decoder.
        layers: of the decoder.
        imitation_steps: that make the reference.
        sharpness: of preferences, nats per unit of reward: P(first preferred) = σ(sharpness · (r₁ − r₂)).
    """

    letters: int = 5
    length: int = 4
    hidden: int = 32
    layers: int = 1
    imitation_steps: int = 300
    sharpness: float = 4.0

    @property
    def config(self) -> DecoderConfig:
        """Shapes of the decoder."""
        heads = 4
        return DecoderConfig(
            self.letters, self.hidden, 4 * self.hidden, self.layers, heads, heads, self.hidden // heads
        )

    @property
    def prompts(self) -> jax.Array:
        """All prompts ``[P, 2]``."""
        return jnp.asarray(list(permutations(range(self.letters), PROMPT)), jnp.int32)

    def log_probs(self, group_size: int = 1) -> LogProbs:
        """``(params, completions) → (log_probs, entropy)`` with so many rows to a prompt."""
        return group_log_probs(self.config, (group_size, PROMPT))

    def scores(self, group_size: int = 1) -> Callable[[Params, Completions], jax.Array]:
        """``(reward model, completions) → [B]``."""
        return sequence_scores(self.config, (group_size, PROMPT))


def laid(prompts: jax.Array, answers: jax.Array) -> Completions:
    """Prompts ``[B, 2]`` and what was written ``[B, L]``, of no sampler."""
    tokens = jnp.concatenate([prompts, answers], 1).astype(jnp.int32)
    mask = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= PROMPT, tokens.shape)
    nothing = jnp.zeros(tokens.shape)
    return Completions(tokens, jnp.ones_like(mask), mask, nothing, jnp.zeros(len(tokens), bool))


def true_reward(completions: Completions) -> jax.Array:
    """Share of the first letter less share of the second, ``[B]``, from −1 to 1."""
    prompts, written = completions.tokens[:, :PROMPT, None], completions.tokens[:, None, PROMPT:]
    shares = (written == prompts).mean(-1)
    return shares[:, 0] - shares[:, 1]


def repeated(step: Callable, state: Any, key: jax.Array, steps: int, batch: Callable, **more: Any) -> Any:
    """The state after ``steps`` steps on ``batch(key)``."""

    def one(state: Any, key: jax.Array) -> tuple[Any, None]:
        return step(state, batch(key), **more)[0], None

    return jax.lax.scan(one, state, jax.random.split(key, steps))[0]


def reference(language: Language, key: jax.Array) -> Params:
    """A decoder that has learned to write either letter of the prompt three times in ten, and any at all otherwise."""
    start, order = jax.random.split(key)

    def demonstrations(key: jax.Array) -> Completions:
        which, kind, letter = jax.random.split(key, 3)
        asked = some_prompts(language, which, 64)
        kind = jax.random.choice(kind, 3, (64, language.length), p=jnp.array([0.3, 0.3, 0.4]))
        letter = jax.random.randint(letter, kind.shape, 0, language.letters)
        return laid(asked, jnp.select([kind == 0, kind == 1], [asked[:, :1], asked[:, 1:]], letter))

    init, step = supervised_loop(language.log_probs(), optax.adam(3e-3))
    state = init(decoder.init_decoder(language.config, start))
    return repeated(step, state, order, language.imitation_steps, demonstrations).params


def drawn(language: Language, params: Params, prompts: jax.Array, key: jax.Array, group_size: int = 1) -> Completions:
    """The policy's completions of the prompts ``[P, 2]``, each ``group_size`` times."""
    request = Request(Categorical(), (), language.length, group_size)
    return generate_at_once(language.config, params, (prompts, jnp.ones(prompts.shape, bool)), key, request)


def some_prompts(language: Language, key: jax.Array, count: int) -> jax.Array:
    """Prompts ``[count, 2]`` with replacement."""
    return language.prompts[jax.random.randint(key, (count,), 0, len(language.prompts))]


def judged_pairs(language: Language, params: Params, key: jax.Array, count: int) -> Completions:
    """``2 · count`` rows of the policy's, row 2b preferred to row 2b + 1 by a Bradley-Terry judge."""
    which, draw, judge = jax.random.split(key, 3)
    rows = drawn(language, params, some_prompts(language, which, count), draw, 2)
    first, second = jnp.split(true_reward(rows).reshape(-1, 2), 2, 1)
    wins = jax.random.bernoulli(judge, jax.nn.sigmoid(language.sharpness * (first - second)))[:, 0]
    order = jnp.stack([jnp.where(wins, 0, 1), jnp.where(wins, 1, 0)], 1) + 2 * jnp.arange(count)[:, None]
    return jax.tree.map(lambda x: x[order.ravel()], rows)


def some_pairs(pairs: Completions, key: jax.Array, count: int) -> PairedCompletions:
    """``count`` pairs of the data, with replacement."""
    chosen = jax.random.randint(key, (count,), 0, len(pairs.tokens) // 2)
    rows = (2 * chosen[:, None] + jnp.arange(2)).ravel()
    return PairedCompletions(jax.tree.map(lambda x: x[rows], pairs))


def reward_model(
    language: Language, start: Params, pairs: Completions, key: jax.Array, steps: int, batch_size: int = 32
) -> Params:
    """A scalar model of pairs from a decoder's parameters, at a learning rate that falls to 0."""
    head, order = jax.random.split(key)
    rate = optax.linear_schedule(3e-3, 0.0, steps)
    init, step = reward_loop(language.scores(2), logistic, optax.adam(rate))
    state = init(init_scalar(start, head))
    return repeated(step, state, order, steps, lambda key: some_pairs(pairs, key, batch_size)).params


def pair_accuracy(language: Language, model: Params, pairs: Completions) -> jax.Array:
    """Share of pairs whose preferred completion the model scores higher."""
    scores = language.scores(2)(model, pairs).reshape(-1, 2)
    return (scores[:, 0] > scores[:, 1]).mean()


class PpoSettings(NamedTuple):
    """PPO on the scores of a reward model: ``rows`` completions a step, ``epochs`` over them."""

    steps: int = 150
    rows: int = 64
    epochs: int = 4
    learning_rate: float = 5e-4


def ppo_loop(language: Language, settings: PpoSettings, beta: jax.typing.ArrayLike) -> tuple[Callable, Callable]:
    """The four-model loop with β · k1 in the reward and a rate that ends at 0."""
    rate = optax.linear_schedule(settings.learning_rate, 0.0, settings.steps * settings.epochs)
    values = token_values(language.config, (1, PROMPT))
    optimizers = {name: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)) for name in ("policy", "value")}
    learning = RlhfLearning(settings.epochs, value_coef=1.0)
    return rlhf_loop(
        language.log_probs(), values, ppo(), optimizers, Shaping(kl=KlInReward(jnp.asarray(beta))), learning
    )


def ppo_step(
    language: Language, settings: PpoSettings, loop: tuple[Callable, Callable], reward_model: Params, ref_params: Params
) -> Callable[[Any, jax.Array], tuple[Any, Metrics]]:
    """``(state, key) → (state, metrics)``: the policy writes, the reward model scores, both models learn."""

    def step(state: Any, key: jax.Array) -> tuple[Any, Metrics]:
        which, draw, order = jax.random.split(key, 3)
        rows = drawn(language, state.params["policy"], some_prompts(language, which, settings.rows), draw)
        scored = ScoredCompletions(rows, language.scores()(reward_model, rows))
        return loop[1](state, scored, key=order, reference=ref_params)

    return step


class Exact(NamedTuple):
    """Of a policy, means over prompts: expected reward, and KL to the reference in nats a completion."""

    reward: jax.Array
    kl: jax.Array


def everything(language: Language, prompt: jax.Array) -> Completions:
    """Every completion of a prompt ``[2]``."""
    written = jnp.asarray(list(product(range(language.letters), repeat=language.length)), jnp.int32)
    return laid(jnp.broadcast_to(prompt, (len(written), PROMPT)), written)


def distribution(language: Language, params: Params, prompt: jax.Array) -> jax.Array:
    """Log-probabilities of every completion of a prompt."""
    rows = everything(language, prompt)
    return jnp.where(rows.mask, language.log_probs(len(rows.tokens))(params, rows)[0], 0.0).sum(-1)


def _against(log_p: jax.Array, log_ref: jax.Array, rewards: jax.Array) -> Exact:
    p = jnp.exp(log_p)
    return Exact((p * rewards).sum(), (p * (log_p - log_ref)).sum())


def exact(language: Language, params: Params, ref_params: Params) -> Exact:
    """A policy's reward and KL, summed over all completions of each prompt."""

    def one(prompt: jax.Array) -> Exact:
        log_p, log_ref = (distribution(language, x, prompt) for x in (params, ref_params))
        return _against(log_p, log_ref, true_reward(everything(language, prompt)))

    return jax.tree.map(jnp.mean, jax.lax.map(one, language.prompts))


def optimum(language: Language, ref_params: Params, betas: jax.Array) -> Exact:
    """The same of π* ∝ π_ref · exp(r / β), ``[betas]`` each: the most reward that a KL buys."""

    def one(prompt: jax.Array) -> Exact:
        log_ref, rewards = distribution(language, ref_params, prompt), true_reward(everything(language, prompt))
        return jax.vmap(lambda beta: _against(jax.nn.log_softmax(log_ref + rewards / beta), log_ref, rewards))(betas)

    return jax.tree.map(partial(jnp.mean, axis=0), jax.lax.map(one, language.prompts))
