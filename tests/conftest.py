from __future__ import annotations

import ctypes
import gc
import signal
import sys
from collections.abc import Iterator

import jax
import pytest
from hypothesis import settings

from rlax_llm.models.loading import LanguageModel, load_model
from rlax_llm.models.tokenizer import Tokenizer


def give_back() -> None:
    """Freed memory to the system, where the C library would keep it for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


# What passes today passes tomorrow; `make fuzz` searches at random.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.register_profile("fuzz", deadline=None)
settings.load_profile("fixed")


@pytest.fixture
def hangups() -> Iterator[None]:
    """They are not ignored, as they are where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def pytest_collection_finish() -> None:
    """What collecting has made stays, so it is no garbage to search in at each of a tracer's many objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


LONG = {
    "test_control.py",
    "test_gguf.py",
    "test_model_loading.py",
    "test_transformers_smollm2.py",
}
"""Tests whose programs run for longer than they compile."""


@pytest.fixture(scope="module", autouse=True)
def fast_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs that run once and small need no optimization, and no file needs those of another in memory.

    The environment tells it to the commands that a test starts.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    quick = request.path.name not in LONG
    jax.config.update("jax_disable_most_optimizations", quick)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))
        yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
    gc.collect()
    give_back()


@pytest.fixture(scope="module")
def smollm2() -> LanguageModel:
    """SmolLM2-135M-Instruct in float32, in memory for the tests of one module only."""
    return load_model("smollm2")


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Tokenizer:
    """Its tokenizer, without the weights."""
    return load_model("smollm2").tokenizer


@pytest.fixture(scope="module")
def float64() -> Iterator[None]:
    """Float64 for the tests of one module, and of no other."""
    with jax.enable_x64(True):
        yield
