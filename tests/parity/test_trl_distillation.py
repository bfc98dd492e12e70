"""Losses of distillation against TRL's own of GKD, SDFT and SDPO, on the logits that hidden states and heads make."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl.experimental.gkd import GKDTrainer
from trl.experimental.sdft import loss_utils as of_sdft
from trl.experimental.sdpo import loss_utils as of_sdpo

from rlax_llm.core.divergences import Predictions, jensen_shannon, token_divergences
from rlax_llm.core.types import PolicyBatch
from rlax_llm.policy.objectives import policy_loss
from rlax_llm.policy.weightings import token_mean
from rlax_llm.recipes import distillation as recipes

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


def of_gkd(student, teacher, mask, beta, temperature):
    labels = torch.tensor(np.where(mask, 0, -100))
    return GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)


def of_self(student, teacher, mask, beta, temperature):
    logits = student / temperature, teacher / temperature
    found = of_sdft.compute_full_logit_self_distillation_loss(*logits, distillation_alpha=beta)
    return (found * torch.tensor(mask)).sum() / mask.sum()


def theirs(trainer, *given) -> list[np.ndarray]:
    student, teacher, *heads, mask = prepared()
    hidden, head = (torch.tensor(x, requires_grad=True) for x in (student, heads[0]))
    logits = torch.tensor(teacher) @ torch.tensor(heads[1]).T
    loss = trainer(hidden @ head.T, logits, mask, *given)
    loss.backward()
    return [loss.detach().numpy(), hidden.grad.numpy(), head.grad.numpy()]


@pytest.mark.parametrize("trainer", [of_gkd, of_self])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_divergences_and_their_gradients_are_trls(trainer, beta, temperature):
    student, teacher, *heads, mask = prepared()

    def loss(hidden, head):
        flat = hidden.reshape(-1, hidden.shape[-1])
        other = Predictions(jnp.asarray(teacher.reshape(-1, 5)), jnp.asarray(heads[1]), temperature)
        found = token_divergences(Predictions(flat, head, temperature), other, jensen_shannon(beta))
        return jnp.where(mask, found.reshape(mask.shape), 0.0).sum() / mask.sum()

    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(student), jnp.asarray(heads[0]))
    for found, wanted in zip((value, *slopes), theirs(trainer, beta, temperature), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
        assert np.abs(wanted).max() > 1e-3


def test_the_tokens_of_sdpo_have_trls_gradients():
    """At any age of the tokens: its weights are at most 2, and its advantage is that of the policy at hand."""
    student, teacher, *heads, mask = prepared()
    random = np.random.default_rng(1)
    chosen, moved = random.integers(0, V, mask.shape), random.normal(size=mask.shape)

    def sampled(student, teacher, mask):
        ids = torch.tensor(chosen)
        found = of_sdpo.compute_sampled_token_self_distillation_loss(student, teacher, ids, distillation_alpha=1.0)
        now = of_sdpo.selective_log_softmax(student, ids)
        found = of_sdpo.apply_importance_sampling_clipping(found, now, now.detach() - torch.tensor(moved), 2.0)
        return (found * torch.tensor(mask)).sum() / mask.sum()

    def of_tokens(logits):
        return jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[..., None], -1)[..., 0]

    def loss(hidden, head):
        now = of_tokens(hidden @ head.T)
        fixed = jax.lax.stop_gradient(now)
        ratio = of_tokens(jnp.asarray(teacher @ heads[1].T)) - fixed
        batch = PolicyBatch(now, fixed - moved, ratio, jnp.asarray(mask), token_mean(jnp.asarray(mask)))
        return policy_loss(recipes.sdpo().objective, batch)[0]

    slopes = jax.grad(loss, argnums=(0, 1))(jnp.asarray(student), jnp.asarray(heads[0]))
    for found, wanted in zip(slopes, theirs(sampled)[1:], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-7)
        assert np.abs(wanted).max() > 1e-3
