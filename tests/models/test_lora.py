from __future__ import annotations

import errno
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions
from rlax_llm.models import decoder, shared_prompts
from rlax_llm.models.adapter_files import read_adapter, write_adapter
from rlax_llm.models.adapter_parts import Update, joined, padded, parted
from rlax_llm.models.blocks import nf4
from rlax_llm.models.config import TARGETS, DecoderConfig, Lora
from rlax_llm.models.dora import column_shares
from rlax_llm.models.families import FAMILIES
from rlax_llm.models.huggingface_config import Origin
from rlax_llm.models.lora import SAVED, init_adapter, merge_adapter, saved_parts, under_adapter
from rlax_llm.models.scoring import group_log_probs

V, GROUP, WIDTH = 13, 2, 3
BASES = {
    "llama": DecoderConfig(V, 16, 24, 2, 4, 2, 4),
    "qwen2": DecoderConfig(V, 16, 24, 2, 2, 2, 8, biases=("q", "k", "v")),
    "qwen3": DecoderConfig(V, 16, 24, 2, 4, 1, 6, qk_norm="head", tie_embeddings=False),
}
LORA = Lora(3, 5.0)
LLAMA = replace(BASES["llama"], lora=LORA)
CONFIGS = {name: replace(base, lora=LORA) for name, base in BASES.items()} | {
    "some": replace(BASES["llama"], lora=Lora(2, 8.0, ("v", "down"))),
}
each = pytest.mark.parametrize("name", CONFIGS)


def drawn(shapes, seed: int, dtype):
    random = np.random.default_rng(seed)

    def draw(path, shape):
        return jnp.asarray(random.normal(size=shape) * 0.3 + (path[-1].key.endswith("norm")), dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def both(config: DecoderConfig, dtype=jnp.float64):
    """The base, and an adapter that is far from zero."""
    return drawn(config.parameter_shapes, 0, dtype), drawn(config.adapter_shapes, 1, dtype)


def lora_of(config: DecoderConfig) -> Lora:
    assert config.lora is not None
    return config.lora


def rows(batch: int = 4, own: int = 4) -> Completions:
    random = np.random.default_rng(2)
    prompts = np.repeat(random.integers(0, V, (batch // GROUP, WIDTH)), GROUP, 0)
    tokens = jnp.asarray(np.concatenate([prompts, random.integers(0, V, (batch, own))], 1))
    valid = jnp.ones(tokens.shape, bool).at[-1, -1].set(False).at[-GROUP:, 0].set(False)
    mask = valid.at[:, :WIDTH].set(False)
    nothing = jnp.zeros(tokens.shape)
    return Completions(tokens, valid, mask, nothing, jnp.zeros(batch, bool))


@partial(jax.jit, static_argnums=0)
def both_paths(config, params):
    """Hidden states row by row, and those of groups."""
    completions = rows()
    plain = decoder.hidden_states(config, params, completions.tokens, completions.valid)
    grouped = shared_prompts.group_hidden_states(
        config, params, completions.tokens, completions.valid, (GROUP, WIDTH), remat=False
    )
    return jnp.where(completions.valid[..., None], plain, 0), grouped


@pytest.mark.usefixtures("float64")
@each
def test_the_adapter_is_its_formula(name):
    """W + (alpha / rank) · A·B, written out in numpy, through a decoder that knows no adapter."""
    config = CONFIGS[name]
    base, adapter = both(config)
    lora, layers = lora_of(config), dict(base["layers"])
    for target in lora.targets:
        a, b = (np.asarray(adapter["layers"][f"{target}_lora_{side}"]) for side in "ab")
        layers[target] = np.asarray(layers[target]) + lora.alpha / lora.rank * (a @ b)
    plain = replace(config, lora=None)
    wanted = both_paths(plain, base | {"layers": layers})
    adapted = both_paths(config, join_trees(adapter, base))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-9), adapted, wanted)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=0, atol=1e-9),
        both_paths(plain, merge_adapter(config, base, adapter)),
        wanted,
    )
    assert np.abs(wanted[0] - both_paths(plain, base)[0]).max() > 0.01


