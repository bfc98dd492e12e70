from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.mesh import mesh
from rlax_llm.core.penalties import Penalties
from rlax_llm.generation import ladders
from rlax_llm.generation.automata import stop_automaton
from rlax_llm.generation.cache import columns_of
from rlax_llm.generation.engine import for_sampling, generate_at_once, prefill
from rlax_llm.generation.partial import behind_tokens, generate_partly, not_begun, unfinished
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate, stream
from rlax_llm.generation.sampling import Categorical
from rlax_llm.generation.slots import drawn_of, enter, resize
from rlax_llm.generation.turns import Tool, calculate, with_tools
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.sharding import placed, sampling_rules, shardings
from rlax_llm.models.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from sharded import CONFIG, PROMPT, completions

ENDS = (stop_automaton(["ab", "c"], [b"abcdef"[token % 6 :][:1] for token in range(CONFIG.vocab_size)]),)
PARAMS = init_decoder(CONFIG, jax.random.key(0))


def drawn(form, sizes, prompts, request):
    def run(params):
        return jax.device_get(form(CONFIG, params, prompts, jax.random.key(3), request))

    if sizes is None:
        return run(PARAMS)
    grid = mesh(sizes)
    with jax.set_mesh(grid):
        return run(jax.device_put(PARAMS, shardings(grid, PARAMS, sampling_rules())))


