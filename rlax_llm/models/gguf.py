"""GGUF files (llama.cpp's), read and dequantized: configuration, parameters and tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.models.blocks import Blocks
from rlax_llm.models.chat import one_line
from rlax_llm.models.config import TARGETS, DecoderConfig
from rlax_llm.models.family import Gguf
from rlax_llm.models.gguf_blocks import KINDS, alike, blocks_of, columns, stacked
from rlax_llm.models.gguf_config import LONG_FACTORS, ROPE_FACTORS, gguf_shape
from rlax_llm.models.gguf_file import GgufFile
from rlax_llm.models.gguf_tokenizer import gguf_tokenizer
from rlax_llm.models.huggingface import Parameters, stack_parameters
from rlax_llm.models.narrow import EXPERTS
from rlax_llm.models.shards import check_layers
from rlax_llm.models.tokenizer import Tokenizer


def read_gguf(path: str | Path, dtype: Any = jnp.float32) -> tuple[DecoderConfig, Parameters, Tokenizer]:
    """Everything that a GGUF file of one of the ``architectures`` holds; quantized weights are dequantized.

    Args:
        path: the file.
        dtype: of the parameters given back.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, or holds an architecture, a rope, a tensor, a quantization or a tokenizer
            that is not supported.
    """
    return _read(path, partial(_parameters, dtype=dtype))


def read_gguf_blocks(path: str | Path, dtype: Any = jnp.float32) -> tuple[DecoderConfig, Parameters, Tokenizer]:
    """``read_gguf`` with the matrices of the layers in the blocks of the file: a base to train adapters over.

    A matrix that is of several kinds in different layers, as in Q4_K_M, is kept in one form of them all, and a warning
    says so.

    Limiting case: ``dequantized`` of it is ``read_gguf``.

    Args:
        path: the file.
        dtype: of the other parameters.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as ``read_gguf``; or a matrix is of a kind that ``KINDS`` lacks.
    """
    return _read(path, partial(_parameters_in_blocks, dtype=dtype))


Fill = Callable[[GgufFile, Gguf, DecoderConfig], Parameters]


def _read(path: str | Path, parameters: Fill) -> tuple[DecoderConfig, Parameters, Tokenizer]:
    try:
        file = GgufFile(Path(path))
        own, config = gguf_shape(file)
        return config, parameters(file, own, config), gguf_tokenizer(file)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # bytes that are no text, merges that no vocabulary holds: whatever damage causes
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(
            f"{path} is not a whole GGUF model ({one_line(error)}); convert or download it again."
        ) from error


def _parameters(file: GgufFile, own: Gguf, config: DecoderConfig, dtype: Any) -> Parameters:
    _check_tensors(file, own, config)
    return stack_parameters(config, dtype, partial(_leaf, file, own, config, dtype))


def _parameters_in_blocks(file: GgufFile, own: Gguf, config: DecoderConfig, dtype: Any) -> Parameters:
    _check_tensors(file, own, config)
    shapes: Parameters = dict(config.parameter_shapes)
    matrices = shapes.pop("layers")
    fetch = partial(_leaf, file, own, config, dtype)
    layers: Parameters = {}
    for leaf in matrices:
        if leaf in (*TARGETS, *EXPERTS):
            layers[leaf] = _leaf_in_blocks(file, own, config, leaf)
        else:
            layers[leaf] = np.stack([fetch(leaf, layer) for layer in range(config.num_layers)])
    params = {leaf: fetch(leaf, None) for leaf in shapes} | {"layers": layers}
    return jax.tree.map(jnp.asarray, params)


def _check_tensors(file: GgufFile, own: Gguf, config: DecoderConfig) -> None:
    shapes = config.parameter_shapes
    check_layers(file.path, config.num_layers, len(file.tensors))
    wanted = {own.tensor(leaf, None) for leaf in shapes if leaf != "layers"}
    wanted |= {own.tensor(leaf, layer) for leaf in shapes["layers"] for layer in range(config.num_layers)}
    _check_names(file, wanted)


def _leaf(file: GgufFile, own: Gguf, config: DecoderConfig, dtype: Any, leaf: str, layer: int | None) -> np.ndarray:
    """One array in the decoder's own layout."""
    shapes = config.parameter_shapes
    name = own.tensor(leaf, layer)
    if layer is None:
        return _norm_itself(config, leaf, file.dequantized(name, shapes[leaf], dtype))
    layers = shapes["layers"]
    shape = layers[leaf][1:]
    order = _order(own, config, leaf)
    if leaf == "shared_gate":  # of one output, which files leave out
        return file.dequantized(name, shape[:1], dtype)[:, None]
    if len(shape) == 1 or leaf.endswith("_bias"):  # that of experts has a row for each
        value = _norm_itself(config, leaf, file.dequantized(name, shape, dtype))
        return value if order is None else value[order]
    outputs = sum(layers[other][-1] for other in own.leaves_with(leaf))
    value = file.dequantized(name, (*shape[:-2], outputs, shape[-2]), dtype)[..., _rows(own, layers, leaf), :]
    return (value if order is None else value[order]).swapaxes(-1, -2)