def test_the_adapter_is_its_merge_in_float32():
    base, adapter = both(LLAMA, jnp.float32)
    adapted, whole = (
        both_paths(LLAMA, join_trees(adapter, base)),
        both_paths(BASES["llama"], merge_adapter(LLAMA, base, adapter)),
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), adapted, whole)


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_new_adapter_merges_to_the_base_bit_for_bit(name, dtype):
    config = CONFIGS[name]
    base, adapter = drawn(config.parameter_shapes, 0, dtype), init_adapter(config, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, merge_adapter(config, base, adapter), base)


def test_a_new_adapter_computes_what_the_base_does_bit_for_bit():
    base, adapter = drawn(LLAMA.parameter_shapes, 0, jnp.float32), init_adapter(LLAMA, jax.random.key(0))
    adapted, plain = both_paths(LLAMA, join_trees(adapter, base)), both_paths(BASES["llama"], base)
    jax.tree.map(np.testing.assert_array_equal, adapted, plain)


def test_a_new_adapter_is_uniform_within_one_over_the_root_of_the_inputs():
    config = DecoderConfig(V, 64, 100, 3, 4, 2, 16, lora=Lora(16, 16.0))
    for dtype in (jnp.float32, jnp.bfloat16):
        layers = init_adapter(config, jax.random.key(0), dtype)["layers"]
        assert jax.tree.map(lambda x: x.shape, {"layers": layers}) == config.adapter_shapes
        assert {leaf.dtype for leaf in layers.values()} == {jnp.dtype(dtype)}
    layers = init_adapter(config, jax.random.key(0))["layers"]
    for target in TARGETS:
        a, bound = np.asarray(layers[f"{target}_lora_a"]), config.parameter_shapes["layers"][target][1] ** -0.5
        assert np.abs(a).max() <= bound
        # Of n uniform numbers the largest is below 1 − 20 / n once in e^20 times; the mean square is bound² / 3.
        assert np.abs(a).max() > bound * (1 - 20 / a.size)
        np.testing.assert_allclose((a**2).mean(), bound**2 / 3, rtol=6 * math.sqrt(0.8 / a.size))
        np.testing.assert_array_equal(layers[f"{target}_lora_b"], 0)
    firsts = [float(layers[f"{target}_lora_a"][0, 0, 0]) for target in TARGETS]
    assert len(set(firsts)) == len(TARGETS)


@pytest.mark.usefixtures("float64")
def test_the_gradient_is_the_chain_rule_from_the_full_one():
    """∂A = s · ∂W · Bᵀ and ∂B = s · Aᵀ · ∂W, with ∂W the gradient of the merged model."""
    base, adapter = both(LLAMA)
    completions = rows()

    def loss(config, params):
        log_probs, entropy = group_log_probs(config, (GROUP, WIDTH), 0.9, remat=True)(params, completions)
        return jnp.sin(log_probs).sum() + entropy.sum()

    ours = jax.jit(jax.grad(lambda adapter: loss(LLAMA, join_trees(adapter, base))))(adapter)["layers"]
    full = jax.jit(jax.grad(partial(loss, BASES["llama"])))(merge_adapter(LLAMA, base, adapter))["layers"]
    for target in TARGETS:
        a, b = (np.asarray(adapter["layers"][f"{target}_lora_{side}"]) for side in "ab")
        slope, scale = np.asarray(full[target]), LORA.alpha / LORA.rank
        np.testing.assert_allclose(ours[f"{target}_lora_a"], scale * slope @ b.swapaxes(1, 2), rtol=0, atol=1e-9)
        np.testing.assert_allclose(ours[f"{target}_lora_b"], scale * a.swapaxes(1, 2) @ slope, rtol=0, atol=1e-9)
        assert np.abs(slope).max() > 1e-6


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_what_is_trained_whole_has_the_gradient_of_the_whole_model_and_leaves_the_adapter_its_own(name):
    """Of a tied embedding, and of one beside a head; at a rate of 0 the adapter moves as it does alone."""
    config = CONFIGS[name]
    base, adapter = both(config)
    names = ("embed", "norms") if config.tie_embeddings else SAVED
    trained = join_trees(adapter, saved_parts(config, base, names))
    frozen = under_adapter(config, base, trained)
    assert jax.tree.structure(join_trees(trained, frozen)) == jax.tree.structure(join_trees(adapter, base))
    wanted = {"embed", "norm", "layers"} | ({"head"} & base.keys())
    assert trained.keys() == wanted and "mlp_norm" in trained["layers"] and "q" in frozen["layers"]

    @partial(jax.jit, static_argnums=0)
    @partial(jax.grad, argnums=1)
    def slopes(config, params, rest):
        log_probs, entropy = group_log_probs(config, (GROUP, WIDTH), 0.9, remat=True)(join_trees(params, rest), rows())
        return jnp.sin(log_probs).sum() + entropy.sum()

    found, alone = slopes(config, trained, frozen), slopes(config, adapter, base)
    full = slopes(replace(config, lora=None), merge_adapter(config, frozen, trained), None)
    for leaf in trained["layers"]:
        other = alone if "lora" in leaf else full
        np.testing.assert_allclose(found["layers"][leaf], other["layers"][leaf], rtol=0, atol=1e-9)
    for leaf in wanted - {"layers"}:
        np.testing.assert_allclose(found[leaf], full[leaf], rtol=0, atol=1e-9)
        assert np.abs(full[leaf]).max() > 1e-4


