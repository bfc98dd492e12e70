"""The model families: a row for each ``model_type`` that the decoder computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlax_llm.models.config import Clamped, DecoderConfig
from rlax_llm.models.family import (
    Family,
    Gguf,
    Part,
    Shape,
    activation,
    always,
    biases,
    even_heads,
    experts,
    flag,
    follows,
    heads,
    layer_types,
    number,
    optional,
    query_scale,
    size,
    window,
    windowed,
)
from rlax_llm.models.fields import Fields
from rlax_llm.models.rope_fields import rope, two_ropes

_SIZES = (
    size("vocab_size", "vocab_size"),
    size("hidden_size", "hidden_size"),
    size("intermediate_size", "intermediate_size"),
    size("num_layers", "num_hidden_layers"),
    number("norm_eps", "rms_norm_eps", 1e-6),
    flag("tie_embeddings", "tie_word_embeddings"),
)
_PLAIN = (*_SIZES, heads(), activation())
_QKV = ("q", "k", "v")
_QKVO = (*_QKV, "o")
_MLP = ("gate", "up", "down")
_ATTENTION = "model.layers.{layer}.self_attn."


def _layers(**names: str) -> Mapping[str, str]:
    return {leaf: f"model.layers.{{layer}}.{name}.weight" for leaf, name in names.items()}


def _every(fields: Fields, count: int) -> tuple[bool, ...]:
    del fields
    return (True,) * count


def _all_but_each(interval: int, key: str | None = None) -> Any:
    """All layers but the last of each so many, or of as many as a field says."""

    def pattern(fields: Fields, count: int) -> tuple[bool, ...]:
        every = fields.size(key, interval) if key else interval
        return tuple((layer + 1) % every != 0 for layer in range(count))

    return pattern


def _window_of_all() -> Part:
    """Mistral's and Phi's: files list no types of layers."""
    part = window(_every)

    def read(fields: Fields) -> Shape:
        return part.read(Fields(fields.path, {**fields.raw, "layer_types": None}, fields.inside, fields.asked))

    return Part(read, lambda config: {"sliding_window": config.window})


def _window_in_use(part: Part, **written: Any) -> Part:
    """A window where ``use_sliding_window`` says so."""

    def read(fields: Fields) -> Shape:
        if fields.flag("use_sliding_window"):
            return part.read(fields)
        # Newer files have a window of 0 then.
        layer_types(fields, fields.size("num_hidden_layers"))
        return windowed(None, ())

    def write(config: DecoderConfig) -> dict[str, Any]:
        further = {name: value(config) for name, value in written.items()}
        return part.write(config) | {"use_sliding_window": config.window is not None} | further

    return Part(read, write)


def _from_a_layer_on(fields: Fields, count: int) -> tuple[bool, ...]:
    first = fields.count("max_window_layers", 28)
    return tuple(layer >= first for layer in range(count))


def _every_other_below(fields: Fields, count: int) -> tuple[bool, ...]:
    """Qwen2-MoE's: every other layer before one."""
    first = fields.count("max_window_layers", 28)
    return tuple(layer % 2 == 0 and layer < first for layer in range(count))


_QWEN_WINDOW = _window_in_use(
    window(_from_a_layer_on),
    max_window_layers=lambda config: next((i for i in range(config.num_layers) if config.slides(i)), config.num_layers),
)


def _unrotated() -> Part:
    """SmolLM3's layers that do not turn: each fourth, or those that are listed."""

    def read(fields: Fields) -> Shape:
        count = fields.size("num_hidden_layers")
        turning = fields.switches("no_rope_layers")  # 1 where a layer turns
        interval = fields.size("no_rope_layer_interval", 4)
        turning = turning or tuple((layer + 1) % interval != 0 for layer in range(count))
        if len(turning) != count:
            raise fields.refused("no_rope_layers", f"{count} entries, one for each layer")
        return {"rotated": () if all(turning) else turning}

    def write(config: DecoderConfig) -> dict[str, Any]:
        return {"no_rope_layers": [int(config.turns(layer)) for layer in range(config.num_layers)]}

    return Part(read, write)


