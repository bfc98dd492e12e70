from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

from rlax_llm.models.loading import LanguageModel, load_model


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """SmolLM2-135M-Instruct in float32, loaded once for the whole run."""
    return load_model("smollm2")


@pytest.fixture(scope="module")
def float64() -> Iterator[None]:
    """Float64 for the tests of one module, and of no other."""
    with jax.enable_x64(True):
        yield