@pytest.mark.parametrize("remat", [False, True])
def test_the_gradient_of_the_base_is_never_computed(remat):
    """Neither the weights' products nor the head's; of one layer, so that a loop over layers hides nothing."""
    vocab, own = 300, 16
    base = DecoderConfig(vocab, 64, 128, 1, 4, 2, 16)
    config = replace(base, lora=Lora(2, 4.0))
    completions = rows(8, own)
    tokens, computed = 8 * own, 8 * own + 4 * WIDTH

    def flops(config, trained, frozen) -> float:
        log_probs = group_log_probs(config, (GROUP, WIDTH), 1.0, remat)

        def loss(trained, frozen):
            return log_probs(join_trees(trained, frozen), completions)[0].sum()

        costs = jax.jit(jax.grad(loss)).lower(trained, frozen).compile().cost_analysis()
        assert costs is not None
        return costs["flops"]

    shapes = [drawn(tree, 0, jnp.float32) for tree in (config.parameter_shapes, config.adapter_shapes)]
    full, low_rank = flops(base, shapes[0], None), flops(config, shapes[1], shapes[0])
    layers = [config.parameter_shapes["layers"][target][1:] for target in TARGETS]
    weights = sum(into * out for into, out in layers)
    adapters = lora_of(config).rank * sum(into + out for into, out in layers)
    spared = 2 * computed * weights + 2 * tokens * vocab * config.hidden_size
    # The adapter's own products: forward (again where layers are recomputed), and two backward.
    added = 2 * computed * adapters * (4 if remat else 3)
    assert low_rank < full - spared + 1.1 * added


def test_bfloat16_weights_with_a_float32_adapter_stay_bfloat16():
    base, adapter = drawn(LLAMA.parameter_shapes, 0, jnp.bfloat16), drawn(LLAMA.adapter_shapes, 1, jnp.float32)
    states = jax.eval_shape(partial(both_paths, LLAMA), join_trees(adapter, base))
    for tree in (states, merge_adapter(LLAMA, base, adapter)):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(jnp.bfloat16)}


def test_the_base_is_what_it_was():
    assert LLAMA.parameter_shapes == BASES["llama"].parameter_shapes
    assert BASES["llama"].adapter_shapes == {"layers": {}}
    shapes = jax.eval_shape(partial(decoder.init_decoder, LLAMA), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == LLAMA.parameter_shapes
    assert hash(LLAMA) == hash(replace(BASES["llama"], lora=Lora(3, 5.0)))


def test_a_score_beside_the_adapter_is_passed_through():
    base, adapter = both(LLAMA, jnp.float32)
    whole = merge_adapter(LLAMA, base, adapter | {"score": jnp.arange(16.0)})
    np.testing.assert_array_equal(whole["score"], np.arange(16.0))
    assert whole["layers"].keys() == base["layers"].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0), "Lora: rank is 0, wanted a whole number of at least 1."),
        ((1, 0.0), "Lora: alpha is 0.0, wanted a number greater than 0."),
        (
            (1, 1.0, ("q_proj",)),
            "Lora: target 'q_proj' is unknown; did you mean 'q'? There are q, k, v, o, gate, up, down.",
        ),
        (
            (1, 1.0, ("v", "gatte")),
            "Lora: target 'gatte' is unknown; did you mean 'gate'? There are q, k, v, o, gate, up, down.",
        ),
        ((1, 1.0, ("lm_head",)), "Lora: target 'lm_head' is unknown. There are q, k, v, o, gate, up, down."),
        ((1, 1.0, ()), "Lora: targets is (), wanted a tuple of different names, at least one."),
        ((1, 1.0, ("q", "q")), "Lora: targets is ('q', 'q'), wanted a tuple of different names, at least one."),
        ((1, 1.0, ["q"]), "Lora: targets is ['q'], wanted a tuple of different names, at least one."),
    ],
)
def test_an_adapter_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError) as caught:
        Lora(*arguments)
    assert str(caught.value) == message


