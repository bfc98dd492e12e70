"""What a family of models is made of: parts of config.json that say something of a decoder's shape, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rlax_llm.models.config import DecoderConfig, Experts
from rlax_llm.models.fields import Fields

_LAYER = "model.layers.{layer}."
_TENSORS = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "score": "score.weight",
    "attention_norm": _LAYER + "input_layernorm.weight",
    "mlp_norm": _LAYER + "post_attention_layernorm.weight",
    "q_norm": _LAYER + "self_attn.q_norm.weight",
    "k_norm": _LAYER + "self_attn.k_norm.weight",
}
_TENSORS |= {"router": f"{_LAYER}mlp.gate.weight", "shared_gate": f"{_LAYER}mlp.shared_expert_gate.weight"}
_TENSORS |= {"sinks": f"{_LAYER}self_attn.sinks"}
_TENSORS |= {f"expert_{leaf}": f"{_LAYER}mlp.experts.{{expert}}.{leaf}_proj.weight" for leaf in ("gate", "up", "down")}
for _kind in ("weight", "bias"):
    _suffix = "" if _kind == "weight" else "_bias"
    _TENSORS |= {f"{leaf}{_suffix}": f"{_LAYER}self_attn.{leaf}_proj.{_kind}" for leaf in ("q", "k", "v", "o")}
    _TENSORS |= {f"{leaf}{_suffix}": f"{_LAYER}mlp.{leaf}_proj.{_kind}" for leaf in ("gate", "up", "down")}

Shape = dict[str, Any]
"""Arguments of ``DecoderConfig``."""


class Part(NamedTuple):
    """Some fields of config.json.

    Attributes:
        read: what they say of the shape.
        write: what they are for a decoder.
    """

    read: Callable[[Fields], Shape]
    write: Callable[[DecoderConfig], dict[str, Any]]


_GGUF = {"embed": "token_embd", "norm": "output_norm", "head": "output", "attention_norm": "attn_norm"}
_GGUF |= {"mlp_norm": "ffn_norm", "attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"}
_GGUF |= {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "q_norm": "attn_q_norm"}
_GGUF |= {"k_norm": "attn_k_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
_GGUF |= {"router": "ffn_gate_inp", "shared_gate": "ffn_gate_inp_shexp"}
_GGUF |= {"sinks": "attn_sinks"}
_GGUF |= {f"expert_{leaf}": f"ffn_{leaf}_exps" for leaf in ("gate", "up", "down")}


class Gguf(NamedTuple):
    """What llama.cpp's files of a family are like.

    Attributes:
        architecture: their ``general.architecture``.
        fields: of config.json, to the keys that stand for them, beside those of all families.
        says: what further fields of config.json the architecture says without a key, from the others.
        tensors: names of their tensors that are not Llama's, by leaf.
        joined: names of tensors that hold several leaves, one behind the other in their rows.
        neighbors: rows of q and k are in the order in which neighbors turn together.
        partial: ``rope.dimension_count`` may be a part of a head.
    """

    architecture: str
    fields: Mapping[str, str] = MappingProxyType({})
    says: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda fields: {}
    tensors: Mapping[str, str] = MappingProxyType({})
    joined: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    neighbors: bool = False
    partial: bool = False

    @property
    def keys(self) -> set[str]:
        """The keys that it asks for beside those of all families."""
        window = {"attention.sliding_window_pattern"} if "sliding_window" in self.fields else set()
        return {*self.fields.values(), *window}

    def tensor(self, leaf: str, layer: int | None) -> str:
        """What the files call a leaf, or the tensor that holds it and others.

        Args:
            leaf: as in ``DecoderConfig.parameter_shapes``; all experts of a layer are in one.
            layer: None outside the layers.

        >>> Gguf("llama").tensor("q_bias", 3), Gguf("llama").tensor("norm", None)
        ('blk.3.attn_q.bias', 'output_norm.weight')
        """
        module, kind = (leaf.removesuffix("_bias"), "bias") if leaf.endswith("_bias") else (leaf, "weight")
        held = [name for name, leaves in self.joined.items() if leaf in leaves]
        name = held[0] if held else self.tensors.get(module, _GGUF[module])
        return f"{name}.{kind}" if layer is None else f"blk.{layer}.{name}.{kind}"

    def leaves_with(self, leaf: str) -> tuple[str, ...]:
        """The leaves that share a tensor with a leaf, in the order of its rows.

        >>> Gguf("phi3", joined={"ffn_up": ("gate", "up")}).leaves_with("up")
        ('gate', 'up')
        """
        return next((leaves for leaves in self.joined.values() if leaf in leaves), (leaf,))


class Family(NamedTuple):
    """What a ``model_type`` is.

    Attributes:
        architecture: what its classes' names begin with, as in ``LlamaForCausalLM``.
        parts: what its config.json says.
        defaults: what its configuration class puts where config.json is silent.
        tensors: names of its tensors that are not Llama's, by leaf, with ``{layer}``.
        joined: names of tensors that hold several leaves, one behind the other in their rows; where one holds all
            experts, its leaves take turns in the columns.
        classifier: the class of a scalar model, where its name does not follow; None where there is none.
        gguf: what llama.cpp's files of it are like; None where it has none, or they are not read.
    """

    architecture: str
    parts: tuple[Part, ...]
    defaults: Mapping[str, Any] = MappingProxyType({})
    tensors: Mapping[str, str] = MappingProxyType({})
    joined: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    classifier: str | None = ""
    gguf: Gguf | None = None

    def tensor(self, leaf: str, layer: int | None) -> str:
        """What its files call a leaf, or the tensor that holds it and others.

        Args:
            leaf: as in ``DecoderConfig.parameter_shapes``.
            layer: None outside the layers. Of experts the name has their number still to come, ``{expert}``, unless one
                tensor holds all of them.

        >>> Family("Llama", ()).tensor("q", 3), Family("Llama", ()).tensor("q_bias", 3)
        ('model.layers.3.self_attn.q_proj.weight', 'model.layers.3.self_attn.q_proj.bias')
        """
        held = [name for name, leaves in self.joined.items() if leaf in leaves]
        own = self.tensors if leaf in self.tensors else _TENSORS
        return (held[0] if held else own[leaf]).format(layer=layer, expert="{expert}")

    def leaves_with(self, leaf: str) -> tuple[str, ...]:
        """The leaves that share a tensor with a leaf, in the order of its rows; the leaf alone as a rule.

        >>> Family("Llama", ()).leaves_with("q")
        ('q',)
        """
        return next((leaves for leaves in self.joined.values() if leaf in leaves), (leaf,))

    def shape(self, fields: Fields) -> Shape:
        """What config.json says.

        Raises:
            ValueError: naming a field that is not what it must be.
        """
        known = Fields(fields.path, {**self.defaults, **fields.raw}, fields.inside, fields.asked)
        found: Shape = {}
        for part in self.parts:
            found |= part.read(known)
        return found if found.get("window") else {**found, "local_rope": None}

    def fields(self, config: DecoderConfig) -> dict[str, Any]:
        """What config.json says of a decoder, if it is one of this family's."""
        found: dict[str, Any] = {}
        for part in self.parts:
            found |= part.write(config)
        return found


