"""What loops read of a decoder, and its gradient, on one device and over a mesh; and a run that samples for itself."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm import recipes
from rlax_llm.core import vocabulary as chunks
from rlax_llm.core.buckets import top_token_divergences, top_tokens
from rlax_llm.core.divergences import Predictions, forward_kl, jensen_shannon, token_divergences
from rlax_llm.core.mesh import mesh
from rlax_llm.core.penalties import NONE, Penalties
from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Room
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.group import group_loop
from rlax_llm.loops.language import Prompts, dynamic_sampling, fresh_sampling, language_loop, stale_sampling
from rlax_llm.models.config import Clamped, Experts, Lora
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.lora import init_adapter
from rlax_llm.models.packing import Packed, packed_log_probs
from rlax_llm.models.ropes import Rope
from rlax_llm.models.scalar import init_scalar, sequence_scores, token_values
from rlax_llm.models.scoring import group_log_probs, group_logits, in_room, row_log_probs
from rlax_llm.models.sharding import check_divides, shardings

sys.path.insert(0, str(Path(__file__).parent))
from sharded import CONFIG, GROUP_SIZE, NEW, PROMPT, check_same_everywhere, completions, on_mesh

MESH = "data=2,fsdp=2,tensor=2"
LAYOUT = (GROUP_SIZE, PROMPT)
PARAMS = init_decoder(CONFIG, jax.random.key(0))
VALUE = init_scalar(PARAMS, jax.random.key(2))
ODD = replace(CONFIG, vocab_size=39, hidden_size=30, intermediate_size=66)
SWITCHES = replace(
    CONFIG,
    window=4,
    sliding=(True, False),
    local_rope=Rope(100.0),
    norms="both",
    qk_norm="width",
    biases=("q", "o", "gate", "down"),
    attention_cap=3.0,
    sinks=True,
    logit_cap=4.0,
    logit_divisor=0.5,
)
EXPERTS = replace(CONFIG, experts=Experts(8, 3, 16, shared=True, biased=True, clamped=Clamped(limit=0.5)))
SOME = Penalties(1.4, 0.3, 0.2)
LORA = replace(CONFIG, lora=Lora(3, 6.0, ("q", "o", "down"), tokens=(2, CONFIG.vocab_size - 1)))
ADAPTER = jax.tree.map(lambda x: x + 0.05, init_adapter(LORA, jax.random.key(3), base=PARAMS))


def packed():
    """The prompt is one demonstration, and what follows another."""
    rows = completions()
    segments = np.where(rows.valid, 1 + (np.arange(PROMPT + NEW) >= PROMPT), 0).astype(np.int32)
    return Packed(*rows, segments=segments)


ROOM = Room(8 * int(completions().valid[:, PROMPT:].reshape(8, -1).sum(1).max()))
"""For the completions of the device that has most of them, on each."""


def slope(read, frozen=None):
    """What ``read`` says of rows, and the gradient of a sum over it that weighs each place of its own."""

    def run(params, rows):
        def total(params):
            found = read(join_trees(params, frozen), rows)
            found = found[0] + found[1] if isinstance(found, tuple) else found
            places = jnp.cos(jnp.arange(found.size, dtype=found.dtype)).reshape(found.shape)
            return (places * found).sum() / found.size, found

        return jax.value_and_grad(total, has_aux=True)(params)

    return run


def begun(config):
    return init_decoder(config, jax.random.key(0))


READ = {
    "rows": lambda: (row_log_probs(CONFIG), PARAMS, completions()),
    "without padding": lambda: (group_log_probs(CONFIG, LAYOUT), PARAMS, in_room(completions(), ROOM)),
    "packed": lambda: (packed_log_probs(CONFIG), PARAMS, packed()),
    "penalties": lambda: (row_log_probs(CONFIG, penalties=SOME), PARAMS, completions()),
    "logits": lambda: (group_logits(CONFIG, LAYOUT), PARAMS, completions()),
    "values": lambda: (token_values(CONFIG, LAYOUT), VALUE, completions()),
    "scores": lambda: (sequence_scores(CONFIG, (2, PROMPT)), VALUE, completions(0, 16, 2)),
    "every switch": lambda: (
        group_log_probs(SWITCHES, LAYOUT),
        init_decoder(SWITCHES, jax.random.key(0)),
        completions(),
    ),
    "experts": lambda: (group_log_probs(EXPERTS, LAYOUT), init_decoder(EXPERTS, jax.random.key(0)), completions()),
    "axes that divide nothing": lambda: (
        group_log_probs(ODD, LAYOUT),
        init_decoder(ODD, jax.random.key(0)),
        completions()._replace(tokens=completions().tokens % ODD.vocab_size),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_of_rows_and_its_gradient_are_the_same(name):
    read, params, rows = READ[name]()
    _, gradient = check_same_everywhere((MESH,), slope(read), params, rows)
    assert np.abs(gradient["embed"]).max() > 1e-3


def test_an_adapters_gradient_is_the_same():
    _, gradient = check_same_everywhere((MESH,), slope(group_log_probs(LORA, LAYOUT), PARAMS), ADAPTER, completions())
    assert np.abs(gradient["layers"]["q_lora_b"]).max() > 1e-3
    assert np.abs(gradient["embed_rows"]).min(1).max() > 1e-4


def test_rows_of_tokens_that_are_trained_move_no_other_tokens_between_devices(capfd):
    """Of a table that is the head too: XLA says where it gathers what it could not lay otherwise."""
    config = replace(CONFIG, tie_embeddings=True, lora=Lora(1, 1.0, ("q",), tokens=(1, 2, 3)))
    params = init_decoder(replace(CONFIG, tie_embeddings=True), jax.random.key(0))
    adapter = init_adapter(config, jax.random.key(3), base=params)

    def run(state, rows):
        return slope(row_log_probs(config), state["base"])(state["adapter"], rows)

    state = {"base": params, "adapter": adapter}
    _, gradient = check_same_everywhere(("data=2,fsdp=4",), run, state, completions())
    assert np.abs(gradient["embed_rows"]).max() > 1e-3
    assert "rematerialization" not in capfd.readouterr().err


def test_bfloat16_differs_by_its_rounding():
    """A product's sum over a split dimension is rounded once on every device: at 8 bits, not at 24."""
    narrow = replace(CONFIG, compute_dtype="bfloat16")
    run = slope(group_log_probs(narrow, LAYOUT))
    alone, there = (on_mesh(sizes, run, PARAMS, completions()) for sizes in (None, MESH))
    full = on_mesh(None, slope(group_log_probs(CONFIG, LAYOUT)), PARAMS, completions())

    def apart(one, other):
        return max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), one, other)))

    assert apart(there, alone) <= apart(alone, full)  # no farther than one device is from float32
    assert apart(alone, full) < 0.1


