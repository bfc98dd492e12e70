"""GGUF files (llama.cpp's), read and dequantized: configuration, parameters and tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.models.blocks import Blocks
from rlax_llm.models.chat import one_line
from rlax_llm.models.config import TARGETS, DecoderConfig
from rlax_llm.models.fields import Fields
from rlax_llm.models.gguf_blocks import KINDS, alike, blocks_of, columns, stacked
from rlax_llm.models.huggingface import Parameters, stack_parameters
from rlax_llm.models.ropes import LinearRope, Llama3Rope, RopeScaling
from rlax_llm.models.shards import check_layers
from rlax_llm.models.tensors import read_finite
from rlax_llm.models.tokenizer import Tokenizer, fast_class

_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"biases": ("q", "k", "v")},
    "qwen3": {"qk_norm": "head"},
}
_TOP = {"embed": "token_embd", "norm": "output_norm", "head": "output"}
_MODULES = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_SETTINGS = ("embedding_length", "context_length", "block_count", "feed_forward_length", "expert_count")
_SETTINGS += ("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.sliding_window")
_SETTINGS += ("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scaling.factor")
_ROPE_FACTORS = "rope_freqs.weight"
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
    """Everything that a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model holds; quantized weights are dequantized.

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


def _read(
    path: str | Path, parameters: Callable[[_File, DecoderConfig], Parameters]
) -> tuple[DecoderConfig, Parameters, Tokenizer]:
    try:
        file = _File(Path(path))
        config = _config(file)
        return config, parameters(file, config), _tokenizer(file)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # bytes that are no text, merges that no vocabulary holds: whatever damage causes
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(
            f"{path} is not a whole GGUF model ({one_line(error)}); convert or download it again."
        ) from error


