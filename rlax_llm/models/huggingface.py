"""Hugging Face model directories, read and written without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.files import existing_directory, read_json, replacing, write_json
from rlax_llm.models.huggingface_config import config_fields, read_config

__all__ = ["read_config", "read_parameters", "stack_parameters", "write_model"]

Parameters = dict[str, Any]
SHARD_BYTES = 5_000_000_000
_SLACK_BYTES = 16_000_000  # headers, tokenizer and configuration

_TOP = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
_IGNORED = ("rotary_emb.inv_freq",)
_DTYPES = ("F32", "BF16", "F16")
# What a model directory may hold that a new model replaces.
_MODEL_FILES = re.compile(
    r"(generation_)?config\.json|model.*\.safetensors(\.index\.json)?|tokenizer.*|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|merges\.txt|chat_template\..*|README\.md|LICENSE.*|\.gitattributes"
)
_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


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
    slots = _slots(config)
    with ExitStack() as stack:
        tensors = _open_tensors(existing_directory(directory), stack)
        _check_names(Path(directory), tensors, slots, config)
        for name, slot in slots.items():
            _check_tensor(tensors[name], name, slot.shape)
        names = {(slot.leaf, slot.layer): name for name, slot in slots.items()}

        def fetch(leaf: str, layer: int | None) -> np.ndarray:
            name = names[leaf, layer]
            value = tensors[name].handle.get_tensor(name)
            return value.T if slots[name].transposed else value

        return stack_parameters(config, dtype, fetch)


def stack_parameters(config: DecoderConfig, dtype: Any, fetch: Callable[[str, int | None], np.ndarray]) -> Parameters:
    """Fill ``config.parameter_shapes`` leaf by leaf.

    Args:
        config: the decoder's shape.
        dtype: of the arrays.
        fetch: ``(leaf, layer)`` to one array in the decoder's own layout, ``[in, out]`` for kernels; ``layer`` is None
            for the leaves outside the layers.
    """

    def fill(leaf: str, shape: tuple[int, ...], stacked: bool) -> jax.Array:
        values = np.empty(shape, np.dtype(dtype))
        for layer in range(shape[0]) if stacked else (None,):
            values[... if layer is None else layer] = fetch(leaf, layer)
        return jnp.asarray(values)

    shapes: Parameters = dict(config.parameter_shapes)
    layers = shapes.pop("layers")
    params: Parameters = {leaf: fill(leaf, shape, False) for leaf, shape in shapes.items()}
    return params | {"layers": {leaf: fill(leaf, shape, True) for leaf, shape in layers.items()}}


def write_model(
    directory: str | Path,
    config: DecoderConfig,
    params: Parameters,
    tokenizer: Any = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a directory that transformers 4 and 5, and this library, load.

    Everything is written beside ``directory`` and renamed into place at the end: an interruption leaves neither half
    a model nor harms the one that was there.

    Args:
        directory: created, or replaced where it holds a model and nothing else.
        config: the decoder's shape.
        params: its parameters, as ``config.parameter_shapes``.
        tokenizer: a :class:`~rlax_llm.models.tokenizer.Tokenizer`, or None to write none.
        shard_bytes: largest file; more than that is split, with an index.

    Raises:
        ValueError: the parameters do not fit the config, or no family of Hugging Face has this shape.
        FileExistsError: the directory holds other things than a model.
        OSError: the disk is full.
    """
    _check_tree(config, params)
    dtype = np.dtype(params["embed"].dtype)
    special = {} if tokenizer is None else tokenizer.special_ids()
    fields = config_fields(config) | {"dtype": dtype.name, "torch_dtype": dtype.name} | special
    shards = _shards(_slots(config), params, shard_bytes)
    needed = sum(_nbytes(params, slot) for slots in shards for slot in slots.values())
    with replacing(Path(directory), needed + _SLACK_BYTES, _is_model_file) as staging:
        if tokenizer is not None:
            tokenizer.save(staging)
        write_json(staging / "config.json", fields)
        _write_shards(staging, shards, params)


# Reading.


class _Slot(NamedTuple):
    """Where one tensor of the file belongs, and its shape in the file."""

    leaf: str
    layer: int | None
    shape: tuple[int, ...]
    transposed: bool


def _slots(config: DecoderConfig) -> dict[str, _Slot]:
    """Every tensor of the model by its name, in the order of the file."""
    shapes: Parameters = dict(config.parameter_shapes)
    layers = shapes.pop("layers")
    slots = {_TOP[leaf]: _Slot(leaf, None, shape, False) for leaf, shape in shapes.items()}
    for layer in range(config.num_layers):
        for leaf, (_, *shape) in layers.items():
            kernel = len(shape) == 2  # [in, out] here, [out, in] in torch
            slots[_tensor_name(leaf, layer)] = _Slot(leaf, layer, tuple(shape[::-1] if kernel else shape), kernel)
    return slots


