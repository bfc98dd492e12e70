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
from rlax_llm.models.fields import Fields
from rlax_llm.models.gguf_blocks import KINDS, alike, blocks_of, columns, stacked
from rlax_llm.models.gguf_config import LONG_FACTORS, ROPE_FACTORS, gguf_shape
from rlax_llm.models.gguf_file import GgufFile
from rlax_llm.models.huggingface import Parameters, stack_parameters
from rlax_llm.models.shards import check_layers
from rlax_llm.models.tokenizer import Tokenizer, fast_class

# token_type: 3 is a control token, 4 one that a user added; both are matched before the text is split.
_CONTROL = 3
_USER_DEFINED = 4

# The published tokenizers' own patterns. ``None`` is byte-level BPE's, the one of GPT-2.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_WORDS}|\p{{N}}|{_REST}",
}


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
        return config, parameters(file, own, config), _tokenizer(file)
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
    if config.experts is not None:
        raise file.refuse("expert_count", config.experts.count, "none in blocks", "take nf4 of a dense model")
    shapes: Parameters = dict(config.parameter_shapes)
    matrices = shapes.pop("layers")
    fetch = partial(_leaf, file, own, config, dtype)
    layers: Parameters = {}
    for leaf in matrices:
        if leaf in TARGETS:
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
    if len(shape) == 1:
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
    """A matrix of all layers as the file keeps it."""
    shapes = config.parameter_shapes["layers"]
    names = [own.tensor(leaf, layer) for layer in range(config.num_layers)]
    outputs = sum(shapes[other][-1] for other in own.leaves_with(leaf))
    for name in names:
        file.check_shape(name, (outputs, shapes[leaf][1]))
    found = columns(_blocks(file, leaf, names), _rows(own, shapes, leaf))
    if not all(np.isfinite(part).all() for part in jax.tree.leaves(found)):
        raise ValueError(f"{file.path}: {leaf} has scales that are not finite; download or convert the model again.")
    order = _order(own, config, leaf)
    return found if order is None else columns(found, order)


def _blocks(file: GgufFile, leaf: str, names: Sequence[str]) -> Blocks:
    """The blocks of some tensors, stacked."""
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
    return stacked(alike([blocks_of(kind, file.tensors[name].data) for kind, name in zip(kinds, names)]))


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


def _tokenizer(file: GgufFile) -> Tokenizer:
    """Byte-level BPE with the file's merges, special tokens and chat template."""
    pre = _pre_tokenizer(file)
    tokens = file["tokenizer.ggml.tokens"]
    backend = _backend(pre, tokens, [_pair(merge) for merge in file["tokenizer.ggml.merges"]])
    _add_tokens(backend, tokens, file["tokenizer.ggml.token_type"])
    begin = _special(file, "bos")
    if begin is not None and file.get("tokenizer.ggml.add_bos_token"):
        from tokenizers import processors

        written = [tokens[begin], "$A"]
        backend.post_processor = processors.TemplateProcessing(single=written, special_tokens=[(written[0], begin)])
    roles = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    ids = {name: _special(file, role) for name, role in roles.items()}
    named = {name: tokens[index] for name, index in ids.items() if index is not None}
    fast = fast_class()(tokenizer_object=backend, model_max_length=file["{arch}.context_length"], **named)
    fast.chat_template = file.get("tokenizer.chat_template")
    turns = [_special(file, role) for role in ("eot", "eom")]
    return Tokenizer(fast, [index for index in turns if index is not None])


def _pre_tokenizer(file: GgufFile) -> str:
    """The name of the rule by which text is split, of those that are known here."""
    model = file["tokenizer.ggml.model"]
    if model != "gpt2":
        do = "use the Hugging Face directory of this model"
        raise file.refuse("tokenizer.ggml.model", model, "gpt2 (byte-level BPE)", do)
    pre = file.get("tokenizer.ggml.pre", "default")
    if pre not in _PATTERNS:
        raise file.refuse("tokenizer.ggml.pre", pre, " or ".join(_PATTERNS), "use the Hugging Face directory")
    return pre


def _add_tokens(backend: Any, tokens: list[str], kinds: list[int]) -> None:
    """Tell the backend which tokens are no text of the vocabulary's."""
    from tokenizers import AddedToken

    control = [token for token, kind in zip(tokens, kinds) if kind == _CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    added = [token for token, kind in zip(tokens, kinds) if kind == _USER_DEFINED]
    backend.add_tokens([AddedToken(token, normalized=False) for token in added])


def _special(file: GgufFile, role: str) -> int | None:
    """The id of the token with this role, where the file names one."""
    name = f"{role}_token_id"
    fields = Fields(file.path, {name: file.get(f"tokenizer.ggml.{name}")}, "tokenizer.ggml.")
    return next(iter(fields.ids(name, len(file["tokenizer.ggml.tokens"]))), None)


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _backend(pre: str, tokens: list[str], merges: list[tuple[str, str]]) -> Any:
    """A ``tokenizers.Tokenizer`` that splits text as ``pre`` says."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    vocabulary = {token: index for index, token in enumerate(tokens)}
    # Llama 3 looks a whole word up before it merges.
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    byte_level: Callable[..., Any] = pre_tokenizers.ByteLevel
    pattern = _PATTERNS[pre]
    if pattern is not None:
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(add_prefix_space=False, use_regex=False)]
    else:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
        steps = [*digits, byte_level(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend
