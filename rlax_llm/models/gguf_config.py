"""The metadata of a GGUF file, to the shape of a decoder: said in the words of the family's config.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.families import FAMILIES
from rlax_llm.models.family import LAYER_TYPES, Family, Gguf
from rlax_llm.models.fields import Fields
from rlax_llm.models.gguf_file import GgufFile
from rlax_llm.models.ropes import Llama3Rope, Rope

ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
_KINDS = {
    "embedding_length": "size",
    "context_length": "size",
    "block_count": "size",
    "feed_forward_length": "size",
    "expert_feed_forward_length": "size",
    "expert_shared_feed_forward_length": "size",
    "expert_count": "count",
    "expert_used_count": "count",
    "attention.head_count": "size",
    "attention.head_count_kv": "size",
    "attention.key_length": "size",
    "attention.sliding_window": "count",
    "rope.dimension_count": "size",
    "rope.scaling.original_context_length": "size",
}
"""Keys of whole numbers; all others are of floats."""
_SCALING = "rope.scaling."
# What changes the computation of a family that does not ask for it.
_FURTHER = (
    *("attention.sliding_window", "attention.sliding_window_pattern", "attention.scale", "attention.clamp_kqv"),
    *("expert_count", "expert_used_count", "expert_shared_count", "expert_weights_scale", "expert_group_count"),
    *("attn_logit_softcapping", "final_logit_softcapping", "embedding_scale", "residual_scale", "logit_scale"),
    *(
        "rope.freq_base_swa",
        "rope.scale_linear",
        "nextn_predict_layers",
        "attention.q_lora_rank",
        "leading_dense_block_count",
    ),
)
_COMMON = {
    "hidden_size": "embedding_length",
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}


def gguf_shape(file: GgufFile) -> tuple[Gguf, DecoderConfig]:
    """What the files of a family are like, and the decoder of this one.

    Args:
        file: open.

    Raises:
        ValueError: naming the architecture or the key that is not supported.
    """
    family, own = _family(file)
    raw = _said(file, own)
    shape = family.shape(Fields(file.path, {**raw, **own.says(raw)}))
    scaling = _llama3(file, shape["rope_theta"], shape["head_dim"])
    shape |= {} if scaling is None else {"rope_scaling": scaling}
    try:
        return own, DecoderConfig(**shape)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def architectures() -> list[str]:
    """Those that are read.

    >>> architectures()[:3]
    ['llama', 'qwen2', 'qwen3']
    """
    return list(dict.fromkeys(family.gguf.architecture for family in FAMILIES.values() if family.gguf))


def _family(file: GgufFile) -> tuple[Family, Gguf]:
    """The first family of the architecture that asks for all that the file says."""
    named = [(each, each.gguf) for each in FAMILIES.values() if each.gguf]
    named = [(each, own) for each, own in named if own.architecture == file.architecture]
    if not named:
        wanted = " or ".join(architectures())
        raise file.refuse("the architecture", file.architecture, wanted, "use a model of these families")
    given = file.fields(_FURTHER)
    odd: list[str] = []
    for family, own in named:
        odd = [key for key, value in given.raw.items() if value and key not in own.keys]
        if not odd:
            return family, own
    raise given.refused(odd[0], "none", "use a model without it, or the Hugging Face directory of this one")


def _said(file: GgufFile, own: Gguf) -> dict[str, Any]:
    """The fields of a config.json that the metadata stand for."""
    keys = _COMMON | dict(own.fields)
    fields = file.fields([*keys.values(), "attention.head_count_kv", "attention.key_length", "rope.freq_base"])
    # Read by their own names first: an error names the key.
    raw = {name: _value(fields, key) for name, key in keys.items() if key in fields.raw or name in _COMMON}
    heads = raw["num_attention_heads"]
    raw |= {"num_key_value_heads": fields.size("attention.head_count_kv", heads)}
    raw |= {"head_dim": fields.size("attention.key_length", max(raw["hidden_size"] // heads, 1))}
    raw |= {"rope_theta": _float(fields.number("rope.freq_base", 10_000.0))}
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path}: tensor token_embd.weight is missing; download the model again.")
    raw |= {"vocab_size": int(file.tensors["token_embd.weight"].shape[-1])}
    raw |= {"tie_word_embeddings": "output.weight" not in file.tensors}
    raw |= {"attention_bias": "blk.0.attn_q.bias" in file.tensors, "mlp_bias": "blk.0.ffn_up.bias" in file.tensors}
    return raw | _window(file, raw) | _turning(file, own, raw["head_dim"]) | _scaling(file)


def _value(fields: Fields, key: str) -> Any:
    kind = _KINDS.get(key, "number")
    if kind == "count":
        return fields.count(key, 0)
    return fields.size(key) if kind == "size" else _float(fields.number(key))


def _float(value: float) -> float:
    """Written as float32: 1e-5 comes back as 9.999999747e-06, and the shortest decimal is what was meant."""
    return float(str(np.float32(value)))


def _window(file: GgufFile, raw: dict[str, Any]) -> dict[str, Any]:
    """The window, and the layers that have it where the file lists them."""
    found = {"sliding_window": raw.get("sliding_window") or None} if "sliding_window" in raw else {}
    pattern = file.get("{arch}.attention.sliding_window_pattern")
    if pattern is None:
        return found
    count = raw["num_hidden_layers"]
    every = [(layer + 1) % pattern != 0 for layer in range(count)] if isinstance(pattern, int) and pattern else pattern
    if not isinstance(every, list) or len(every) != count:
        wanted = f"a number, or one entry for each of the {count} layers"
        raise file.refuse("attention.sliding_window_pattern", pattern, wanted, "convert the model again")
    return found | {"layer_types": [LAYER_TYPES[bool(slides)] for slides in every]}


def _turning(file: GgufFile, own: Gguf, width: int) -> dict[str, Any]:
    """The share of a head that turns."""
    rotated = file.fields(["rope.dimension_count"]).size("rope.dimension_count", width)
    if own.partial:
        return {"partial_rotary_factor": rotated / width}
    if rotated != width:
        raise file.refuse("rope.dimension_count", rotated, f"all {width} of a head", "use another model")
    return {}


def _scaling(file: GgufFile) -> dict[str, Any]:
    """The scaling that is in the metadata, and LongRoPE's, of which the factors are tensors."""
    if all(name in file.tensors for name in LONG_FACTORS.values()):
        return _long(file)
    fields = file.fields([f"{_SCALING}{name}" for name in _OF_SCALING])
    # As in llama.cpp: a factor alone is of a linear rope.
    kind = file.get(f"{{arch}}.{_SCALING}type", "linear" if f"{_SCALING}factor" in fields.raw else "none")
    if kind not in _SAID_OF_SCALING:
        *most, last = _SAID_OF_SCALING
        raise file.refuse(f"{_SCALING}type", kind, f"{', '.join(most)} or {last}", "use a model without it")
    if fields.raw.get(f"{_SCALING}attn_factor", 1) != 1:
        raise fields.refused(f"{_SCALING}attn_factor", f"1 beside the type {kind}", "use a model without it")
    return {"rope_scaling": _SAID_OF_SCALING[kind](fields)}


