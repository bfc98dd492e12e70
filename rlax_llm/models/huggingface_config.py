"""``config.json`` of a Hugging Face model, to a decoder's shape and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.families import FAMILIES, WITHIN
from rlax_llm.models.family import layer_types
from rlax_llm.models.fields import Fields, told
from rlax_llm.models.files import existing_directory, read_json
from rlax_llm.models.ropes import LongRope

_DROPPED = ("auto_map", "num_labels", "id2label", "label2id", "problem_type", "quantization_config")
_RUN = ("lora", "compute_dtype", "sampler_dtype", "cache_dtype", "attention")  # of a run, which no file says

_NUMBERS = ("rope_theta", "norm_eps", "max_positions", "tie_embeddings")  # which every family may have

# Fields that change the computation of a family that does not ask for them, and the values that leave it as it is.
_NOTHING = (None, False, 0)
_ONLY: dict[str, tuple[Any, ...]] = {
    "attention_bias": _NOTHING,
    "mlp_bias": _NOTHING,
    "use_mrope": _NOTHING,
    "use_sliding_window": _NOTHING,
    "use_bidirectional_attention": _NOTHING,
    "is_causal": (None, True),
    "qk_layernorm": _NOTHING,
    "use_qk_norm": _NOTHING,
    "clip_qkv": _NOTHING,
    "num_experts": _NOTHING,
    "num_local_experts": _NOTHING,
    "attn_logit_softcapping": _NOTHING,
    "final_logit_softcapping": _NOTHING,
    "no_rope_layers": (None, []),
    "partial_rotary_factor": (None, 1),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "attention_multiplier": (None,),
    "logits_scaling": (None, 1),
    "quantization_config": (None,),
}


def read_config(directory: str | Path) -> DecoderConfig:
    """The decoder that ``config.json`` describes, of a family in ``FAMILIES``, of transformers 4 or 5.

    Raises:
        FileNotFoundError: no such directory, or no config.json in it.
        ValueError: the file is not JSON, lacks a size, has a field of another type, or asks for what the decoder does
            not compute.
    """
    path = existing_directory(directory) / "config.json"
    return _decoder_config(text_fields(Fields(path, read_json(path))))


def text_fields(fields: Fields) -> Fields:
    """What config.json says of the language model, where the checkpoint holds others beside it.

    >>> fields = told({"model_type": "gemma3", "text_config": {"hidden_size": 8}})
    >>> dict(text_fields(fields).raw)
    {'hidden_size': 8, 'model_type': 'gemma3_text'}
    """
    kind = fields.raw.get("model_type")
    if not isinstance(kind, str) or kind not in WITHIN:
        return fields
    family, place = WITHIN[kind]
    return fields.nested(place).replaced(model_type=family)


def _decoder_config(fields: Fields) -> DecoderConfig:
    kind = fields.among("model_type", FAMILIES, "use a model of these families")
    shape = FAMILIES[kind].shape(fields)
    for name, allowed in _ONLY.items():
        if name not in fields.asked and fields.raw.get(name) not in allowed:
            wanted = "none of it" if allowed[-1] in (None, [], 0) else repr(allowed[-1])
            raise fields.refused(name, wanted, "use a model without it")
    if "layer_types" not in fields.asked and any(layer_types(fields, shape["num_layers"]) or ()):
        raise fields.refused("layer_types", "full_attention in every layer of this family", "use a model without it")
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
    config = text_fields(Fields(path, read_json(path)))
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
    # Code of the origin's own (auto_map), a classifier's labels and a format of fewer bits do not come along.
    kept = {name: value for name, value in origin.config.items() if name not in _DROPPED}
    architecture = f"{FAMILIES[kept['model_type']].architecture}ForCausalLM"
    return kept | {"architectures": [architecture], "tie_word_embeddings": config.tie_embeddings}


def _describes(raw: Mapping[str, Any], config: DecoderConfig) -> bool:
    """Whether a config.json is of this decoder, but for its head."""
    try:
        described = _decoder_config(told(raw))
    except ValueError:
        return False
    own = {name: getattr(described, name) for name in (*_RUN, "tie_embeddings")}
    return described == replace(_as_read(config), **own)


def _as_read(config: DecoderConfig) -> DecoderConfig:
    """The decoder that a file of this one is read as: of LongRoPE a file has both lists, and the short one is read.

    How a run balances routers is of the run.
    """
    if config.experts is not None:
        config = replace(config, experts=replace(config.experts, balance=None))
    scaling = config.rope_scaling
    if not isinstance(scaling, LongRope):
        return config
    length = min(scaling.max_positions, scaling.original_max_positions)
    return replace(config, rope_scaling=replace(scaling, max_positions=length), max_positions=length)


def _own_fields(config: DecoderConfig) -> dict[str, Any]:
    kind = family_of(config)
    family = FAMILIES[kind]
    # The ids that the family's class would put there may be none of this vocabulary.
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {"architectures": [f"{family.architecture}ForCausalLM"], "model_type": kind} | ids | family.fields(config)


def family_of(config: DecoderConfig) -> str:
    """The first ``model_type`` whose config.json can say the shape of a decoder.

    Raises:
        ValueError: no family has it.

    >>> family_of(DecoderConfig(64, 8, 16, 1, 2, 1, 4, biases=("q", "k", "v")))
    'qwen2'
    """
    for kind, family in FAMILIES.items():
        if _describes({"model_type": kind} | family.fields(config), config):
            return kind
    plain = {field.name: field.default for field in dataclass_fields(DecoderConfig)}
    differing = [name for name, value in plain.items() if value is not MISSING and getattr(config, name) != value]
    switches = [name for name in differing if name not in (*_RUN, *_NUMBERS)]
    raise ValueError(
        f"config_fields: the config has {', '.join(switches)}, and no Hugging Face family has all of these; drop one."
    )


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
    family = FAMILIES[fields["model_type"]]
    if family.classifier is None:
        raise ValueError(
            f"scalar_fields: transformers has no sequence classifier of the family {family.architecture}; "
            "use a model of another family for scores and values."
        )
    labels = {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return fields | labels | {"architectures": [family.classifier or f"{family.architecture}ForSequenceClassification"]}
