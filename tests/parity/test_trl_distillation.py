"""Divergences of distillation against TRL's own loss of GKD, on the logits that hidden states and heads make."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl.experimental.gkd import GKDTrainer

from rlax_llm.core.divergences import Predictions, jensen_shannon, token_divergences

pytestmark = pytest.mark.usefixtures("float64")

ROWS, LENGTH, V = 3, 7, 41


def prepared() -> tuple[np.ndarray, ...]:
    """Hidden states and heads of both models, and which tokens count."""
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(ROWS, LENGTH, 6)), random.normal(size=(ROWS, LENGTH, 5))
    heads = random.normal(size=(V, 6)), random.normal(size=(V, 5))
    mask = random.random((ROWS, LENGTH)) < 0.7
    mask[1] = False  # a row without a token to learn from
    return student, teacher, *heads, mask


def theirs(beta: float, temperature: float) -> list[np.ndarray]:
    student, teacher, *heads, mask = prepared()
    hidden, head = (torch.tensor(x, requires_grad=True) for x in (student, heads[0]))
    labels = torch.tensor(np.where(mask, 0, -100))
    logits = torch.tensor(teacher) @ torch.tensor(heads[1]).T
    loss = GKDTrainer.generalized_jsd_loss(hidden @ head.T, logits, labels, beta, temperature)
    loss.backward()
    return [loss.detach().numpy(), hidden.grad.numpy(), head.grad.numpy()]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_loss_of_gkd_and_its_gradients_are_trls(beta, temperature):
    student, teacher, *heads, mask = prepared()

    def loss(hidden, head):
        flat = hidden.reshape(-1, hidden.shape[-1])
        other = Predictions(jnp.asarray(teacher.reshape(-1, 5)), jnp.asarray(heads[1]), temperature)
        found = token_divergences(Predictions(flat, head, temperature), other, jensen_shannon(beta))
        return jnp.where(mask, found.reshape(mask.shape), 0.0).sum() / mask.sum()

    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(student), jnp.asarray(heads[0]))
    for found, wanted in zip((value, *slopes), theirs(beta, temperature), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
        assert np.abs(wanted).max() > 1e-3
