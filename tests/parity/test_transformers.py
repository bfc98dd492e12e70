"""Against transformers on torch: its files are read, ours are loaded by it, and both compute the same."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from families import CAUSAL, FAMILIES, MODELS, SHAPE
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlax_llm.core.penalties import Penalties
from rlax_llm.core.seen import histories, penalized, tally
from rlax_llm.core.types import Completions
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import greedy
from rlax_llm.loops.balance import routers
from rlax_llm.models.config import Balance, DecoderConfig
from rlax_llm.models.decoder import logits
from rlax_llm.models.huggingface import read_config, read_parameters, write_model
from rlax_llm.models.huggingface_config import read_origin
from rlax_llm.models.loading import load_model
from rlax_llm.models.mxfp4 import mxfp4_numbers
from rlax_llm.models.ropes import DynamicRope
from rlax_llm.models.scoring import row_log_probs
from rlax_llm.models.tokenizer import Tokenizer

# Its threads wait for each other by spinning: on cores that are shared, one is five times as fast as two.
torch.set_num_threads(1)

QUESTIONS = [
    "What is the capital of France?",
    "What is 17 + 25?",
    "Write a haiku about the sea.",
    "Name three primary colors.",
    "Why is the sky blue?",
    "Translate 'good morning' to French.",
    "List the first 5 prime numbers.",
    "Write a Python function that adds two numbers.",
]


def torch_model(family: str, fields: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | fields)
    model = getattr(transformers, CAUSAL.get(family, f"{family}ForCausalLM"))(config).eval()
    with torch.no_grad():  # larger than at initialization: biases and norms are to matter, attention to be sharp
        for name, parameter in model.named_parameters():
            small = parameter.ndim == 1 or name.endswith("_bias")
            parameter.add_(0.1 * torch.randn_like(parameter)) if small else parameter.mul_(5.0)
    return model


def padded(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Four rows: whole, padded on the left, on the right, on both sides."""
    tokens = np.random.default_rng(0).integers(3, vocab_size, (4, 24)).astype(np.int32)
    valid = np.ones_like(tokens, bool)
    valid[1, :7] = valid[2, -5:] = valid[3, :3] = valid[3, -4:] = False
    return np.where(valid, tokens, 0), valid


