"""How tests and doctests compile: programs that run once and small need no optimization."""

from __future__ import annotations

import os

import jax
import jaxlib
import pytest

FAST = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""Options with which small programs compile in 40 % of the processor time. XLA ends the process at one it lacks."""


# Read when the first program is compiled, in commands that the tests start too.
if jaxlib.__version__.startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{FAST} {os.environ.get('XLA_FLAGS', '')}".strip()

jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A program that several tests, processes of pytest or commands build anew is compiled once.

    With ``JAX_COMPILATION_CACHE_DIR`` set, also once for all runs of the tests.
    """
    base = tmp_path_factory.getbasetemp()
    own = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "jax"
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", own)
    for name, value in (("compilation_cache_dir", str(cache)), ("persistent_cache_min_compile_time_secs", 0.05)):
        jax.config.update(f"jax_{name}", value)
        os.environ[f"JAX_{name.upper()}"] = str(value)
