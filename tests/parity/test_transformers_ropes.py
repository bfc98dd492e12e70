"""The frequencies of rotary embeddings against transformers' own, of what its config.json says of them."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.families import FAMILIES
from rlax_llm.models.fields import told
from rlax_llm.models.ropes import DynamicRope, LongRope, Rope, magnitude_of

SIZES: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 32,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "original_max_position_embeddings": 32,
}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
TURNS = {"beta_fast": 4.0, "beta_slow": 0.5}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama 3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 0.5,
        "high_freq_factor": 3.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": YARN,
    "yarn, no factor": YARN | {"factor": None},
    "yarn, other turns": YARN | TURNS,
    "yarn, not truncated": YARN | TURNS | {"truncate": False},
    "yarn, a magnitude": YARN | {"attention_factor": 1.5},
    "yarn, two scales": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4},
    "longrope": LONG,
    "longrope, a factor": LONG | {"factor": 16.0},
    "longrope, a magnitude": LONG | {"attention_factor": 1.5},
}


def of_ours(said: dict[str, Any]) -> DecoderConfig:
    return DecoderConfig(**FAMILIES["llama"].shape(told(SIZES | {"rope_parameters": {"rope_theta": 5e3, **said}})))


def assert_frequencies_of_transformers(config: DecoderConfig, said: dict[str, Any], length: int | None) -> None:
    theirs = LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5e3, **said})
    wanted, magnitude = ROPE_INIT_FUNCTIONS[said["rope_type"]](theirs, "cpu", seq_len=length)
    np.testing.assert_allclose(config.rope.frequencies(16), wanted.numpy(), rtol=2e-6)
    assert magnitude_of(config.rope_scaling) == pytest.approx(magnitude, rel=1e-6)


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_and_magnitudes_are_those_of_transformers(name):
    said = ROPES[name]
    config = of_ours(said)
    if not isinstance(config.rope_scaling, LongRope):
        assert_frequencies_of_transformers(config, said, None)
        return
    assert_frequencies_of_transformers(config, said, 32)
    longer = replace(config, rope_scaling=replace(config.rope_scaling, max_positions=256), max_positions=256)
    assert_frequencies_of_transformers(longer, said, 256)


def other(value: Any) -> Any:
    """Another one in a number's place."""
    if isinstance(value, bool):
        return not value
    return value[::-1] if isinstance(value, tuple) else 2 * value


def test_each_number_of_a_scaling_matters_in_some_configuration():
    """One that no frequency and no magnitude depends on would be compared with nothing."""
    said = [of_ours(each).rope_scaling for each in ROPES.values()]
    said += [replace(scaling, max_positions=48) for scaling in said if isinstance(scaling, LongRope)]
    plain = Rope(5e3).frequencies(16)
    seen = set()
    for scaling in said:
        for field in dataclasses.fields(scaling):
            turned = replace(scaling, **{field.name: other(getattr(scaling, field.name))})
            if np.abs(turned(plain) - scaling(plain)).max() > 1e-4 or magnitude_of(turned) != magnitude_of(scaling):
                seen.add((type(scaling), field.name))
    every = {(kind, field.name) for kind in {type(scaling) for scaling in said} for field in dataclasses.fields(kind)}
    # Below the length that was trained its factor changes nothing, and longer sequences are refused.
    assert every - seen == {(DynamicRope, "factor")}
