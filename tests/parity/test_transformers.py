"""Against transformers on torch: its files are read, ours are loaded by it, and both compute the same."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import MISSING, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES, MODELS, SHAPE
from safetensors.torch import load_file, save_file
from torch_models import assert_same_logits, padded, reloaded, torch_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlax_llm.core.penalties import Penalties
from rlax_llm.core.seen import histories, penalized, tally
from rlax_llm.core.types import Completions
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import greedy
from rlax_llm.loops.balance import routers
from rlax_llm.models.config import Balance, Clamped, DecoderConfig, Experts
from rlax_llm.models.decoder import logits
from rlax_llm.models.families import FAMILIES as OURS
from rlax_llm.models.fields import told
from rlax_llm.models.huggingface import read_config, read_parameters, write_model
from rlax_llm.models.huggingface_config import read_origin
from rlax_llm.models.mxfp4 import mxfp4_numbers
from rlax_llm.models.ropes import DynamicRope, LongRope
from rlax_llm.models.scoring import row_log_probs
from rlax_llm.models.tokenizer import Tokenizer


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


# The limit of a sequence is not computed with, a run's settings are in no file, and experts are turned by their fields.
APART = {"max_positions", "lora", "compute_dtype", "sampler_dtype", "cache_dtype", "attention", "experts"}
SWITCHES = [field.name for field in dataclasses.fields(DecoderConfig) if field.default is not MISSING]
SWITCHES = [name for name in SWITCHES if name not in APART]
# Other numbers of experts have other parameters; what training adds to its loss changes no logits.
OF_EXPERTS = [field.name for field in dataclasses.fields(Experts) if field.name not in ("count", "width", "balance")]
OF_A_CLAMP = [field.name for field in dataclasses.fields(Clamped)]
PLAIN, SOME = DecoderConfig(8, 8, 8, 1, 2, 1, 4), Experts(4, 2, 8)


def turned(config: DecoderConfig) -> dict[str, DecoderConfig]:
    """The decoder with each of its switches, of its experts' and of its clamp's as it is not."""
    found = {}
    for name in SWITCHES:
        other = getattr(PLAIN, name)
        if name in ("rope_theta", "norm_eps"):
            found[name] = replace(config, **{name: 10 * getattr(config, name)})
        elif name == "window" and config.window:
            found[name] = replace(config, window=None, sliding=(), local_rope=None)
        elif name == "rotary_dim" and isinstance(config.rope_scaling, LongRope):
            continue  # whose factors are one for each frequency that turns: it would be refused
        elif getattr(config, name) != other:
            found[name] = replace(config, **{name: other})
    if config.experts is None:
        return found
    return found | {f"experts.{name}": replace(config, experts=x) for name, x in turned_experts(config.experts).items()}


def turned_experts(experts: Experts) -> dict[str, Experts]:
    """Experts with each of their switches as it is not, and each number of their clamp doubled."""
    other: dict[str, Any] = {name: getattr(SOME, name) for name in OF_EXPERTS}
    other = {name: value for name, value in other.items() if getattr(experts, name) != value}
    other |= {"per_token": experts.per_token - 1, "normalized": not experts.normalized}
    found = {name: replace(experts, **{name: value}) for name, value in other.items()}
    if experts.clamped is None:
        return found
    numbers = {name: 2 * getattr(experts.clamped, name) for name in OF_A_CLAMP}
    each = {name: replace(experts.clamped, **{name: number}) for name, number in numbers.items()}
    return found | {f"clamped.{name}": replace(experts, clamped=clamp) for name, clamp in each.items()}


def left_of(config: DecoderConfig, params: dict) -> dict:
    """What a decoder has of the parameters of another one; the rest is ones."""
    wanted = dict(config.parameter_shapes)
    layers = wanted.pop("layers")
    kept = {name: params[name] for name in wanted}
    given = params["layers"]
    same = {name for name, shape in layers.items() if name in given and given[name].shape == shape}
    return kept | {"layers": {name: given[name] if name in same else np.ones(layers[name]) for name in layers}}


def without_a_bias(config: DecoderConfig, params: dict) -> dict[str, dict]:
    """The parameters with the biases of the experts, or of the router, zero."""
    layers = params["layers"]
    names = [name for name in layers if name.endswith("_bias") and name.startswith(("expert_", "router"))]
    return {name: params | {"layers": layers | {name: 0 * layers[name]}} for name in names}


def test_every_switch_is_on_in_some_configuration():
    """A field of the decoder, of its experts or of their clamp that no configuration turns is compared with nothing."""
    found: set[str] = set()
    for family, fields in FAMILIES.values():
        described = getattr(transformers, f"{family}Config")(**SHAPE | fields)
        kind = described.model_type
        found |= set(turned(DecoderConfig(**OURS[kind].shape(told(described.to_dict())))))
    wanted = {*SWITCHES, *(f"experts.{name}" for name in OF_EXPERTS)}
    assert found == wanted | {f"experts.clamped.{name}" for name in OF_A_CLAMP}


@pytest.mark.parametrize(("family", "fields"), FAMILIES.values(), ids=FAMILIES)
def test_a_family_is_read_computed_and_written_as_transformers_does(tmp_path, family, fields):
    """Logits, greedy tokens, an export without a key amiss, the way there and back; and no switch is for nothing."""
    model = torch_model(family, fields)
    model.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    params = read_parameters(tmp_path / "theirs", config)
    assert_same_logits(model, config, params, 1e-4)
    assert_same_greedy_tokens(model, config, params)
    assert_each_switch_matters(config, params)
    write_model(tmp_path / "ours", config, params)
    assert_same_logits(reloaded(tmp_path / "ours"), config, params, 1e-4)
    assert read_config(tmp_path / "ours") == config
    jax.tree.map(np.testing.assert_array_equal, read_parameters(tmp_path / "ours", config), params)


def assert_each_switch_matters(config: DecoderConfig, params: dict) -> None:
    """A decoder that overlooked one would be seen: its logits are others, by more than is allowed of transformers'."""
    tokens, valid = padded(config.vocab_size)

    def computed(config: DecoderConfig, params: dict) -> np.ndarray:
        # One operation after the other, each of which is compiled once for all; those of a mixture are too many.
        with jax.disable_jit(config.experts is None):
            return np.asarray(logits(config, params, jnp.asarray(tokens), jnp.asarray(valid)))[valid]

    others = {name: (other, left_of(other, params)) for name, other in turned(config).items()}
    others |= {name: (config, left) for name, left in without_a_bias(config, params).items()}
    if isinstance(config.rope_scaling, DynamicRope):  # of sequences that are longer than any here
        del others["rope_scaling"]
    wanted = computed(config, params)
    for name, (other, left) in others.items():
        assert np.abs(computed(other, left) - wanted).max() > 1e-3, name


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
