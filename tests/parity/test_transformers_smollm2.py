"""SmolLM2 against transformers on torch: real weights, exported by us and loaded by it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_models import assert_same_logits, reloaded
from transformers import AutoTokenizer

from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import greedy
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.loading import load_model

QUESTIONS = [
    "What is the capital of France?",
    "What is 17 + 25?",
    "Write a haiku about the sea.",
    "Name three primary colors.",
    "Why is the sky blue?",
    "Translate 'good morning' to French.",
    "List the first 5 prime numbers.",
    "Write a Python function that adds two numbers.",
]


@pytest.fixture(scope="module")
def exported(smollm2, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("smollm2") / "model"
    write_model(directory, *smollm2)
    return directory


@pytest.fixture(scope="module")
def torch_smollm2(exported) -> torch.nn.Module:
    return reloaded(exported)


def test_smollm2_logits_are_those_of_transformers(smollm2, torch_smollm2):
    assert_same_logits(torch_smollm2, smollm2.config, smollm2.params, 1e-3)


def test_smollm2_tokenizer_is_read_by_auto_tokenizer(smollm2, exported):
    theirs = AutoTokenizer.from_pretrained(exported)
    texts = ["84 * 3 / 2", "  two  spaces\n\n\tand tabs", "né 🦆 日本語", "don't <|im_start|>user", "x" * 50, ""]
    for text in texts + QUESTIONS:
        assert theirs.encode(text, add_special_tokens=False) == smollm2.tokenizer.encode(text)
        assert theirs.decode(smollm2.tokenizer.encode(text)) == smollm2.tokenizer.decode(
            smollm2.tokenizer.encode(text), skip_special=False
        )
        messages = [{"role": "user", "content": text}]
        chat = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert chat == smollm2.tokenizer.encode_prompt(text)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (2, 2, 1)


def test_smollm2_greedy_completions_are_those_of_transformers(smollm2, torch_smollm2):
    """Eight prompts of different lengths in one batch, up to forty-eight tokens each, token for token."""
    config, params, tokenizer = smollm2[:3]
    prompts = [tokenizer.encode_prompt(question) for question in QUESTIONS]
    tokens, valid = pad_prompts(prompts, tokenizer.pad_id, config.vocab_size)
    request = Request(greedy, tokenizer.eos_ids, max_new_tokens=48)
    ours = generate(config, params, (jnp.asarray(tokens), jnp.asarray(valid)), jax.random.key(0), request)
    theirs = torch_smollm2.generate(
        torch.tensor(tokens, dtype=torch.long),
        attention_mask=torch.tensor(valid, dtype=torch.long),
        max_new_tokens=48,
        do_sample=False,
    )[:, tokens.shape[1] :]
    for row, mask, expected in zip(np.asarray(ours.tokens), np.asarray(ours.mask), theirs.tolist()):
        stop = expected.index(2) + 1 if 2 in expected else len(expected)  # padded with the stop token from there on
        assert row[mask].tolist() == expected[:stop]
    assert not ours.truncated.all()


def test_generation_config_names_the_stop_token(exported, torch_smollm2):
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == 2
    assert torch_smollm2.generation_config.eos_token_id == 2


def test_the_cached_conversion_is_itself_a_model_of_transformers(smollm2):
    from rlax_llm.models import loading

    directory = loading.cache_directory() / loading._key(loading._packaged(), jnp.float32)
    again = load_model(directory)
    assert again.config == smollm2.config
    assert AutoTokenizer.from_pretrained(directory).encode("84") == smollm2.tokenizer.encode("84")