def test_a_config_without_lora_and_parameters_that_do_not_fit_are_named(tmp_path):
    base, adapter = both(LLAMA, jnp.float32)
    calls = {
        "init_adapter": lambda config: init_adapter(config, jax.random.key(0)),
        "merge_adapter": lambda config: merge_adapter(config, base, adapter),
        "write_adapter": lambda config: write_adapter(tmp_path / "adapter", config, adapter, "base"),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError) as caught:
            call(BASES["llama"])
        assert str(caught.value) == (
            f"{name}: config.lora is None, wanted a Lora; give one with dataclasses.replace(config, lora=...)."
        )
    other = replace(LLAMA, lora=Lora(2, 5.0))
    for name in ("merge_adapter", "write_adapter"):
        with pytest.raises(ValueError) as caught:
            calls[name](other)
        assert str(caught.value) == (
            f"{name}: adapter leaf layers/down_lora_a is (2, 24, 3), the config wants (2, 24, 2); "
            "give the adapter that belongs to the config."
        )
    with pytest.raises(ValueError, match=r"down_lora_a is absent, the config wants \(2, 24, 3\)"):
        merge_adapter(LLAMA, base, {})
    assert not list(tmp_path.iterdir())


def test_a_decoder_says_which_leaves_of_the_adapter_are_amiss():
    config = replace(BASES["llama"], lora=Lora(1, 1.0, ("q",)))
    base, adapter = both(config, jnp.float32)
    with pytest.raises(ValueError) as caught:
        both_paths(config, base)
    assert str(caught.value) == (
        "decoder: the layers lack ['q_lora_a', 'q_lora_b'] and have [] beside what a config with lora "
        "Lora(rank=1, alpha=1.0, targets=('q',), stabilized=False, dora=False, dropout=0.0, tokens=(), head_tokens=()) "
        "wants; join the adapter, or merge it and take lora out."
    )
    with pytest.raises(ValueError, match=r"lack \[\] and have \['q_lora_a', 'q_lora_b'\] beside .* lora None wants"):
        both_paths(BASES["llama"], join_trees(adapter, base))


# Directories.


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", LLAMA, both(LLAMA, jnp.float32)[1], "owner/base")
    return tmp_path / "adapter"


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_export_then_import_is_the_identity(tmp_path, name, dtype):
    config = CONFIGS[name]
    _, adapter = both(config, dtype)
    adapter |= {"score": jnp.arange(16, dtype=dtype)} if name == "qwen2" else {}
    write_adapter(tmp_path / "adapter", config, adapter, "owner/base")
    read, again = read_adapter(tmp_path / "adapter", replace(config, lora=None), dtype)
    assert read == config
    jax.tree.map(np.testing.assert_array_equal, again, adapter)


