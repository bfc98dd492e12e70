"""What config.json says of rotary embeddings, in the words of transformers 4 and of 5, and how it is said again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.family import LAYER_TYPES, Part, Shape
from rlax_llm.models.fields import Fields
from rlax_llm.models.ropes import DynamicRope, LinearRope, Llama3Rope, LongRope, Rope, RopeScaling, YarnRope

_FULL, _SLIDING = LAYER_TYPES
_ORIGINAL = "original_max_position_embeddings"
_WITHOUT = "use a model without it"

# The numbers that each type must have.
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
    "longrope": ("short_factor", "long_factor"),
}
_OLDER = {"su": "longrope"}


def rope(
    theta: float = 10_000.0,
    partial: float | None = None,
    pairs: bool = False,
    kinds: tuple[str, ...] = tuple(_NEEDED),
    silent: Mapping[str, Any] = MappingProxyType({}),
) -> Part:
    """One rotary embedding for all layers.

    Args:
        theta: its base where config.json is silent.
        partial: the share of a head that turns, there; None is a family in which all of it does.
        pairs: neighbors turn together.
        kinds: types of scaling that the family has.
        silent: what a config.json without any rope means.
    """

    def read(fields: Fields) -> Shape:
        own = _given(fields, silent)
        for name, value in own.raw.items():
            if isinstance(value, dict):
                raise own.refused(name, "one rope for all layers", _WITHOUT)
        found = _rope(fields, own, theta)
        if _kind_of(found.scaling) not in kinds:
            raise own.refused("rope_type", " or ".join(kinds), _WITHOUT)
        return _said(found) | _turning(fields, own, partial) | {"rope_pairs": pairs} | _length(fields, found)

    def write(config: DecoderConfig) -> dict[str, Any]:
        share = {} if partial is None else {"partial_rotary_factor": config.rotated_width / config.head_dim}
        scaling = _written(config.rope_scaling)
        newer = {"rope_theta": config.rope_theta} | (scaling or {"rope_type": "default"}) | share
        said = {"rope_theta": config.rope_theta, "rope_scaling": scaling, "rope_parameters": newer}
        return said | share | _lengths(config)

    return Part(read, write)


def two_ropes(theta: float, local: float | None, local_key: str | None = None) -> Part:
    """One rotary embedding for layers that read everything, and one for those with a window.

    Files of transformers 4 scale that of the former alone.

    Args:
        theta: base of the former where config.json is silent.
        local: base of the latter there; None is that of the former.
        local_key: the field of the latter's base in files of transformers 4.
    """

    def read(fields: Fields) -> Shape:
        newer, older = fields.nested("rope_parameters"), fields.nested("rope_scaling")
        whole = newer.nested(_FULL) if newer.given(_FULL) else older
        found = _rope(fields, whole, theta)
        base = found.theta if local is None else local
        base = fields.number(local_key, base) if local_key else base
        sliding = _rope(fields, newer.nested(_SLIDING), base) if newer.given(_SLIDING) else Rope(base)
        return _said(found) | _length(fields, found) | {"local_rope": None if sliding == found else sliding}

    def write(config: DecoderConfig) -> dict[str, Any]:
        sliding = config.rope if config.local_rope is None else config.local_rope
        both = {
            name: {"rope_theta": one.theta} | (_written(one.scaling) or {"rope_type": "default"})
            for name, one in ((_FULL, config.rope), (_SLIDING, sliding))
        }
        older = {} if local_key is None else {local_key: sliding.theta}
        said = {"rope_theta": config.rope_theta, "rope_scaling": _written(config.rope_scaling), "rope_parameters": both}
        return said | older | _lengths(config)

    return Part(read, write)


def _given(fields: Fields, silent: Mapping[str, Any]) -> Fields:
    older = fields.nested("rope_scaling")
    newer = fields.nested("rope_parameters")
    return older if older.raw else replace(newer, raw=newer.raw or silent)


def _said(found: Rope) -> Shape:
    return {"rope_theta": found.theta, "rope_scaling": found.scaling}


def _turning(fields: Fields, own: Fields, partial: float | None) -> Shape:
    """The numbers of a head that turn."""
    name = "partial_rotary_factor"
    beside = fields.given(name)
    place = fields if beside and not own.given(name) else own
    if partial is None:
        if place.raw.get(name) not in (None, 1):
            raise place.refused(name, "1", _WITHOUT)
        return {"rotary_dim": None}
    share = place.number(name) if place.given(name) else partial
    heads = fields.size("num_attention_heads")
    width = fields.size("head_dim", max(fields.size("hidden_size") // heads, 1))
    turning = int(width * share)
    if not 0 < turning <= width or turning % 2:
        raise place.refused(name, f"a share of the {width} numbers of a head that is even, up to 1", _WITHOUT)
    return {"rotary_dim": None if turning == width else turning}


def _rope(fields: Fields, own: Fields, theta: float) -> Rope:
    given = [place.number("rope_theta") for place in (own, fields) if place.given("rope_theta")]
    return Rope(given[0] if given else theta, _scaling(fields, own))


def _scaling(fields: Fields, own: Fields) -> RopeScaling | None:
    # Old files say type; a factor without either could be of any rope.
    silent = {} if "factor" in own.raw else {"rope_type": "default"}
    older = {"rope_type": own.raw["type"]} if "type" in own.raw else {}
    own = replace(own, raw=silent | older | {**own.raw})
    kind = own.raw.get("rope_type")
    kind = _OLDER.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in _NEEDED:
        *most, last = _NEEDED
        raise own.refused("rope_type", f"{', '.join(most)} or {last}", _WITHOUT)
    for missing in _NEEDED[kind]:
        if missing not in own.raw:
            raise ValueError(f"{fields.path}: the {kind} rope lacks {missing!r}; download or export the model again.")
    try:
        return _READ[kind](fields, own)
    except ValueError as error:
        named = str(error).startswith(str(fields.path))
        raise error if named else ValueError(f"{fields.path}: {error}") from error


def _original(fields: Fields, own: Fields) -> int:
    """The length that was trained on first: as in transformers, next to the sizes, in the rope, or the longest one."""
    places = [place for place in (fields, own) if place.given(_ORIGINAL)]
    return places[0].size(_ORIGINAL) if places else fields.size("max_position_embeddings")


def _llama3(fields: Fields, own: Fields) -> Llama3Rope:
    factor, low, high = (own.number(name) for name in _NEEDED["llama3"])
    return Llama3Rope(factor, low, high, _original(fields, own))


def _factor(fields: Fields, own: Fields, original: int) -> float:
    """By how much sequences are longer than the original ones."""
    return own.number("factor") if own.given("factor") else fields.size("max_position_embeddings") / original


def _yarn(fields: Fields, own: Fields) -> YarnRope:
    original = _original(fields, own)
    factor = _factor(fields, own, original)
    turns = [own.number(name) if own.given(name) else silent for name, silent in (("beta_fast", 32), ("beta_slow", 1))]
    whole = own.flag("truncate") if own.given("truncate") else True
    return YarnRope(factor, original, float(turns[0]), float(turns[1]), _yarn_magnitude(own, factor), whole)


def _yarn_magnitude(own: Fields, factor: float) -> float:
    if own.given("attention_factor"):
        return own.number("attention_factor")

    def grown(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if own.given("mscale") and own.given("mscale_all_dim"):
        return grown(own.number("mscale")) / grown(own.number("mscale_all_dim"))
    return grown(1.0)


def _longrope(fields: Fields, own: Fields) -> LongRope:
    original = _original(fields, own)
    # As in transformers, the longest sequence tells the factor.
    factor = _factor(fields, own, original)
    silent = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    magnitude = own.number("attention_factor") if own.given("attention_factor") else silent
    longest = min(original, fields.size("max_position_embeddings"))
    return LongRope(own.numbers("short_factor"), own.numbers("long_factor"), original, longest, magnitude)


_READ: dict[str, Callable[[Fields, Fields], RopeScaling | None]] = {
    "default": lambda fields, own: None,
    "linear": lambda fields, own: LinearRope(own.number("factor")),
    "dynamic": lambda fields, own: DynamicRope(own.number("factor")),
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _kind_of(scaling: RopeScaling | None) -> str:
    return "default" if scaling is None else str((_written(scaling) or {})["rope_type"])


def _length(fields: Fields, found: Rope) -> Shape:
    """The longest sequence, in tokens."""
    longest = fields.size("max_position_embeddings")
    return {"max_positions": found.scaling.max_positions if isinstance(found.scaling, LongRope) else longest}


def _lengths(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    original = {_ORIGINAL: scaling.original_max_positions} if isinstance(scaling, LongRope) else {}
    return {"max_position_embeddings": config.max_positions} | original


def _written(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    for kind, write in _WRITE.items():
        if isinstance(scaling, kind):
            return write(scaling)
    *most, last = [kind.__name__ for kind in _WRITE]
    raise ValueError(
        f"config_fields: rope_scaling is {scaling!r}, wanted {', '.join(most)}, {last} or None; use one of these."
    )


_WRITE: dict[type, Callable[[Any], dict[str, Any]]] = {
    LinearRope: lambda scaling: {"rope_type": "linear", "factor": scaling.factor},
    DynamicRope: lambda scaling: {"rope_type": "dynamic", "factor": scaling.factor},
    Llama3Rope: lambda scaling: {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        _ORIGINAL: scaling.original_max_positions,
    },
    YarnRope: lambda scaling: {
        "rope_type": "yarn",
        "factor": scaling.factor,
        _ORIGINAL: scaling.original_max_positions,
        "beta_fast": scaling.fast_turns,
        "beta_slow": scaling.slow_turns,
        "attention_factor": scaling.magnitude,
        "truncate": scaling.whole,
    },
    LongRope: lambda scaling: {
        "rope_type": "longrope",
        "short_factor": list(scaling.short),
        "long_factor": list(scaling.long),
        _ORIGINAL: scaling.original_max_positions,
        "attention_factor": scaling.magnitude,
    },
}
