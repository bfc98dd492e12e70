"""The cache is written where it lies: no token costs a copy of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.generation.engine import decode, unrolled
from rlax_llm.generation.ladders import one_size
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import Generation
from rlax_llm.generation.sampling import Categorical, row_keys
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder

ROWS, COLUMNS = 16, 512
CONFIG = DecoderConfig(13, 16, 16, 3, 4, 2, 16, max_positions=1024)


@pytest.fixture
def optimized():
    """As a run compiles."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("group_size", [1, 4])
def test_a_token_costs_no_copy_of_the_cache(group_size):
    """Of rows by themselves and in groups: what the program needs beside its arguments holds no layer of the cache."""
    params = init_decoder(CONFIG, jax.random.key(0))
    count = ROWS // group_size
    prompts = jnp.ones((count, 8), jnp.int32), jnp.ones((count, 8), bool)
    request = Request(Categorical(), (), COLUMNS, group_size)
    rows = row_keys(jax.random.key(0), ROWS), jnp.full(ROWS, COLUMNS, jnp.int32)
    going = Generation(CONFIG, params, prompts, rows, request, None, one_size)
    layers = unrolled(CONFIG, params)
    lowered = decode.lower(CONFIG, layers, going.prompt, going.state, np.int32(COLUMNS), request, np.int32(0), None)
    keys = sum(x.nbytes for x in jax.tree.leaves(going.state.cache[0][0]))
    needed = lowered.compile().memory_analysis().temp_size_in_bytes
    assert needed < keys, (needed, keys)