def test_files_are_as_peft_wants_them(directory):
    tensors = load_file(directory / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"].shape == (3, 16)
    assert tensors["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"].shape == (16, 3)
    assert len(tensors) == 2 * 2 * len(TARGETS)
    fields = json.loads((directory / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["task_type"], fields["r"], fields["lora_alpha"]) == ("LORA", "CAUSAL_LM", 3, 5)
    assert fields["base_model_name_or_path"] == "owner/base"
    assert {path.name for path in directory.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def changed(directory: Path, **fields) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_scale_of_rank_stabilized_adapters_is_read_and_written(directory):
    changed(directory, use_rslora=True, target_modules="all-linear", lora_dropout=0.1)
    config, adapter = read_adapter(directory, BASES["llama"])
    np.testing.assert_allclose(lora_of(config).scale, 5 / math.sqrt(3), rtol=1e-12)
    write_adapter(directory, config, adapter, "owner/base")
    fields = json.loads((directory / "adapter_config.json").read_text())
    assert (fields["use_rslora"], fields["lora_alpha"], fields["lora_dropout"]) == (True, 5, 0.1)
    assert read_adapter(directory, BASES["llama"])[0] == config


# Matrices that files join, and what is saved whole.


WIDTHS = {"q": 4, "k": 2, "v": 3}


def part(leaf: str, shared: np.ndarray | None = None) -> Update:
    random = np.random.default_rng(ord(leaf))
    a = random.normal(size=(2, 5, 3)) if shared is None else shared
    return Update(a, random.normal(size=(2, 3, WIDTHS[leaf])))


@pytest.mark.parametrize("shared", [None, np.ones((2, 5, 3))], ids=["own A", "one A"])
@pytest.mark.parametrize("names", ["qkv", "qv", "k"])
def test_the_adapter_of_a_joined_matrix_is_those_of_its_parts(names, shared):
    parts = {name: part(name, shared) for name in names}
    whole = joined(parts, WIDTHS)
    assert whole.a.shape[-1] == (3 if shared is not None else 3 * len(names))
    products = {name: parts[name].a @ parts[name].b for name in names}
    wanted = [products.get(name, np.zeros((2, 5, width))) for name, width in WIDTHS.items()]
    np.testing.assert_allclose(whole.a @ whole.b, np.concatenate(wanted, -1), rtol=0, atol=1e-12)
    again = parted(padded(whole, whole.a.shape[-1]), WIDTHS)
    assert list(again) == list(names)
    jax.tree.map(np.testing.assert_array_equal, again, parts)


def test_an_adapter_that_files_cannot_join_is_refused():
    one = part("q")._replace(m=np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"q have DoRA's lengths and k has no adapter.*take all of q, k, v, or none"):
        joined({"q": one}, WIDTHS)


def test_families_that_join_projections_write_them_joined(tmp_path):
    config = replace(BASES["llama"], lora=LORA)
    origin = Origin({"model_type": "phi3", **FAMILIES["phi3"].fields(config)})
    adapter = both(config, jnp.float32)[1]
    write_adapter(tmp_path / "adapter", config, adapter, "owner/base", origin)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.1.self_attn.qkv_proj.lora_A.weight"].shape == (9, 16)
    assert tensors["base_model.model.model.layers.0.mlp.gate_up_proj.lora_B.weight"].shape == (48, 6)
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert fields["rank_pattern"] == {"qkv_proj": 9, "gate_up_proj": 6}
    assert fields["alpha_pattern"] == {"qkv_proj": 15, "gate_up_proj": 10}
    read, again = read_adapter(tmp_path / "adapter", BASES["llama"])
    assert read == config
    jax.tree.map(np.testing.assert_array_equal, again, adapter)


@pytest.mark.parametrize("leaves", [("embed",), ("embed", "head"), ("norm",)], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_what_is_held_whole_takes_the_place_of_the_base_s(tmp_path, name, leaves):
    config = CONFIGS[name]
    untied = replace(config, tie_embeddings=config.tie_embeddings and "head" not in leaves)
    base, adapter = both(config, jnp.float32)
    own = drawn({leaf: untied.parameter_shapes[leaf] for leaf in leaves}, 3, jnp.float32)
    write_adapter(tmp_path / "adapter", untied, adapter | own, "owner/base")
    read, again = read_adapter(tmp_path / "adapter", replace(config, lora=None))
    assert read == untied
    jax.tree.map(np.testing.assert_array_equal, again, adapter | own)
    merged = merge_adapter(read, base, again)
    plain = merge_adapter(config, base, adapter)
    jax.tree.map(np.testing.assert_array_equal, merged, plain | own)


def test_trained_rows_are_read_and_written_as_rows(directory):
    tensors = load_file(directory / "adapter_model.safetensors")
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    save_file(tensors | {name: np.ones((2, 16), np.float32)}, directory / "adapter_model.safetensors")
    changed(directory, trainable_token_indices=[3, 1])
    config, adapter = read_adapter(directory, BASES["llama"])
    assert lora_of(config).tokens == (3, 1)
    base = both(LLAMA, jnp.float32)[0]
    merged = merge_adapter(config, base, adapter)["embed"]
    np.testing.assert_array_equal(np.flatnonzero((merged != base["embed"]).any(1)), [1, 3])
    write_adapter(directory, config, adapter, "owner/base")
    assert load_file(directory / "adapter_model.safetensors").keys() == tensors.keys() | {name}
    again, back = read_adapter(directory, BASES["llama"])
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, back, adapter)
    changed(directory, trainable_token_indices=[3, V])
    with pytest.raises(ValueError, match="wanted token ids from 0 to 12"):
        read_adapter(directory, BASES["llama"])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "tokens"), [("llama", {"tokens": (7, 2)}), ("qwen3", {"head_tokens": (4, 0, 9)})])
def test_trained_rows_have_the_gradient_of_their_table(name, tokens):
    """Of a tied embedding that of both its uses; at its start an adapter has the base's own rows."""
    config = replace(CONFIGS[name], lora=replace(LORA, **tokens))
    base, adapter = both(config)
    rows_of, ids = ("embed", (7, 2)) if name == "llama" else ("head", (4, 0, 9))
    started = init_adapter(config, jax.random.key(0), jnp.float64, base)[f"{rows_of}_rows"]
    np.testing.assert_array_equal(started, base[rows_of][jnp.array(ids)])

    @partial(jax.jit, static_argnums=0)
    @partial(jax.value_and_grad, argnums=1)
    def slopes(config, params, rest):
        log_probs, entropy = group_log_probs(config, (GROUP, WIDTH), 0.9)(join_trees(params, rest), rows())
        return jnp.sin(log_probs).sum() + entropy.sum()

    value, found = slopes(config, adapter, base)
    whole, full = slopes(replace(config, lora=None), merge_adapter(config, base, adapter), None)
    np.testing.assert_allclose(value, whole, rtol=1e-12)
    np.testing.assert_allclose(found[f"{rows_of}_rows"], full[rows_of][jnp.array(ids)], rtol=0, atol=1e-9)
    assert np.abs(full[rows_of][jnp.array(ids)]).max() > 1e-4


def test_rows_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"lora_tokens is \[13\], wanted different ids from 0 to 12\."):
        replace(LLAMA, lora=replace(LORA, tokens=(V,)))
    with pytest.raises(ValueError, match="lora_head_tokens is given and the head is the embedding; give lora_tokens"):
        replace(LLAMA, lora=replace(LORA, head_tokens=(1,)))