def _linear(fields: Fields) -> dict[str, Any]:
    return {"rope_type": "linear", "factor": _float(fields.number(f"{_SCALING}factor"))}


def _yarn(fields: Fields) -> dict[str, Any]:
    """YaRN's numbers; the magnitude is that of the model's config.json, from which the converter takes it."""
    if fields.raw.get(f"{_SCALING}yarn_ext_factor", 1) != 1:
        raise fields.refused(f"{_SCALING}yarn_ext_factor", "1", "use a model without it")
    found = {
        said: _float(fields.number(f"{_SCALING}{name}"))
        for said, name in _OF_YARN.items()
        if f"{_SCALING}{name}" in fields.raw
    }
    # 0 is no multiplier.
    if fields.raw.get(f"{_SCALING}yarn_log_multiplier"):
        found |= {"mscale": 1.0, "mscale_all_dim": _float(fields.number(f"{_SCALING}yarn_log_multiplier"))}
    if f"{_SCALING}original_context_length" in fields.raw:
        found |= {"original_max_position_embeddings": fields.size(f"{_SCALING}original_context_length")}
    return found | {"rope_type": "yarn", "factor": _float(fields.number(f"{_SCALING}factor"))}


_OF_YARN = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow", "attention_factor": "yarn_attn_factor"}
_OF_SCALING = ("factor", "original_context_length", "attn_factor", "yarn_ext_factor", "yarn_log_multiplier")
_OF_SCALING += tuple(_OF_YARN.values())
_SAID_OF_SCALING: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "none": lambda fields: {"rope_type": "default"},
    "linear": _linear,
    "yarn": _yarn,
}


def _long(file: GgufFile) -> dict[str, Any]:
    fields = file.fields([f"{_SCALING}attn_factor", f"{_SCALING}original_context_length"])
    lists = {name: np.asarray(file.tensors[tensor].data, np.float32) for name, tensor in LONG_FACTORS.items()}
    scaling: dict[str, Any] = {name: [_float(value) for value in values] for name, values in lists.items()}
    if f"{_SCALING}attn_factor" in fields.raw:
        scaling["attention_factor"] = _float(fields.number(f"{_SCALING}attn_factor"))
    original = fields.size(f"{_SCALING}original_context_length")
    return {"rope_scaling": scaling | {"rope_type": "longrope"}, "original_max_position_embeddings": original}


def _llama3(file: GgufFile, theta: float, head_dim: int) -> Llama3Rope | None:
    """Llama 3's scaling is a tensor of divisors, which is recognized."""
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is None:
        return None
    divisors = np.asarray(factors.data, np.float64)
    # Every published Llama 3 has these bounds; the tensor itself says whether this is one of them.
    scaling = Llama3Rope(float(divisors.max()), 1.0, 4.0, 8_192)
    base = Rope(theta).frequencies(head_dim)
    if divisors.shape != base.shape or not np.allclose(base / scaling(base), divisors, rtol=1e-3):
        raise file.refuse(ROPE_FACTORS, divisors.tolist(), "the factors of a Llama 3 rope", "use another model")
    return scaling
