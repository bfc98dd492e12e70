"""``config.json`` of a Hugging Face model, to a decoder's shape and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rlax_llm.models.config import DecoderConfig, LinearRope, Llama3Rope, RopeScaling
from rlax_llm.models.families import FAMILIES, family_of
from rlax_llm.models.fields import Fields
from rlax_llm.models.files import existing_directory, read_json

_DROPPED = ("auto_map", "num_labels", "id2label", "label2id", "problem_type")
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
_SCALES = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}


def read_config(directory: str | Path) -> DecoderConfig:
    """The decoder that ``config.json`` describes: Llama, Mistral, Qwen2 or Qwen3, of transformers 4 or 5.

    A sliding window is taken as the longest sequence: up to there it is full attention.

    Raises:
        FileNotFoundError: no such directory, or no config.json in it.
        ValueError: the file is not JSON, lacks a size, has a field of another type, or asks for what the decoder does
            not compute.
    """
    path = existing_directory(directory) / "config.json"
    return _decoder_config(Fields(path, read_json(path)))


def _decoder_config(fields: Fields) -> DecoderConfig:
    kind = fields.among("model_type", FAMILIES, "use a model of these families")
    for name, allowed in _ONLY.items():
        if fields.raw.get(name) not in allowed:
            raise fields.refused(name, repr(allowed[-1]), "use a model without it")
    family = FAMILIES[kind]
    heads = fields.size("num_attention_heads")
    hidden = fields.size("hidden_size")
    theta, scaling = _rope(fields)
    shape: dict[str, Any] = {
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": fields.size("intermediate_size"),
        "num_layers": fields.size("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": fields.size("num_key_value_heads", family.num_kv_heads or heads),
        "head_dim": fields.size("head_dim", family.head_dim or max(hidden // heads, 1)),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tie_embeddings": fields.flag("tie_word_embeddings"),
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
        "max_positions": _max_positions(fields, family.max_positions),
    }
    try:
        return DecoderConfig(**shape)
    except ValueError as error:
        raise ValueError(f"{fields.path}: {error}") from error


class Origin(NamedTuple):
    """What the directory that a model was read from said of it, beyond what the decoder needs.

    A model that is trained and written says it again, so that others run it as they ran the one that it came from.

    Attributes:
        config: the content of config.json.
        generation: the content of generation_config.json.
    """

    config: Mapping[str, Any] = MappingProxyType({})
    generation: Mapping[str, Any] = MappingProxyType({})


NOWHERE = Origin()


def read_origin(directory: str | Path, vocab_size: int) -> Origin:
    """What the two files of a directory say; of a generation_config.json that is not there, nothing.

    Raises:
        FileNotFoundError: no such directory, or no config.json in it.
        ValueError: a file is not JSON, or the stop tokens are none of the vocabulary's.
    """
    path = existing_directory(directory) / "config.json"
    config = Fields(path, read_json(path))
    generation = Fields(path.with_name("generation_config.json"), {})
    if generation.path.is_file():
        generation = replace(generation, raw=read_json(generation.path))
    (generation if generation.raw else config).ids("eos_token_id", vocab_size)
    return Origin(config.raw, generation.raw)


def with_special_ids(fields: Mapping[str, Any], ids: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with a tokenizer's special ids where they are silent; and all its stop ids where they lack one.

    >>> with_special_ids({"eos_token_id": 2, "top_p": 0.8}, {"eos_token_id": 2, "pad_token_id": 0})
    {'eos_token_id': 2, 'top_p': 0.8, 'pad_token_id': 0}
    >>> with_special_ids({"eos_token_id": 2}, {"eos_token_id": [2, 5]})
    {'eos_token_id': [2, 5]}
    """
    stops = ids.get("eos_token_id")
    changed = {} if _stops(stops) <= _stops(fields.get("eos_token_id")) else {"eos_token_id": stops}
    silent = {name: value for name, value in ids.items() if fields.get(name) is None}
    return {**fields, **silent, **changed}


def _stops(ids: Any) -> set[int]:
    listed = ids if isinstance(ids, list) else [ids]
    return {one for one in listed if isinstance(one, int)}


def config_fields(config: DecoderConfig, origin: Origin = NOWHERE) -> dict[str, Any]:
    """The content of config.json, in the names of transformers 4 and of 5.

    Args:
        config: the decoder's shape.
        origin: its config.json is kept, field by field, where it describes this decoder.

    Raises:
        ValueError: no family of Hugging Face has this shape.

    >>> config_fields(DecoderConfig(64, 8, 16, 1, 2, 1, 4))["model_type"]
    'llama'
    """
    if not _describes(origin.config, config):
        return _own_fields(config)
    # Code of the origin's own (auto_map) and the labels of a classifier do not come along.
    kept = {name: value for name, value in origin.config.items() if name not in _DROPPED}
    architecture = f"{FAMILIES[kept['model_type']].architecture}ForCausalLM"
    return kept | {"architectures": [architecture], "tie_word_embeddings": config.tie_embeddings}


