from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm import recipes
from rlax_llm.core.log_probs import token_log_probs
from rlax_llm.core.mesh import mesh
from rlax_llm.core.token_sets import to_bits
from rlax_llm.core.types import Groups
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.models.sharding import shardings

sys.path.insert(0, str(Path(__file__).parent))
from sharded import CONFIG, GROUP_SIZE, GROUPS, MESHES, PROMPT, check_same_everywhere, completions

PARAMS = init_decoder(CONFIG, jax.random.key(0))


def groups(several: int | None = None) -> Groups:
    shape = (GROUPS, GROUP_SIZE) if several is None else (several, GROUPS, GROUP_SIZE)
    return Groups(completions(), np.random.default_rng(1).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize(
    ("objective", "learning"),
    [
        (recipes.grpo(kl_coef=0.1), GroupLearning()),
        (recipes.dapo(), GroupLearning(epochs=2, minibatches=2, micro_batches=2, entropy_coef=0.01)),
        (recipes.gspo(), GroupLearning(micro_batches=4)),
    ],
    ids=["grpo", "dapo-epochs", "gspo-parts-of-groups"],
)
def test_two_steps_of_group_learning(objective, learning):
    log_probs = group_log_probs(CONFIG, (GROUP_SIZE, PROMPT), remat=True)
    init, step = group_loop(log_probs, objective, optax.sgd(0.5), learning)

    def run(state, batch, reference):
        def taken(state, key):
            return step(state, batch, key=key, reference=reference)

        return jax.lax.scan(taken, state, jax.random.split(jax.random.key(0)))

    reference = PARAMS if objective.kl is not None else None
    state, _ = check_same_everywhere(MESHES, run, init(PARAMS), groups(), reference)
    assert np.abs(state.params["embed"] - PARAMS["embed"]).max() > 1e-2


@pytest.mark.parametrize("vocabulary", [40, 39], ids=["split", "whole"])
@pytest.mark.parametrize("kept", [None, "sets", "floors"])
def test_log_probs_over_a_split_vocabulary(vocabulary, kept):
    """With a vocabulary that ``tensor`` divides, and one that it does not."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(48, 16)).astype(np.float32)
    targets = rng.integers(0, vocabulary, 48)
    bias = rng.normal(size=vocabulary).astype(np.float32)
    given = {
        None: None,
        "sets": np.asarray(to_bits(rng.random((48, vocabulary)) < 0.5)),
        "floors": np.full(48, -4.0, np.float32),
    }[kept]

    def run(params, hidden, targets):
        def total(head, hidden, temperature):
            log_probs, entropy = token_log_probs(hidden, head, targets, temperature, given, bias)
            return (log_probs * jnp.arange(48.0) / 48 + entropy / 48).sum(), (log_probs, entropy)

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(params["head"], hidden, 0.7)

    head = rng.normal(size=(vocabulary, 16)).astype(np.float32)
    check_same_everywhere(("fsdp=8", "data=2,tensor=4"), run, {"head": head}, hidden, targets)


def test_the_state_lies_by_the_rules_and_its_programs_gather_each_matrix_once_a_use():
    init, step = group_loop(group_log_probs(CONFIG, (GROUP_SIZE, PROMPT)), recipes.grpo(0.0), optax.adam(1e-3))
    grid = mesh("fsdp=4,tensor=2")
    with jax.set_mesh(grid):
        state = init(PARAMS)
        placed = jax.device_put(state, shardings(grid, state))
        where = shardings(grid, state)
        assert where.opt_state[0].mu["layers"]["q"].spec == where.params["layers"]["q"].spec
        assert placed.params["layers"]["q"].addressable_shards[0].data.shape == (2, 8, 16)
        program = jax.jit(step, out_shardings=(where, None)).lower(placed, groups()).compile()
    moved = Counter(re.findall(r"= \S+ (all-gather|all-to-all|collective-permute)", program.as_text()))
    assert not moved["all-to-all"]
    assert not moved["collective-permute"]
    matrices_of_a_layer, passes = 7, 3  # of prompts and of completions, and back
    assert moved["all-gather"] <= passes * (matrices_of_a_layer + 3)
