"""``config.json`` of a Hugging Face model, to a decoder's shape and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlax_llm.models.config import DecoderConfig, LinearRope, Llama3Rope, RopeScaling
from rlax_llm.models.files import existing_directory, read_json


class _Family(NamedTuple):
    """What a ``model_type`` implies, and what its configuration class puts where config.json is silent."""

    max_positions: int
    num_kv_heads: int | None = None  # None: one for each query head
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    qkv_bias: bool = False
    qk_norm: bool = False


_FAMILIES = {
    "llama": _Family(2_048),
    "mistral": _Family(131_072, num_kv_heads=8),
    "qwen2": _Family(32_768, num_kv_heads=32, qkv_bias=True),
    "qwen3": _Family(32_768, num_kv_heads=32, head_dim=128, qk_norm=True),
}
_WINDOW = 4_096  # where config.json does not say

# Fields that change the computation, and the values for which this decoder computes it.
_ONLY = {
    "hidden_act": (None, "swish", "silu"),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "use_mrope": (None, False),
    "partial_rotary_factor": (None, 1),
    "quantization_config": (None,),
}


def read_config(directory: str | Path) -> DecoderConfig:
    """The decoder that ``config.json`` describes: Llama, Mistral, Qwen2 or Qwen3, of transformers 4 or 5.

    A sliding window is taken as the longest sequence: up to there it is full attention.

    Raises:
        FileNotFoundError: no such directory, or no config.json in it.
        ValueError: the file is not JSON, lacks a size, or asks for what the decoder does not compute.
    """
    path = existing_directory(directory) / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type")
    if kind not in _FAMILIES:
        raise _refused(path, "model_type", kind, " or ".join(_FAMILIES), "use a model of these families")
    for field, allowed in _ONLY.items():
        if raw.get(field) not in allowed:
            raise _refused(path, field, raw[field], repr(allowed[-1]), "use a model without it")
    family = _FAMILIES[kind]
    heads, hidden = _size(path, raw, "num_attention_heads"), _size(path, raw, "hidden_size")
    theta, scaling = _rope(path, raw)
    shape: dict[str, Any] = {
        "vocab_size": _size(path, raw, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": _size(path, raw, "intermediate_size"),
        "num_layers": _size(path, raw, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": _size(path, raw, "num_key_value_heads", family.num_kv_heads or heads),
        "head_dim": _size(path, raw, "head_dim", family.head_dim or hidden // heads),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": float(raw.get("rms_norm_eps", 1e-6)),
        "tie_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
        "max_positions": _max_positions(path, raw, family.max_positions),
    }
    try:
        return DecoderConfig(**shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config_fields(config: DecoderConfig) -> dict[str, Any]:
    """The content of config.json, in the names of transformers 4 and of 5.

    Raises:
        ValueError: no family of Hugging Face has this shape.

    >>> config_fields(DecoderConfig(64, 8, 16, 1, 2, 1, 4))["model_type"]
    'llama'
    """
    kind, architecture, extra = _family_fields(config)
    scaling = _rope_fields(config.rope_scaling)
    return {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": config.rope_theta} | (scaling or {"rope_type": "default"}),
    } | extra


def scalar_fields(config: DecoderConfig) -> dict[str, Any]:
    """The content of config.json of a sequence classifier with one label: a reward model.

    Raises:
        ValueError: no family of Hugging Face has this shape.

    >>> scalar_fields(DecoderConfig(64, 8, 16, 1, 2, 1, 4))["architectures"]
    ['LlamaForSequenceClassification']
    """
    fields = config_fields(config)
    (architecture,) = fields["architectures"]
    labels = {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return fields | labels | {"architectures": [architecture.replace("CausalLM", "SequenceClassification")]}


def _family_fields(config: DecoderConfig) -> tuple[str, str, dict[str, Any]]:
    """``model_type``, architecture and the fields of that family alone."""
    if config.qkv_bias and config.qk_norm:
        raise ValueError(
            "config_fields: the config has qkv_bias and qk_norm, no Hugging Face family has both; drop one."
        )
    full = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": config.num_layers}
    if config.qkv_bias:
        return "qwen2", "Qwen2ForCausalLM", full
    if config.qk_norm:
        return "qwen3", "Qwen3ForCausalLM", full
    if config.hidden_size % config.num_heads:  # which Llama's own configuration refuses
        return "mistral", "MistralForCausalLM", {"sliding_window": None}
    return "llama", "LlamaForCausalLM", {"mlp_bias": False}


def _rope_fields(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, LinearRope):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Rope):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    raise ValueError(
        f"config_fields: rope_scaling is {scaling!r}, wanted LinearRope, Llama3Rope or None; use one of these."
    )


def _refused(path: Path, field: str, got: Any, wanted: str, do: str) -> ValueError:
    return ValueError(f"{path}: {field} is {got!r}, wanted {wanted}; {do}.")


def _size(path: Path, raw: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = default if raw.get(field) is None else raw[field]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refused(path, field, value, "a positive integer", "download or export the model again")
    return value


def _max_positions(path: Path, raw: Mapping[str, Any], default: int) -> int:
    """The longest sequence, in tokens, on which the attention of every layer is full."""
    longest = _size(path, raw, "max_position_embeddings", default)
    layers = raw.get("layer_types") or []
    unknown = sorted(set(layers) - {"full_attention", "sliding_attention"})
    if unknown:
        raise _refused(path, "layer_types", unknown[0], "full_attention or sliding_attention", "use another model")
    if raw["model_type"] == "mistral":
        slides = True
    else:
        # Qwen's window applies to the layers from max_window_layers on; newer files list the layers instead.
        listed = (
            "sliding_attention" in layers if layers else raw.get("max_window_layers", 28) < raw["num_hidden_layers"]
        )
        slides = bool(raw.get("use_sliding_window")) and listed
    if not slides or raw.get("sliding_window", _WINDOW) is None:
        return longest
    return min(longest, _size(path, raw, "sliding_window", _WINDOW))


def _rope(path: Path, raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """``rope_theta`` and the scaling, from ``rope_scaling`` (transformers 4) or ``rope_parameters`` (5)."""
    fields: dict[str, Any] = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    theta = float(fields.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = fields.get("rope_type", fields.get("type", "default"))
    if fields.get("partial_rotary_factor") not in (None, 1):
        got = fields["partial_rotary_factor"]
        raise _refused(path, "partial_rotary_factor", got, "1", "use a model without it")
    # As in transformers: a length beside the scaling's own fields wins, and the model's own length is the default.
    own = fields.get("original_max_position_embeddings") or raw.get("max_position_embeddings", 0)
    length: int = raw.get("original_max_position_embeddings") or own
    try:
        if kind == "default":
            return theta, None
        if kind == "linear":
            return theta, LinearRope(float(fields["factor"]))
        if kind == "llama3":
            factor, low, high = (float(fields[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
            return theta, Llama3Rope(factor, low, high, length)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: the {kind} rope lacks {error}; download or export the model again.") from error
    raise _refused(path, "rope_type", kind, "default, linear or llama3", "use a model without it")
