"""Additions of reasoning-gym's ``chain_sum`` in characters, and decoders that are taught them by their right answers.

An answer has one spelling, so the share of a model's samples that are right is a probability, which is computed and not
drawn: the product of what the model gives to the answer's tokens, the stop token among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlax_llm.core.types import Completions, Params
from rlax_llm.data.gym import load
from rlax_llm.loops.language import Prompts
from rlax_llm.loops.policy import supervised_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs

ALPHABET = "0123456789+="
STOP = len(ALPHABET)
WIDTH, LONGEST = len("12+34="), len("198") + 1
HEAD = 16


class Model(NamedTuple):
    """A decoder and its supervised training; Adam warms up over ``warm_steps``.

    Attributes:
        width: of the residual stream, in heads of 16.
        layers: of it.
        steps: of training.
        decays: whether the learning rate falls to 0 over the last half.
    """

    width: int
    layers: int
    steps: int
    decays: bool
    batch_size: int = 64
    learning_rate: float = 3e-3
    warm_steps: int = 40

    @property
    def shape(self) -> DecoderConfig:
        """A short wavelength of the rotary embedding is enough for ten tokens, and is learned sooner."""
        heads = self.width // HEAD
        return DecoderConfig(STOP + 1, self.width, 4 * self.width, self.layers, heads, heads, HEAD, rope_theta=10.0)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Of its training."""
        steps, warm = self.steps, self.warm_steps

        def rate(step: Any) -> Any:
            left = jnp.minimum(1.0, 2 * (1 - step / steps)) if self.decays else 1.0
            return self.learning_rate * jnp.minimum(1.0, (step + 1) / warm) * left

        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


def additions(draws: int, held_out: int) -> tuple[Prompts, Prompts]:
    """Those to train on, and others: of numbers of two digits, each question once.

    ``chain_sum`` draws sums and differences, of which about half are left out here.
    """
    settings = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
    train, held, _ = load("chain_sum", held_out, 0, size=draws, config=settings)
    return encoded(train), encoded(held)


def encoded(rows: Sequence[Any]) -> Prompts:
    """Questions and, as columns, answers that end in stop tokens."""
    pairs = {row["entry"]["metadata"]["expression"].replace(" ", ""): row["answer"] for row in rows}
    sums = [(question, answer) for question, answer in pairs.items() if "+" in question]
    questions = np.array([[ALPHABET.index(c) for c in f"{question}="] for question, _ in sums])
    answers = np.full((len(sums), LONGEST), STOP)
    for line, (_, answer) in zip(answers, sums):
        line[: len(answer)] = [ALPHABET.index(c) for c in answer]
    return Prompts(jnp.asarray(questions), jnp.ones(questions.shape, bool), jnp.asarray(answers))


def answered(prompts: Prompts) -> Completions:
    """Rows in which every question has its right answer."""
    answers = prompts.columns
    digits = (answers != STOP).sum(-1, keepdims=True)
    own = jnp.pad(jnp.arange(LONGEST) <= digits, ((0, 0), (WIDTH, 0)))
    tokens = jnp.concatenate([prompts.tokens, answers], 1)
    valid = own | (jnp.arange(WIDTH + LONGEST) < WIDTH)
    return Completions(tokens, valid, own, jnp.zeros(tokens.shape), jnp.zeros(len(tokens), bool))


def right(completions: Completions, answers: jax.Array) -> jax.Array:
    """1 for the right answer, 0 for any other."""
    return jnp.all(completions.tokens[:, WIDTH:] == answers, -1).astype(jnp.float32)


def accuracy(shape: DecoderConfig, params: Params, prompts: Prompts) -> jax.Array:
    """The share of a model's samples that are right, at temperature 1: exact."""
    log_probs, _ = group_log_probs(shape, (1, WIDTH))(params, answered(prompts))
    return jnp.exp(log_probs.sum(-1)).mean()


def taught(model: Model) -> Callable[[Prompts, jax.Array], Params]:
    """``(prompts, key) → parameters`` after supervised training on right answers."""
    init, step = supervised_loop(group_log_probs(model.shape, (1, WIDTH)), model.optimizer)

    def one(prompts: Prompts, state: Any, key: jax.Array) -> tuple[Any, None]:
        chosen = jax.random.randint(key, (model.batch_size,), 0, len(prompts.tokens))
        return step(state, answered(jax.tree.map(lambda x: x[chosen], prompts)))[0], None

    def trained(prompts: Prompts, key: jax.Array) -> Params:
        own, order = jax.random.split(key)
        state = init(decoder.init_decoder(model.shape, own))
        return jax.lax.scan(partial(one, prompts), state, jax.random.split(order, model.steps))[0].params

    return jax.jit(trained)
