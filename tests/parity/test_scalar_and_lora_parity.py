"""Reward models against the sequence classifiers of transformers, adapters against peft: read, written, computed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from families import SHAPE
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions
from rlax_llm.models.adapter_files import read_adapter, write_adapter
from rlax_llm.models.config import DecoderConfig, Lora
from rlax_llm.models.decoder import logits, row_states, vocabulary_logits
from rlax_llm.models.dropout import dropping, layer_seeds
from rlax_llm.models.huggingface import read_config, read_parameters, write_model, write_scalar
from rlax_llm.models.loading import LanguageModel, load_model, load_scalar
from rlax_llm.models.lora import merge_adapter, under_adapter
from rlax_llm.models.scalar import drop_trailing, sequence_scores
from rlax_llm.models.segments import positions_of
from rlax_llm.models.tokenizer import Tokenizer

# Its threads wait for each other by spinning: on cores that are shared, one is five times as fast as two.
torch.set_num_threads(1)

LLAMA = DecoderConfig(14, 32, 48, 3, 4, 2, 8, tie_embeddings=False)
CONFIGS = {
    "llama": LLAMA,
    "llama, tied": replace(LLAMA, tie_embeddings=True),
    "mistral, odd heads": replace(LLAMA, num_heads=6),
    "qwen2": replace(LLAMA, biases=("q", "k", "v")),
    "qwen3, tied": replace(LLAMA, qk_norm="head", head_dim=16, tie_embeddings=True),
}
LORA = Lora(3, 5.0)
WIDTH, OWN, ROWS = 5, 7, 5


def drawn(shapes: dict, seed: int, scale: float = 0.3) -> dict:
    random = np.random.default_rng(seed)

    def draw(path, shape):
        return jnp.asarray(random.normal(size=shape) * scale + (path[-1].key.endswith("norm")), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def tokenizer(padding: str) -> Tokenizer:
    ours = Tokenizer.characters("0123456789+=")
    if padding == "pad != eos":
        return ours
    fast = PreTrainedTokenizerFast(
        tokenizer_object=ours._fast.backend_tokenizer, eos_token="<|eos|>", pad_token="<|eos|>"
    )
    return Tokenizer(fast)


def rows(pad: int, stop: bool) -> tuple[Completions, np.ndarray, np.ndarray]:
    """Completions of several lengths that end in a stop token or do not, and the same rows padded on the right."""
    random = np.random.default_rng(3)
    tokens, valid = np.full((ROWS, WIDTH + OWN), pad), np.zeros((ROWS, WIDTH + OWN), bool)
    flat, attention = np.full((ROWS, WIDTH + OWN), pad), np.zeros((ROWS, WIDTH + OWN), int)
    for i, (prompt, own) in enumerate(zip([5, 2, 4, 1, 3], [7, 1, 3, 5, 2])):
        row = random.integers(2, 14, prompt + own)
        row[-1] = 1 if stop else row[-1]
        tokens[i, WIDTH - prompt : WIDTH + own], valid[i, WIDTH - prompt : WIDTH + own] = row, True
        flat[i, : len(row)], attention[i, : len(row)] = row, 1
    mask = valid & (np.arange(WIDTH + OWN) >= WIDTH)
    nothing = jnp.zeros(tokens.shape)
    arrays = (jnp.asarray(x) for x in (tokens, valid, mask))
    return Completions(*arrays, nothing, jnp.zeros(ROWS, bool)), flat, attention


def torch_scores(model: torch.nn.Module, flat: np.ndarray, attention: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out = model(torch.tensor(flat, dtype=torch.long), attention_mask=torch.tensor(attention)).logits
    assert out.shape == (ROWS, 1)
    return out[:, 0].numpy()


def our_scores(config: DecoderConfig, params: dict, completions: Completions) -> np.ndarray:
    return np.asarray(jax.jit(sequence_scores(config, (1, WIDTH)))(params, completions))


def loaded(kind: type, directory: Path) -> torch.nn.Module:
    model, report = kind.from_pretrained(directory, output_loading_info=True, dtype="auto")
    assert not {name: found for name, found in report.items() if found}
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("padding", ["pad == eos", "pad != eos"])
def test_our_reward_models_are_loaded_by_transformers_with_no_key_amiss_and_score_the_same(tmp_path, name, padding):
    config = CONFIGS[name]
    params, characters = drawn(config.scalar_shapes, 0), tokenizer(padding)
    write_scalar(tmp_path, config, params, characters)
    model = loaded(AutoModelForSequenceClassification, tmp_path)
    assert (model.config.num_labels, model.config.pad_token_id) == (1, characters.pad_id)
    for stop in (False, True):
        completions, flat, attention = rows(characters.pad_id, stop)
        theirs = torch_scores(model, flat, attention)
        # Where the stop token pads, transformers cannot tell it from padding, and reads the token before it.
        read = drop_trailing(completions, characters.pad_id)
        np.testing.assert_allclose(our_scores(config, params, read), theirs, rtol=0, atol=1e-4)
        ambiguous = stop and padding == "pad == eos"
        assert np.allclose(our_scores(config, params, completions), theirs, rtol=0, atol=1e-4) != ambiguous
        assert theirs.std() > 0.1


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_reward_models_of_transformers_are_read_and_score_the_same(tmp_path, family):
    torch.manual_seed(0)
    fields = {"vocab_size": 14, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_labels": 1}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**fields, bos_token_id=None, eos_token_id=1)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter)) if parameter.ndim == 1 else parameter.mul_(5.0)
    model.save_pretrained(tmp_path)
    tokenizer("pad != eos").save(tmp_path)
    completions, flat, attention = rows(0, True)
    ours = load_scalar(tmp_path)
    np.testing.assert_allclose(
        our_scores(ours.config, ours.params, completions), torch_scores(model, flat, attention), rtol=0, atol=1e-4
    )


# Adapters.


def same_logits(model: torch.nn.Module, config: DecoderConfig, params: dict) -> None:
    _, flat, attention = rows(0, True)
    valid = attention.astype(bool)
    with torch.no_grad():
        theirs = model(torch.tensor(flat, dtype=torch.long), attention_mask=torch.tensor(attention)).logits.numpy()
    ours = np.asarray(logits(config, params, jnp.asarray(flat), jnp.asarray(valid)))
    np.testing.assert_allclose(ours[valid], theirs[valid], rtol=0, atol=1e-4)


def adapted(config: DecoderConfig, tmp_path: Path) -> tuple[torch.nn.Module, dict, dict]:
    """The base as transformers has it, and our base and adapter."""
    base, adapter = drawn(config.parameter_shapes, 0), drawn(config.adapter_shapes, 1)
    write_model(tmp_path / "base", config, base)
    return loaded(AutoModelForCausalLM, tmp_path / "base"), base, adapter


def peft_loaded(model: torch.nn.Module, directory: Path, recwarn: pytest.WarningsRecorder) -> torch.nn.Module:
    loaded = peft.PeftModel.from_pretrained(model, directory).eval()
    assert not [warning for warning in recwarn if re.search("adapter (keys|weights)", str(warning.message))]
    return loaded


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("targets", [LORA.targets, ("q", "v")], ids=["all", "q and v"])
def test_our_adapters_are_loaded_by_peft_and_compute_the_same(tmp_path, name, targets, recwarn):
    config = replace(CONFIGS[name], lora=replace(LORA, targets=targets))
    model, base, adapter = adapted(config, tmp_path)
    write_adapter(tmp_path / "adapter", config, adapter, str(tmp_path / "base"))
    theirs = peft_loaded(model, tmp_path / "adapter", recwarn)
    same_logits(theirs, config, join_trees(adapter, base))
    assert theirs.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    whole = merge_adapter(config, base, adapter)
    same_logits(theirs.merge_and_unload(), replace(config, lora=None), whole)
    for ours, other in zip(np.asarray(whole["layers"]["q"]), theirs.model.model.layers):
        np.testing.assert_allclose(ours.T, other.self_attn.q_proj.weight.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True, "use_dora": True}, {"target_modules": ["q_proj", "v_proj"]}], ids=str
)
def test_adapters_of_peft_are_read_and_compute_the_same(tmp_path, name, settings):
    torch.manual_seed(0)
    model, base, _ = adapted(CONFIGS[name], tmp_path)
    given = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False} | settings
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, **given)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    config, adapter = read_adapter(tmp_path / "adapter", CONFIGS[name])
    assert config.lora.rank == 4
    same_logits(theirs, config, join_trees(adapter, base))


class Masked(torch.nn.Module):
    """Drops what a mask of ours says, in the place of a Dropout."""

    def __init__(self, factors: np.ndarray):
        super().__init__()
        self.factors = torch.tensor(factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_drop_inputs_as_peft_s_do_where_the_masks_are_the_same(tmp_path, dora, recwarn):
    config = replace(LLAMA, lora=replace(LORA, dora=dora, dropout=0.4))
    model, base, adapter = adapted(config, tmp_path)
    write_adapter(tmp_path / "adapter", config, adapter, str(tmp_path / "base"))
    theirs = peft_loaded(model, tmp_path / "adapter", recwarn).train()
    _, flat, attention = rows(0, True)
    tokens, valid = jnp.asarray(flat), jnp.asarray(attention.astype(bool))
    numbers = jnp.arange(ROWS, dtype=jnp.uint32)
    seeds = layer_seeds(config, numbers)
    replaced = 0
    for name, module in theirs.named_modules():
        found = re.search(r"layers\.(\d+)\..*\.(\w+)_proj$", name)
        if found and hasattr(module, "lora_dropout"):
            assert module.lora_dropout["default"].p == 0.4
            drop = dropping(config, seeds[int(found[1])], positions_of(valid))
            ones = jnp.ones((*flat.shape, module.in_features))
            module.lora_dropout["default"] = Masked(np.asarray(drop(found[2], ones)))
            replaced += 1
    assert replaced == 3 * 7
    hidden, _ = row_states(config, join_trees(adapter, base), tokens, valid, dropped=numbers)
    ours = np.asarray(vocabulary_logits(config, base, hidden))
    with torch.no_grad():
        wanted = theirs(torch.tensor(flat, dtype=torch.long), attention_mask=torch.tensor(attention)).logits.numpy()
    np.testing.assert_allclose(ours[attention > 0], wanted[attention > 0], rtol=0, atol=1e-4)


JOINED = {
    "phi 3": (("Phi3", {"original_max_position_embeddings": 64}), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "phi 3, some": (("Phi3", {"original_max_position_embeddings": 64}), ["qkv_proj"]),
    "glm 4": (("Glm4", {"head_dim": 8}), ["q_proj", "gate_up_proj"]),
}


def of_transformers(family: str, fields: dict, tmp_path: Path) -> LanguageModel:
    """A tiny model of a family, written by transformers."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | {"vocab_size": 14} | fields)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(tmp_path / "base")
    tokenizer("pad != eos").save(tmp_path / "base")
    return load_model(tmp_path / "base")