def literal_dora(x, weight, a, b, m, scale):
    """Equations 5 and 11 of the paper, for one matrix and one row at a time, with the slope that PEFT has.

    Gives the result, and its derivative in a direction of every parameter as a function of the slope.
    """
    direction = weight + scale * a @ b
    share = m / np.sqrt((direction**2).sum(0))
    result = (x @ direction) * share

    def slopes(slope):
        held = slope * share  # the length is a constant
        return scale * x.T @ (held @ b.T), scale * a.T @ (x.T @ held), (slope * result / m).sum(0), held @ direction.T

    return result, slopes


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["float64", "nf4"])
def test_dora_is_its_formula(form):
    config = replace(BASES["llama"], lora=Lora(3, 5.0, ("up",), dora=True))
    base, adapter = both(config)
    x, weight = jnp.asarray(np.random.default_rng(0).normal(size=(5, 16))), base["layers"]["up"][0]
    kept = weight if form == "float64" else nf4(weight)
    parts = tuple(adapter["layers"][f"up_lora_{side}"][0] for side in "abm")

    def adapted(a, b, m, x):
        return (decoder.linear(x, kept) + decoder.linear(decoder.linear(x, a) * 5 / 3, b)) * column_shares(
            m, kept, (a, b, 5 / 3)
        )

    found, back = jax.vjp(adapted, *parts, x)
    wide = np.asarray(weight if form == "float64" else kept.wide(), np.float64)
    a, b, m = map(np.asarray, parts)
    wanted, slopes = literal_dora(np.asarray(x), wide, a, b, m, 5 / 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    slope = np.random.default_rng(1).normal(size=found.shape)
    for one, other in zip(back(jnp.asarray(slope)), slopes(slope), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("float64")
def test_dora_begins_as_the_base_and_comes_back_from_its_files(tmp_path):
    config = replace(BASES["llama"], lora=Lora(3, 5.0, ("q", "down"), dora=True))
    base, far = both(config)
    start = init_adapter(config, jax.random.key(0), jnp.float64, base)
    np.testing.assert_allclose(
        start["layers"]["q_lora_m"], np.linalg.norm(np.asarray(base["layers"]["q"]), axis=1), rtol=1e-12
    )
    own, merged = merge_adapter(config, base, start), merge_adapter(config, base, far)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), own, base)
    plain, _ = both_paths(config, join_trees(far, base))
    np.testing.assert_allclose(plain, both_paths(replace(config, lora=None), merged)[0], rtol=1e-6, atol=1e-8)
    far = jax.tree.map(lambda x: x.astype(jnp.float32), far)
    write_adapter(tmp_path / "dora", config, far, "owner/base")
    again, back = read_adapter(tmp_path / "dora", BASES["llama"])
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, back, far)
    with pytest.raises(ValueError, match=r"base is None and config\.lora is DoRA, wanted the base's parameters"):
        init_adapter(config, jax.random.key(0))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', wanted 'LORA'"),
        ({"bias": "all"}, "bias is 'all', wanted none of it"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head'], wanted modules that adapter_model"),
        ({"alpha_pattern": {"q_.*": 3}}, "alpha_pattern.q_.* is 3, wanted the name of a module, not a pattern"),
        ({"rank_pattern": {"q_proj": 2}}, "lora_A.weight has shape (3, 16), adapter_config.json wants (2, 16)"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', wanted a start that leaves the base as it is"),
        ({"r": None}, "r is None, wanted a positive integer"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, wanted a finite number above 0"),
        ({"modules_to_save": 5}, "modules_to_save is 5, wanted a list of strings"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_name(directory, fields, words):
    changed(directory, **fields)
    with pytest.raises(ValueError) as caught:
        read_adapter(directory, BASES["llama"])
    assert words in str(caught.value)
    assert str(directory) in str(caught.value)


def test_an_adapter_of_another_base_is_named(directory):
    for base, words in [
        (replace(BASES["llama"], num_layers=1), r"layers\.1\.mlp\.down_proj\.lora_A\.weight is unexpected \(14 do not"),
        (replace(BASES["llama"], num_layers=3), r"layers\.2\.mlp\.down_proj\.lora_A\.weight is missing \(14 do not"),
        (replace(BASES["llama"], intermediate_size=25), r"gate_proj\.lora_B\.weight has shape \(24, 3\), .* \(25, 3\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            read_adapter(directory, base)
    save_file({"other": np.ones(2, np.float32)}, directory / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="the file has 0 of the targets"):
        read_adapter(directory, BASES["llama"])


def test_missing_and_broken_files_are_named(tmp_path, directory):
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        read_adapter(tmp_path / "nowhere", BASES["llama"])
    file = directory / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is not whole"):
        read_adapter(directory, BASES["llama"])
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model\.safetensors; save the adapter again"):
        read_adapter(directory, BASES["llama"])
    (directory / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json"):
        read_adapter(directory, BASES["llama"])


def test_other_peoples_files_are_never_replaced_and_a_failure_changes_nothing(directory, monkeypatch):
    adapter = both(LLAMA, jnp.float32)[1]
    write_adapter(directory, LLAMA, adapter, "owner/other")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def fail(*_args, **_kwargs):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.numpy.save_file", fail)
        with pytest.raises(OSError, match="broken"):
            write_adapter(directory, LLAMA, adapter, "owner/base")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    (directory / "model.safetensors").write_text("precious")
    with pytest.raises(FileExistsError, match=r"model\.safetensors, which is no part of a model"):
        write_adapter(directory, LLAMA, adapter, "owner/base")