class _File:
    """An open GGUF file: ``file[key]`` is a metadata value, ``{arch}`` in a key its architecture."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file, wanted a GGUF model; check the path.")
        try:
            reader = GGUFReader(path)
        except Exception as error:  # the reader raises whatever a short buffer happens to cause
            raise ValueError(f"{path} is not a whole GGUF file ({error}); download it again.") from error
        self._fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = self["general.architecture"]

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key.replace("{arch}", getattr(self, "architecture", "")))
        return default if field is None else field.contents()

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ValueError(f"{self.path}: {key} is missing; convert or download the model again.")
        return value

    def fields(self, names: Iterable[str]) -> Fields:
        """Some metadata of the architecture, which are checked as those of a config.json are."""
        found = {name: self.get(f"{{arch}}.{name}") for name in names}
        raw = {name: value for name, value in found.items() if value is not None}
        return Fields(self.path, raw, f"{self.architecture}.")

    def refuse(self, what: str, got: Any, wanted: str, do: str) -> ValueError:
        return ValueError(f"{self.path}: {what} is {got!r}, wanted {wanted}; {do}.")


def _config(file: _File) -> DecoderConfig:
    fields = _known_fields(file)
    heads = fields.size("attention.head_count")
    hidden = fields.size("embedding_length")
    head_dim = fields.size("attention.key_length", max(hidden // heads, 1))
    rotated = fields.size("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise file.refuse("rope.dimension_count", rotated, f"all {head_dim} of a head", "use another model")
    theta = float(np.float32(fields.number("rope.freq_base", 10_000.0)))
    length = fields.size("context_length")
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path}: tensor token_embd.weight is missing; download the model again.")
    return DecoderConfig(
        vocab_size=int(file.tensors["token_embd.weight"].shape[-1]),
        hidden_size=hidden,
        intermediate_size=fields.size("feed_forward_length"),
        num_layers=fields.size("block_count"),
        num_heads=heads,
        num_kv_heads=fields.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=_rope_scaling(file, theta, head_dim),
        # Written as float32: 1e-5 comes back as 9.999999747e-06, and the shortest decimal is what was meant.
        norm_eps=float(str(np.float32(fields.number("attention.layer_norm_rms_epsilon")))),
        tie_embeddings="output.weight" not in file.tensors,
        max_positions=length,
        window=fields.count("attention.sliding_window", 0) or None,
        **_ARCHITECTURES[file.architecture],
    )


def _known_fields(file: _File) -> Fields:
    """The settings of an architecture that the decoder is."""
    if file.architecture not in _ARCHITECTURES:
        wanted = " or ".join(_ARCHITECTURES)
        raise file.refuse("the architecture", file.architecture, wanted, "use a model of these families")
    fields = file.fields(_SETTINGS)
    if fields.raw.get("expert_count"):
        raise file.refuse("expert_count", fields.raw["expert_count"], "none", "use a dense model")
    return fields


def _rope_scaling(file: _File, theta: float, head_dim: int) -> RopeScaling | None:
    """The scaling: linear is in the metadata; Llama 3's is a tensor of divisors, which is recognized."""
    kind = file.get("{arch}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise file.refuse("rope.scaling.type", kind, "none or linear", "use a model without it")
    factors = file.tensors.get(_ROPE_FACTORS)
    if factors is None:
        return LinearRope(file.fields(_SETTINGS).number("rope.scaling.factor")) if kind == "linear" else None
    divisors = np.asarray(factors.data, np.float64)
    # Every published Llama 3 has these bounds; the tensor itself says whether this is one of them.
    scaling = Llama3Rope(float(divisors.max()), 1.0, 4.0, 8_192)
    base = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if divisors.shape != base.shape or not np.allclose(base / scaling(base), divisors, rtol=1e-3):
        raise file.refuse(_ROPE_FACTORS, divisors.tolist(), "the factors of a Llama 3 rope", "use another model")
    return scaling


def _parameters(file: _File, config: DecoderConfig, dtype: Any) -> Parameters:
    _check_tensors(file, config)
    return stack_parameters(config, dtype, partial(_leaf, file, config, dtype))


def _parameters_in_blocks(file: _File, config: DecoderConfig, dtype: Any) -> Parameters:
    _check_tensors(file, config)
    shapes: Parameters = dict(config.parameter_shapes)
    matrices = shapes.pop("layers")
    layers: Parameters = {}
    for leaf in matrices:
        if leaf in TARGETS:
            layers[leaf] = _leaf_in_blocks(file, config, leaf)
        else:
            layers[leaf] = np.stack([_leaf(file, config, dtype, leaf, layer) for layer in range(config.num_layers)])
    params = {leaf: _leaf(file, config, dtype, leaf, None) for leaf in shapes} | {"layers": layers}
    return jax.tree.map(jnp.asarray, params)


def _check_tensors(file: _File, config: DecoderConfig) -> None:
    shapes = config.parameter_shapes
    check_layers(file.path, config.num_layers, len(file.tensors))
    wanted = {_tensor_name(leaf, None) for leaf in shapes if leaf != "layers"}
    wanted |= {_tensor_name(leaf, layer) for leaf in shapes["layers"] for layer in range(config.num_layers)}
    _check_names(file, wanted)


def _leaf(file: _File, config: DecoderConfig, dtype: Any, leaf: str, layer: int | None) -> np.ndarray:
    """One array in the decoder's own layout."""
    shapes = config.parameter_shapes
    shape = shapes[leaf] if layer is None else shapes["layers"][leaf][1:]
    kernel = layer is not None and len(shape) == 2
    value = _dequantized(file, _tensor_name(leaf, layer), shape[::-1] if kernel else shape, dtype)
    order = _order(file, config, leaf)
    value = value if order is None else value[order]
    return value.T if kernel else value


def _order(file: _File, config: DecoderConfig, leaf: str) -> np.ndarray | None:
    """llama.cpp rotates neighboring rows of a llama's heads, Hugging Face and this decoder the two halves."""
    heads = {"q": config.num_heads, "k": config.num_kv_heads}
    if file.architecture != "llama" or leaf not in heads:
        return None
    rows = np.arange(heads[leaf] * config.head_dim)
    return rows.reshape(heads[leaf], config.head_dim // 2, 2).swapaxes(1, 2).ravel()


def _leaf_in_blocks(file: _File, config: DecoderConfig, leaf: str) -> Blocks:
    """A matrix of all layers as the file keeps it."""
    names = [_tensor_name(leaf, layer) for layer in range(config.num_layers)]
    kinds = [file.tensors[name].tensor_type.name for name in names]
    if not set(kinds) <= KINDS.keys():
        wanted = f"one of {', '.join(KINDS)} in each layer"
        raise file.refuse(f"the quantization of {leaf}", _both(kinds), wanted, "train over nf4 or int8 of it")
    for name in names:
        _check_shape(file, name, config.parameter_shapes["layers"][leaf][:0:-1])
    found = stacked(alike([blocks_of(kind, file.tensors[name].data) for kind, name in zip(kinds, names)]))
    if len(set(kinds)) > 1:
        warnings.warn(
            f"{file.path}: the layers of {leaf} are of {_both(kinds)}; they are kept in one form with codes of 8 bits, "
            "the same numbers.",
            stacklevel=2,
        )
    if not all(np.isfinite(part).all() for part in jax.tree.leaves(found)):
        raise ValueError(f"{file.path}: {leaf} has scales that are not finite; download or convert the model again.")
    order = _order(file, config, leaf)
    return found if order is None else columns(found, order)


def _both(kinds: Iterable[str]) -> str:
    return " and ".join(sorted(set(kinds)))


def _check_names(file: _File, wanted: set[str]) -> None:
    missing = sorted(wanted - file.tensors.keys())
    extra = sorted(file.tensors.keys() - wanted - {_ROPE_FACTORS})
    if missing:
        raise ValueError(f"{file.path}: tensor {missing[0]} is missing ({len(missing)} are); download the model again.")
    if extra:
        raise ValueError(
            f"{file.path}: tensor {extra[0]} is unexpected ({len(extra)} are), no layer of a {file.architecture} "
            "decoder holds it; use another model."
        )


def _tensor_name(leaf: str, layer: int | None) -> str:
    if layer is None:
        return f"{_TOP[leaf]}.weight"
    if leaf in _MODULES:
        return f"blk.{layer}.{_MODULES[leaf]}.weight"
    head, _, kind = leaf.partition("_")  # q, k, v; q_bias ...; q_norm, k_norm
    return f"blk.{layer}.attn_{head}.bias" if kind == "bias" else f"blk.{layer}.attn_{leaf}.weight"


def _dequantized(file: _File, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    from gguf import dequantize

    tensor = file.tensors[name]
    _check_shape(file, name, shape)
    try:
        return read_finite(dequantize(tensor.data, tensor.tensor_type), dtype, file.path, name)
    except NotImplementedError as error:
        got = tensor.tensor_type.name
        wanted = "one that the gguf package dequantizes"
        raise file.refuse(f"the quantization of {name}", got, wanted, "use F16, Q8_0 or Q4_K") from error


def _check_shape(file: _File, name: str, shape: tuple[int, ...]) -> None:
    got = tuple(int(size) for size in file.tensors[name].shape[::-1])
    if got != shape:
        raise ValueError(f"{file.path}: tensor {name} has shape {got}, the metadata wants {shape}; use another file.")


def _tokenizer(file: _File) -> Tokenizer:
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


def _pre_tokenizer(file: _File) -> str:
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


def _special(file: _File, role: str) -> int | None:
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
