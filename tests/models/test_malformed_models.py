"""Directories that are no whole model: each is refused in one sentence that names the file, and the field or tensor."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlax_llm.models import loading
from rlax_llm.models.adapter_files import write_adapter
from rlax_llm.models.config import DecoderConfig, Lora
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.loading import load_model
from rlax_llm.models.tokenizer import Tokenizer

CONFIG = DecoderConfig(12, 8, 16, 2, 2, 1, 4)
TOKENIZER = Tokenizer.characters("0123456789")
INDEX = "model.safetensors.index.json"

# Of no field of a configuration that this library reads.
NEVER = {
    "a list": [1],
    "a list of objects": [{"a": 1}],
    "an object": {"a": {"b": 1}},
    "an empty string": "",
    "a word": "x",
    "a number in a string": "2",
    "below zero": -1,
    "infinite": float("inf"),
    "no number": float("nan"),
}
SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"]
SIZES += ["num_key_value_heads", "max_position_embeddings", "sliding_window"]
NO_SIZE = {"zero": 0, "true": True, "a fraction": 2.5, "beyond any": 10**30}
NUMBERS = ["rms_norm_eps", "rope_theta"]
NO_NUMBER = {"zero": 0, "true": True}
FLAGS = ["tie_word_embeddings", "use_sliding_window"]
OTHERS = ["model_type", "rope_scaling", "rope_parameters", "layer_types", "hidden_act", "attention_bias"]
OTHERS += ["mlp_bias", "quantization_config", "partial_rotary_factor", "is_causal"]


def table(names: list[str], values: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, values[how], id=f"{name} {how}") for name, how in itertools.product(names, values)]


FIELDS = table(SIZES + NUMBERS + FLAGS + OTHERS, NEVER)
FIELDS += table(SIZES, NO_SIZE) + table(NUMBERS, NO_NUMBER) + table(FLAGS, {"a number": 2})
FIELDS += table([*SIZES[:5], "rms_norm_eps", "model_type"], {"null": None})
FIELDS += table(["max_window_layers"], {name: NEVER[name] for name in NEVER} | {"a fraction": 2.5})
FIELDS += table(["num_hidden_layers"], {"ten million": 10**7})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A model, the same in shards, and an adapter over it: made once, copied for each test."""
    place = tmp_path_factory.mktemp("made")
    draw, shapes = np.random.default_rng(0), CONFIG.parameter_shapes
    params = jax.tree.map(lambda shape: draw.normal(size=shape).astype(np.float32), shapes, is_leaf=_is_shape)
    write_model(place / "model", CONFIG, params, TOKENIZER)
    write_model(place / "sharded", CONFIG, params, TOKENIZER, shard_bytes=2_000)
    lora = replace(CONFIG, lora=Lora(2, 4.0, ("q",)))
    adapter = jax.tree.map(lambda shape: np.ones(shape, np.float32), lora.adapter_shapes, is_leaf=_is_shape)
    write_adapter(place / "adapter", lora, adapter, str(place / "model"))
    return place


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