@pytest.mark.parametrize("size", [40, 39])
def test_divergences_and_their_gradients_are_the_same(size):
    """Two models over one vocabulary, which the mesh's axis of tensors divides or not."""
    random = np.random.default_rng(0)

    def drawn(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    heads, hidden, teacher = {"head": drawn(size, 32), "teacher": drawn(size, 16)}, drawn(48, 32), drawn(48, 16)

    def run(heads, hidden, teacher):
        other = Predictions(teacher, heads["teacher"], 0.8)
        top = top_tokens(other, 5)

        def total(hidden, head):
            own = Predictions(hidden, head, 0.8)
            found = token_divergences(own, other, jensen_shannon(0.3)), top_token_divergences(own, top, forward_kl)
            return sum((jnp.cos(jnp.arange(48.0)) * x).mean() for x in found), found

        return top, jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, heads["head"])

    _, (_, slopes) = check_same_everywhere((MESH,), run, heads, hidden, teacher)
    assert all(np.abs(slope).max() > 1e-3 for slope in slopes)


@pytest.mark.parametrize("penalties", [NONE, SOME])
def test_no_program_of_a_learner_holds_all_logits(monkeypatch, penalties):
    """Where rows are taken in chunks, no array has a row's logits for all rows of a device, whole or split."""
    monkeypatch.setattr(chunks, "ROWS_OF_A_CHUNK", 8)
    monkeypatch.setattr(chunks, "LOGITS", 1)
    vocabulary = 2 * 311
    config = replace(CONFIG, vocab_size=vocabulary)
    params = init_decoder(config, jax.random.key(0))
    grid = mesh(MESH)
    with jax.set_mesh(grid):
        placed = jax.device_put(params, shardings(grid, params))
        text = (
            jax.jit(slope(group_log_probs(config, LAYOUT, penalties=penalties)))
            .lower(placed, completions())
            .compile()
            .as_text()
        )
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"\b\w+\[(\d+(?:,\d+)*)\]", text)}
    of_words = {shape for shape in shapes if set(shape) & {vocabulary, vocabulary // 2}}
    assert (8, vocabulary // 2) in of_words
    largest = CONFIG.hidden_size * vocabulary // 2  # the head's own part, whole along fsdp
    assert {shape for shape in of_words if prod(shape) > largest} == set()


def test_heads_that_tensor_does_not_divide_are_refused():
    with (
        jax.set_mesh(mesh("fsdp=2,tensor=4")),
        pytest.raises(ValueError, match=r"mesh has tensor=4, which does not divide the 2 key heads"),
    ):
        check_divides("here", CONFIG)


def sampling():
    """Scored by the first token that is drawn."""
    rows = completions()
    prompts = Prompts(rows.tokens[:, :PROMPT], rows.valid[:, :PROMPT], rows.tokens[:, PROMPT])

    def even(rows, wanted):
        return ((rows.tokens[:, PROMPT] + wanted) % 4 == 0).astype(jnp.float32)

    return fresh_sampling(CONFIG, prompts, even, Request(Categorical(), (0,), 5, GROUP_SIZE), 8)


@pytest.mark.parametrize("sizes", ["fsdp=8", MESH])
def test_a_run_gathers_each_matrix_before_it_samples_and_not_at_every_token(sizes):
    over = mesh(sizes)
    with jax.set_mesh(over):
        placed = jax.device_put(PARAMS, shardings(over, PARAMS))
        drawn = jax.jit(lambda params, key: sampling().collect((), params, key, 0)[1])
        text = drawn.lower(placed, jax.random.key(0)).compile().as_text()
    called, entry = text.split("\nENTRY ")  # what loops run is called
    assert "all-gather(" in entry
    assert not re.findall(r"all-gather\(|all-to-all\(|collective-permute\(", called)


def test_a_run_that_samples_for_itself_is_the_same():
    """Stale parameters, groups thrown away and kept for later, in one program."""
    update = group_loop(group_log_probs(CONFIG, LAYOUT), recipes.dapo(), optax.sgd(0.5))
    init, step = language_loop(dynamic_sampling(stale_sampling(sampling(), 2), 3), update)

    def run(state, keys):
        state, metrics = jax.lax.scan(step, state, keys)
        # How many weights a step leaves as they were hangs on the last bit of each; the weights are compared.
        return state.learner, {name: x for name, x in metrics.items() if name != "lost_updates"}

    keys = jax.random.split(jax.random.key(1), 3)
    learner, metrics = check_same_everywhere((MESH,), run, init(PARAMS), keys)
    assert metrics["sampling/rounds"].max() > 1
    assert metrics["reward_std"].min() > 0
    chex.assert_trees_all_equal(learner.step, np.int32(3))
