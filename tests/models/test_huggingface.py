from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rlax_llm.models.config import Balance, Clamped, DecoderConfig, Experts
from rlax_llm.models.huggingface import read_config, read_parameters, write_model
from rlax_llm.models.huggingface_config import family_of, scalar_fields
from rlax_llm.models.ropes import LinearRope, Llama3Rope, LongRope, YarnRope
from rlax_llm.models.tokenizer import Tokenizer

LLAMA = DecoderConfig(
    vocab_size=12,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    rope_theta=50_000.0,
    norm_eps=1e-5,
    max_positions=128,
)
VARIANTS = {
    "llama, tied": LLAMA,
    "llama, free head": replace(LLAMA, tie_embeddings=False),
    "llama 3": replace(LLAMA, rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 64)),
    "linear rope": replace(LLAMA, rope_scaling=LinearRope(2.0)),
    "qwen2": replace(LLAMA, biases=("q", "k", "v")),
    "qwen3, wide heads": replace(LLAMA, qk_norm="head", head_dim=8),
    "mistral, odd heads": replace(LLAMA, num_heads=6, head_dim=8),
    "gpt-oss": replace(LLAMA, sinks=True, experts=Experts(4, 2, 24, biased=True, clamped=Clamped(limit=3.0))),
}
MINIMAL = {
    "vocab_size": 12,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def parameters(config: DecoderConfig, dtype=np.float32) -> dict:
    rng = np.random.default_rng(0)

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    return jax.tree.map(draw, config.parameter_shapes, is_leaf=lambda node: isinstance(node, tuple))


def same(left: dict, right: dict) -> bool:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    return all(
        a.dtype == b.dtype and bool((a == b).all()) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right))
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", LLAMA, parameters(LLAMA))
    return tmp_path / "model"


def config_of(tmp_path: Path, **fields) -> DecoderConfig:
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL | {"model_type": "llama"} | fields))
    return read_config(tmp_path)


# Round trips.


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_export_then_import_is_the_identity(tmp_path, config, dtype):
    params = parameters(config, dtype)
    write_model(tmp_path / "model", config, params)
    assert read_config(tmp_path / "model") == config
    assert same(read_parameters(tmp_path / "model", config, dtype), params)