@pytest.mark.parametrize("form", [generate, generate_at_once])
@pytest.mark.parametrize(
    ("groups", "group_size"),
    [(8, 2), (2, 8), (3, 1)],
    ids=["whole groups", "parts of groups", "rows that do not divide"],
)
def test_the_same_completions_on_every_mesh(form, groups, group_size):
    """Tokens alike; log-probabilities, and the sets that were kept, to rounding."""
    found = completions(groups=groups, group_size=1)
    prompts = np.asarray(found.tokens)[:, :PROMPT], np.asarray(found.valid)[:, :PROMPT]
    request = Request(Categorical(temperature=0.8, top_k=12), (0,), 9, group_size, 2, Penalties(1.2, 0.3, 0.1), ENDS)
    alone = drawn(form, None, prompts, request)
    for sizes in ("fsdp=8", "data=2,fsdp=2,tensor=2"):
        there = drawn(form, sizes, prompts, request)
        chex.assert_trees_all_equal(there._replace(log_probs=alone.log_probs), alone)
        np.testing.assert_allclose(there.log_probs, alone.log_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", [generate, generate_at_once])
def test_narrow_weights_and_keys_draw_the_same_on_every_mesh(form):
    found = completions(groups=4, group_size=1)
    prompts = np.asarray(found.tokens)[:, :PROMPT], np.asarray(found.valid)[:, :PROMPT]
    request = Request(Categorical(temperature=0.8), (0,), 9, 4)
    narrow = replace(CONFIG, sampler_dtype="int8", cache_dtype="int8")

    def run(weights):
        return jax.device_get(form(narrow, weights, prompts, jax.random.key(3), request))

    alone = run(for_sampling(narrow, PARAMS))
    for sizes in ("fsdp=8", "data=2,fsdp=2,tensor=2"):
        with jax.set_mesh(mesh(sizes)):
            weights = for_sampling(narrow, placed(PARAMS))
            there = run(weights)
        chex.assert_trees_all_equal(there._replace(log_probs=alone.log_probs), alone)
        np.testing.assert_allclose(there.log_probs, alone.log_probs, rtol=0, atol=1e-5)
        gate = weights["layers"]["gate"]
        assert gate.values.sharding.spec == gate.scales.sharding.spec  # with their channels


def test_turns_with_a_tool_are_the_same_on_a_mesh():
    few, limit = Tokenizer.characters("12+[]{}"), 24
    shape = DecoderConfig(few.vocab_size, 16, 24, 1, 4, 2, 4, max_positions=8 + limit)
    prompts = pad_prompts([few.encode(text) for text in ("1", "1+2", "2+[", "{1}22+11")], few.pad_id, few.vocab_size)
    request = Request(Categorical(1.6), few.eos_ids, limit, 8)
    complete = with_tools(few, [Tool("sum", "[", "]", calculate)], 3, ("{", "}"))
    params, grid = init_decoder(shape, jax.random.key(2)), mesh("data=2,fsdp=2,tensor=2")
    alone = complete(shape, params, prompts, jax.random.key(9), request)
    with jax.set_mesh(grid):
        there = jax.device_put(params, shardings(grid, params, sampling_rules()))
        found = complete(shape, there, prompts, jax.random.key(9), request)
    assert (np.diff(alone.mask.astype(int)) == 1).sum() > len(alone.mask)
    chex.assert_trees_all_equal(found._replace(log_probs=alone.log_probs), alone)
    np.testing.assert_allclose(found.log_probs, alone.log_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("slots", [None, 16])
def test_rows_leave_and_enter_on_a_mesh(slots, monkeypatch):
    """Each device among its own; tokens as on one device that draws all rows to the end."""
    monkeypatch.setattr(ladders, "LEAST", 0.0)
    found = completions(groups=16, group_size=1)
    prompts = np.asarray(found.tokens)[:, :PROMPT], np.asarray(found.valid)[:, :PROMPT]
    request = Request(Categorical(1.5), (0, 1, 2), 24, 4)
    *_, state = stream(CONFIG, PARAMS, prompts, jax.random.key(3), request)
    grid = mesh("data=2,fsdp=2,tensor=2")
    with jax.set_mesh(grid):
        params = jax.device_put(PARAMS, shardings(grid, PARAMS, sampling_rules()))
        there = jax.device_get(generate(CONFIG, params, prompts, jax.random.key(3), request, slots))
    np.testing.assert_array_equal(there.tokens[:, PROMPT:], state.tokens)
    np.testing.assert_array_equal(there.mask[:, PROMPT:].sum(1), state.lengths)
    np.testing.assert_allclose(there.log_probs[:, PROMPT:], state.log_probs, rtol=0, atol=1e-5)
    assert state.lengths.min() == 1 < 20 < state.lengths.max()


@pytest.mark.parametrize("slots", [None, 8])
def test_rows_that_devices_do_not_divide_stay_or_take_turns(slots, monkeypatch):
    """Twelve rows on eight devices: all of them on each, or eight slots of which each has one."""
    monkeypatch.setattr(ladders, "LEAST", 0.0)
    found = completions(groups=16, group_size=1)
    prompts = np.asarray(found.tokens)[:12, :PROMPT], np.asarray(found.valid)[:12, :PROMPT]
    request = Request(Categorical(1.5), (0, 1, 2), 24)
    *_, state = stream(CONFIG, PARAMS, prompts, jax.random.key(3), request)
    grid = mesh("fsdp=8")
    with jax.set_mesh(grid):
        params = jax.device_put(PARAMS, shardings(grid, PARAMS, sampling_rules()))
        there = jax.device_get(generate(CONFIG, params, prompts, jax.random.key(3), request, slots))
    np.testing.assert_array_equal(there.tokens[:, PROMPT:], state.tokens)
    np.testing.assert_array_equal(there.mask[:, PROMPT:].sum(1), state.lengths)


@pytest.mark.parametrize("slots", [None, 16])
def test_completions_of_several_generations_are_the_same_on_a_mesh(slots, monkeypatch):
    """Which groups come first too, where all rows begin together."""
    monkeypatch.setattr(ladders, "LEAST", 0.0)
    found = completions(groups=16, group_size=1)
    prompts = np.asarray(found.tokens)[:, :PROMPT], np.asarray(found.valid)[:, :PROMPT]
    request = Request(Categorical(1.5), (0, 1, 2), 24, 4, penalties=Penalties(1.2, 0.3, 0.1))

    def several(params, enough):
        begun = not_begun(prompts, request)
        for wanted in enough:
            begun = jax.device_get(generate_partly(CONFIG, params, begun, jax.random.key(3), request, wanted, slots))
        return begun

    alone = {enough: several(PARAMS, enough) for enough in ((5,), (5, 16))}
    grid = mesh("data=2,fsdp=2,tensor=2")
    with jax.set_mesh(grid):
        params = jax.device_put(PARAMS, shardings(grid, PARAMS, sampling_rules()))
        there = {enough: several(params, enough) for enough in alone}
    compared = alone if slots is None else [(5, 16)]
    for enough in compared:
        np.testing.assert_array_equal(there[enough].mask, alone[enough].mask)
        np.testing.assert_array_equal(there[enough].tokens, alone[enough].tokens)
        np.testing.assert_allclose(there[enough].log_probs, alone[enough].log_probs, rtol=0, atol=1e-5)
    assert 5 < unfinished(alone[5,], 24).sum() < 40


def test_rows_that_leave_and_enter_send_no_keys():
    """Of what is compiled on eight devices nothing gathers, permutes or exchanges."""
    slides = replace(CONFIG, window=10, sliding=(True, False))  # and so some layers keep a ring
    request, rows = Request(Categorical(), (0,), 24, 2), 32
    tokens, valid = np.ones((rows // 2, PROMPT), np.int32), np.ones((rows // 2, PROMPT), bool)
    with jax.set_mesh(mesh("fsdp=8")):
        prompt, state = prefill(slides, PARAMS, tokens, valid, jax.random.key(0), request, 24)
        fewer = jax.jit(resize, static_argnums=(2, 3)).lower(prompt, state, 16, columns_of(state.cache)).compile()
        alone = fewer(prompt, state)
        fresh = prefill(slides, PARAMS, tokens[:8], valid[:8], jax.random.key(0), request, 0)
        entered = jax.jit(enter).lower(*alone, *fresh, jnp.arange(16)).compile()
        single = request._replace(group_size=1)
        behind = np.pad(tokens, ((0, 0), (0, 3))), np.pad(valid, ((0, 0), (0, 3)), constant_values=True)
        read = prefill(slides, PARAMS, *behind, jax.random.key(0), single, 0)
        begun = behind_tokens(slides, *read, tokens, drawn_of(read[1]), single)
        again = jax.jit(enter).lower(*alone, *begun, jnp.arange(16)).compile()
    for program in (fewer, entered, again):
        assert not re.findall(r"all-gather\(|all-to-all\(|collective-permute\(", program.as_text())
