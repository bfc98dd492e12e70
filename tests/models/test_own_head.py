"""A head of its own is kept whatever config.json says of it."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import logits
from rlax_llm.models.huggingface import read_config, read_parameters, write_model, write_scalar
from rlax_llm.models.loading import load_model, load_scalar
from rlax_llm.models.tokenizer import Tokenizer

FREE = DecoderConfig(12, 8, 16, 2, 2, 1, 4, tie_embeddings=False)
TIED = replace(FREE, tie_embeddings=True)
TOKENIZER = Tokenizer.characters("0123456789")


def drawn(shapes: dict) -> dict:
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(draw.normal(size=s), jnp.float32), shapes, is_leaf=_is_shape)


def _is_shape(node: object) -> bool:
    return isinstance(node, tuple)


def written(place: Path, params: dict, **fields: object) -> Path:
    """A model with a head in its file, whose config.json is then changed; in three files."""
    write_model(place, FREE, params, TOKENIZER, shard_bytes=3_000)
    assert len(list(place.glob("*.safetensors"))) > 1
    config = json.loads((place / "config.json").read_text()) | fields
    (place / "config.json").write_text(json.dumps(config))
    return place


def test_a_head_that_differs_is_kept_and_said_once(tmp_path):
    params = drawn(FREE.parameter_shapes)
    place = written(tmp_path / "model", params, tie_word_embeddings=True)
    with pytest.warns(
        UserWarning, match="an lm_head.weight that differs from the embedding; that head is kept"
    ) as said:
        model = load_model(place)
    assert len(said) == 1
    assert model.config == FREE
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    tokens = np.asarray([[2, 3, 4]], np.int32)
    valid = np.ones_like(tokens, bool)
    np.testing.assert_array_equal(
        logits(model.config, model.params, tokens, valid), logits(FREE, params, tokens, valid)
    )
    # What is written of it says so itself.
    write_model(tmp_path / "again", *model)
    assert read_config(tmp_path / "again") == FREE


def test_a_head_that_is_the_embedding_stays_tied(tmp_path):
    params = drawn(FREE.parameter_shapes)
    place = written(tmp_path / "model", params | {"head": params["embed"]}, tie_word_embeddings=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(place)
    assert model.config == TIED
    assert "head" not in model.params


def test_the_reader_of_parameters_drops_no_head_in_silence(tmp_path):
    place = written(tmp_path / "model", drawn(FREE.parameter_shapes))
    with pytest.raises(ValueError, match=r"lm_head\.weight is not the embedding, and the config ties them"):
        read_parameters(place, TIED)
    assert "head" in read_parameters(place, FREE)


def test_a_scalar_model_has_no_head_to_keep(tmp_path):
    params = drawn(TIED.scalar_shapes)
    write_scalar(tmp_path / "reward", TIED, params, TOKENIZER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_scalar(tmp_path / "reward")
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    assert model.config == TIED