def size(name: str, key: str) -> Part:
    """A whole number of at least 1.

    >>> size("num_layers", "num_hidden_layers").write(DecoderConfig(5, 4, 8, 3, 2, 1, 2))
    {'num_hidden_layers': 3}
    """
    return Part(lambda fields: {name: fields.size(key)}, lambda config: {key: getattr(config, name)})


def number(name: str, key: str, default: float) -> Part:
    """A number above 0.

    >>> number("norm_eps", "rms_norm_eps", 1e-6).write(DecoderConfig(5, 4, 8, 3, 2, 1, 2))
    {'rms_norm_eps': 1e-06}
    """
    return Part(lambda fields: {name: fields.number(key, default)}, lambda config: {key: getattr(config, name)})


def optional(name: str, key: str) -> Part:
    """A number above 0, or null.

    >>> optional("logit_cap", "final_logit_softcapping").write(DecoderConfig(5, 4, 8, 3, 2, 1, 2))
    {'final_logit_softcapping': None}
    """

    def read(fields: Fields) -> Shape:
        return {name: fields.number(key) if fields.given(key) else None}

    return Part(read, lambda config: {key: getattr(config, name)})


def flag(name: str, key: str) -> Part:
    """True or false.

    >>> flag("tie_embeddings", "tie_word_embeddings").write(DecoderConfig(5, 4, 8, 3, 2, 1, 2))
    {'tie_word_embeddings': True}
    """
    return Part(lambda fields: {name: fields.flag(key)}, lambda config: {key: getattr(config, name)})


def always(**shape: Any) -> Part:
    """What no field says: it is so in the whole family.

    >>> from rlax_llm.models.fields import told
    >>> always(norms="after").read(told({}))
    {'norms': 'after'}
    """
    return Part(lambda fields: shape, lambda config: {})


