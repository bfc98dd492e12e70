"""Arithmetic in bfloat16, parameters, moments and sums in float32: small steps are not lost."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rlax_llm as rl
from rlax_llm.commands.learner import language_learner
from rlax_llm.commands.preference.run import run_dpo
from rlax_llm.commands.preference.settings import DpoSettings
from rlax_llm.commands.setup import build_model
from rlax_llm.core.trees import join_trees
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.policy import descend, initial_state, supervised_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig, Lora
from rlax_llm.models.decoder import linear, rms_norm
from rlax_llm.models.loading import load_model
from rlax_llm.models.lora import init_adapter
from rlax_llm.models.narrow import narrow_matrices
from rlax_llm.models.scoring import group_log_probs, row_log_probs

V, WIDTH, GROUP = 23, 6, 2
PLAIN = DecoderConfig(V, 32, 48, 2, 4, 2, 8, biases=("q", "k", "v"), qk_norm="head", tie_embeddings=False)
NARROW = replace(PLAIN, compute_dtype="bfloat16")
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8]]


@pytest.fixture(scope="module")
def params():
    drawn = decoder.init_decoder(PLAIN, jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), drawn)


@pytest.fixture(scope="module")
def completions(params):
    request = Request(Categorical(0.8), (), 7, GROUP)
    return generate(NARROW, params, pad_prompts(PROMPTS, 0, V), jax.random.key(2), request)


def test_gradients_are_float32_and_near_those_of_float32(params, completions):
    width = completions.tokens.shape[1] - 7

    def loss(config, weights):
        return group_log_probs(config, (GROUP, width), 0.8)(weights, completions)[0].sum()

    exact, narrow = (jax.jit(jax.grad(lambda w, c=config: loss(c, w)))(params) for config in (PLAIN, NARROW))
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.float32)}

    def cosine(x, y):
        x, y = (np.asarray(a, np.float64).ravel() for a in (x, y))
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    # The keys' biases have no gradient in exact arithmetic: they move all scores of a query alike.
    cosines = jax.tree.map(cosine, exact, narrow)
    del cosines["layers"]["k_bias"]
    assert min(jax.tree.leaves(cosines)) > 0.99


def test_sums_over_tokens_do_not_stop_where_bfloat16_would():
    """4,096 equal terms of 1: bfloat16 counts to 256, and then 256 + 1 is 256."""
    config = DecoderConfig(3, 2, 2, 1, 1, 1, 2, compute_dtype="bfloat16")
    tokens = jnp.zeros((1, 4096), jnp.int32)
    table = jax.grad(lambda w: decoder.embedding(config, {"embed": w}, tokens).astype(jnp.float32).sum())(
        jnp.ones((3, 2))
    )
    np.testing.assert_array_equal(table, [[4096, 4096], [0, 0], [0, 0]])
    ones = jnp.ones((1, 4096, 2), jnp.bfloat16)
    norm = jax.grad(lambda w: rms_norm(ones, w, 0.0).astype(jnp.float32).sum())(jnp.ones(2))
    np.testing.assert_array_equal(norm, [4096, 4096])
    weight = jax.grad(lambda w: linear(ones, w).astype(jnp.float32).sum())(jnp.ones((2, 2)))
    np.testing.assert_array_equal(weight, np.full((2, 2), 4096))


def test_the_ratio_is_near_one_where_both_sides_compute_in_bfloat16(params, completions):
    width = completions.tokens.shape[1] - 7
    grouped = group_log_probs(NARROW, (GROUP, width), 0.8)(params, completions)[0]
    difference = np.abs(np.asarray(grouped - completions.log_probs)[np.asarray(completions.mask)])
    assert grouped.dtype == jnp.float32
    assert difference.max() < 0.1
    assert difference.mean() < 0.02


def test_a_sampler_reads_matrices_that_were_rounded_once(params, completions):
    """What is rounded at each use is rounded alike in advance: not a bit changes."""
    request = Request(Categorical(0.8), (), 7, GROUP)
    rounded = narrow_matrices(NARROW, params)
    assert rounded["layers"]["q"].dtype == rounded["embed"].dtype == rounded["head"].dtype == jnp.bfloat16
    assert rounded["norm"].dtype == rounded["layers"]["q_bias"].dtype == jnp.float32
    again = generate(NARROW, rounded, pad_prompts(PROMPTS, 0, V), jax.random.key(2), request)
    jax.tree.map(np.testing.assert_array_equal, again, completions)
    assert narrow_matrices(PLAIN, params) is params


def test_micro_batches_are_summed_in_float32(params, completions):
    """The share of each half is rounded by itself, the sum is not: as near as the halves are."""
    steps = {}
    for parts in (1, 2):
        init, step = supervised_loop(row_log_probs(NARROW), optax.sgd(1.0), parts)
        steps[parts] = jax.jit(step)(init(params), completions)[0].params
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), steps[1], steps[2])
    gradient = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), steps[1], params)
    for difference, size in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        assert difference <= 0.02 * size + 1e-6


def _rows(log_probs):
    return rl.group_loop(log_probs, rl.grpo(), optax.sgd(1.0))[0]


@pytest.mark.parametrize(
    "init",
    [
        lambda p: _rows(row_log_probs(PLAIN))(p),
        lambda p: supervised_loop(row_log_probs(PLAIN), optax.sgd(1.0))[0](p),
        lambda p: rl.preference_loop(row_log_probs(PLAIN), rl.dpo(), optax.sgd(1.0))[0](p),
    ],
)
def test_parameters_without_room_for_small_steps_are_refused(params, init):
    with pytest.raises(ValueError, match=r"the parameter \['embed'\] is bfloat16, .* wanted float32"):
        init(params | {"embed": params["embed"].astype(jnp.bfloat16)})


SMALL = {"steps": 3, "batch_size": 8, "eval_size": 8, "learning_rate": 5e-7, "schedule": "constant", "save_every": 0}


@pytest.mark.parametrize("adapters", [{}, {"lora_rank": 2}])
def test_small_steps_move_as_many_weights_as_in_float32(tmp_path, adapters):
    share, losses = {}, {}
    for dtype in ("float32", "bfloat16"):
        config = DpoSettings.of(**SMALL, **adapters, dtype=dtype, out=str(tmp_path / dtype))
        run = run_dpo(config)
        before = jax.tree.leaves(language_learner(config.model, build_model("dpo", config.model, 0), 0).params)
        state = run.path / "model"
        after = load_model(state)
        assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype(jnp.float32)}
        if not adapters:
            pairs = list(zip(before, jax.tree.leaves(after.params), strict=True))
            share[dtype] = sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a in before)
        losses[dtype] = [row["held_out_loss"] for row in run.metrics() if row.get("held_out_loss") is not None]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], atol=2e-3)
    if not adapters:
        assert share["bfloat16"] > 0.95 * share["float32"] > 0.5


def test_a_base_under_adapters_is_bfloat16_and_the_adapters_are_not():
    config = DpoSettings.of(dtype="bfloat16", lora_rank=4)
    learner = language_learner(config.model, build_model("dpo", config.model, 0), 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(learner.frozen)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(learner.params)} == {jnp.dtype(jnp.float32)}
    # An adapter whose product is a thousandth of its base would be rounded out of a narrow sum.
    adapter = jax.tree.map(lambda x: x + 1e-4, learner.params)
    whole = learner.whole(adapter)
    assert {leaf.dtype for leaf in jax.tree.leaves(whole)} == {jnp.dtype(jnp.float32)}
    assert (np.asarray(whole["layers"]["q"]) != np.asarray(learner.frozen["layers"]["q"], np.float32)).mean() > 0.99
    assert learner.sampled_shape.lora is not None
    tokens = jnp.arange(12)[None]
    valid = jnp.ones((1, 12), bool)
    apart = decoder.logits(learner.sampled_shape, learner.sampled(adapter), tokens, valid)
    merged = decoder.logits(learner.shape, whole, tokens, valid)
    np.testing.assert_allclose(apart, merged, atol=0.05)


def test_adapters_beside_a_narrow_base_sample_what_they_learn():
    config = replace(NARROW, lora=Lora(2, 4.0))
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), decoder.init_decoder(PLAIN, jax.random.key(3)))
    adapter = jax.tree.map(lambda x: x + 0.02, init_adapter(config, jax.random.key(4)))
    model = join_trees(adapter, base)
    request = Request(Categorical(), (), 7, GROUP)
    drawn = generate(config, model, pad_prompts(PROMPTS, 0, V), jax.random.key(5), request)
    learner = group_log_probs(config, (GROUP, drawn.tokens.shape[1] - 7))
    difference = np.abs(np.asarray(learner(model, drawn)[0] - drawn.log_probs))
    assert difference.max() < 0.1


@pytest.mark.parametrize("learning_rate", [1e-10, 1e-8, 1e-6])
def test_updates_that_are_rounded_away_are_counted(learning_rate):
    random = np.random.default_rng(0)
    params = {"w": random.normal(size=(5, 400)), "scale": np.array(1.0), "b": np.zeros(300)}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    gradient = {name: random.normal(size=np.shape(x)).astype(np.float32) for name, x in params.items()}
    gradient["w"][:2] = 0
    optimizer = optax.sgd(learning_rate)
    state = initial_state(optimizer, jax.tree.map(jnp.asarray, params))
    told = jax.jit(partial(descend, optimizer))(state, gradient)[1]
    lost = moved = 0
    for name in params:
        for old, slope in zip(params[name].ravel(), gradient[name].ravel(), strict=True):
            lost += bool(slope) and np.float32(old - np.float32(np.float32(learning_rate) * slope)) == old
            moved += bool(slope)
    assert moved == 3 * 400 + 1 + 300
    assert 0 < lost / moved < 1 or learning_rate > 1e-8
    np.testing.assert_allclose(told["lost_updates"], lost / moved, rtol=1e-6)
    np.testing.assert_allclose(told["grad_norm"], np.sqrt(sum((x**2).sum() for x in gradient.values())), rtol=1e-6)
    assert float(descend(optax.sgd(0.0), state, gradient)[1]["lost_updates"]) == 1
    assert float(descend(optimizer, state, jax.tree.map(jnp.zeros_like, gradient))[1]["lost_updates"]) == 0