@pytest.fixture
def copied(made, tmp_path) -> Path:
    for name in ("model", "sharded", "adapter"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def refusal(place: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_model(place)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def changed(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(("name", "value"), FIELDS)
def test_a_field_of_config_json_that_cannot_be_is_named(copied, monkeypatch, name, value):
    # The configuration is refused before anything else is read.
    monkeypatch.setattr(loading, "_read_tokenizer", lambda *_args: TOKENIZER)
    family = {"model_type": "qwen2"} if name in ("use_sliding_window", "max_window_layers") else {}
    family |= {"use_sliding_window": True} if name == "max_window_layers" else {}
    family |= {"model_type": "mistral"} if name == "sliding_window" else {}
    changed(copied / "model" / "config.json", **(family | {name: value}))
    text = refusal(copied / "model")
    assert str(copied / "model") in text
    assert name in text


NESTED = {
    "linear rope of factor 0": ({"rope_type": "linear", "factor": 0}, "rope_scaling.factor is 0"),
    "a factor in a string": ({"rope_type": "linear", "factor": "x"}, "rope_scaling.factor is 'x'"),
    "no type": ({"factor": 2.0}, "rope_scaling.rope_type is None"),
    "a type that is a list": ({"rope_type": ["linear"]}, "rope_scaling.rope_type is ['linear']"),
    "a rope for each type of layer": ({"full_attention": {"rope_type": "yarn"}}, "rope_scaling.full_attention is"),
    "llama 3 without bounds": ({"rope_type": "llama3", "factor": 8.0}, "the llama3 rope lacks 'low_freq_factor'"),
    "llama 3 of equal bounds": (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0},
        "high_freq_factor is 1.0, wanted more than low_freq_factor 1.0",
    ),
    "a long rope of three factors": (
        {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0, 1.0, 1.0]},
        "rope_scaling has 3 long factors, wanted 2",
    ),
}


@pytest.mark.parametrize(("scaling", "words"), NESTED.values(), ids=NESTED)
def test_a_rope_that_cannot_be_is_named(copied, scaling, words):
    changed(copied / "model" / "config.json", rope_scaling=scaling)
    text = refusal(copied / "model")
    assert "config.json" in text
    assert words in text


def test_more_experts_of_a_token_than_there_are_is_named(copied):
    sizes = {"num_local_experts": 1, "num_experts_per_tok": 2}
    changed(copied / "model" / "config.json", model_type="mixtral", **sizes)
    text = refusal(copied / "model")
    assert "config.json: num_experts_per_tok is 2, wanted at most num_local_experts, which is 1" in text


BROKEN_JSON = {"deep": "[" * 200_000, "binary": b"\xff\xfe\x00{", "empty": "", "cut": '{"a": ', "a list": "[]"}
JSON_FILES = {
    "config.json": "model",
    "generation_config.json": "model",
    INDEX: "sharded",
    "adapter_config.json": "adapter",
}


@pytest.mark.parametrize("content", BROKEN_JSON.values(), ids=BROKEN_JSON)
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_that_is_no_json_object_is_named(copied, name, content):
    file = copied / JSON_FILES[name] / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(file) in refusal(file.parent)


@pytest.mark.parametrize("content", BROKEN_JSON.values(), ids=BROKEN_JSON)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_is_said(copied, name, content):
    file = copied / "model" / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = refusal(file.parent)
    assert str(file.parent) in text
    assert "tokenizer" in text


@pytest.mark.parametrize("ids", [[None], "abc", [1, "2"], {"a": 1}, -1, 12, [[1]], True, 1.5])
def test_stop_tokens_that_cannot_be_are_named(copied, ids):
    file = copied / "model" / "generation_config.json"
    changed(file, eos_token_id=ids)
    assert f"{file}: eos_token_id is {ids!r}, wanted token ids from 0 to 11" in refusal(file.parent)


OUTSIDE = ["../model/model.safetensors", "/etc/model.safetensors", "a/../../x.safetensors", "..\\x.safetensors"]
OUTSIDE += ["C:\\x.safetensors", "config.json", "", 5, None, ["model.safetensors"], {"a": "b"}, "a\0.safetensors"]


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_an_index_that_leads_out_of_the_directory_is_refused(copied, name):
    file = copied / "sharded" / INDEX
    listed = json.loads(file.read_text())["weight_map"]
    changed(file, weight_map=listed | {"model.norm.weight": name})
    assert f"{file}: weight_map.model.norm.weight is" in refusal(file.parent)


@pytest.mark.parametrize("listed", [["model.safetensors"], "x", 5, None, {}], ids=repr)
def test_an_index_that_lists_no_files_is_named(copied, listed):
    file = copied / "sharded" / INDEX
    changed(file, weight_map=listed)
    assert f"{file}: weight_map is" in refusal(file.parent)


def test_shards_may_be_links_to_elsewhere_as_in_the_hubs_cache(copied):
    (copied / "blobs").mkdir()
    for file in (copied / "sharded").glob("*.safetensors"):
        file.rename(copied / "blobs" / file.name)
        file.symlink_to(Path("../blobs") / file.name)
    jax.tree.map(
        np.testing.assert_array_equal,
        load_model(copied / "sharded").params,
        load_model(copied / "model").params,
    )


def with_weights(place: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    (file,) = place.glob("*model.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("place", "tensor"),
    [
        ("model", "model.embed_tokens.weight"),
        ("model", "model.layers.1.mlp.down_proj.weight"),
        ("adapter", "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"),
    ],
)
def test_weights_that_are_not_finite_are_refused(copied, place, tensor, bad):
    file = with_weights(copied / place, lambda tensors: tensors[tensor].put(3, bad))
    assert f"{file}: tensor {tensor} holds 1 numbers that are not finite" in refusal(file.parent)


def test_a_weight_beyond_the_dtype_is_refused(copied):
    with_weights(copied / "model", lambda tensors: tensors["model.norm.weight"].put(0, 1e5))
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds 1 .*or another dtype than float16"):
        load_model(copied / "model", np.float16)
    assert load_model(copied / "model").params["norm"][0] == 1e5


def test_a_tensor_in_two_shards_is_refused(copied):
    first, *_, last = sorted((copied / "sharded").glob("*.safetensors"))
    save_file(load_file(first) | load_file(last), last)
    text = refusal(copied / "sharded")
    assert last.name in text
    assert f"is also in {first.name}" in text


def test_a_free_head_that_is_absent_is_refused_with_what_to_do(copied):
    changed(copied / "model" / "config.json", tie_word_embeddings=False)
    assert "set tie_word_embeddings to true" in refusal(copied / "model")


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(copied):
    Tokenizer.characters("0123456789+").save(copied / "model")
    assert "token '+' has id 12, the model's embedding has 12 rows" in refusal(copied / "model")


ADAPTERS = {
    "no base": ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
    "a base that is no name": ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path is ['x']"),
    "a base that is not there": ({"base_model_name_or_path": "/gone/base"}, "base_model_name_or_path is '/gone/base'"),
    "a rank in a string": ({"r": "2"}, "r is '2', wanted a positive integer"),
    "another rank": ({"r": 3}, "has shape (2, 8), adapter_config.json wants (3, 8)"),
    "a huge rank": ({"r": 10**9}, "adapter_config.json wants (1000000000, 8)"),
    "an infinite alpha": ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
    "a flag that is none": ({"use_rslora": "yes"}, "use_rslora is 'yes', wanted true or false"),
    "a base that is changed too": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "another kind": ({"peft_type": ["LORA"]}, "peft_type is ['LORA'], wanted 'LORA'"),
}


@pytest.mark.parametrize(("fields", "words"), ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_that_cannot_be_is_named(copied, fields, words):
    changed(copied / "adapter" / "adapter_config.json", **fields)
    text = refusal(copied / "adapter")
    assert words in text
    assert str(copied / "adapter") in text


def test_an_adapter_over_itself_and_one_beside_a_model_are_refused(copied):
    changed(copied / "adapter" / "adapter_config.json", base_model_name_or_path=str(copied / "adapter"))
    assert "that is an adapter over itself" in refusal(copied / "adapter")
    shutil.copytree(copied / "adapter", copied / "model", dirs_exist_ok=True)
    assert "holds a model and an adapter" in refusal(copied / "model")


def test_the_directory_of_a_run_is_told_of_the_model_in_it(copied):
    assert refusal(copied) == f"{copied} has no config.json; give {copied / 'model'}."