def torch_logits(model: torch.nn.Module, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Row by row and without padding, which leaves nothing to the treatment of masks."""
    out = np.zeros((*tokens.shape, model.config.vocab_size), np.float32)
    with torch.no_grad():
        for row, keep, result in zip(tokens, valid, out):
            result[keep] = model(torch.tensor(row[keep][None], dtype=torch.long)).logits[0].float().numpy()
    return out


def assert_same_logits(model: torch.nn.Module, config: DecoderConfig, params: dict, atol: float) -> None:
    tokens, valid = padded(config.vocab_size)
    ours = np.asarray(logits(config, params, jnp.asarray(tokens), jnp.asarray(valid)))
    np.testing.assert_allclose(ours[valid], torch_logits(model, tokens, valid)[valid], rtol=0, atol=atol)


def reloaded(directory: Path) -> torch.nn.Module:
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype="auto")
    assert not {name: found for name, found in report.items() if found}
    return model.eval()


@pytest.mark.parametrize(("family", "fields"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("shards", ["whole", "sharded"])
def test_a_model_of_transformers_is_read_and_computes_the_same(tmp_path, family, fields, shards):
    model = torch_model(family, fields)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if shards == "sharded" else "1GB")
    assert (tmp_path / "model.safetensors").exists() == (shards == "whole")
    config = read_config(tmp_path)
    assert_same_logits(model, config, read_parameters(tmp_path, config), 1e-4)


@pytest.mark.parametrize(("family", "fields"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_our_export_is_loaded_by_transformers_with_no_key_amiss(tmp_path, family, fields, shard_bytes):
    torch_model(family, fields).save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    params = read_parameters(tmp_path / "theirs", config)
    write_model(tmp_path / "ours", config, params, shard_bytes=shard_bytes)
    model = reloaded(tmp_path / "ours")
    assert model.dtype == torch.float32
    assert_same_logits(model, config, params, 1e-4)
    model.save_pretrained(tmp_path / "back")  # and transformers says of it what we said
    assert read_config(tmp_path / "back") == config
    back = read_parameters(tmp_path / "back", config)
    jax.tree.map(np.testing.assert_array_equal, back, params)


SWITCHES = (
    "biases",
    "rotated",
    "window",
    "sliding",
    "norm_offset",
    "norms",
    "qk_norm",
    "activation",
    "embedding_scale",
)
SWITCHES += ("residual_scale", "attention_scale", "attention_cap", "logit_divisor", "logit_cap", "rope_scaling")
SWITCHES += ("local_rope", "rotary_dim", "rope_pairs", "sinks")
PLAIN = DecoderConfig(8, 8, 8, 1, 2, 1, 4)


def without(config: DecoderConfig, params: dict, switch: str) -> tuple[DecoderConfig, dict]:
    """The decoder without one of its switches, and what is left of its parameters."""
    changed = {switch: getattr(PLAIN, switch)} | ({"sliding": (), "local_rope": None} if switch == "window" else {})
    if switch == "sliding":
        changed["local_rope"] = config.local_rope
    plain = replace(config, **changed)
    ones = jax.tree.map(np.ones, plain.parameter_shapes["layers"], is_leaf=lambda node: isinstance(node, tuple))
    layers = {name: params["layers"].get(name, leaf) for name, leaf in ones.items()}
    if switch in ("qk_norm", "sinks"):
        layers = {name: leaf for name, leaf in layers.items() if name in plain.parameter_shapes["layers"]}
    return plain, params | {"layers": layers}


def without_of_experts(config: DecoderConfig, params: dict) -> list[tuple]:
    """Experts without one of their switches, and what is left of the parameters."""
    experts = config.experts
    if experts is None:
        return []
    dropped = [(replace(experts, normalized=not experts.normalized), params)]
    if experts.clamped:
        dropped.append((replace(experts, clamped=None), params))
        dropped += [(replace(experts, clamped=replace(experts.clamped, **x)), params) for x in NUMBERS_OF_A_CLAMP]
    if experts.biased:
        plain = replace(experts, biased=False)
        wanted = replace(config, experts=plain).parameter_shapes["layers"]
        layers = {name: leaf for name, leaf in params["layers"].items() if name in wanted}
        dropped.append((plain, params | {"layers": layers}))
        zeros = {name: 0 * leaf for name, leaf in params["layers"].items() if name.endswith("_bias")}
        each = [name for name in zeros if name.startswith(("expert_", "router"))]
        dropped += [(experts, params | {"layers": params["layers"] | {name: zeros[name]}}) for name in each]
    return dropped


NUMBERS_OF_A_CLAMP = ({"slope": 1.3}, {"limit": 9.0})


@pytest.mark.parametrize(("family", "fields"), FAMILIES.values(), ids=FAMILIES)
def test_a_family_is_read_computed_and_written_as_transformers_does(tmp_path, family, fields):
    """Logits, greedy tokens, an export without a key amiss, the way there and back; and no switch is for nothing."""
    model = torch_model(family, fields)
    model.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    params = read_parameters(tmp_path / "theirs", config)
    assert_same_logits(model, config, params, 1e-4)
    assert_same_greedy_tokens(model, config, params)
    for switch in SWITCHES:
        if getattr(config, switch) != getattr(PLAIN, switch) and not isinstance(config.rope_scaling, DynamicRope):
            with pytest.raises((AssertionError, ValueError), match=r"Not equal to tolerance|factors, wanted"):
                assert_same_logits(model, *without(config, params, switch), 1e-3)
    for experts, left in without_of_experts(config, params):
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_same_logits(model, replace(config, experts=experts), left, 1e-3)
    write_model(tmp_path / "ours", config, params)
    assert_same_logits(reloaded(tmp_path / "ours"), config, params, 1e-4)
    assert read_config(tmp_path / "ours") == config
    jax.tree.map(np.testing.assert_array_equal, read_parameters(tmp_path / "ours", config), params)


@pytest.mark.parametrize("family", ["mixtral", "qwen2 moe", "qwen3 moe", "olmoe"])
def test_routers_cost_what_they_cost_in_transformers(tmp_path, family):
    """Its loss over layers and masks, and the slope of the routers."""
    model = torch_model(*FAMILIES[family])
    model.save_pretrained(tmp_path)
    model.double()
    config = read_config(tmp_path)
    config = replace(config, experts=replace(config.experts, balance=Balance(1.0)))
    tokens, valid = padded(config.vocab_size)
    counts = model.config.num_local_experts if family == "mixtral" else model.config.num_experts
    model.set_experts_implementation("eager")  # the others have no float64
    found = model(torch.tensor(tokens).long(), torch.tensor(valid).long(), output_router_logits=True)
    module = sys.modules[type(model).__module__]
    wanted = module.load_balancing_loss_func(
        found.router_logits, counts, config.experts.per_token, torch.tensor(valid).long()
    )
    np.testing.assert_allclose(found.aux_loss.detach(), wanted.detach(), rtol=1e-6)
    wanted.backward()
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), read_parameters(tmp_path, config))
        rows = Completions(jnp.asarray(tokens), valid, valid, np.zeros(valid.shape), np.zeros(4, bool))
        every = routers(row_log_probs(config), params, rows, 1)
        cost, slope = jax.value_and_grad(lambda params: every(params, rows)[1])(params)
    np.testing.assert_allclose(cost, wanted.detach(), rtol=1e-6)
    theirs = [x.grad.T for name, x in model.named_parameters() if name.endswith(("mlp.gate.weight", "router.weight"))]
    np.testing.assert_allclose(slope["layers"]["router"], np.stack(theirs), rtol=1e-5, atol=1e-8)


def assert_same_greedy_tokens(model: torch.nn.Module, config: DecoderConfig, params: dict) -> None:
    prompts = [list(range(3, 3 + length)) for length in (4, 9, 14)]
    tokens, valid = pad_prompts(prompts, 0, config.vocab_size)
    request = Request(greedy, (), max_new_tokens=12)
    ours = generate(config, params, (jnp.asarray(tokens), jnp.asarray(valid)), jax.random.key(0), request)
    for prompt, drawn in zip(prompts, np.asarray(ours.tokens)):
        row = list(prompt)
        with torch.no_grad():
            for _ in range(12):
                row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
        assert drawn[-12:].tolist() == row[len(prompt) :]


def test_the_text_tower_of_a_multimodal_checkpoint_is_read(tmp_path):
    text = {"head_dim": 8, "sliding_window": 4, **SHAPE}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    given = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    model = transformers.Gemma3ForConditionalGeneration(given).eval()
    model.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    params = read_parameters(tmp_path / "theirs", config)
    tokens, _ = padded(config.vocab_size)
    with torch.no_grad():
        wanted = model(torch.tensor(tokens[:1], dtype=torch.long)).logits[0].numpy()
    np.testing.assert_allclose(logits(config, params, jnp.asarray(tokens[:1]))[0], wanted, atol=1e-4)
    origin = read_origin(tmp_path / "theirs", config.vocab_size)
    write_model(tmp_path / "ours", config, params, origin=origin)
    assert_same_logits(reloaded(tmp_path / "ours"), config, params, 1e-4)


def test_experts_in_mxfp4_are_those_that_transformers_makes_of_them(tmp_path):
    """Every scale that a weight can have, and a model in it: its logits, and those of its export, which is wide."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    fields = {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = torch_model("GptOss", {**fields, "head_dim": 16})
    model.save_pretrained(tmp_path)
    tensors, random = load_file(tmp_path / "model.safetensors"), np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        into, out = tensors.pop(name).shape[1:]
        blocks = torch.tensor(random.integers(0, 256, (2, out, into // 32, 16)), dtype=torch.uint8)
        scales = torch.tensor(random.integers(123, 127, (2, out, into // 32)), dtype=torch.uint8)
        model.get_parameter(name).data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"quantization_config": {"quant_method": "mxfp4"}}))
    config = read_config(tmp_path)
    params = read_parameters(tmp_path, config)
    assert_same_logits(model, config, params, 1e-4)
    write_model(tmp_path / "ours", config, params, origin=read_origin(tmp_path, config.vocab_size))
    assert_same_logits(reloaded(tmp_path / "ours"), config, params, 1e-4)
    scales = np.arange(253, dtype=np.uint8)[None]  # beyond them some levels are infinite
    codes = np.broadcast_to(np.arange(16, dtype=np.uint8) * 17, (1, 253, 16))
    theirs = convert_moe_packed_tensors(torch.tensor(codes[None]), torch.tensor(scales[None]), dtype=torch.float32)
    np.testing.assert_array_equal(mxfp4_numbers(codes, scales)[0], theirs[0, :, 0])


def test_bfloat16_crosses_bit_for_bit(tmp_path):
    model = torch_model("Qwen3", {"head_dim": 16}).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    params = read_parameters(tmp_path / "theirs", config, jnp.bfloat16)
    embed = model.get_input_embeddings().weight.detach().float().numpy()
    np.testing.assert_array_equal(np.asarray(params["embed"], np.float32), embed)
    write_model(tmp_path / "ours", config, params)
    again = reloaded(tmp_path / "ours")
    assert again.dtype == torch.bfloat16
    for (name, ours), (_, theirs) in zip(again.named_parameters(), model.named_parameters()):
        assert torch.equal(ours, theirs), name


def test_characters_are_loaded_by_auto_tokenizer(tmp_path):
    ours = Tokenizer.characters("0123456789+-*/=() \n<|eos>")
    text = "12+34=46\n<|eos|>"
    config = DecoderConfig(ours.vocab_size, 32, 48, 2, 4, 2, 8)
    params = jax.tree.map(jnp.zeros, config.parameter_shapes, is_leaf=lambda node: isinstance(node, tuple))
    write_model(tmp_path, config, params, ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (1, 0)
    model = reloaded(tmp_path)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)


# SmolLM2: real weights, exported by us and loaded by transformers.


@pytest.fixture(scope="module")
def exported(smollm2, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("smollm2") / "model"
    write_model(directory, *smollm2)
    return directory


@pytest.fixture(scope="module")
def torch_smollm2(exported) -> torch.nn.Module:
    return reloaded(exported)


def test_smollm2_logits_are_those_of_transformers(smollm2, torch_smollm2):
    assert_same_logits(torch_smollm2, smollm2.config, smollm2.params, 1e-3)


def test_smollm2_tokenizer_is_read_by_auto_tokenizer(smollm2, exported):
    theirs = AutoTokenizer.from_pretrained(exported)
    texts = ["84 * 3 / 2", "  two  spaces\n\n\tand tabs", "né 🦆 日本語", "don't <|im_start|>user", "x" * 50, ""]
    for text in texts + QUESTIONS:
        assert theirs.encode(text, add_special_tokens=False) == smollm2.tokenizer.encode(text)
        assert theirs.decode(smollm2.tokenizer.encode(text)) == smollm2.tokenizer.decode(
            smollm2.tokenizer.encode(text), skip_special=False
        )
        messages = [{"role": "user", "content": text}]
        chat = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert chat == smollm2.tokenizer.encode_prompt(text)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (2, 2, 1)


def test_smollm2_greedy_completions_are_those_of_transformers(smollm2, torch_smollm2):
    """Eight prompts of different lengths in one batch, up to forty-eight tokens each, token for token."""
    config, params, tokenizer = smollm2[:3]
    prompts = [tokenizer.encode_prompt(question) for question in QUESTIONS]
    tokens, valid = pad_prompts(prompts, tokenizer.pad_id, config.vocab_size)
    request = Request(greedy, tokenizer.eos_ids, max_new_tokens=48)
    ours = generate(config, params, (jnp.asarray(tokens), jnp.asarray(valid)), jax.random.key(0), request)
    theirs = torch_smollm2.generate(
        torch.tensor(tokens, dtype=torch.long),
        attention_mask=torch.tensor(valid, dtype=torch.long),
        max_new_tokens=48,
        do_sample=False,
    )[:, tokens.shape[1] :]
    for row, mask, expected in zip(np.asarray(ours.tokens), np.asarray(ours.mask), theirs.tolist()):
        stop = expected.index(2) + 1 if 2 in expected else len(expected)  # padded with the stop token from there on
        assert row[mask].tolist() == expected[:stop]
    assert not ours.truncated.all()


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.6])
def test_a_bias_and_a_repetition_penalty_are_those_of_transformers(penalty):
    """Its processors in its order; over prompt and completion."""
    random = np.random.default_rng(0)
    scores, before = random.normal(size=(5, 53)).astype(np.float32) * 3, random.integers(0, 53, (5, 9))
    given = transformers.GenerationConfig(repetition_penalty=penalty, sequence_bias={(7,): 1.5, (4,): -2.0})
    processors = AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SHAPE))._get_logits_processor(given)
    wanted = processors(torch.tensor(before), torch.tensor(scores)).numpy()
    rows = tuple(jnp.asarray(x) for x in (np.pad(before, ((0, 0), (0, 1))), np.ones((5, 10), bool), np.arange(10) > 3))
    seen = tally(histories((*rows[:2], jnp.broadcast_to(rows[2], (5, 10))), 1)[:, 0], 53)
    draw = greedy(None, jnp.asarray(scores), ((7, 1.5), (4, -2.0)), lambda x: penalized(x, Penalties(penalty), seen))
    np.testing.assert_array_equal(draw.tokens, wanted.argmax(-1))
    expected = torch.log_softmax(torch.tensor(wanted), -1).max(-1).values
    np.testing.assert_allclose(draw.log_probs, expected, atol=2e-6)


def test_generation_config_names_the_stop_token(exported, torch_smollm2):
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == 2
    assert torch_smollm2.generation_config.eos_token_id == 2


def test_the_cached_conversion_is_itself_a_model_of_transformers(smollm2):
    from rlax_llm.models import loading

    directory = loading.cache_directory() / loading._key(loading._packaged(), jnp.float32)
    again = load_model(directory)
    assert again.config == smollm2.config
    assert AutoTokenizer.from_pretrained(directory).encode("84") == smollm2.tokenizer.encode("84")
