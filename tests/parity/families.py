"""The configurations of transformers that this library's decoders are compared with, by family; without torch."""

from __future__ import annotations

from typing import Any

SHAPE = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.01,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# The original length is short, so that the tiny heads' frequencies fall in all three regimes.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 10_000.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama 3 rope": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}}),
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
MORE = {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False, "attention_factor": 1.5}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 4.0, 8.0], "rope_theta": 1e4}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
SLIDING, FULL = "sliding_attention", "full_attention"
BIASED = {"attention_bias": True}
# Two at least of each further family, with its switches on and off.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, biases": ("Llama", {**BIASED, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama, dynamic rope": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "mistral, odd heads": ("Mistral", {"sliding_window": 7, "num_attention_heads": 6, "head_dim": 16}),
    "mistral, window": ("Mistral", {"sliding_window": 5}),
    "qwen2, some slide": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen2, yarn": ("Qwen2", {"rope_parameters": YARN | MORE}),
    "qwen3, biases and a window": (
        "Qwen3",
        {
            **BIASED,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": [SLIDING, FULL, SLIDING],
        },
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "smollm3, biases and windows": (
        "SmolLM3",
        {**BIASED, "mlp_bias": True, "no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5},
    ),
    "gemma 2": ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 4, **CAPS}),
    "gemma 2, no caps": (
        "Gemma2",
        {
            **BIASED,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": [FULL, FULL, FULL],
        },
    ),
    "gemma 3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 4, "num_hidden_layers": 7}),
    "gemma 3, scaled": (
        "Gemma3Text",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 5,
            "layer_types": [SLIDING, FULL, SLIDING],
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                SLIDING: {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "olmo 2": ("Olmo2", {}),
    "olmo 2, biases": ("Olmo2", {**BIASED, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "olmo 3": ("Olmo3", {"sliding_window": 4, "num_hidden_layers": 5}),
    "olmo 3, yarn": (
        "Olmo3",
        {
            "sliding_window": 5,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 1e4}},
        },
    ),
    "phi 3": ("Phi3", {"sliding_window": 6, "original_max_position_embeddings": 64}),
    "phi 4 mini": (
        "Phi3",
        {"original_max_position_embeddings": 32, "partial_rotary_factor": 0.75, "rope_parameters": LONG},
    ),
    "glm 4": ("Glm4", {"head_dim": 8}),
    "glm 4, all turns": ("Glm4", {"head_dim": 16, "partial_rotary_factor": 1.0, "attention_bias": False}),
    "granite": ("Granite", {}),
    "granite, scaled": (
        "Granite",
        {
            **BIASED,
            "mlp_bias": True,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 6.0,
        },
    ),
}
EIGHT = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES |= {
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral, window": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 4}),
    "qwen2 moe": ("Qwen2Moe", {**EIGHT, "shared_expert_intermediate_size": 16}),
    "qwen2 moe, normalized": (
        "Qwen2Moe",
        {**EIGHT, "shared_expert_intermediate_size": 40, "norm_topk_prob": True, "qkv_bias": False},
    ),
    "qwen3 moe": ("Qwen3Moe", {**EIGHT, "head_dim": 8}),
    "qwen3 moe, normalized": ("Qwen3Moe", {**EIGHT, "norm_topk_prob": True, **BIASED, "num_experts_per_tok": 5}),
    "olmoe": ("Olmoe", {"num_experts": 8, "num_experts_per_tok": 2}),
    "olmoe, normalized": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 3, "norm_topk_prob": True}),
}
FAMILIES |= {
    "gpt-oss": (
        "GptOss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 4, "swiglu_limit": 1.5},
    ),
    "gpt-oss, other numbers": (
        "GptOss",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "head_dim": 8,
            "num_attention_heads": 6,
            "attention_bias": False,
            "layer_types": [FULL, SLIDING, FULL],
            "sliding_window": 5,
            "swiglu_alpha": 1.0,
            "swiglu_limit": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "tie_word_embeddings": True,
        },
    ),
}
CAUSAL = {"Gemma3Text": "Gemma3ForCausalLM"}
