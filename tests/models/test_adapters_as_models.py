"""An adapter's directory is a model wherever a model is wanted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.models.adapter_files import write_adapter
from rlax_llm.models.config import DecoderConfig, Lora
from rlax_llm.models.huggingface import write_model, write_scalar
from rlax_llm.models.loading import load_model, load_scalar, local_fields
from rlax_llm.models.tokenizer import Tokenizer

CONFIG = DecoderConfig(12, 8, 16, 2, 2, 1, 4, tie_embeddings=False)
LORA = replace(CONFIG, lora=Lora(2, 5.0, ("q", "down")))
TOKENIZER = Tokenizer.characters("0123456789")


def drawn(shapes: dict, seed: int = 0) -> dict:
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(draw.normal(size=s), jnp.float32), shapes, is_leaf=lambda node: isinstance(node, tuple)
    )


BASE, ADAPTER = drawn(CONFIG.parameter_shapes), drawn(LORA.adapter_shapes, 1)
SCORE = jnp.arange(8.0)


@pytest.fixture
def place(tmp_path) -> Path:
    write_model(tmp_path / "base", CONFIG, BASE, TOKENIZER)
    write_adapter(tmp_path / "adapter", LORA, ADAPTER, str(tmp_path / "base"))
    return tmp_path


def changed(place: Path, base: object) -> None:
    file = place / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


def expected(layers: dict, times: int = 1) -> dict:
    """W + times · (alpha / rank) · A · B, in NumPy and float64."""
    found = {name: np.asarray(leaf, np.float64) for name, leaf in layers.items()}
    for target in ("q", "down"):
        a, b = (np.asarray(ADAPTER["layers"][f"{target}_lora_{side}"], np.float64) for side in "ab")
        found[target] += times * 5.0 / 2 * np.einsum("lir,lro->lio", a, b)
    return found


def close(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name, leaf in left.items():
        np.testing.assert_allclose(leaf, right[name], rtol=1e-5, atol=1e-5)


def test_it_is_merged_into_the_base_that_it_names(place):
    model = load_model(place / "adapter")
    assert model.config == CONFIG
    close(model.params["layers"], expected(BASE["layers"]))
    for leaf in ("embed", "head", "norm"):
        np.testing.assert_array_equal(model.params[leaf], BASE[leaf])
    assert model.tokenizer.encode("42") == TOKENIZER.encode("42")
    assert local_fields(place / "adapter")["hidden_size"] == 8
    half = load_model(place / "adapter", jnp.bfloat16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}


def test_an_adapter_over_an_adapter_is_merged_over_it(place):
    shutil.copytree(place / "adapter", place / "second")
    changed(place / "second", str(place / "adapter"))
    close(load_model(place / "second").params["layers"], expected(BASE["layers"], times=2))


def test_a_relative_base_is_found_from_here_and_from_the_adapter(place, monkeypatch):
    whole = load_model(place / "adapter").params["layers"]
    monkeypatch.chdir(place)
    changed(place / "adapter", "base")
    close(load_model("adapter").params["layers"], whole)
    (place / "elsewhere" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(place / "elsewhere" / "deeper")
    changed(place / "adapter", "../base")
    with pytest.warns(UserWarning, match=r"its base is not at \.\./base; .*adapter/\.\./base is taken for it"):
        close(load_model(place / "adapter").params["layers"], whole)


def test_the_base_that_a_run_wrote_beside_it_moves_with_it(place):
    """And the model of the run, which lies there too, is never taken for it."""
    whole = load_model(place / "adapter").params["layers"]
    (place / "run").mkdir()
    (place / "base").rename(place / "run" / "model_base")
    (place / "adapter").rename(place / "run" / "model_adapter")
    shutil.copytree(place / "run" / "model_base", place / "run" / "model")
    changed(place / "run" / "model_adapter", "/gone/run/model_base")
    with pytest.warns(UserWarning, match=r"its base is not at /gone/run/model_base; .*/run/model_base is taken"):
        close(load_model(place / "run" / "model_adapter").params["layers"], whole)
    changed(place / "run" / "model_adapter", "/gone/warm/model")
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json: base_model_name_or_path is '/gone/warm/model'"):
        load_model(place / "run" / "model_adapter")


def test_a_tokenizer_of_its_own_is_the_one_that_is_used(place):
    other = Tokenizer.characters("9876543210")
    other.save(place / "adapter")
    assert load_model(place / "adapter").tokenizer.encode("42") == other.encode("42")


def test_a_base_on_the_hub_is_downloaded(place, monkeypatch):
    whole = load_model(place / "adapter").params["layers"]
    (place / "base").rename(place / "snapshot")
    changed(place / "adapter", "owner/base")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _name, allow_patterns: str(place / "snapshot"))
    close(load_model(place / "adapter").params["layers"], whole)


@pytest.mark.parametrize("kind", ["language model", "reward model"])
def test_the_adapter_of_a_reward_model_is_a_reward_model(place, kind):
    """Over a language model, whose head goes, and over a reward model, whose score is replaced."""
    if kind == "reward model":
        rest = {name: leaf for name, leaf in BASE.items() if name != "head"}
        write_scalar(place / "base", CONFIG, rest | {"score": -SCORE}, TOKENIZER)
    write_adapter(place / "judge", LORA, ADAPTER | {"score": SCORE}, str(place / "base"))
    model = load_scalar(place / "judge")
    assert set(model.params) == {"embed", "layers", "norm", "score"}
    np.testing.assert_array_equal(model.params["score"], SCORE)
    close(model.params["layers"], expected(BASE["layers"]))


def test_an_adapter_of_the_other_kind_is_named(place):
    with pytest.raises(ValueError, match="is the adapter of a language model, wanted a reward model's"):
        load_scalar(place / "adapter")
    write_adapter(place / "judge", LORA, ADAPTER | {"score": SCORE}, str(place / "base"))
    with pytest.raises(ValueError, match=r"is the adapter of a reward model \(it has a score\)"):
        load_model(place / "judge")
