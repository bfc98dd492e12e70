"""The command ``generate`` as a function of its settings."""

from __future__ import annotations

import jax

from rlax_llm.commands.generate.settings import GenerateSettings
from rlax_llm.commands.setup import (
    build_model,
    build_sampler,
)
from rlax_llm.generation.engine import Request, stream
from rlax_llm.generation.prompts import pad_prompts


def run_generate(config: GenerateSettings) -> list[str]:
    """Print what a model answers, piece by piece as it is drawn; several answers are printed when all are there.

    Args:
        config: the settings.

    Returns:
        The answers.

    Raises:
        ValueError: for a prompt that is empty or too long for the model.
    """
    model = build_model(config)
    tokenizer, seed = model.tokenizer, jax.random.key(config.seed)
    ids = tokenizer.encode_prompt(config.prompt.prompt)
    # The longest prompt whose bucket still leaves room; an answer is no longer than the model's positions allow.
    prompts = pad_prompts([ids], tokenizer.pad_id, model.config.vocab_size, model.config.max_positions // 2)
    room = min(config.max_new_tokens, model.config.max_positions - prompts[0].shape[1])
    sampler = build_sampler(config, model.config.vocab_size)
    request = Request(sampler, tokenizer.eos_ids, room, config.samples, config.min_new_tokens)
    decoders, drawn = [tokenizer.stream_decoder() for _ in range(config.samples)], 0
    texts = [""] * config.samples
    for state in stream(model.config, model.params, prompts, seed, request, stride=1 if config.samples == 1 else None):
        tokens, lengths, drawn_before = jax.device_get(state.tokens), jax.device_get(state.lengths), drawn
        drawn = int(state.step)
        for row, decoder in enumerate(decoders):
            fresh = tokens[row, drawn_before : min(drawn, lengths[row])]
            piece = "".join(decoder.push(int(token)) for token in fresh)
            texts[row] += piece
            if config.samples == 1:
                print(piece, end="", flush=True)
    texts = [text + decoder.flush() for text, decoder in zip(texts, decoders, strict=True)]
    print(decoders[0].flush() if config.samples == 1 else "\n\n".join(texts))
    return texts
