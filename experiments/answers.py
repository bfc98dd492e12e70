"""A small language for group policy gradients: an answer of one letter, then as many dots as the writer likes.

A prompt is two different letters. Where the first comes before the second in the alphabet the prompt is easy, and the
answer is the first; else it is hard, and the answer is the second. The dots do not count, so the length that training
gives to right and to wrong completions is the objective's doing alone. The base, a small decoder, imitates writers who
answer easy prompts well and hard ones badly, and who stop with one probability after each token.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core.types import Completions, Groups, Metrics, Params
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.loops.language import Collector, Prompts, fresh_sampling, language_loop
from rlax_llm.loops.policy import supervised_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.policy.objectives import Objective

PROMPT = 2
Wrapper = Callable[[Collector], Collector]


class Language(NamedTuple):
    """The language and its base.

    Attributes:
        letters: of the alphabet; the dot and the stop token come behind them.
        longest: tokens of a completion, the stop token included.
        easy: probability that the base answers an easy prompt right.
        hard: the same of a hard one.
        more: probability that a writer goes on after each token.
        hidden: width of the decoder.
        imitation_steps: that make the base.
    """

    letters: int = 10
    longest: int = 12
    easy: float = 0.7
    hard: float = 0.1
    more: float = 0.7
    hidden: int = 32
    imitation_steps: int = 300

    @property
    def config(self) -> DecoderConfig:
        """Shapes of the decoder."""
        return DecoderConfig(self.letters + 2, self.hidden, 4 * self.hidden, 1, 4, 4, self.hidden // 4)

    @property
    def stop(self) -> int:
        """The stop token."""
        return self.letters + 1

    @property
    def prompts(self) -> Prompts:
        """All prompts, with their answers and whether they are hard."""
        pairs = jnp.asarray(list(permutations(range(self.letters), PROMPT)), jnp.int32)
        hard = pairs[:, 0] > pairs[:, 1]
        columns = {"answer": jnp.where(hard, pairs[:, 1], pairs[:, 0]), "hard": hard}
        return Prompts(pairs, jnp.ones(pairs.shape, bool), columns)


def right(completions: Completions, columns: dict[str, jax.Array]) -> jax.Array:
    """1 where the first letter is the answer, ``[B]``."""
    return (completions.tokens[:, PROMPT] == columns["answer"]).astype(jnp.float32)


def base(language: Language, key: jax.Array) -> Params:
    """The decoder that training starts from."""
    start, order = jax.random.split(key)
    init, step = supervised_loop(group_log_probs(language.config, (1, PROMPT)), optax.adam(3e-3))

    def one(state: Any, key: jax.Array) -> tuple[Any, None]:
        return step(state, demonstrations(language, key, 128))[0], None

    keys = jax.random.split(order, language.imitation_steps)
    return jax.lax.scan(one, init(decoder.init_decoder(language.config, start)), keys)[0].params


def demonstrations(language: Language, key: jax.Array, count: int) -> Completions:
    """What the writers wrote."""
    which, know, guess, on = jax.random.split(key, 4)
    prompts = language.prompts
    chosen = jax.random.randint(which, (count,), 0, prompts.tokens.shape[0])
    asked, columns = prompts.tokens[chosen], jax.tree.map(lambda x: x[chosen], prompts.columns)
    # A guess is right once in so many letters, too.
    chance = 1 / language.letters
    wanted = jnp.where(columns["hard"], language.hard, language.easy)
    knows = jax.random.bernoulli(know, (wanted - chance) / (1 - chance))
    answer = jnp.where(knows, columns["answer"], jax.random.randint(guess, (count,), 0, language.letters))
    goes_on = jax.random.bernoulli(on, language.more, (count, language.longest - 1))
    length = 1 + jnp.cumprod(goes_on, 1).sum(1)  # answer and dots; the stop token is behind them, if it still fits
    places = jnp.arange(language.longest)
    written = jnp.where(places < length[:, None], language.letters, language.stop).at[:, 0].set(answer)
    tokens = jnp.concatenate([asked, written], 1).astype(jnp.int32)
    there = jnp.concatenate([jnp.ones_like(asked, bool), places <= length[:, None]], 1)
    mask = there & (jnp.arange(tokens.shape[1]) >= PROMPT)
    nothing = jnp.zeros(tokens.shape)
    return Completions(tokens, there, mask, nothing, length >= language.longest)


def lengths(language: Language, params: Params) -> tuple[jax.Array, jax.Array]:
    """Expected tokens of a policy's right and of its wrong completions: sums over all answers, exact."""
    prompts, count = language.prompts, language.letters
    asked = jnp.repeat(prompts.tokens, count, 0)
    answers = jnp.tile(jnp.arange(count), len(prompts.tokens))
    dots = jnp.full((len(asked), language.longest - 1), language.letters)
    tokens = jnp.concatenate([asked, answers[:, None], dots], 1).astype(jnp.int32)
    every = jnp.ones(tokens.shape, bool)
    mask = every & (jnp.arange(tokens.shape[1]) >= PROMPT)
    nothing = jnp.zeros(tokens.shape)
    rows = Completions(tokens, every, mask, nothing, every[:, 0])
    log_probs = group_log_probs(language.config, (count, PROMPT))(params, rows)[0][:, PROMPT:]
    # The answer, a second token in any case, and one more behind each dot that was written but the last that fits.
    length = 2 + jnp.exp(jnp.cumsum(log_probs[:, 1:-1], 1)).sum(1)
    correct = answers == jnp.repeat(prompts.columns["answer"], count)

    def mean(where: jax.Array) -> jax.Array:
        weights = jnp.where(where, jnp.exp(log_probs[:, 0]), 0.0)
        return (weights * length).sum() / weights.sum()

    return mean(correct), mean(~correct)


