"""The model families: what a ``model_type`` means for the decoder's shape, and what its files call the tensors.

A family that the decoder computes is one row of ``FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rlax_llm.models.config import DecoderConfig

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
_TENSORS |= {leaf: f"{_LAYER}self_attn.{leaf}_proj.weight" for leaf in ("q", "k", "v", "o")}
_TENSORS |= {f"{leaf}_bias": f"{_LAYER}self_attn.{leaf}_proj.bias" for leaf in ("q", "k", "v")}
_TENSORS |= {leaf: f"{_LAYER}mlp.{leaf}_proj.weight" for leaf in ("gate", "up", "down")}


def _no_fields(config: DecoderConfig) -> dict[str, Any]:
    del config
    return {}


class Family(NamedTuple):
    """What a ``model_type`` implies, and what its configuration class puts where config.json is silent.

    Attributes:
        architecture: what its classes' names begin with, as in ``LlamaForCausalLM``.
        max_positions: longest sequence, tokens.
        num_kv_heads: None is one for each query head.
        head_dim: None is ``hidden_size / num_attention_heads``.
        qkv_bias: biases on q, k and v.
        qk_norm: RMS norm over each query and key head.
        slides: the window slides without being asked to.
        any_width: its heads' width need not divide the model's.
        gguf: GGUF files name it too.
        fields: what config.json says of this family alone, from the decoder's shape.
        tensors: names of a layer's tensors that are not Llama's, by leaf, with ``{layer}``.
    """

    architecture: str
    max_positions: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    slides: bool = False
    any_width: bool = True
    gguf: bool = True
    fields: Callable[[DecoderConfig], dict[str, Any]] = _no_fields
    tensors: Mapping[str, str] = MappingProxyType({})

    def tensor(self, leaf: str, layer: int | None) -> str:
        """What its files call a leaf.

        Args:
            leaf: as in ``DecoderConfig.parameter_shapes``.
            layer: None outside the layers.

        >>> FAMILIES["llama"].tensor("q", 3), FAMILIES["qwen2"].tensor("q_bias", 3)
        ('model.layers.3.self_attn.q_proj.weight', 'model.layers.3.self_attn.q_proj.bias')
        """
        return self.tensors.get(leaf, _TENSORS[leaf]).format(layer=layer)


def _full_attention(config: DecoderConfig) -> dict[str, Any]:
    return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": config.num_layers}


FAMILIES = {
    "llama": Family("Llama", 2_048, any_width=False, fields=lambda config: {"mlp_bias": False}),
    "mistral": Family(
        "Mistral", 131_072, num_kv_heads=8, slides=True, gguf=False, fields=lambda config: {"sliding_window": None}
    ),
    "qwen2": Family("Qwen2", 32_768, num_kv_heads=32, qkv_bias=True, fields=_full_attention),
    "qwen3": Family("Qwen3", 32_768, num_kv_heads=32, head_dim=128, qk_norm=True, fields=_full_attention),
}
"""By ``model_type``. A decoder that was made here is written as the first that has its shape."""


def family_of(config: DecoderConfig) -> str:
    """The first ``model_type`` that has the shape of a decoder.

    Raises:
        ValueError: no family has it.

    >>> family_of(DecoderConfig(64, 8, 16, 1, 2, 1, 4, qkv_bias=True))
    'qwen2'
    """
    even = config.hidden_size % config.num_heads == 0
    for name, family in FAMILIES.items():
        if (family.qkv_bias, family.qk_norm) == (config.qkv_bias, config.qk_norm) and (even or family.any_width):
            return name
    switches = [name for name in ("qkv_bias", "qk_norm") if getattr(config, name)]
    raise ValueError(
        f"config_fields: the config has {' and '.join(switches)}, no Hugging Face family has both; drop one."
    )


def listed() -> str:
    """The families' names for a sentence.

    >>> listed()
    'Llama, Mistral, Qwen2 and Qwen3'
    """
    *most, last = [family.architecture for family in FAMILIES.values()]
    return f"{', '.join(most)} and {last}"
