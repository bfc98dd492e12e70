"""Batches of pairs for tests, and what the papers read of them, with Python's own loops."""

from __future__ import annotations

import math

import jax
import numpy as np

from rlax_llm.preference.implicit_rewards import Responses
from rlax_llm.preference.pairs import Preference, PreferenceBatch, preference_loss

PAIRS, CHOSEN, REJECTED = 4, 5, 3  # the two sides need not be padded to one length


def log_sigma(x: float) -> float:
    return -math.log(1 + math.exp(-x))


class Pair:
    """One pair as the papers see it: sums, lengths and means."""

    def __init__(self, batch: PreferenceBatch, b: int, tail_coef: float = 1.0):
        sides = [batch.chosen, batch.rejected]
        lengths = [int(np.sum(side.mask[b])) for side in sides]
        self.length_w, self.length_l = lengths
        self.w, self.l, self.ref_w, self.ref_l = (
            self.total(x[b], side.mask[b], min(lengths), tail_coef)
            for which in ("log_probs", "ref_log_probs")
            for side in sides
            for x in [getattr(side, which)]
        )

    @staticmethod
    def total(row, mask, shared: int, tail_coef: float) -> float:
        chosen = [float(x) for x, keep in zip(row, mask) if keep]
        return sum(chosen[:shared]) + tail_coef * sum(chosen[shared:])

    @property
    def delta(self) -> float:
        return (self.w - self.ref_w) - (self.l - self.ref_l)

    @property
    def mean_delta(self) -> float:
        return (self.w - self.ref_w) / self.length_w - (self.l - self.ref_l) / self.length_l

    @property
    def mean_margin(self) -> float:
        return self.w / self.length_w - self.l / self.length_l


def batch_of(seed: int = 0, rows: int = PAIRS) -> PreferenceBatch:
    random = np.random.default_rng(seed)
    sides = []
    for width in (CHOSEN, REJECTED):
        mask = np.arange(width) < random.integers(1, width + 1, (rows, 1))
        log_probs, ref_log_probs = -random.exponential(0.7, size=(2, rows, width)) - 0.01
        sides.append(Responses(log_probs, mask, ref_log_probs))
    return PreferenceBatch(*sides, np.full(rows, 1 / rows))


def rows_of(batch: PreferenceBatch, rows) -> PreferenceBatch:
    return jax.tree.map(lambda x: np.asarray(x)[rows], batch)


def numeric_gradient(function, x: np.ndarray, width: float = 1e-6) -> np.ndarray:
    """Central differences; ``function`` reads ``x`` through the batch that holds it."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + width
        up = function()
        x[index] = kept - width
        gradient[index] = (up - function()) / (2 * width)
        x[index] = kept
    return gradient


def loss_of(log_probs: tuple[jax.Array, jax.Array], batch: PreferenceBatch, preference: Preference):
    chosen, rejected = batch.chosen._replace(log_probs=log_probs[0]), batch.rejected._replace(log_probs=log_probs[1])
    return preference_loss(preference, batch._replace(chosen=chosen, rejected=rejected))
