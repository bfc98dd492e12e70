"""DPO's losses as TRL computes them: what ``tests/parity`` runs live, and ``test_golden.py`` reads from a file."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.policy.weightings import token_mean
from rlax_llm.preference import links
from rlax_llm.preference.implicit_rewards import Responses, mean_log_ratio
from rlax_llm.preference.pairs import PreferenceBatch, on_policy_weights, pair_mean, per_response, preference_loss
from rlax_llm.recipes.preference import aot, dpo, ipo, sppo

GOLDEN = Path(__file__).parent / "golden" / "trl_preferences.json"
PAIRS, TOKENS = 4, 6
BETA = 0.3
SMOOTHED = links.smooth_labels(links.logistic, 0.1)


def masks(seed: int, rows: int) -> np.ndarray:
    """One to six tokens, not all from the start; column 0 of TRL's masks, the first token, has no log-probability."""
    random = np.random.default_rng(seed)
    starts, lengths = random.integers(0, 2, rows), random.integers(1, TOKENS - 1, rows)
    positions = np.arange(TOKENS)
    return (positions >= starts[:, None]) & (positions < (starts + lengths)[:, None])


def numbers(seed: int, mask: np.ndarray, dtype=np.float64) -> tuple[np.ndarray, np.ndarray]:
    log_probs, ref_log_probs = -np.random.default_rng(seed).exponential(size=(2, *mask.shape)).astype(dtype)
    return np.where(mask, log_probs, 0), np.where(mask, ref_log_probs, 0)


DPO = {
    "sigmoid": (dpo(BETA), {}),
    "hinge": (dpo(BETA)._replace(link=links.hinge), {}),
    "ipo": (ipo(BETA), {}),
    "exo_pair": (dpo(BETA)._replace(link=links.exo(0.1)), {"label_smoothing": 0.1}),
    "nca_pair": (dpo(BETA)._replace(link=links.nca), {}),
    "robust": (dpo(BETA)._replace(link=links.robust(links.logistic, 0.1)), {"label_smoothing": 0.1}),
    "bco_pair": (dpo(BETA)._replace(link=links.compare_with_zero(links.logistic)), {}),
    "sppo_hard": (sppo(BETA), {}),
    "aot": (aot(BETA)._replace(link=links.sorted_pairs(SMOOTHED)), {"label_smoothing": 0.1}),
    "aot_unpaired": (
        dpo(BETA)._replace(link=links.sorted_pairs(SMOOTHED)),
        {"label_smoothing": 0.1},
    ),
    "apo_zero": (dpo(BETA)._replace(link=links.compare_with_zero(links.misranking)), {}),
    "apo_down": (dpo(BETA)._replace(link=links.apo_down), {}),
    "discopop": (dpo(BETA)._replace(link=links.discopop(0.05)), {}),
    "sigmoid_norm": (dpo(BETA)._replace(rewards=per_response(mean_log_ratio(BETA))), {}),
    "sft": (dpo(BETA)._replace(link=lambda chosen, rejected: 0 * chosen, nll_coef=1.0), {}),
}


def ours(preference, mask: np.ndarray, log_probs: np.ndarray, ref_log_probs: np.ndarray, collisions=None):
    chosen, rejected = mask[:PAIRS], mask[PAIRS:]
    weights = pair_mean(jnp.asarray(chosen), jnp.asarray(rejected))
    if collisions is not None:
        aligned = on_policy_weights(log_probs, collisions, jnp.asarray(mask))
        weights = weights * aligned[:PAIRS] * aligned[PAIRS:]

    def loss(x: jax.Array):
        sides = [Responses(x[rows], mask[rows], ref_log_probs[rows]) for rows in (np.s_[:PAIRS], np.s_[PAIRS:])]
        return preference_loss(preference, PreferenceBatch(*sides, weights, None, token_mean(jnp.asarray(chosen))))

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(log_probs))
    return value, gradient, metrics


def assert_same(ours, theirs, bound: float = 1e-6) -> None:
    np.testing.assert_allclose(ours[0], theirs[0], rtol=bound, atol=bound)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=bound, atol=bound)
    assert np.abs(theirs[1]).max() > 1e-3


def golden(loss_type: str) -> tuple[float, np.ndarray]:
    """Loss and gradient of seed 0 as ``tests/parity/write_golden.py`` wrote them."""
    case = json.loads(GOLDEN.read_text())[loss_type]
    return case["loss"], np.asarray(case["gradient"])
