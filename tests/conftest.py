from __future__ import annotations

import os
from collections.abc import Iterator

import jax
import pytest

from rlax_llm.models.loading import LanguageModel, load_model

SMALL = ("tests", "data", "rewards", "envs")
"""Directories whose programs run in less time than they compile in."""


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A program that several tests, processes of pytest or commands build anew is compiled once."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "jax"
    for name, value in (("compilation_cache_dir", str(cache)), ("persistent_cache_min_compile_time_secs", 0.2)):
        jax.config.update(f"jax_{name}", value)
        os.environ[f"JAX_{name.upper()}"] = str(value)


@pytest.fixture(scope="module", autouse=True)
def fast_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs that run once and small need no optimisation: those of the equations, of experiments and of doctests."""
    before = jax.config.read("jax_disable_most_optimizations")
    first = request.path.relative_to(request.config.rootpath).parts[0]
    small = first == "rlax_llm" or request.path.parent.name in SMALL
    jax.config.update("jax_disable_most_optimizations", small)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """SmolLM2-135M-Instruct in float32, loaded once for the whole run."""
    return load_model("smollm2")


@pytest.fixture(scope="module")
def float64() -> Iterator[None]:
    """Float64 for the tests of one module, and of no other."""
    with jax.enable_x64(True):
        yield