def follows(**shape: Callable[[Fields], Any]) -> Part:
    """What no field says alone: it follows from others.

    >>> from rlax_llm.models.fields import told
    >>> part = follows(embedding_scale=lambda fields: fields.size("hidden_size") ** 0.5)
    >>> part.read(told({"hidden_size": 16}))
    {'embedding_scale': 4.0}
    """
    return Part(lambda fields: {name: found(fields) for name, found in shape.items()}, lambda config: {})


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_WRITTEN = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def activation(key: str = "hidden_act", default: str = "silu") -> Part:
    """The MLP's activation.

    >>> from rlax_llm.models.fields import told
    >>> activation().read(told({"hidden_act": "swish"}))
    {'activation': 'silu'}
    """

    def read(fields: Fields) -> Shape:
        known = fields if fields.given(key) else fields.replaced(**{key: default})
        return {"activation": _ACTIVATIONS[known.among(key, _ACTIVATIONS, "use a model with one of them")]}

    return Part(read, lambda config: {key: _WRITTEN[config.activation]})


def biases(**keys: tuple[str, ...]) -> Part:
    """Flags, each of projections that have a bias then.

    >>> from rlax_llm.models.fields import told
    >>> part = biases(mlp_bias=("gate", "up", "down"))
    >>> part.read(told({"mlp_bias": True}))
    {'biases': ('gate', 'up', 'down')}
    """

    def read(fields: Fields) -> Shape:
        given = [key for key in keys if fields.flag(key)]
        return {"biases": tuple(leaf for key in given for leaf in keys[key])}

    def write(config: DecoderConfig) -> dict[str, Any]:
        return {key: set(leaves) <= set(config.biases) for key, leaves in keys.items()}

    return Part(read, write)


