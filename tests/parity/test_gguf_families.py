"""GGUF files of transformers' models, in the gguf package's names: read here, and where it does by transformers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from families import FAMILIES, MODELS, YARN
from tokenizers.pre_tokenizers import ByteLevel
from torch_models import assert_same_logits, torch_model
from transformers import AutoModelForCausalLM

from rlax_llm.models.gguf import read_gguf

LONG = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0], "rope_type": "longrope", "rope_theta": 1e4}
# llama.cpp knows one clamp, and files say nothing of it.
OSS = {**FAMILIES["gpt-oss"][1], "swiglu_limit": 7.0}
CASES = {
    "llama": ("llama", *MODELS["llama"]),
    "mistral": ("llama", *FAMILIES["mistral, window"]),
    "smollm3": ("smollm3", *FAMILIES["smollm3"]),
    "gemma 2": ("gemma2", "Gemma2", {**FAMILIES["gemma 2"][1], "query_pre_attn_scalar": 16}),
    "gemma 3": ("gemma3", "Gemma3Text", {**FAMILIES["gemma 3"][1], "query_pre_attn_scalar": 16}),
    "olmo 2": ("olmo2", *FAMILIES["olmo 2"]),
    "olmo 3": ("olmo2", *FAMILIES["olmo 3"]),
    "phi 3": ("phi3", *FAMILIES["phi 3"]),
    "phi 3, long": (
        "phi3",
        "Phi3",
        {"original_max_position_embeddings": 32, "partial_rotary_factor": 0.5, "rope_parameters": LONG},
    ),
    "glm 4": ("glm4", "Glm4", {**FAMILIES["glm 4"][1], "attention_bias": True}),
    "granite": ("granite", *FAMILIES["granite, scaled"]),
    "mixtral": ("llama", *FAMILIES["mixtral"]),
    "qwen2 moe": ("qwen2moe", *FAMILIES["qwen2 moe"]),
    "qwen3 moe": ("qwen3moe", "Qwen3Moe", {**FAMILIES["qwen3 moe"][1], "norm_topk_prob": True}),
    "olmoe": ("olmoe", *FAMILIES["olmoe"]),
    "qwen2, yarn": ("qwen2", "Qwen2", {"rope_parameters": {**YARN, "beta_fast": 4.0, "attention_factor": 1.5}}),
    "olmo 3, yarn": ("olmo2", "Olmo3", {**FAMILIES["olmo 3, yarn"][1], **FAMILIES["olmo 3"][1], "layer_types": None}),
    "gpt-oss": ("gpt-oss", "GptOss", OSS),
    "gpt-oss, plain rope": ("gpt-oss", "GptOss", {**OSS, "rope_parameters": {"rope_theta": 1e4}}),
}
READ_THERE = ("llama", "gemma 2", "gemma 3")  # it lacks keys of the others, or their architectures
PERMUTED = ("llama", "smollm3", "granite")
KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.sliding_window": "sliding_window",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "logit_scale": "logits_scaling",
}
YARN_KEYS = {
    "type": "rope_type",
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    "yarn_attn_factor": "attention_factor",
}


def metadata(config, architecture: str) -> dict:
    """What llama.cpp's converter says of a config."""
    said = {key: getattr(config, name, None) for key, name in KEYS.items()}
    if getattr(config, "num_local_experts", None):
        said["expert_count"] = config.num_local_experts
    if architecture == "gpt-oss":
        said["expert_feed_forward_length"] = config.intermediate_size
    ropes = config.rope_parameters
    main = ropes.get("full_attention", ropes)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    said |= {"attention.key_length": head_dim, "attention.value_length": head_dim, "rope.freq_base": main["rope_theta"]}
    said["rope.dimension_count"] = int(head_dim * main.get("partial_rotary_factor", 1.0))
    if architecture == "phi3":
        said["rope.scaling.original_context_length"] = config.original_max_position_embeddings
    if main["rope_type"] == "longrope":
        original = config.original_max_position_embeddings
        factor = config.max_position_embeddings / original
        said["rope.scaling.attn_factor"] = float(np.sqrt(1 + np.log(factor) / np.log(original)))
    if main["rope_type"] == "yarn":
        said |= {f"rope.scaling.{key}": main.get(name) for key, name in YARN_KEYS.items()}
    return {key: value for key, value in said.items() if value is not None}


def tensors(model: torch.nn.Module, architecture: str) -> dict[str, np.ndarray]:
    """The tensors by the names of the gguf package, changed as llama.cpp's converter changes them."""
    config, found = model.config, {}
    (arch,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, parameter in model.state_dict().items():
        values = parameter.float().numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "gpt-oss" and (".experts." in name or name.endswith("sinks")):
            found |= of_gpt_oss(name, values)
            continue
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(values, 2, 1)
            stem = f"blk.{name.split('.')[2]}.ffn_"
            found |= {f"{stem}gate_exps.weight": gate, f"{stem}up_exps.weight": up}
            continue
        if name.endswith("experts.down_proj"):
            found[f"blk.{name.split('.')[2]}.ffn_down_exps.weight"] = values
            continue
        if architecture in PERMUTED and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        found[names.get_name(name, try_suffixes=(".weight", ".bias"))] = values.squeeze()
    return found


def of_gpt_oss(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Sinks, and what experts have: gate and up take turns in the last axis, and inputs stand before outputs."""
    stem, leaf = f"blk.{name.split('.')[2]}.", name.rpartition(".")[2]
    if leaf == "sinks":
        return {f"{stem}attn_sinks.weight": values}
    kind = "bias" if leaf.endswith("_bias") else "weight"
    each = {"down": values} if leaf.startswith("down") else {"gate": values[..., ::2], "up": values[..., 1::2]}
    rows = each if kind == "bias" else {part: own.swapaxes(1, 2) for part, own in each.items()}
    return {f"{stem}ffn_{part}_exps.{kind}": own for part, own in rows.items()}


def write(path: Path, model: torch.nn.Module, architecture: str) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}
    for key, value in metadata(model.config, architecture).items():
        add[type(value)](f"{architecture}.{key}", value)
    vocabulary = ["<|end|>", "<|turn|>", *sorted(ByteLevel.alphabet())[: model.config.vocab_size - 3], "!#"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3, 3] + [1] * (len(vocabulary) - 2))
    writer.add_token_merges(["! #"])
    writer.add_eos_token_id(0)
    for name, value in tensors(model, architecture).items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    scaling = getattr(model.config, "rope_parameters", {})
    for kind in ("short", "long"):
        if f"{kind}_factor" in scaling:
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(scaling[f"{kind}_factor"], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_file_computes_what_its_model_does(tmp_path, name):
    architecture, family, fields = CASES[name]
    model = torch_model(family, fields)
    write(tmp_path / "m.gguf", model, architecture)
    config, params, _ = read_gguf(tmp_path / "m.gguf")
    assert_same_logits(model, config, params, atol=2e-3)
    if name in READ_THERE:  # what transformers undoes is what was done
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
        ours = model.state_dict()
        for key, value in theirs.state_dict().items():
            np.testing.assert_allclose(value.numpy(), ours[key].numpy(), rtol=0, atol=1e-5)
