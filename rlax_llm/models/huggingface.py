"""Hugging Face model directories, read and written without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.processes import is_first
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.families import FAMILIES
from rlax_llm.models.families import listed as listed_families
from rlax_llm.models.family import Family
from rlax_llm.models.fields import Fields
from rlax_llm.models.files import existing_directory, read_json, replace_directory, write_json
from rlax_llm.models.huggingface_config import (
    NOWHERE,
    Origin,
    config_fields,
    read_config,
    scalar_fields,
    text_fields,
    with_special_ids,
)
from rlax_llm.models.sharding import from_parts
from rlax_llm.models.shards import check_layers, model_tensors
from rlax_llm.models.slots import Bounds, Slot, of_experts, slots_of, tensor_of
from rlax_llm.models.tensors import Held, check_tensor, read_finite, same_numbers

__all__ = [
    "has_score",
    "read_config",
    "read_parameters",
    "read_scalar_parameters",
    "stack_parameters",
    "tensor_name",
    "with_own_head",
    "write_model",
    "write_scalar",
]

Parameters = dict[str, Any]
SHARD_BYTES = 5_000_000_000
_SLACK_BYTES = 16_000_000  # headers, tokenizer and configuration

_LLAMA = FAMILIES["llama"]
_TOP = {leaf: _LLAMA.tensor(leaf, None) for leaf in ("embed", "norm", "head", "score")}
_IGNORED = ("rotary_emb.inv_freq",)
_TIE = "export the model again, or set tie_word_embeddings to true where the embedding is the head"
# What a model directory may hold that a new model replaces.
_MODEL_FILES = re.compile(
    r"(generation_)?config\.json|model.*\.safetensors(\.index\.json)?|tokenizer.*|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|merges\.txt|chat_template\..*|README\.md|LICENSE.*|\.gitattributes"
)


def read_parameters(directory: str | Path, config: DecoderConfig, dtype: Any = jnp.float32) -> Parameters:
    """The parameters of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` lists.

    Every leaf is filled in place, so the peak is one copy of the model and of its largest leaf.

    Args:
        directory: a model directory.
        config: its shape; ``config.parameter_shapes`` is the tree that comes back.
        dtype: of the arrays given back, whatever the file holds (float32, float16 or bfloat16).

    Raises:
        FileNotFoundError: no such directory, no safetensors, or a shard of the index is missing.
        ValueError: a file is truncated or corrupt, or a tensor is missing, misshapen or unexpected.
    """
    with ExitStack() as stack:
        tensors = model_tensors(existing_directory(directory), stack)
        if _TOP["score"] in tensors:
            raise ValueError(
                f"{directory} is a reward model (it has {_TOP['score']}), wanted a language model; "
                "give the model that it was trained from."
            )
        if _with_own_head(tensors, config) != config:
            raise ValueError(
                f"{tensors[_TOP['head']].path}: {_TOP['head']} is not the embedding, and the config ties them; give "
                "the config with tie_embeddings=False, as with_own_head does."
            )
        return _read(Path(directory), tensors, config.parameter_shapes, dtype)


def has_score(directory: str | Path) -> bool:
    """Whether a model directory is a sequence classifier's: a reward or a value model's.

    Raises:
        FileNotFoundError: as ``read_parameters``.
        ValueError: a file is truncated or corrupt.
    """
    with ExitStack() as stack:
        return _TOP["score"] in model_tensors(existing_directory(directory), stack)


def with_own_head(directory: str | Path, config: DecoderConfig) -> DecoderConfig:
    """The config, untied where the weights hold a head that differs from the embedding: what is in the file is meant.

    Limiting cases: a head that equals the embedding, and none at all, leave the config as it is.

    Args:
        directory: a model directory.
        config: as its config.json says.

    Raises:
        FileNotFoundError: as ``read_parameters``.
        ValueError: a file is truncated or corrupt.
    """
    with ExitStack() as stack:
        return _with_own_head(model_tensors(existing_directory(directory), stack), config)


def _with_own_head(tensors: Mapping[str, Held], config: DecoderConfig) -> DecoderConfig:
    head = tensors.get(_TOP["head"])
    embed = tensors.get(_TOP["embed"])
    if not config.tie_embeddings or head is None or embed is None or same_numbers(head, embed):
        return config
    return replace(config, tie_embeddings=False)


def read_scalar_parameters(directory: str | Path, config: DecoderConfig, dtype: Any = jnp.float32) -> Parameters:
    """The parameters of a sequence-classification directory with one label: a reward or a value model.

    Args:
        directory: a model directory.
        config: its shape; ``config.scalar_shapes`` is the tree that comes back.
        dtype: of the arrays given back.

    Raises:
        FileNotFoundError: as ``read_parameters``.
        ValueError: as ``read_parameters``; or there is no ``score.weight``, or it has more than one label.
    """
    with ExitStack() as stack:
        tensors = model_tensors(existing_directory(directory), stack)
        score = tensors.get(_TOP["score"])
        if score is None:
            raise ValueError(
                f"{directory} has no tensor {_TOP['score']}, wanted a reward model (a sequence classifier with one "
                "label); train one, or give a directory that holds one."
            )
        if len(score.shape) == 2 and score.shape[0] != 1:
            raise ValueError(
                f"{directory}: num_labels is {score.shape[0]}, wanted 1, one score a sequence; use a reward model."
            )
        return _read(Path(directory), tensors, config.scalar_shapes, dtype)


def stack_parameters(config: DecoderConfig, dtype: Any, fetch: Callable[[str, int | None], np.ndarray]) -> Parameters:
    """Fill ``config.parameter_shapes`` leaf by leaf.

    Args:
        config: the decoder's shape.
        dtype: of the arrays.
        fetch: ``(leaf, layer)`` to one array in the decoder's own layout, ``[in, out]`` for kernels; ``layer`` is None
            for the leaves outside the layers.
    """
    return _filled(config.parameter_shapes, dtype, lambda leaf, layer, part: fetch(leaf, layer)[part])


_Fetch = Callable[[str, int | None, Bounds], np.ndarray]
"""``(leaf, layer, part of each dimension) → values``, in the decoder's own layout."""


def _filled(shapes: Parameters, dtype: Any, fetch: _Fetch) -> Parameters:
    """Parameters of these shapes; under an ambient mesh each where it lies, and only its own parts are fetched."""

    def fill(leaf: str, shape: tuple[int, ...], stacked: bool) -> jax.Array:
        def part(where: Bounds) -> np.ndarray:
            bounds = tuple(slice(*along.indices(size)[:2]) for along, size in zip(where, shape, strict=True))
            values = np.empty([along.stop - along.start for along in bounds], np.dtype(dtype))
            if not stacked:
                values[...] = fetch(leaf, None, bounds)
                return values
            for place, layer in enumerate(range(bounds[0].start, bounds[0].stop)):
                values[place] = fetch(leaf, layer, bounds[1:])
            return values

        return from_parts(leaf, shape, np.dtype(dtype), part)

    shapes = dict(shapes)
    layers = shapes.pop("layers")
    params: Parameters = {leaf: fill(leaf, shape, False) for leaf, shape in shapes.items()}
    return params | {"layers": {leaf: fill(leaf, shape, True) for leaf, shape in layers.items()}}


def write_model(
    directory: str | Path,
    config: DecoderConfig,
    params: Parameters,
    tokenizer: Any = None,
    origin: Origin = NOWHERE,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a directory that transformers 4 and 5, and this library, load.

    Everything is written next to ``directory`` and renamed into place at the end: an interruption leaves neither half
    a model nor harms the one that was there.

    Args:
        directory: created, or replaced where it holds a model and nothing else.
        config: the decoder's shape.
        params: its parameters, as ``config.parameter_shapes``.
        tokenizer: a :class:`~rlax_llm.models.tokenizer.Tokenizer`, or None to write none.
        origin: what the directory that the model was trained from said of it, and is said again.
        shard_bytes: largest file; more than that is split, with an index.

    Raises:
        ValueError: the parameters do not fit the config, or no family of Hugging Face has this shape.
        FileExistsError: the directory holds other things than a model.
        OSError: the disk is full.
    """
    _check_tree("write_model", config.parameter_shapes, params)
    texts = _Texts(config_fields(config, origin), origin.generation, tokenizer)
    _write(Path(directory), texts, params, slots_of(config.parameter_shapes, texts.family), shard_bytes)


def write_scalar(
    directory: str | Path,
    config: DecoderConfig,
    params: Parameters,
    tokenizer: Any = None,
    origin: Origin = NOWHERE,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a reward or value model as a sequence-classification directory with one label, as ``write_model`` does.

    transformers scores a row at its last token that is not the padding's id: where that is also the stop token, at
    the token before it. See :func:`~rlax_llm.models.scalar.drop_trailing`.

    Args:
        directory: created, or replaced where it holds a model and nothing else.
        config: the decoder's shape.
        params: its parameters, as ``config.scalar_shapes``.
        tokenizer: a :class:`~rlax_llm.models.tokenizer.Tokenizer`, or None to write none; transformers takes batches
            only where it names the padding's id.
        origin: as for ``write_model``.
        shard_bytes: largest file.

    Raises:
        ValueError: the parameters do not fit the config, or no family of Hugging Face has this shape.
        FileExistsError: the directory holds other things than a model.
        OSError: the disk is full.
    """
    _check_tree("write_scalar", config.scalar_shapes, params)
    texts = _Texts(scalar_fields(config, origin), origin.generation, tokenizer)
    _write(Path(directory), texts, params, slots_of(config.scalar_shapes, texts.family), shard_bytes)


class _Texts(NamedTuple):
    """What is written with the weights: the content of config.json and generation_config.json, and the tokenizer."""

    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokenizer: Any

    @property
    def family(self) -> Family:
        return FAMILIES[self.config["model_type"]]

    def save(self, directory: Path, dtype: str) -> None:
        ids = {} if self.tokenizer is None else self.tokenizer.special_ids()
        if self.tokenizer is not None:
            self.tokenizer.save(directory)
        config = {**self.config, "dtype": dtype, "torch_dtype": dtype}
        write_json(directory / "config.json", with_special_ids(config, ids))
        if self.generation or ids:
            write_json(directory / "generation_config.json", with_special_ids(self.generation, ids))


def _write(directory: Path, texts: _Texts, params: Parameters, slots: dict[str, Slot], shard_bytes: int) -> None:
    shards = _shards(slots, params, shard_bytes)
    if not is_first():
        # It takes part in what the first process gathers from all devices, a tensor at a time.
        for part in shards:
            for slot in part.values():
                tensor_of(params, slot)
        return
    needed = sum(_nbytes(params, slot) for part in shards for slot in part.values())
    with replace_directory(directory, needed + _SLACK_BYTES, _is_model_file) as staging:
        texts.save(staging, np.dtype(params["embed"].dtype).name)
        _write_shards(staging, shards, params)


# Reading.


def tensor_name(leaf: str, layer: int) -> str:
    """What Llama's files, and those of adapters, call a leaf of one layer.

    >>> tensor_name("q", 3), tensor_name("q_bias", 3)
    ('model.layers.3.self_attn.q_proj.weight', 'model.layers.3.self_attn.q_proj.bias')
    """
    return FAMILIES["llama"].tensor(leaf, layer)


def _family_in(directory: Path) -> Family:
    """The family that a directory's config.json names; Llama where there is none."""
    path = directory / "config.json"
    if not path.is_file():
        return _LLAMA
    kind = text_fields(Fields(path, read_json(path))).raw.get("model_type")
    return FAMILIES.get(kind, _LLAMA) if isinstance(kind, str) else _LLAMA


def _read(directory: Path, tensors: Mapping[str, Held], shapes: Parameters, dtype: Any) -> Parameters:
    check_layers(directory, shapes["layers"]["q"][0], len(tensors))
    slots = slots_of(shapes, _family_in(directory))
    _check_names(directory, tensors, slots)
    for name, slot in slots.items():
        check_tensor(tensors[name], slot.shape)
    names = {(leaf, slot.layer, slot.expert): name for name, slot in slots.items() for leaf in slot.leaves}

    def fetch(leaf: str, layer: int | None, part: Bounds) -> np.ndarray:
        if not of_experts(leaf):
            return fetch_one(names[leaf, layer, None], leaf, part)
        experts = range(part[0].start, part[0].stop)
        together = names.get((leaf, layer, None))
        each = [together or names[leaf, layer, expert] for expert in experts]
        return np.stack([fetch_one(name, leaf, part[1:], expert) for name, expert in zip(each, experts, strict=True)])

    def fetch_one(name: str, leaf: str, part: Bounds, expert: int = 0) -> np.ndarray:
        slot = slots[name]
        tensor = tensors[name]
        values = read_finite(tensor.part(slot.inside(leaf, part, expert)), dtype, tensor.path, name)
        return slot.laid.turned(values).reshape([along.stop - along.start for along in part])

    return _filled(shapes, dtype, fetch)


def _check_names(directory: Path, found: Mapping[str, Held], slots: Mapping[str, Slot]) -> None:
    missing = [name for name in slots if name not in found]
    if missing:
        raise ValueError(
            f"{directory}: tensor {missing[0]} is missing ({len(missing)} of {len(slots)} are), config.json wants it; "
            f"{_TIE if missing == [_TOP['head']] else 'download or export the model again'}."
        )
    # A tied head may be written twice, and old exports hold the rotary frequencies: both follow from the rest.
    ignored = _IGNORED if _TOP["head"] in slots else (*_IGNORED, _TOP["head"])
    extra = [name for name in found if name not in slots and not name.endswith(ignored)]
    if extra:
        raise ValueError(
            f"{found[extra[0]].path}: tensor {extra[0]} is unexpected ({len(extra)} are), no layer of the decoder that "
            "config.json describes holds it; use the config.json that belongs to these weights, or a model of the "
            f"families {listed_families()}."
        )


# Writing.


def _check_tree(where: str, shapes: Parameters, params: Parameters) -> None:
    wanted = _by_path(shapes, tuple)
    got = _by_path(params, jnp.shape)
    for path in sorted(wanted.keys() | got.keys()):
        if wanted.get(path) != got.get(path):
            raise ValueError(
                f"{where}: parameter {path} is {got.get(path, 'absent')}, the config wants "
                f"{wanted.get(path, 'none')}; give the parameters that belong to the config."
            )


def _by_path(tree: Mapping[str, Any], shape: Callable[[Any], tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    layers = {f"layers/{name}": shape(leaf) for name, leaf in tree.get("layers", {}).items()}
    return {name: shape(leaf) for name, leaf in tree.items() if name != "layers"} | layers


def _is_model_file(name: str) -> bool:
    return _MODEL_FILES.fullmatch(name) is not None


def _shards(slots: Mapping[str, Slot], params: Parameters, limit: int) -> list[dict[str, Slot]]:
    """The tensors in their order, split so that no file exceeds ``limit`` bytes; a larger tensor has its own."""
    shards: list[dict[str, Slot]] = [{}]
    filled = 0
    for name, slot in slots.items():
        size = _nbytes(params, slot)
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = slot
        filled += size
    return shards


def _write_shards(staging: Path, shards: list[dict[str, Slot]], params: Parameters) -> None:
    from safetensors.numpy import save_file

    total = 0
    where = {}
    for number, slots in enumerate(shards, 1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        tensors = {name: tensor_of(params, slot) for name, slot in slots.items()}
        save_file(tensors, staging / f"model{part}.safetensors", metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        where |= dict.fromkeys(slots, f"model{part}.safetensors")
    if len(shards) > 1:
        write_json(staging / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _nbytes(params: Parameters, slot: Slot) -> int:
    (leaf, *_) = slot.leaves
    values = params[leaf] if slot.layer is None else params["layers"][leaf]
    return math.prod(slot.shape) * np.dtype(values.dtype).itemsize