def test_shards_hold_the_same_model_and_respect_the_limit(tmp_path, model):
    params = parameters(LLAMA)
    write_model(tmp_path / "sharded", LLAMA, params, shard_bytes=6_000)
    files = sorted(file.name for file in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    whole = load_file(model / "model.safetensors")
    assert set(index["weight_map"]) == set(whole)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for file in files:
        tensors = load_file(tmp_path / "sharded" / file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 6_000
        assert {index["weight_map"][name] for name in tensors} == {file}
    assert same(read_parameters(tmp_path / "sharded", LLAMA), params)


def test_files_are_as_torch_wants_them(model):
    tensors = load_file(model / "model.safetensors")
    with safe_open(model / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert "lm_head.weight" not in tensors
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (8, 16)  # [out, in]
    expected = parameters(LLAMA)["layers"]["down"][2].T
    np.testing.assert_array_equal(tensors["model.layers.2.mlp.down_proj.weight"], expected)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("wanted", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_every_stored_type_is_read_as_the_wanted_one(tmp_path, stored, wanted):
    params = parameters(LLAMA, jnp.dtype(stored))
    write_model(tmp_path / "model", LLAMA, params)
    expected = jax.tree.map(lambda x: np.asarray(x).astype(wanted), params)
    assert same(read_parameters(tmp_path / "model", LLAMA, wanted), jax.tree.map(jnp.asarray, expected))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == stored


def test_a_redundant_head_and_old_rotary_buffers_are_passed_over(model):
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(tensors, model / "model.safetensors")
    assert same(read_parameters(model, LLAMA), parameters(LLAMA))


def test_special_ids_reach_the_configuration(tmp_path):
    tokenizer = Tokenizer.characters("0123456789")
    write_model(tmp_path / "model", LLAMA, parameters(LLAMA), tokenizer)
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((tmp_path / "model" / name).read_text())
        assert (fields["eos_token_id"], fields["pad_token_id"]) == (1, 0)
    assert Tokenizer.from_directory(tmp_path / "model").encode("42") == tokenizer.encode("42")


# Configurations.


def test_versions_4_and_5_of_transformers_spell_the_rope_differently(tmp_path):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    wanted = (5e5, Llama3Rope(8.0, 1.0, 4.0, 64))
    four = config_of(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    five = config_of(tmp_path, rope_parameters={"rope_theta": 5e5, "rope_type": "llama3", **scaling})
    assert (four.rope_theta, four.rope_scaling) == (five.rope_theta, five.rope_scaling) == wanted
    old = config_of(tmp_path, rope_scaling={"type": "linear", "factor": 4.0})
    assert (old.rope_theta, old.rope_scaling) == (10_000.0, LinearRope(4.0))


def test_silent_fields_mean_what_the_family_says(tmp_path):
    plain = config_of(tmp_path, num_key_value_heads=None)
    assert (plain.num_kv_heads, plain.head_dim, plain.tie_embeddings, plain.max_positions) == (4, 4, False, 2_048)
    assert (plain.rope_theta, plain.rope_scaling, plain.norm_eps) == (10_000.0, None, 1e-6)
    qwen3 = config_of(tmp_path, model_type="qwen3")
    assert (qwen3.head_dim, qwen3.qk_norm, qwen3.max_positions) == (128, "head", 32_768)
    oss = config_of(tmp_path, model_type="gpt_oss", num_local_experts=4, rope_parameters=None)
    assert (oss.head_dim, oss.num_kv_heads, oss.biases, oss.sinks) == (64, 2, ("q", "k", "v", "o"), True)
    assert (oss.window, oss.sliding, oss.rope_theta) == (128, (True, False, True), 150_000.0)
    assert oss.experts == Experts(4, 4, 24, biased=True, clamped=Clamped(1.702, 7.0))
    assert oss.rope_scaling == YarnRope(32.0, 4_096, magnitude=0.1 * math.log(32) + 1, whole=False)


@pytest.mark.parametrize(
    ("fields", "slides"),
    [
        ({"model_type": "mistral"}, [4_096] * 3),
        ({"model_type": "mistral", "sliding_window": None}, [None] * 3),
        ({"model_type": "qwen2", "sliding_window": 64}, [None] * 3),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, [None] * 3),  # from layer 28 on
        (
            {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2},
            [None, None, 64],
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 64,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            [None, 64, None],
        ),
    ],
)
def test_a_window_in_use_is_that_of_its_layers(tmp_path, fields, slides):
    config = config_of(tmp_path, **fields)
    assert [config.window if config.slides(layer) else None for layer in range(3)] == slides


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma', wanted llama or mistral or qwen2 or qwen3"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', wanted silu or swish or gelu or gelu_pytorch_tanh or gelu_new"),
        ({"model_type": "qwen2", "attention_bias": True}, "attention_bias is True, wanted none of it"),
        ({"model_type": "qwen3", "mlp_bias": True}, "mlp_bias is True, wanted none of it"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, wanted none of it"),
        ({"layer_types": ["sliding_attention"] * 3}, "wanted full_attention in every layer of this family"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, wanted 1"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, wanted none of it"),
        (
            {"model_type": "gpt_oss", "quantization_config": {"quant_method": "awq"}},
            "quantization_config.quant_method is 'awq', wanted mxfp4; use the weights in MXFP4",
        ),
        (
            {"rope_scaling": {"rope_type": "axial", "factor": 4.0}},
            "rope_type is 'axial', wanted default, linear, dynamic, llama3, yarn or longrope",
        ),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "the longrope rope lacks 'short_factor'"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers is [1], wanted 3 entries"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types has 1 entries, wanted 3"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "the llama3 rope lacks 'low_freq_factor'"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"]}, "layer_types is 'linear_attention'"),
        ({"hidden_size": None}, "hidden_size is None, wanted a positive integer"),
        ({"num_key_value_heads": 3}, "num_kv_heads is 3, wanted a divisor of num_heads 4"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_name(tmp_path, fields, words):
    with pytest.raises(ValueError) as caught:
        config_of(tmp_path, **fields)
    assert words in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_object_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_missing_directory_and_a_missing_config_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        read_config(tmp_path)


# Broken weights.


def rewritten(model: Path, change) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), r"tensor model\.norm\.weight is missing \(1 of 29 are\)"),
        (lambda t: t.update({"model.norm.weight": np.ones(15, np.float32)}), r"model\.norm\.weight has shape \(15,\)"),
        (lambda t: t.update({"model.norm.weight": np.ones(16, np.int8)}), r"model\.norm\.weight has dtype I8"),
        (
            lambda t: t.update({"model.extra": np.ones(2, np.float32)}),
            r"model\.extra is unexpected .* use the config\.json",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(model, change, words):
    rewritten(model, change)
    with pytest.raises(ValueError, match=words):
        read_parameters(model, LLAMA)


def test_a_free_head_must_be_there_and_a_config_of_other_sizes_is_caught(model):
    with pytest.raises(ValueError, match=r"tensor lm_head\.weight is missing"):
        read_parameters(model, VARIANTS["llama, free head"])
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight has shape .*wants"):
        read_parameters(model, VARIANTS["mistral, odd heads"])


@pytest.mark.parametrize("kept", [0, 4, 100, -5])
def test_a_truncated_file_is_named(model, kept):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is not whole"):
        read_parameters(model, LLAMA)


def test_missing_weights_and_missing_shards_are_named(tmp_path, model):
    write_model(tmp_path / "sharded", LLAMA, parameters(LLAMA), shard_bytes=6_000)
    next((tmp_path / "sharded").glob("model-00002*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002.* is missing, model\.safetensors\.index\.json lists it"):
        read_parameters(tmp_path / "sharded", LLAMA)
    (model / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has neither model\.safetensors nor"):
        read_parameters(model, LLAMA)


# Writing safely.


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_a_new_model_replaces_the_old_one_whole(tmp_path, model):
    write_model(model, LLAMA, parameters(LLAMA), Tokenizer.characters("0123456789"), shard_bytes=6_000)
    params = parameters(VARIANTS["qwen2"])
    write_model(model, VARIANTS["qwen2"], params)
    assert sorted(contents(model)) == ["config.json", "model.safetensors"]
    assert same(read_parameters(model, VARIANTS["qwen2"]), params)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_model_and_no_litter(tmp_path, model, monkeypatch, failure):
    before = contents(model)

    def fail(*_args, **_kwargs):
        raise failure

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    for target in (model, tmp_path / "new"):
        with pytest.raises(type(failure)):
            write_model(target, LLAMA, parameters(LLAMA))
    assert contents(model) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_failed_last_rename_puts_the_old_model_back(tmp_path, model, monkeypatch):
    before, rename = contents(model), Path.rename

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "broken")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="broken"):
        write_model(model, LLAMA, parameters(LLAMA))
    assert contents(model) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("killed_between_the_renames", [False, True])
def test_what_a_killed_process_left_is_swept_by_the_next_to_write(tmp_path, model, killed_between_the_renames):
    for left in (".model-a.partial", ".model-b.old", ".other-c.partial"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "model.safetensors").write_bytes(b"half")
    if killed_between_the_renames:
        shutil.rmtree(model)
    write_model(model, LLAMA, parameters(LLAMA))
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", ".other-c.partial"}


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1_000))
    with pytest.raises(OSError, match=r"No room on the disk for .*1,000 bytes are free") as caught:
        write_model(tmp_path / "model", LLAMA, parameters(LLAMA))
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_while_writing_is_named(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def fail(*_args, **_kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="it filled up while writing") as caught:
        write_model(tmp_path / "model", LLAMA, parameters(LLAMA))
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_other_peoples_files_are_never_replaced(tmp_path, model):
    (model / "metrics.csv").write_text("precious")
    with pytest.raises(FileExistsError, match=r"metrics\.csv, which is no part of a model"):
        write_model(model, LLAMA, parameters(LLAMA))
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="is a file, wanted a directory"):
        write_model(tmp_path / "file", LLAMA, parameters(LLAMA))


def test_files_have_the_permissions_of_any_other_file(tmp_path, model):
    (tmp_path / "plain").write_text("")
    wanted = (tmp_path / "plain").stat().st_mode
    assert {file.stat().st_mode for file in model.iterdir()} == {wanted}


def test_parameters_that_do_not_fit_and_shapes_of_no_family_are_refused(tmp_path):
    params = parameters(LLAMA)
    with pytest.raises(ValueError, match=r"parameter norm is \(3,\), the config wants \(16,\)"):
        write_model(tmp_path / "model", LLAMA, params | {"norm": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"parameter head is absent, the config wants \(12, 16\)"):
        write_model(tmp_path / "model", VARIANTS["llama, free head"], params)
    both = replace(LLAMA, biases=("q", "k", "v"), qk_norm="head")
    with pytest.raises(ValueError, match="has qk_norm, biases, and no Hugging Face family has all of these"):
        write_model(tmp_path / "model", both, parameters(both))
    odd = replace(LLAMA, rope_scaling=np.sqrt)
    with pytest.raises(ValueError, match="wanted LinearRope, DynamicRope, Llama3Rope, YarnRope, LongRope or None"):
        write_model(tmp_path / "model", odd, params)
    assert not list(tmp_path.iterdir())


def test_a_family_without_a_classifier_and_a_rule_that_no_file_says_are_refused():
    granite = replace(LLAMA, attention_scale=1.0, residual_scale=0.5)
    assert family_of(granite) == "granite"
    with pytest.raises(ValueError, match="no sequence classifier of the family Granite"):
        scalar_fields(granite)
    with pytest.raises(ValueError, match="has experts, and no Hugging Face family"):  # Mixtral always normalizes
        family_of(replace(LLAMA, experts=Experts(4, 2, 24, normalized=False)))


def test_how_a_run_balances_routers_is_in_no_file(tmp_path):
    config = replace(LLAMA, experts=Experts(4, 2, 24))
    trained = replace(config, experts=replace(config.experts, balance=Balance(0.01, 0.001)))
    write_model(tmp_path / "model", trained, parameters(trained))
    assert read_config(tmp_path / "model") == config


def test_of_longrope_a_file_has_both_lists(tmp_path):
    rope = LongRope((1.0, 2.0), (3.0, 4.0), 32, 32, 1.5)
    short = replace(LLAMA, rope_scaling=rope, max_positions=32)
    long = replace(short, rope_scaling=replace(rope, max_positions=128), max_positions=128)
    assert not np.allclose(*(config.rope.frequencies(4) for config in (short, long)))
    for config in (short, long):
        write_model(tmp_path / "model", config, parameters(config))
        assert read_config(tmp_path / "model") == short


def test_the_package_imports_none_of_the_heavy_readers():
    code = (
        "import sys, rlax_llm.models.loading as _; "
        "heavy = {'transformers', 'gguf', 'tokenizers', 'huggingface_hub', 'torch', 'safetensors'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ.copy())
    assert done.returncode == 0, done.stderr