@pytest.mark.parametrize(("name", "kind"), [*((name, {}) for name in JOINED), ("glm 4", {"use_dora": True})], ids=str)
def test_adapters_of_joined_projections_are_peft_s_both_ways(tmp_path, name, kind, recwarn):
    (family, fields), targets = JOINED[name]
    ours = of_transformers(family, fields, tmp_path)
    settings = {"target_modules": targets, "task_type": "CAUSAL_LM", "init_lora_weights": False} | kind
    model = loaded(AutoModelForCausalLM, tmp_path / "base")
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, **settings)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    config, adapter = read_adapter(tmp_path / "adapter", ours.config)
    same_logits(theirs, config, join_trees(adapter, ours.params))
    assert config.lora.rank == 4
    # Trained on, each part of a joined matrix has an A of its own.
    adapter = jax.tree.map(lambda x, y: x + y, adapter, drawn(config.adapter_shapes, 7))
    write_adapter(tmp_path / "trained", config, adapter, str(tmp_path / "base"), ours.origin)
    back = peft_loaded(loaded(AutoModelForCausalLM, tmp_path / "base"), tmp_path / "trained", recwarn)
    same_logits(back, config, join_trees(adapter, ours.params))
    again, parts = read_adapter(tmp_path / "trained", ours.config)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, parts, adapter)


