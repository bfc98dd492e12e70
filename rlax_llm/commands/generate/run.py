"""The command ``generate`` as a function of its settings."""

from __future__ import annotations

import jax

from rlax_llm.commands.generate.settings import GenerateSettings
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.setup import build_model, build_sampler
from rlax_llm.core.mesh import fetch
from rlax_llm.core.processes import is_first
from rlax_llm.generation.engine import Request, stream
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.models.loading import LanguageModel


@on_machine
def run_generate(settings: GenerateSettings) -> list[str]:
    """Print what a model answers, piece by piece as it is drawn; several answers are printed when all are there.

    Args:
        settings: of the command.

    Returns:
        The answers.

    Raises:
        ValueError: for a prompt that is empty or too long for the model.
    """
    sampling = settings.sampling
    model = build_model("generate", settings.model, settings.run.seed)
    ids = model.tokenizer.encode_prompt(settings.prompt.prompt)
    # The longest prompt whose bucket still leaves room; an answer is no longer than the model's positions allow.
    positions = model.config.max_positions
    prompts = pad_prompts([ids], model.tokenizer.pad_id, model.config.vocab_size, positions // 2)
    room = min(sampling.max_new_tokens, positions - prompts[0].shape[1])
    sampler = build_sampler(sampling, model.config.vocab_size)
    request = Request(sampler, model.tokenizer.eos_ids, room, sampling.samples, sampling.min_new_tokens)
    return _printed(model, prompts, jax.random.key(settings.run.seed), request)


def _printed(model: LanguageModel, prompts: tuple[jax.Array, jax.Array], key: jax.Array, request: Request) -> list[str]:
    """The answers, one of them printed as it grows."""
    alone = request.group_size == 1
    decoders = [model.tokenizer.stream_decoder() for _ in range(request.group_size)]
    texts = [""] * request.group_size
    drawn = 0
    for state in stream(model.config, model.params, prompts, key, request, stride=1 if alone else None):
        before, drawn = drawn, int(fetch(state.step))
        tokens, lengths = fetch((state.tokens, state.lengths))
        for row, decoder in enumerate(decoders):
            piece = "".join(decoder.push(int(token)) for token in tokens[row, before : min(drawn, lengths[row])])
            texts[row] += piece
            if alone and is_first():
                print(piece, end="", flush=True)
    ends = [decoder.flush() for decoder in decoders]
    texts = [text + end for text, end in zip(texts, ends, strict=True)]
    if is_first():
        print(ends[0] if alone else "\n\n".join(texts))
    return texts
