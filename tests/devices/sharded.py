"""A function on one device and on eight, and how far the results are apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np

from rlax_llm.core.mesh import mesh
from rlax_llm.core.types import Completions
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.sharding import shardings

CONFIG = DecoderConfig(
    vocab_size=40, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
)
GROUPS, GROUP_SIZE, PROMPT, NEW = 8, 4, 5, 12
MESHES = ("fsdp=8", "data=2,fsdp=2,tensor=2")
TOLERANCE = 1e-5


def completions(seed: int = 0, groups: int = GROUPS, group_size: int = GROUP_SIZE) -> Completions:
    """Groups behind prompts padded on the left, of several lengths."""
    rng = np.random.default_rng(seed)
    rows = groups * group_size
    prompts = rng.integers(0, CONFIG.vocab_size, (groups, PROMPT))
    tokens = rng.integers(0, CONFIG.vocab_size, (rows, PROMPT + NEW)).astype(np.int32)
    tokens[:, :PROMPT] = np.repeat(prompts, group_size, 0)
    columns = np.arange(PROMPT + NEW)
    begins = np.repeat(rng.integers(0, 3, groups), group_size)
    ends = PROMPT + rng.integers(3, NEW + 1, rows)
    valid = (columns >= begins[:, None]) & (columns < ends[:, None])
    mask = valid & (columns >= PROMPT)
    log_probs = np.where(mask, -3.0 + rng.normal(size=mask.shape), 0.0).astype(np.float32)
    return Completions(tokens, valid, mask, log_probs, ends == PROMPT + NEW)


def on_mesh(sizes: str | None, run: Callable[..., Any], state: Any, *arguments: Any) -> Any:
    """``run(state, *arguments)``, jitted, on one device or on a mesh over which ``state`` lies by the rules."""
    if sizes is None:
        return jax.device_get(jax.jit(run)(state, *arguments))
    grid = mesh(sizes)
    with jax.set_mesh(grid):
        return jax.device_get(jax.jit(run)(jax.device_put(state, shardings(grid, state)), *arguments))


def check_same_everywhere(meshes: tuple[str, ...], run: Callable[..., Any], state: Any, *arguments: Any) -> Any:
    """Assert that ``run`` finds the same numbers on every mesh as on one device, and return them."""
    alone = on_mesh(None, run, state, *arguments)
    for sizes in meshes:
        chex.assert_trees_all_close(on_mesh(sizes, run, state, *arguments), alone, rtol=TOLERANCE, atol=TOLERANCE)
    return alone
