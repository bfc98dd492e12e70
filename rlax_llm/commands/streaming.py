"""Answers of a model as they are drawn, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from rlax_llm.commands.stopping import StopFilter
from rlax_llm.core.mesh import fetch
from rlax_llm.generation.prompts import Prompts, pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import stream
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.tokenizer import Tokenizer


class Grown(NamedTuple):
    """What came to the answers of a prompt.

    Attributes:
        pieces: of text, one for each answer.
        alive: of each answer, whether nothing has ended it yet.
    """

    pieces: list[str]
    alive: list[bool]


def padded_and_request(model: LanguageModel, ids: Sequence[int], request: Request) -> tuple[Prompts, Request]:
    """A prompt as arrays, and what to draw: an answer is no longer than the model's positions allow.

    Args:
        model: that answers.
        ids: of the prompt.
        request: of the answers.

    Raises:
        ValueError: for a prompt that is empty or too long for the model.
    """
    # The longest prompt whose bucket still leaves room.
    positions = model.config.max_positions
    prompts = pad_prompts([ids], model.tokenizer.pad_id, model.config.vocab_size, positions // 2)
    return prompts, request._replace(max_new_tokens=min(request.max_new_tokens, positions - prompts[0].shape[1]))


def answer_pieces(
    model: LanguageModel,
    prompts: Prompts,
    key: jax.Array,
    request: Request,
    stops: tuple[str, ...] = (),
) -> Iterator[Grown]:
    """What comes to each answer of one prompt: of one alone token by token, of several as many tokens as fit.

    Args:
        model: that answers.
        prompts: arrays of one prompt.
        key: of the draws.
        request: of the answers.
        stops: texts that end an answer, which are no part of it.
    """
    answers = [_Answer(model.tokenizer, stops) for _ in range(request.group_size)]
    stride = 1 if request.group_size == 1 else None
    read, alive = [0] * request.group_size, [True] * request.group_size
    for state in stream(model.config, model.params, prompts, key, request, stride):
        tokens, lengths, living = fetch((state.tokens, state.lengths, state.alive))
        alive = [bool(one) for one in living]
        pieces = [answer.piece(tokens[row, read[row] : lengths[row]].tolist()) for row, answer in enumerate(answers)]
        read = lengths
        yield Grown(pieces, alive)
    yield Grown([answer.end() for answer in answers], alive)


class _Answer:
    """Tokens of one answer to pieces of its text."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self.decoder, self.kept = tokenizer.stream_decoder(), StopFilter(stops)

    def piece(self, tokens: Sequence[int]) -> str:
        return "".join(self.kept.push(self.decoder.push(token)) for token in tokens)

    def end(self) -> str:
        return self.kept.flush(self.decoder.flush())
