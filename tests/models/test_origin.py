"""What a model's directory says beyond the decoder's shape is said again of the model that is trained from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.huggingface import read_config, write_model, write_scalar
from rlax_llm.models.loading import LanguageModel, load_model
from rlax_llm.models.tokenizer import Tokenizer

CONFIG = DecoderConfig(12, 8, 16, 2, 2, 1, 4)
TOKENIZER = Tokenizer.characters("0123456789")
PARAMS = jax.tree.map(jnp.ones, CONFIG.parameter_shapes, is_leaf=lambda node: isinstance(node, tuple))
GENERATION = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "repetition_penalty": 1.05,
    "eos_token_id": [1, 3],
    "pad_token_id": 0,
    "bos_token_id": 2,
    "transformers_version": "4.51.0",
}
MISTRAL = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "sliding_window": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
    "_name_or_path": "owner/model",
}


def published(place: Path, config: dict) -> LanguageModel:
    """A model as someone else published it."""
    write_model(place, CONFIG, PARAMS, TOKENIZER)
    (place / "config.json").write_text(json.dumps(config))
    (place / "generation_config.json").write_text(json.dumps(GENERATION))
    return load_model(place)


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def test_both_files_come_back_but_for_what_is_of_this_model(tmp_path):
    model = published(tmp_path / "base", MISTRAL)
    write_model(tmp_path / "trained", *model)
    assert read(tmp_path / "trained" / "generation_config.json") == GENERATION
    ours = {"dtype": "float32", "torch_dtype": "float32", "eos_token_id": [1, 3], "pad_token_id": 0}
    assert read(tmp_path / "trained" / "config.json") == MISTRAL | ours
    # And through a second training.
    write_model(tmp_path / "again", *load_model(tmp_path / "trained"))
    for name in ("config.json", "generation_config.json"):
        assert read(tmp_path / "again" / name) == read(tmp_path / "trained" / name)


def test_stop_tokens_that_the_tokenizer_has_more_of_are_added(tmp_path):
    base = published(tmp_path / "base", MISTRAL)
    more = base._replace(tokenizer=Tokenizer(base.tokenizer._fast, [*base.tokenizer.eos_ids, 5]))
    write_model(tmp_path / "trained", *more)
    expected = GENERATION | {"eos_token_id": [1, 3, 5]}
    assert read(tmp_path / "trained" / "generation_config.json") == expected


def test_a_classifier_of_it_is_one_and_a_model_of_another_shape_is_its_own(tmp_path):
    origin = published(tmp_path / "base", MISTRAL).origin
    score = {"score": np.ones(8, np.float32)}
    write_scalar(tmp_path / "judge", CONFIG, PARAMS | score, TOKENIZER, origin)
    found = read(tmp_path / "judge" / "config.json")
    assert found["architectures"] == ["LlamaForSequenceClassification"]  # CONFIG has no window: another decoder
    windowed = read_config(tmp_path / "base")
    write_scalar(tmp_path / "judge", windowed, PARAMS | score, TOKENIZER, origin)
    found = read(tmp_path / "judge" / "config.json")
    assert found["architectures"] == ["MistralForSequenceClassification"]
    assert (found["num_labels"], found["sliding_window"], found["initializer_range"]) == (1, 1024, 0.02)
    assert read(tmp_path / "judge" / "generation_config.json") == GENERATION


@pytest.mark.parametrize("dropped", [{"auto_map": {"AutoModel": "code.Model"}}, {"id2label": {"0": "a", "1": "b"}}])
def test_what_does_not_come_along_is_not_promised(tmp_path, dropped):
    model = published(tmp_path / "base", MISTRAL | dropped)
    write_model(tmp_path / "trained", *model)
    assert not dropped.keys() & read(tmp_path / "trained" / "config.json").keys()


def test_an_untied_head_is_written_as_one(tmp_path):
    origin = published(tmp_path / "base", MISTRAL).origin
    free = replace(read_config(tmp_path / "base"), tie_embeddings=False)
    write_model(tmp_path / "trained", free, PARAMS | {"head": 2 * PARAMS["embed"]}, TOKENIZER, origin)
    assert read_config(tmp_path / "trained") == free
    assert read(tmp_path / "trained" / "config.json")["model_type"] == "mistral"


def test_stop_tokens_are_those_of_config_json_where_there_is_no_other_file(tmp_path):
    published(tmp_path / "base", MISTRAL | {"eos_token_id": [1, 4]})
    (tmp_path / "base" / "generation_config.json").unlink()
    model = load_model(tmp_path / "base")
    assert model.tokenizer.eos_ids == (1, 4)
    write_model(tmp_path / "trained", *model)
    assert read(tmp_path / "trained" / "generation_config.json")["eos_token_id"] == [1, 4]
    (tmp_path / "base" / "config.json").write_text(json.dumps(MISTRAL | {"eos_token_id": "x"}))
    with pytest.raises(ValueError, match=r"config\.json: eos_token_id is 'x', wanted token ids from 0 to 11"):
        load_model(tmp_path / "base")


def test_further_special_tokens_have_the_name_that_both_versions_of_transformers_read(tmp_path):
    """transformers 5 writes a list where 4 reads an object, and how it was told to read the directory."""
    TOKENIZER.save(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(read(settings) | {"additional_special_tokens": ["7", "8"], "custom": 3}))
    Tokenizer.from_directory(tmp_path).save(tmp_path)
    found = read(settings)
    assert (found["additional_special_tokens"], found["custom"]) == (["7", "8"], 3)
    assert not {"extra_special_tokens", "is_local", "local_files_only"} & found.keys()
    assert Tokenizer.from_directory(tmp_path)._fast.extra_special_tokens == ["7", "8"]
