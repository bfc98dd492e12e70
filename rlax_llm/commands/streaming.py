"""Answers of a model as they are drawn, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from rlax_llm.core.mesh import fetch
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import stream
from rlax_llm.generation.sampling import Sampler
from rlax_llm.models.loading import LanguageModel


class Grown(NamedTuple):
    """What came to the answers of a prompt.

    Attributes:
        pieces: of text, one for each answer.
        alive: of each answer, whether no stop token was drawn yet.
    """

    pieces: list[str]
    alive: list[bool]


def padded_and_request(
    model: LanguageModel, ids: Sequence[int], sampler: Sampler, limits: tuple[int, int], samples: int = 1
) -> tuple[tuple[jax.Array, jax.Array], Request]:
    """A prompt as arrays, and what to draw: an answer is no longer than the model's positions allow.

    Args:
        model: that answers.
        ids: of the prompt.
        sampler: of the tokens.
        limits: longest and shortest answer, tokens.
        samples: answers.

    Raises:
        ValueError: for a prompt that is empty or too long for the model.
    """
    # The longest prompt whose bucket still leaves room.
    positions = model.config.max_positions
    prompts = pad_prompts([ids], model.tokenizer.pad_id, model.config.vocab_size, positions // 2)
    room = min(limits[0], positions - prompts[0].shape[1])
    return prompts, Request(sampler, model.tokenizer.eos_ids, room, samples, limits[1])


def answer_pieces(
    model: LanguageModel, prompts: tuple[jax.Array, jax.Array], key: jax.Array, request: Request
) -> Iterator[Grown]:
    """What comes to each answer of one prompt: of one alone token by token, of several as many tokens as fit.

    Args:
        model: that answers.
        prompts: arrays of one prompt.
        key: of the draws.
        request: of the answers.
    """
    decoders = [model.tokenizer.stream_decoder() for _ in range(request.group_size)]
    stride = 1 if request.group_size == 1 else None
    drawn, alive = 0, [True] * request.group_size
    for state in stream(model.config, model.params, prompts, key, request, stride):
        before, drawn = drawn, int(fetch(state.step))
        tokens, lengths, living = fetch((state.tokens, state.lengths, state.alive))
        alive = [bool(one) for one in living]
        pieces = [
            "".join(decoder.push(int(token)) for token in tokens[row, before : min(drawn, lengths[row])])
            for row, decoder in enumerate(decoders)
        ]
        yield Grown(pieces, alive)
    yield Grown([decoder.flush() for decoder in decoders], alive)