def _describes(raw: Mapping[str, Any], config: DecoderConfig) -> bool:
    """Whether a config.json is of this decoder, but for its head."""
    try:
        described = _decoder_config(Fields(Path("config.json"), raw))
    except ValueError:
        return False
    return described == replace(config, tie_embeddings=described.tie_embeddings, lora=None)


def _own_fields(config: DecoderConfig) -> dict[str, Any]:
    kind = family_of(config)
    scaling = _rope_fields(config.rope_scaling)
    return {
        "architectures": [f"{FAMILIES[kind].architecture}ForCausalLM"],
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
    } | FAMILIES[kind].fields(config)


def scalar_fields(config: DecoderConfig, origin: Origin = NOWHERE) -> dict[str, Any]:
    """The content of config.json of a sequence classifier with one label: a reward model.

    Args:
        config: the decoder's shape.
        origin: as for ``config_fields``.

    Raises:
        ValueError: no family of Hugging Face has this shape.

    >>> scalar_fields(DecoderConfig(64, 8, 16, 1, 2, 1, 4))["architectures"]
    ['LlamaForSequenceClassification']
    """
    fields = config_fields(config, origin)
    (architecture,) = fields["architectures"]
    labels = {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return fields | labels | {"architectures": [architecture.replace("CausalLM", "SequenceClassification")]}


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


def _max_positions(fields: Fields, default: int) -> int:
    """The longest sequence, in tokens, on which the attention of every layer is full."""
    longest = fields.size("max_position_embeddings", default)
    layers = fields.words("layer_types")
    unknown = sorted(set(layers) - {"full_attention", "sliding_attention"})
    if unknown:
        wanted = "full_attention or sliding_attention"
        raise ValueError(f"{fields.path}: layer_types is {unknown[0]!r}, wanted {wanted}; use another model.")
    slides = FAMILIES[fields.raw["model_type"]].slides or (fields.flag("use_sliding_window") and _slide(fields, layers))
    if not slides or fields.raw.get("sliding_window", _WINDOW) is None:
        return longest
    return min(longest, fields.size("sliding_window", _WINDOW))


def _slide(fields: Fields, layers: Sequence[str]) -> bool:
    """Whether a layer of Qwen's has the window."""
    # Newer files list the layers; else it is those from max_window_layers on.
    if layers:
        return "sliding_attention" in layers
    return fields.count("max_window_layers", 28) < fields.size("num_hidden_layers")


def _rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """``rope_theta`` and the scaling, from ``rope_scaling`` (transformers 4) or ``rope_parameters`` (5)."""
    older = fields.nested("rope_scaling")
    newer = fields.nested("rope_parameters")
    rope = older if older.raw else newer
    thetas = [place.number("rope_theta") for place in (rope, fields) if place.given("rope_theta")]
    theta = thetas[0] if thetas else 10_000.0
    for name, value in rope.raw.items():
        if isinstance(value, dict):  # one rope for each type of layer
            raise rope.refused(name, "one rope for all layers", "use a model without it")
    if rope.raw.get("partial_rotary_factor") not in (None, 1):
        raise rope.refused("partial_rotary_factor", "1", "use a model without it")
    return theta, _scaling(fields, rope)


def _scaling(fields: Fields, rope: Fields) -> RopeScaling | None:
    # Old files say type; a factor without either could be of any rope.
    silent = {} if "factor" in rope.raw else {"rope_type": "default"}
    rope = replace(rope, raw=silent | ({"rope_type": rope.raw["type"]} if "type" in rope.raw else {}) | {**rope.raw})
    kind = rope.raw.get("rope_type")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise rope.refused("rope_type", "default, linear or llama3", "use a model without it")
    for missing in _SCALES[kind]:
        if missing not in rope.raw:
            raise ValueError(f"{fields.path}: the {kind} rope lacks {missing!r}; download or export the model again.")
    factor, *bounds = [rope.number(field) for field in _SCALES[kind]]
    if kind == "linear":
        return LinearRope(factor)
    # As in transformers: a length next to the scaling's own fields wins, and the model's own length is the default.
    name = "original_max_position_embeddings"
    places = [place for place in (fields, rope) if place.given(name)]
    length = places[0].size(name) if places else fields.size("max_position_embeddings")
    try:
        return Llama3Rope(factor, bounds[0], bounds[1], length)
    except ValueError as error:
        raise ValueError(f"{fields.path}: {error}") from error