def heads() -> Part:
    """Numbers and width of the heads; where the width is silent, the heads share the model's.

    >>> from rlax_llm.models.fields import told
    >>> fields = told({"num_attention_heads": 4, "hidden_size": 8})
    >>> heads().read(fields)
    {'num_heads': 4, 'num_kv_heads': 4, 'head_dim': 2}
    """

    def read(fields: Fields) -> Shape:
        count = fields.size("num_attention_heads")
        width = max(fields.size("hidden_size") // count, 1)
        return {
            "num_heads": count,
            "num_kv_heads": fields.size("num_key_value_heads", count),
            "head_dim": fields.size("head_dim", width),
        }

    def write(config: DecoderConfig) -> dict[str, Any]:
        return {
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
        }

    return Part(read, write)


def even_heads() -> Part:
    """``heads`` of which the number divides the model's width."""
    part = heads()

    def read(fields: Fields) -> Shape:
        found = part.read(fields)
        if fields.size("hidden_size") % found["num_heads"]:
            wanted = f"a divisor of hidden_size {fields.size('hidden_size')}"
            raise fields.refused("num_attention_heads", wanted, "use another model")
        return found

    return Part(read, part.write)


def query_scale(key: str = "query_pre_attn_scalar") -> Part:
    """Scores are multiplied by the number to the power −1/2.

    >>> from rlax_llm.models.fields import told
    >>> query_scale().read(told({"query_pre_attn_scalar": 4, "head_dim": 8}))
    {'attention_scale': 0.5}
    """

    def read(fields: Fields) -> Shape:
        value = fields.number(key)
        return {"attention_scale": None if value == fields.size("head_dim") else value**-0.5}

    def write(config: DecoderConfig) -> dict[str, Any]:
        return {key: config.head_dim if config.attention_scale is None else _whole(config.attention_scale**-2)}

    return Part(read, write)


def _whole(value: float) -> float:
    """The whole number that a power of a root has missed by rounding."""
    return round(value) if math.isclose(value, round(value), rel_tol=1e-9) else value


def experts(
    count: str = "num_experts",
    width: str = "moe_intermediate_size",
    shared: str | None = None,
    normalized: str | None = "norm_topk_prob",
) -> Part:
    """A mixture of experts in every layer.

    Args:
        count: the field of their number.
        width: of an expert's width.
        shared: of that of the MLP that all tokens share; None where there is none.
        normalized: of whether a token's weights sum to 1; None where they always do.

    >>> from rlax_llm.models.fields import told
    >>> fields = told({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8})
    >>> experts().read(fields)["experts"] == Experts(4, 2, 8, normalized=False)
    True
    """

    def read(fields: Fields) -> Shape:
        if fields.count("decoder_sparse_step", 1) != 1 or fields.raw.get("mlp_only_layers"):
            name = "mlp_only_layers" if fields.raw.get("mlp_only_layers") else "decoder_sparse_step"
            raise fields.refused(name, "experts in every layer", "use a model with them")
        own, both = fields.size(width), [name for name in _COUNTS if fields.given(name)]
        sizes = {fields.size(name) for name in both}
        if len(sizes) > 1:
            raise fields.refused(both[0], f"{both[1]}, which is {fields.raw[both[1]]}")
        most, chosen = fields.size(both[0] if both else count), fields.size("num_experts_per_tok")
        if chosen > most:
            raise fields.refused("num_experts_per_tok", f"at most {both[0] if both else count}, which is {most}")
        made = Experts(
            most,
            chosen,
            own,
            normalized is None or fields.flag(normalized),
            shared is not None,
        )
        return {"experts": made, "intermediate_size": own if shared is None else fields.size(shared)}

    def write(config: DecoderConfig) -> dict[str, Any]:
        if config.experts is None:
            return {}
        said = {count: config.experts.count, "num_experts_per_tok": config.experts.per_token}
        said |= {} if normalized is None else {normalized: config.experts.normalized}
        return said | ({} if shared is None else {shared: config.intermediate_size}) | {width: config.experts.width}

    return Part(read, write)


_COUNTS = ("num_experts", "num_local_experts")  # newer files have both

LAYER_TYPES = ("full_attention", "sliding_attention")


def layer_types(fields: Fields, count: int) -> tuple[bool, ...] | None:
    """Of each layer, whether it slides, where config.json lists them.

    Raises:
        ValueError: another type of layer, or another number of them.

    >>> from rlax_llm.models.fields import told
    >>> fields = told({"layer_types": ["full_attention", "sliding_attention"]})
    >>> layer_types(fields, 2)
    (False, True)
    """
    named = fields.words("layer_types")
    if not named:
        return None
    unknown = sorted(set(named) - set(LAYER_TYPES))
    if unknown:
        wanted = " or ".join(LAYER_TYPES)
        raise ValueError(f"{fields.path}: layer_types is {unknown[0]!r}, wanted {wanted}; use another model.")
    if len(named) != count:
        raise ValueError(
            f"{fields.path}: layer_types has {len(named)} entries, wanted {count}, one for each layer; "
            "download or export the model again."
        )
    return tuple(name == "sliding_attention" for name in named)


def types_of(config: DecoderConfig) -> list[str]:
    """``layer_types`` of a decoder.

    >>> types_of(DecoderConfig(5, 4, 8, 2, 2, 1, 2, window=7, sliding=(True, False)))
    ['sliding_attention', 'full_attention']
    """
    return [LAYER_TYPES[config.slides(layer)] for layer in range(config.num_layers)]


def windowed(size: int | None, sliding: tuple[bool, ...]) -> Shape:
    """The shape with a window on some layers: one way to say each.

    >>> windowed(7, (True, True)), windowed(7, (False, False)), windowed(None, (True,))
    ({'window': 7, 'sliding': ()}, {'window': None, 'sliding': ()}, {'window': None, 'sliding': ()})
    """
    if size is None or not any(sliding):
        return {"window": None, "sliding": ()}
    return {"window": size, "sliding": () if all(sliding) else sliding}


def window(
    pattern: Callable[[Fields, int], tuple[bool, ...]], written: Callable[[DecoderConfig], dict[str, Any]] | None = None
) -> Part:
    """A sliding window on the layers of a pattern, or on those that ``layer_types`` lists.

    Args:
        pattern: ``(fields, number of layers) → which slide``, where they are not listed.
        written: further fields.

    >>> from rlax_llm.models.fields import told
    >>> every = window(lambda fields, count: (True,) * count)
    >>> every.read(told({"num_hidden_layers": 2, "sliding_window": 5}))
    {'window': 5, 'sliding': ()}
    """

    def read(fields: Fields) -> Shape:
        count = fields.size("num_hidden_layers")
        given = fields.size("sliding_window") if fields.given("sliding_window") else None
        listed = layer_types(fields, count)
        return windowed(given, pattern(fields, count) if listed is None else listed)

    def write(config: DecoderConfig) -> dict[str, Any]:
        further = {} if written is None else written(config)
        # A number also where no layer has it: transformers makes the mask in any case.
        return {"sliding_window": config.window or config.max_positions, "layer_types": types_of(config)} | further

    return Part(read, write)
