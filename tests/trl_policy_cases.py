"""Policy losses as TRL computes them: what ``tests/parity`` runs live, and ``test_golden.py`` reads from a file."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import PolicyBatch
from rlax_llm.policy.objectives import policy_loss
from rlax_llm.recipes import trl

GOLDEN = Path(__file__).parent / "golden" / "trl_policy.json"
ROWS, COLUMNS, LIMIT = 6, 7, 11


def prepared(empty_row: bool):
    """Log-probabilities off policy by enough to clip on both sides, ragged masks, perhaps a row filtered out."""
    random = np.random.default_rng(0)
    log_probs = -random.gamma(2.0, size=(ROWS, COLUMNS))
    mask = np.arange(COLUMNS) < np.array([7, 3, 5, 1, 6, 0 if empty_row else 4])[:, None]
    old, ref = (log_probs + 0.3 * random.normal(size=log_probs.shape) for _ in range(2))
    return log_probs, old, ref, mask, random.normal(size=ROWS)


def ours(objective, data) -> tuple[float, np.ndarray]:
    log_probs, old, ref, mask, advantages = (jnp.asarray(x) for x in data)
    spread = jnp.broadcast_to(advantages[:, None], mask.shape)

    def loss(current):
        batch = PolicyBatch(current, old, spread, mask, objective.weighting(mask).astype(jnp.float64), ref)
        return policy_loss(objective, batch)[0]

    value, gradient = jax.value_and_grad(loss)(log_probs)
    return float(value), np.asarray(gradient)


SEQUENCE = {"importance_sampling_level": "sequence"}
CASES = {
    "dapo": (trl.grpo(), {}),
    "clip higher": (trl.grpo(eps_high=0.28), {"epsilon_high": 0.28}),
    "delta": (trl.grpo(delta=1.5), {"delta": 1.5}),
    "kl": (trl.grpo(kl_coef=0.04), {"beta": 0.04}),
    "corrected kl": (trl.grpo_corrected_kl(0.04), {"beta": 0.04, "use_bias_correction_kl": True}),
    "grpo": (trl.grpo_sequence_mean(), {"loss_type": "grpo"}),
    "bnpo": (trl.grpo(), {"loss_type": "bnpo"}),
    "dr_grpo": (trl.dr_grpo(LIMIT), {"loss_type": "dr_grpo"}),
    "gspo": (trl.gspo(3e-4, 4e-4), {"loss_type": "grpo", "epsilon_low": 3e-4, "epsilon_high": 4e-4, **SEQUENCE}),
    "luspo": (trl.luspo(0.2), {"loss_type": "luspo", **SEQUENCE}),
    "sapo": (trl.sapo(), {"loss_type": "sapo"}),
    "cispo": (trl.cispo(1.2), {"loss_type": "cispo", "epsilon_high": 1.2}),
    "vespo": (trl.vespo(), {"loss_type": "vespo"}),
    "rloo": (trl.rloo(kl_coef=0.0), {}),
    "gmpo": (trl.gmpo(0.3, 0.4, 0.04), {"epsilon_low": 0.3, "epsilon_high": 0.4, "beta": 0.04}),
}
# Their losses write log π where ours write the log-ratio: the same gradient, another value.
SCORE_FUNCTIONS = ("cispo", "vespo")
OF_COMPLETIONS = ("rloo", "gmpo")


def key_of(name: str, empty_row: bool) -> str:
    return f"{name}, a row filtered out" if empty_row else name


def golden(name: str, empty_row: bool) -> tuple[float, np.ndarray]:
    """Loss and gradient as ``tests/parity/write_golden.py`` wrote them."""
    case = json.loads(GOLDEN.read_text())[key_of(name, empty_row)]
    return case["loss"], np.asarray(case["gradient"])


def assert_equal(name: str, empty_row: bool, value: float, gradient: np.ndarray) -> None:
    data = prepared(empty_row)
    loss, slope = ours(CASES[name][0], data)
    np.testing.assert_allclose(slope, gradient, rtol=0, atol=1e-7)
    assert np.abs(gradient).max() > 1e-4
    if name in OF_COMPLETIONS and empty_row:
        # An empty row is worth −A there, and nothing here: no parameter moves it.
        value += data[-1][-1] / ROWS
    if name not in SCORE_FUNCTIONS:
        assert loss == pytest.approx(value, abs=1e-7)
