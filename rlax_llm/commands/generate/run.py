"""The command ``generate`` as a function of its settings."""

from __future__ import annotations

import jax

from rlax_llm.commands.generate.settings import GenerateSettings
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.setup import build_model, build_request
from rlax_llm.commands.streaming import answer_pieces, padded_and_request
from rlax_llm.core.processes import is_first


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
    vocabulary = model.config.vocab_size
    asked = build_request(sampling, model.tokenizer, vocabulary, sampling.max_new_tokens, sampling.samples)
    prompts, request = padded_and_request(model, ids, asked)
    alone = sampling.samples == 1
    texts = [""] * sampling.samples
    for pieces, _ in answer_pieces(model, prompts, jax.random.key(settings.run.seed), request, sampling.stops):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        if alone and is_first():
            print(pieces[0], end="", flush=True)
    if is_first():
        print("" if alone else "\n\n".join(texts))
    return texts