def _tensor_name(leaf: str, layer: int) -> str:
    module, _, kind = leaf.partition("_")
    if leaf in _NORMS:
        return f"model.layers.{layer}.{_NORMS[leaf]}.weight"
    if kind == "norm":
        return f"model.layers.{layer}.self_attn.{leaf}.weight"
    block = "mlp" if module in ("gate", "up", "down") else "self_attn"
    return f"model.layers.{layer}.{block}.{module}_proj.{kind or 'weight'}"


class _Tensor(NamedTuple):
    """An open file and one of its tensors."""

    path: Path
    handle: Any


def _open_tensors(directory: Path, stack: ExitStack) -> dict[str, _Tensor]:
    """Every tensor of the directory by name; the files stay open (and mapped) as long as ``stack``."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        files = [directory / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    else:
        raise FileNotFoundError(
            f"{directory} has neither {single.name} nor {index.name}; convert its weights to safetensors "
            "(transformers' save_pretrained does)."
        )
    tensors: dict[str, _Tensor] = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, {index.name} lists it; download the model again.")
        handle = stack.enter_context(_open_file(file))
        tensors |= {name: _Tensor(file, handle) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    return tensors


@contextmanager
def _open_file(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        # jax brings ml_dtypes along, which is what gives numpy its bfloat16.
        opened = safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not whole ({error}); download or export the model again.") from error
    with opened as handle:
        yield handle


def _check_names(
    directory: Path, found: Mapping[str, _Tensor], slots: Mapping[str, _Slot], config: DecoderConfig
) -> None:
    missing = [name for name in slots if name not in found]
    if missing:
        raise ValueError(
            f"{directory}: tensor {missing[0]} is missing ({len(missing)} of {len(slots)} are), config.json wants it; "
            "download or export the model again."
        )
    # A tied head may be written twice, and old exports hold the rotary frequencies: both follow from the rest.
    ignored = (*_IGNORED, _TOP["head"]) if config.tie_embeddings else _IGNORED
    extra = [name for name in found if name not in slots and not name.endswith(ignored)]
    if extra:
        raise ValueError(
            f"{found[extra[0]].path}: tensor {extra[0]} is unexpected ({len(extra)} are), no layer of the decoder that "
            "config.json describes holds it; use a model of the families Llama, Mistral, Qwen2 and Qwen3."
        )


def _check_tensor(tensor: _Tensor, name: str, wanted: tuple[int, ...]) -> None:
    entry = tensor.handle.get_slice(name)
    got, kind = tuple(entry.get_shape()), entry.get_dtype()
    if got != wanted:
        raise ValueError(
            f"{tensor.path}: tensor {name} has shape {got}, config.json wants {wanted}; "
            "use the config.json that belongs to these weights."
        )
    if kind not in _DTYPES:
        raise ValueError(
            f"{tensor.path}: tensor {name} has dtype {kind}, wanted one of {', '.join(_DTYPES)}; "
            "use the weights that are not quantised."
        )


# Writing.


def _check_tree(config: DecoderConfig, params: Parameters) -> None:
    wanted = _by_path(dict(config.parameter_shapes), tuple)
    got = _by_path(params, jnp.shape)
    for path in sorted(wanted.keys() | got.keys()):
        if wanted.get(path) != got.get(path):
            raise ValueError(
                f"write_model: parameter {path} is {got.get(path, 'absent')}, the config wants "
                f"{wanted.get(path, 'none')}; give the parameters that belong to the config."
            )


def _by_path(tree: Mapping[str, Any], shape: Callable[[Any], tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    layers = {f"layers/{name}": shape(leaf) for name, leaf in tree.get("layers", {}).items()}
    return {name: shape(leaf) for name, leaf in tree.items() if name != "layers"} | layers


def _is_model_file(name: str) -> bool:
    return _MODEL_FILES.fullmatch(name) is not None


def _shards(slots: Mapping[str, _Slot], params: Parameters, limit: int) -> list[dict[str, _Slot]]:
    """The tensors in their order, split so that no file exceeds ``limit`` bytes; a larger tensor has its own."""
    shards: list[dict[str, _Slot]] = [{}]
    filled = 0
    for name, slot in slots.items():
        size = _nbytes(params, slot)
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = slot
        filled += size
    return shards


def _write_shards(staging: Path, shards: list[dict[str, _Slot]], params: Parameters) -> None:
    from safetensors.numpy import save_file

    total, where = 0, {}
    for number, slots in enumerate(shards, 1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        tensors = {name: _tensor(params, slot) for name, slot in slots.items()}
        save_file(tensors, staging / f"model{part}.safetensors", metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        where |= dict.fromkeys(slots, f"model{part}.safetensors")
    if len(shards) > 1:
        write_json(staging / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _nbytes(params: Parameters, slot: _Slot) -> int:
    leaf = params[slot.leaf] if slot.layer is None else params["layers"][slot.leaf]
    return math.prod(slot.shape) * np.dtype(leaf.dtype).itemsize


def _tensor(params: Parameters, slot: _Slot) -> np.ndarray:
    if slot.layer is None:
        return np.ascontiguousarray(params[slot.leaf])
    value = np.asarray(params["layers"][slot.leaf][slot.layer])
    return np.ascontiguousarray(value.T if slot.transposed else value)