def _norm_itself(config: DecoderConfig, leaf: str, value: np.ndarray) -> np.ndarray:
    """A norm less what is added to it: files hold the sum."""
    return (
        value - np.asarray(config.norm_offset, value.dtype) if leaf.endswith("norm") and config.norm_offset else value
    )


def _rows(own: Gguf, layers: Parameters, leaf: str) -> slice:
    """Where a leaf is in the tensor that holds it."""
    leaves = own.leaves_with(leaf)
    begin = sum(layers[other][-1] for other in leaves[: leaves.index(leaf)])
    return slice(begin, begin + layers[leaf][-1])


def _order(own: Gguf, config: DecoderConfig, leaf: str) -> np.ndarray | None:
    """llama.cpp rotates neighboring rows of a llama's heads, Hugging Face and this decoder the two halves."""
    heads = {"q": config.num_heads, "k": config.num_kv_heads}
    count = heads.get(leaf.removesuffix("_bias"))
    if not own.neighbors or count is None:
        return None
    rows = np.arange(count * config.head_dim)
    return rows.reshape(count, config.head_dim // 2, 2).swapaxes(1, 2).ravel()


def _leaf_in_blocks(file: GgufFile, own: Gguf, config: DecoderConfig, leaf: str) -> Blocks:
    """A matrix of all layers, and of all experts, as the file keeps it."""
    shapes = config.parameter_shapes["layers"]
    names = [own.tensor(leaf, layer) for layer in range(config.num_layers)]
    outputs = sum(shapes[other][-1] for other in own.leaves_with(leaf))
    *outer, into, _ = shapes[leaf]
    for name in names:
        file.check_shape(name, (*outer[1:], outputs, into))
    found = jax.tree.map(lambda part: part.reshape(*outer, *part.shape[1:]), _blocks(file, leaf, names))
    found = columns(found, _rows(own, shapes, leaf))
    if not all(np.isfinite(part).all() for part in jax.tree.leaves(found)):
        raise ValueError(f"{file.path}: {leaf} has scales that are not finite; download or convert the model again.")
    order = _order(own, config, leaf)
    return found if order is None else columns(found, order)


def _blocks(file: GgufFile, leaf: str, names: Sequence[str]) -> Blocks:
    """The blocks of some tensors, stacked, those of their experts one after the other."""
    kinds = [file.tensors[name].tensor_type.name for name in names]
    if not set(kinds) <= KINDS.keys():
        wanted = f"one of {', '.join(KINDS)} in each layer"
        raise file.refuse(f"the quantization of {leaf}", _both(kinds), wanted, "train over nf4 or int8 of it")
    if len(set(kinds)) > 1:
        warnings.warn(
            f"{file.path}: the layers of {leaf} are of {_both(kinds)}; they are kept in one form with codes of 8 bits, "
            "the same numbers.",
            stacklevel=2,
        )
    each = [(kind, matrix) for kind, name in zip(kinds, names) for matrix in _matrices(file.tensors[name].data)]
    return stacked(alike([blocks_of(kind, matrix) for kind, matrix in each]))


def _matrices(data: np.ndarray) -> np.ndarray:
    """A tensor's matrices: one, or each expert's."""
    return data.reshape(-1, *data.shape[-2:])


def _both(kinds: Iterable[str]) -> str:
    return " and ".join(sorted(set(kinds)))


def _check_names(file: GgufFile, wanted: set[str]) -> None:
    missing = sorted(wanted - file.tensors.keys())
    extra = sorted(file.tensors.keys() - wanted - {ROPE_FACTORS, *LONG_FACTORS.values()})
    if missing:
        raise ValueError(f"{file.path}: tensor {missing[0]} is missing ({len(missing)} are); download the model again.")
    if extra:
        raise ValueError(
            f"{file.path}: tensor {extra[0]} is unexpected ({len(extra)} are), no layer of a {file.architecture} "
            "decoder holds it; use another model."
        )
