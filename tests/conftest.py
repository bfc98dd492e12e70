from __future__ import annotations

import pytest

from rlax_llm.models.loading import LanguageModel, load_model


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """SmolLM2-135M-Instruct in float32, loaded once for the whole run."""
    return load_model("smollm2")