class Training(NamedTuple):
    """Of one run: ``groups`` prompts a step, ``group_size`` completions each; Adam's rate is constant."""

    steps: int = 120
    groups: int = 16
    group_size: int = 8
    learning_rate: float = 5e-4
    points: int = 24


def _share(x: jax.Array, where: jax.Array) -> jax.Array:
    """Mean of ``x`` where ``where``; NaN where nowhere."""
    return jnp.where(where.any(), (x * where).sum() / jnp.maximum(where.sum(), 1), jnp.nan)


def told(groups: Groups) -> Metrics:
    """Accuracies, and lengths of right and wrong completions in tokens."""
    completions, scores = groups.completions, groups.scores
    prompts = completions.tokens[:: scores.shape[1], :PROMPT]
    hard = jnp.repeat(prompts[:, 0] > prompts[:, 1], scores.shape[1])
    lengths, correct = completions.mask.sum(-1), right(completions, _columns(prompts, scores.shape[1])) > 0
    there = lengths > 0
    return {
        "accuracy": _share(correct, there),
        "accuracy_easy": _share(correct, there & ~hard),
        "accuracy_hard": _share(correct, there & hard),
        "length_right": _share(lengths, there & correct),
        "length_wrong": _share(lengths, there & ~correct),
    }


def _columns(prompts: jax.Array, group_size: int) -> dict[str, jax.Array]:
    answer = jnp.where(prompts[:, 0] > prompts[:, 1], prompts[:, 1], prompts[:, 0])
    return {"answer": jnp.repeat(answer, group_size)}


def measured(collector: Collector) -> Collector:
    """The same groups, with what there is to tell of them."""

    def collect(memory: Any, params: Params, key: jax.Array, version: Any) -> tuple[Any, Groups, Metrics]:
        memory, groups, metrics = collector.collect(memory, params, key, version)
        return memory, groups, metrics | told(groups)

    return Collector(collector.init, collect)


def trained(
    language: Language,
    training: Training,
    objective: Objective,
    learning: GroupLearning,
    wrap: Wrapper = lambda inner: inner,
    reward: Callable[..., jax.Array] = right,
    drawn: DecoderConfig | None = None,
) -> Callable[[jax.Array, Params], tuple[Params, Metrics]]:
    """``(key, base) →`` the policy after training and its metrics, means over ``points`` windows.

    ``policy/…`` are of fresh completions at each window's end, of all prompts, whatever a collector picks. ``drawn`` is
    the shape in whose number formats the completions to learn from are drawn; None is the language's.
    """
    request = Request(Categorical(), (language.stop,), language.longest, training.group_size)
    collector = wrap(fresh_sampling(drawn or language.config, language.prompts, reward, request, training.groups))
    log_probs = group_log_probs(language.config, (training.group_size, PROMPT))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(training.learning_rate))
    update = group_loop(log_probs, objective, optimizer, learning)
    init, step = language_loop(measured(collector), update)
    fresh = fresh_sampling(language.config, language.prompts, right, request, 2 * training.groups)

    def looked_at(params: Params, key: jax.Array) -> Metrics:
        groups = fresh.collect(fresh.init(params), params, key, 0)[1]
        metrics = told(groups) | {"truncated": groups.completions.truncated.mean()}
        metrics["entropy"] = _share(log_probs(params, groups.completions)[1], groups.completions.mask)
        return {f"policy/{name}": value for name, value in metrics.items()}

    def run(key: jax.Array, start: Params) -> tuple[Params, Metrics]:
        def window(state: Any, keys: jax.Array) -> tuple[Any, Metrics]:
            state, metrics = jax.lax.scan(step, state, keys)
            seen = looked_at(state.learner.params, jax.random.fold_in(keys[0], 2**31 - 1))
            return state, jax.tree.map(jnp.nanmean, metrics) | seen

        keys = jax.random.split(key, (training.points, training.steps // training.points))
        state, metrics = jax.lax.scan(window, init(start), keys)
        return state.learner.params, metrics

    return run