EMBEDDINGS = {"modules_to_save": ["embed_tokens", "lm_head"]}
WHOLE = {
    "both": (False, EMBEDDINGS),
    "norms": (False, {"modules_to_save": ["input_layernorm", "model.norm"]}),
    "rows of both": (False, {"trainable_token_indices": {"embed_tokens": [2, 5], "lm_head": [5]}}),
    "both, no longer tied": (True, EMBEDDINGS),
    "the head, no longer tied": (True, {"modules_to_save": ["lm_head"]}),
    "the embedding, no longer tied": (True, {"modules_to_save": ["embed_tokens"]}),
    "the embedding, tied": (True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "the head, tied": (True, {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
    "rows, tied": (True, {"trainable_token_indices": [7, 3]}),
    "the head's rows": (True, {"trainable_token_indices": {"embed_tokens": [2, 5], "lm_head": [3]}}),
    "patterns": (
        True,
        {
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
            "alpha_pattern": {"v_proj": 5, "model.layers.0.mlp.down_proj": 1.5},
        },
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_peft_saves_whole_is_read_and_written(tmp_path, name, recwarn):
    torch.manual_seed(0)
    tied, fields = WHOLE[name]
    base = replace(LLAMA, tie_embeddings=tied)
    model, params, _ = adapted(base, tmp_path)
    settings = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False} | fields
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, **settings)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "adapter")
    config, adapter = read_adapter(tmp_path / "adapter", base)
    merged = merge_adapter(config, params, adapter)
    same_logits(theirs, config, join_trees(adapter, under_adapter(config, params, adapter)))
    same_logits(theirs, replace(config, lora=None), merged)
    write_adapter(tmp_path / "ours", config, adapter, str(tmp_path / "base"))
    back = peft_loaded(loaded(AutoModelForCausalLM, tmp_path / "base"), tmp_path / "ours", recwarn)
    same_logits(back, replace(config, lora=None), merged)
    written, indices = back.peft_config["default"], fields.get("trainable_token_indices")
    assert written.trainable_token_indices == indices


def test_our_initial_adapter_is_drawn_as_peft_draws_its_own(tmp_path):
    """A in bounds that peft's own numbers fill, for every width of inputs; B zero in both."""
    config = replace(LLAMA, hidden_size=64, intermediate_size=200, lora=Lora(16, 16.0))
    model, _, _ = adapted(config, tmp_path)
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"))
    for name, parameter in theirs.named_parameters():
        values = parameter.detach().numpy()
        if "lora_A" in name:
            bound = values.shape[1] ** -0.5  # init_adapter's own, tested beside it
            assert bound * (1 - 20 / values.size) < np.abs(values).max() <= bound
        elif "lora_B" in name:
            assert not values.any()


def test_an_adapter_of_a_reward_model_takes_its_score_along(tmp_path, recwarn):
    config = replace(LLAMA, lora=LORA)
    base, score = drawn(config.scalar_shapes, 0), drawn({"score": (32,)}, 5)
    adapter = drawn(config.adapter_shapes, 1) | score
    write_scalar(tmp_path / "base", config, base, tokenizer("pad != eos"))
    write_adapter(tmp_path / "adapter", config, adapter, str(tmp_path / "base"))
    model = loaded(AutoModelForSequenceClassification, tmp_path / "base")
    theirs = peft_loaded(model, tmp_path / "adapter", recwarn)
    completions, flat, attention = rows(0, True)
    frozen = {name: leaf for name, leaf in base.items() if name != "score"}
    ours = our_scores(config, join_trees(adapter, frozen), completions)
    np.testing.assert_allclose(ours, torch_scores(theirs, flat, attention), rtol=0, atol=1e-4)
    theirs.save_pretrained(tmp_path / "back")
    again, back = read_adapter(tmp_path / "back", replace(config, lora=None))
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, back, adapter)
    whole = merge_adapter(config, frozen, adapter)
    write_scalar(tmp_path / "merged", replace(config, lora=None), whole, tokenizer("pad != eos"))
    single = loaded(AutoModelForSequenceClassification, tmp_path / "merged")
    np.testing.assert_allclose(ours, torch_scores(single, flat, attention), rtol=0, atol=1e-4)


def test_bfloat16_bases_keep_their_adapters_in_float32(tmp_path, recwarn):
    config = replace(LLAMA, lora=LORA)
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), drawn(config.parameter_shapes, 0))
    adapter = drawn(config.adapter_shapes, 1)
    write_model(tmp_path / "base", config, base)
    write_adapter(tmp_path / "adapter", config, adapter, "base")
    theirs = peft_loaded(loaded(AutoModelForCausalLM, tmp_path / "base"), tmp_path / "adapter", recwarn)
    kinds = {("lora" in name, parameter.dtype) for name, parameter in theirs.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    read, again = read_adapter(tmp_path / "adapter", read_config(tmp_path / "base"))
    jax.tree.map(np.testing.assert_array_equal, again, adapter)
    same = read_parameters(tmp_path / "base", read, jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, same, base)