def _unrotated_slide(fields: Fields, count: int) -> tuple[bool, ...]:
    turning = _unrotated().read(fields)["rotated"]
    return tuple(not turns for turns in turning) if turning else (False,) * count


_GEMMA = (
    *_SIZES,
    heads(),
    activation("hidden_activation", "gelu_pytorch_tanh"),
    biases(attention_bias=_QKVO),
    always(norms="both", norm_offset=1.0),
    follows(embedding_scale=lambda fields: fields.size("hidden_size") ** 0.5),
    query_scale(),
    optional("logit_cap", "final_logit_softcapping"),
)
_GEMMA_NORMS = _layers(
    attention_norm="input_layernorm",
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_GEMMA3_SIZES = {
    "vocab_size": 262_208,
    "hidden_size": 2_304,
    "intermediate_size": 9_216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4_096,
    "tie_word_embeddings": True,
}
_OLMO = (*_PLAIN, biases(attention_bias=_QKVO), always(norms="after", qk_norm="width"))
_OLMO_NORMS = _layers(
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_WINDOW = {"sliding_window": "attention.sliding_window"}
_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping"}
_LOGIT_CAP = {"final_logit_softcapping": "final_logit_softcapping"}
_SCALES = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}
_MIXTURE = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
_WIDTH = {"moe_intermediate_size": "expert_feed_forward_length"}


def _no_window(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A file without the key has none, and a config.json its family's."""
    return {"sliding_window": fields.get("sliding_window")}


def _scores_of_the_largest(layers: int) -> Any:
    """Of Gemma's largest size, which its layers tell, scores are divided by the root of the width per head."""

    def says(fields: Mapping[str, Any]) -> dict[str, Any]:
        largest = fields["num_hidden_layers"] == layers
        per_head = fields["hidden_size"] / fields["num_attention_heads"]
        return {"query_pre_attn_scalar": per_head if largest else fields["head_dim"]}

    return says


_JOINED_MLP = {"model.layers.{layer}.mlp.gate_up_proj.weight": ("gate", "up")}


def _gpt_oss_experts() -> Part:
    """Experts with biases and a clamp; the files may hold them in MXFP4."""
    part = experts("num_local_experts", "intermediate_size", normalized=None)

    def read(fields: Fields) -> Shape:
        quantized = fields.nested("quantization_config")
        if quantized.raw:
            quantized.among("quant_method", ("mxfp4",), "use the weights in MXFP4, or those that are not quantized")
        clamped = Clamped(fields.number("swiglu_alpha", 1.702), fields.number("swiglu_limit", 7.0))
        found = part.read(fields)
        return found | {"experts": replace(found["experts"], biased=True, clamped=clamped)}

    def write(config: DecoderConfig) -> dict[str, Any]:
        clamped = config.experts and config.experts.clamped
        said = {"swiglu_alpha": clamped.slope, "swiglu_limit": clamped.limit} if clamped else {}
        return part.write(config) | said

    return Part(read, write)


_GPT_OSS_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4_096,
}
_GPT_OSS = "model.layers.{layer}.mlp."


def _ramp_as_it_is(fields: Mapping[str, Any]) -> dict[str, Any]:
    """gpt-oss's YaRN has a ramp that does not begin and end at whole indices, of which no key tells."""
    return {"rope_scaling": fields["rope_scaling"] | {"truncate": False}}


FAMILIES = {
    "llama": Family(
        "Llama",
        (*_SIZES, even_heads(), activation(), rope(), biases(attention_bias=_QKVO, mlp_bias=_MLP)),
        {"max_position_embeddings": 2_048},
        gguf=Gguf("llama", neighbors=True),
    ),
    "mistral": Family(
        "Mistral",
        (*_PLAIN, rope(), _window_of_all()),
        {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4_096},
        gguf=Gguf("llama", _WINDOW, neighbors=True),
    ),
    "qwen2": Family(
        "Qwen2",
        (*_PLAIN, rope(), always(biases=_QKV), _QWEN_WINDOW),
        {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4_096},
        gguf=Gguf("qwen2"),
    ),
    "qwen3": Family(
        "Qwen3",
        (*_PLAIN, rope(), biases(attention_bias=_QKVO), always(qk_norm="head"), _QWEN_WINDOW),
        {
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "sliding_window": 4_096,
        },
        gguf=Gguf("qwen3"),
    ),
    "smollm3": Family(
        "SmolLM3",
        (
            *_PLAIN,
            rope(2_000_000.0),
            biases(attention_bias=_QKVO, mlp_bias=_MLP),
            _unrotated(),
            _window_in_use(window(_unrotated_slide)),
        ),
        {"max_position_embeddings": 32_768, "num_key_value_heads": 4, "tie_word_embeddings": True},
        gguf=Gguf("smollm3", neighbors=True),
    ),
    "gemma2": Family(
        "Gemma2",
        (*_GEMMA, optional("attention_cap", "attn_logit_softcapping"), rope(), window(_all_but_each(2))),
        {
            "max_position_embeddings": 8_192,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4_096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
        },
        _GEMMA_NORMS,
        gguf=Gguf("gemma2", _WINDOW | _CAPS | _LOGIT_CAP, _scores_of_the_largest(46)),
    ),
    "gemma3_text": Family(
        "Gemma3",
        (
            *_GEMMA,
            always(qk_norm="head"),
            two_ropes(1_000_000.0, 10_000.0, "rope_local_base_freq"),
            window(_all_but_each(6, "sliding_window_pattern")),
        ),
        _GEMMA3_SIZES | {"max_position_embeddings": 131_072},
        _GEMMA_NORMS,
        classifier="Gemma3TextForSequenceClassification",
        gguf=Gguf(
            "gemma3", _WINDOW | _LOGIT_CAP | {"rope_local_base_freq": "rope.freq_base_swa"}, _scores_of_the_largest(62)
        ),
    ),
    "olmo2": Family(
        "Olmo2",
        (*_OLMO, rope()),
        {"max_position_embeddings": 2_048, "rms_norm_eps": 1e-5},
        _OLMO_NORMS,
        gguf=Gguf("olmo2"),
    ),
    "olmo3": Family(
        "Olmo3",
        (*_OLMO, two_ropes(500_000.0, None), window(_all_but_each(4))),
        {"max_position_embeddings": 2_048, "rms_norm_eps": 1e-5, "sliding_window": 4_096},
        _OLMO_NORMS,
        gguf=Gguf("olmo2", _WINDOW),
    ),
    "phi3": Family(
        "Phi3",
        (*_PLAIN, rope(partial=1.0, kinds=("default", "longrope")), _window_of_all()),
        {"max_position_embeddings": 4_096, "original_max_position_embeddings": 4_096, "rms_norm_eps": 1e-5},
        joined={f"{_ATTENTION}qkv_proj.weight": _QKV} | _JOINED_MLP,
        gguf=Gguf(
            "phi3",
            _WINDOW,
            lambda fields: {"sliding_window": None} | fields,
            joined={"attn_qkv": _QKV, "ffn_up": ("gate", "up")},
            partial=True,
        ),
    ),
    "glm4": Family(
        "Glm4",
        (*_PLAIN, rope(partial=0.5, pairs=True), biases(attention_bias=_QKV), always(norms="both")),
        {
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "rms_norm_eps": 1.5625e-7,
            "attention_bias": True,
        },
        _layers(attention_post_norm="post_self_attn_layernorm", mlp_post_norm="post_mlp_layernorm"),
        joined=_JOINED_MLP,
        gguf=Gguf("glm4", joined={"ffn_up": ("gate", "up")}, partial=True),
    ),
    "granite": Family(
        "Granite",
        (
            *_PLAIN,
            rope(),
            biases(attention_bias=_QKVO, mlp_bias=_MLP),
            number("embedding_scale", "embedding_multiplier", 1.0),
            number("residual_scale", "residual_multiplier", 1.0),
            number("attention_scale", "attention_multiplier", 1.0),
            number("logit_divisor", "logits_scaling", 1.0),
        ),
        {"max_position_embeddings": 2_048},
        classifier=None,
        gguf=Gguf("granite", _SCALES, neighbors=True),
    ),
    "mixtral": Family(
        "Mixtral",
        (
            *_PLAIN,
            rope(1_000_000.0),
            _window_of_all(),
            experts("num_local_experts", "intermediate_size", normalized=None),
        ),
        {
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "num_experts_per_tok": 2,
        },
        _layers(
            router="block_sparse_moe.gate",
            expert_gate="block_sparse_moe.experts.{expert}.w1",
            expert_up="block_sparse_moe.experts.{expert}.w3",
            expert_down="block_sparse_moe.experts.{expert}.w2",
        ),
        gguf=Gguf(
            "llama",
            _WINDOW | _MIXTURE,
            lambda fields: {"sliding_window": None, "num_local_experts": fields["num_experts"]} | fields,
            neighbors=True,
        ),
    ),
    "qwen2_moe": Family(
        "Qwen2Moe",
        (
            *_PLAIN,
            rope(),
            biases(qkv_bias=_QKV),
            _window_in_use(window(_every_other_below)),
            experts(shared="shared_expert_intermediate_size"),
        ),
        {
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 16,
            "sliding_window": 4_096,
            "qkv_bias": True,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1_408,
            "shared_expert_intermediate_size": 5_632,
        },
        _layers(**{leaf: f"mlp.shared_expert.{leaf}_proj" for leaf in _MLP}),
        gguf=Gguf(
            "qwen2moe",
            _MIXTURE | _WIDTH | {"shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
            tensors={leaf: f"ffn_{leaf}_shexp" for leaf in _MLP},
        ),
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        (
            *_PLAIN,
            rope(),
            biases(attention_bias=_QKVO),
            always(qk_norm="head"),
            _window_in_use(_window_of_all()),
            experts(),
        ),
        {
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 4,
            "sliding_window": 4_096,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        gguf=Gguf("qwen3moe", _MIXTURE | _WIDTH, lambda fields: {"norm_topk_prob": True}),
    ),
    "olmoe": Family(
        "Olmoe",
        (
            *_PLAIN,
            rope(),
            biases(attention_bias=_QKVO),
            always(qk_norm="width"),
            experts(width="intermediate_size"),
        ),
        {"max_position_embeddings": 4_096, "rms_norm_eps": 1e-5, "num_experts_per_tok": 8},
        classifier=None,
        gguf=Gguf("olmoe", _MIXTURE),
    ),
    "gpt_oss": Family(
        "GptOss",
        (
            *_SIZES,
            heads(),
            rope(150_000.0, silent=_GPT_OSS_YARN),
            biases(attention_bias=_QKVO),
            always(sinks=True),
            window(_all_but_each(2)),
            _gpt_oss_experts(),
        ),
        {
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "sliding_window": 128,
            "attention_bias": True,
            "num_experts_per_tok": 4,
        },
        {
            "router": f"{_GPT_OSS}router.weight",
            "router_bias": f"{_GPT_OSS}router.bias",
            "expert_down": f"{_GPT_OSS}experts.down_proj",
            "expert_down_bias": f"{_GPT_OSS}experts.down_proj_bias",
        },
        {
            f"{_GPT_OSS}experts.gate_up_proj": ("expert_gate", "expert_up"),
            f"{_GPT_OSS}experts.gate_up_proj_bias": ("expert_gate_bias", "expert_up_bias"),
        },
        gguf=Gguf(
            "gpt-oss",
            _WINDOW | _MIXTURE | {"intermediate_size": "expert_feed_forward_length"},
            _ramp_as_it_is,
            tensors={"mlp_norm": "post_attention_norm"},
        ),
    ),
}
"""By ``model_type``. A decoder that was made here is written as the first that has its shape."""

WITHIN = {"gemma3": ("gemma3_text", "text_config")}
"""Checkpoints that hold a family's model beside others: its ``model_type``, and where config.json describes it."""


def listed() -> str:
    """The families' names for a sentence.

    >>> listed().endswith("Qwen3Moe, Olmoe and GptOss")
    True
    """
    *most, last = [family.architecture for family in FAMILIES.values()]
    return f"{', '.join(most)} and {last}"
