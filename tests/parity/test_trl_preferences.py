"""Against TRL: its trainers' own loss methods, run on prepared numbers in float64, values and gradients.

TRL's alpha divergence and its odds ratio are computed in float32 whatever they are given; those two comparisons have
float32's bound. TRL 1.16 has no trainer for BCO any more.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl_preference_cases import (
    BETA,
    DPO,
    PAIRS,
    SMOOTHED,
    TOKENS,
    assert_same,
    golden,
    masks,
    numbers,
    ours,
)

from rlax_llm.policy.weightings import token_mean
from rlax_llm.preference import implicit_rewards, links
from rlax_llm.preference.implicit_rewards import (
    Responses,
    alpha_slope,
    divergence_reward,
    log_prob,
    log_ratio,
    mean_log_prob,
)
from rlax_llm.preference.pairs import (
    PreferenceBatch,
    desensitize_length,
    pair_loss,
    pair_mean,
    per_response,
    preference_loss,
)
from rlax_llm.preference.unpaired import LabeledBatch, kto, label_mean, mismatched_rows, reference_point, unpaired_loss
from rlax_llm.recipes.preference import alpha_po, cpo, dpo, ipo, orpo, simpo

pytestmark = pytest.mark.usefixtures("float64")
torch.set_num_threads(1)

VOCABULARY = 7


class Accelerator:
    device = torch.device("cpu")

    @staticmethod
    def gather(x):
        return x

    gather_for_metrics = gather


class Model:
    """What a trainer sees of a network: outputs, whatever the inputs."""

    training = True
    is_gradient_checkpointing = False
    _modules = ()  # looked through for compiled parts, where peft is installed

    def __init__(self, *outputs: dict):
        self.outputs = list(outputs)

    def __call__(self, *args, **kwargs):
        return SimpleNamespace(**self.outputs.pop(0))


def outputs(log_probs: torch.Tensor, **others) -> dict:
    zeros = torch.zeros_like(log_probs)
    return {"log_probs": log_probs, "entropy": zeros, "mean_logits": zeros, "is_top1": zeros > 0} | others


def trainer(model: Model, **fields) -> SimpleNamespace:
    state = {"model": model, "accelerator": Accelerator, "aux_loss_enabled": False, "precompute_ref_logps": False}
    state |= {"_metrics": {"train": defaultdict(list)}, "_total_train_tokens": 0, "_tp_size": 1, "beta": BETA}
    return SimpleNamespace(**state | fields)


def whole(mask: np.ndarray) -> dict[str, torch.Tensor]:
    """TRL's inputs: a prompt's token in front of what has a log-probability."""
    completion = torch.tensor(np.pad(mask, ((0, 0), (1, 0))).astype(int))
    return {"input_ids": torch.ones_like(completion), "attention_mask": torch.ones_like(completion)} | {
        "completion_mask": completion
    }


# Paired

SLOPES = {
    "reverse_kl": lambda x: x,
    "forward_kl": implicit_rewards.forward_kl_slope,
    "js_divergence": implicit_rewards.jensen_shannon_slope,
}


def trl_dpo(mask: np.ndarray, log_probs: np.ndarray, ref_log_probs: np.ndarray, collisions=None, **fields):
    leaf = torch.tensor(log_probs, requires_grad=True)
    read = torch.where(torch.tensor(mask), leaf, 0.0)
    model = Model(outputs(read, log_sum_sq_probs=None if collisions is None else torch.tensor(collisions)))
    defaults = {"label_smoothing": 0.0, "ld_alpha": None, "use_weighting": collisions is not None}
    defaults |= {"f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "loss_weights": [1.0]}
    args = SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None)
    reference = Model(outputs(torch.tensor(ref_log_probs)))
    state = trainer(model, ref_model=reference, args=args, **defaults | fields)
    loss = DPOTrainer._compute_loss(state, model, whole(mask), False)
    return loss.item(), torch.autograd.grad(loss, leaf)[0].numpy(), state._metrics["train"]


def computed(loss_type: str, seed: int) -> tuple[float, np.ndarray]:
    """TRL's loss and gradient of a case."""
    mask = masks(seed, 2 * PAIRS)
    return trl_dpo(mask, *numbers(seed, mask), loss_types=[loss_type], **DPO[loss_type][1])[:2]


@pytest.mark.parametrize("loss_type", DPO)
@pytest.mark.parametrize("seed", range(2))
def test_dpo_losses(loss_type, seed):
    mask = masks(seed, 2 * PAIRS)
    assert_same(ours(DPO[loss_type][0], mask, *numbers(seed, mask)), computed(loss_type, seed))


@pytest.mark.parametrize("loss_type", DPO)
def test_the_golden_file_is_what_trl_computes(loss_type):
    assert_same(golden(loss_type), computed(loss_type, 0), bound=1e-9)


@pytest.mark.parametrize("loss_type", ["sigmoid", "aot"])
def test_dpo_metrics(loss_type):
    mask = masks(2, 2 * PAIRS)
    data = mask, *numbers(2, mask)
    metrics, theirs = ours(DPO[loss_type][0], *data)[2], trl_dpo(*data, loss_types=[loss_type])[2]
    np.testing.assert_allclose(metrics["margin"], theirs["rewards/margins"], rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], theirs["rewards/accuracies"], rtol=1e-6)
    if loss_type == "sigmoid":
        np.testing.assert_allclose(metrics["chosen_reward"], theirs["rewards/chosen"], rtol=1e-6)
        np.testing.assert_allclose(metrics["rejected_reward"], theirs["rewards/rejected"], rtol=1e-6)


def test_several_losses_at_once():
    mask = masks(3, 2 * PAIRS)
    data = mask, *numbers(3, mask)
    mixed = dpo(BETA)._replace(
        link=links.weighted_sum((0.8, links.logistic), (0.2, links.compare_with_zero(links.logistic))), nll_coef=0.5
    )
    theirs = trl_dpo(*data, loss_types=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 0.5])
    assert_same(ours(mixed, *data), theirs)


@pytest.mark.parametrize("divergence", SLOPES)
@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo", "sigmoid_norm"])
def test_f_divergences(divergence, loss_type):
    mask = masks(4, 2 * PAIRS)
    data = mask, *numbers(4, mask)
    reward = divergence_reward(log_ratio(), SLOPES[divergence], 1.0 if loss_type == "ipo" else BETA)
    reward = implicit_rewards.normalize_length(reward) if loss_type in ("ipo", "sigmoid_norm") else reward
    preference = DPO[loss_type][0]._replace(rewards=per_response(reward))
    assert_same(ours(preference, *data), trl_dpo(*data, loss_types=[loss_type], f_divergence_type=divergence))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_alpha_divergence(alpha):
    mask = masks(5, 2 * PAIRS)
    data = mask, *numbers(5, mask, np.float32)
    preference = dpo(BETA)._replace(rewards=per_response(divergence_reward(log_ratio(), alpha_slope(alpha), BETA)))
    fields = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": alpha}
    assert_same(ours(preference, *data), trl_dpo(*data, loss_types=["sigmoid"], **fields), bound=2e-6)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "nca_pair", "aot"])
@pytest.mark.parametrize("tail_coef", [0.0, 0.4, 1.0])
def test_length_desensitized(loss_type, tail_coef):
    mask = masks(6, 2 * PAIRS)
    data = mask, *numbers(6, mask)
    preference, fields = DPO[loss_type]
    damped = preference._replace(rewards=desensitize_length(preference.rewards, tail_coef))
    assert_same(ours(damped, *data), trl_dpo(*data, loss_types=[loss_type], ld_alpha=tail_coef, **fields))


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "sppo_hard"])
def test_on_policy_weights(loss_type):
    mask = masks(7, 2 * PAIRS)
    collisions = -np.random.default_rng(8).exponential(size=mask.shape)
    data = mask, *numbers(7, mask), collisions
    assert_same(ours(DPO[loss_type][0], *data), trl_dpo(*data, loss_types=[loss_type]))


# Without a reference, from logits


def trl_logits(mask: np.ndarray, logits: np.ndarray, tokens: np.ndarray) -> tuple[torch.Tensor, dict]:
    ids = torch.tensor(tokens)
    labels = torch.where(torch.tensor(np.pad(mask, ((0, 0), (1, 0)))), ids, -100)
    batch = {}
    for side, rows in (("chosen", np.s_[:PAIRS]), ("rejected", np.s_[PAIRS:])):
        batch |= {f"{side}_input_ids": ids[rows], f"{side}_labels": labels[rows]}
        batch |= {f"{side}_attention_mask": torch.ones_like(ids[rows])}
    return torch.tensor(logits, requires_grad=True), batch


def trl_without_reference(kind: type, mask: np.ndarray, logits: np.ndarray, tokens: np.ndarray, **fields):
    leaf, batch = trl_logits(mask, logits, tokens)
    state = object.__new__(kind)  # the loss calls other methods of the trainer
    model = Model({"logits": leaf})
    fields = {"is_encoder_decoder": False, "pad_token_id": 0, "padding_value": 0, "label_smoothing": 0.0} | fields
    state.__dict__ |= vars(trainer(model, **fields))
    loss, metrics = state.get_batch_loss_metrics(model, batch)
    return loss.item(), torch.autograd.grad(loss, leaf)[0].numpy(), metrics


def ours_from_logits(preference, mask: np.ndarray, logits: np.ndarray, tokens: np.ndarray, token_weights: jax.Array):
    weights = pair_mean(jnp.asarray(mask[:PAIRS]), jnp.asarray(mask[PAIRS:]))

    def loss(x: jax.Array):
        every = jax.nn.log_softmax(x[:, :-1])
        log_probs = jnp.take_along_axis(every, tokens[:, 1:, None], -1)[..., 0]
        sides = [Responses(log_probs[rows], mask[rows]) for rows in (np.s_[:PAIRS], np.s_[PAIRS:])]
        return preference_loss(preference, PreferenceBatch(*sides, weights, None, token_weights))

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits))
    return value, gradient, metrics


def logit_data(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    tokens = random.integers(1, VOCABULARY, (2 * PAIRS, TOKENS + 1))
    return masks(seed, 2 * PAIRS), random.normal(size=(2 * PAIRS, TOKENS + 1, VOCABULARY)), tokens


def bent(alpha: float, mean: bool, beta: float):
    return per_response(divergence_reward(mean_log_prob() if mean else log_prob(), alpha_slope(1 - alpha), beta))


CPO = {
    "cpo": (cpo(BETA, 1.0), {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
    "cpo, no likelihood": (cpo(BETA), {"loss_type": "sigmoid", "cpo_alpha": 0.0}),
    "cpo, smoothed": (
        cpo(BETA, 0.5)._replace(link=SMOOTHED),
        {"loss_type": "sigmoid", "cpo_alpha": 0.5, "label_smoothing": 0.1},
    ),
    "hinge": (cpo(BETA, 1.0)._replace(link=links.hinge), {"loss_type": "hinge", "cpo_alpha": 1.0}),
    "ipo": (
        ipo(BETA)._replace(rewards=per_response(mean_log_prob()), nll_coef=1.0),
        {"loss_type": "ipo", "cpo_alpha": 1.0},
    ),
    "simpo": (simpo(2.0, 0.5), {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0}),
    "simpo as its default": (simpo(0.1, 0.5, 1.0), {"loss_type": "simpo", "cpo_alpha": 1.0, "beta": 0.1}),
    "simpo, smoothed": (
        simpo(2.0)._replace(link=links.demand_margin(SMOOTHED, 0.5)),
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "label_smoothing": 0.1},
    ),
    "alpha_po": (alpha_po(0.25), {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "alpha": 0.25}),
    "alpha_po on sums": (
        cpo(BETA)._replace(rewards=bent(-0.5, False, BETA)),
        {"loss_type": "sigmoid", "cpo_alpha": 0.0, "alpha": -0.5},
    ),
}


@pytest.mark.parametrize("name", CPO)
def test_cpo_losses(name):
    preference, fields = CPO[name]
    data = logit_data(9)
    token_weights = token_mean(jnp.asarray(data[0][:PAIRS]))
    theirs = trl_without_reference(CPOTrainer, *data, **{"simpo_gamma": 0.5, "alpha": 0.0} | fields)
    mine = ours_from_logits(preference, *data, token_weights)
    assert_same(mine, theirs)
    np.testing.assert_allclose(mine[2]["accuracy"], theirs[2]["rewards/accuracies"], rtol=1e-6)
    # TRL's margin is without γ, ours too; its IPO reports β times the rewards.
    scale = BETA if name == "ipo" else 1
    np.testing.assert_allclose(scale * mine[2]["margin"], theirs[2]["rewards/margins"], rtol=1e-6)


def test_orpo():
    data = logit_data(10)
    every = jnp.ones((PAIRS, TOKENS), bool)  # TRL's likelihood reads the prompt too
    theirs = trl_without_reference(ORPOTrainer, *data, beta=0.1)
    mine = ours_from_logits(orpo(0.1), *data, token_mean(every))
    assert_same(mine, theirs)
    np.testing.assert_allclose(mine[2]["nll"], theirs[2]["nll_loss"], rtol=1e-6)
    # The mean of float32 numbers of order one that nearly cancel: an absolute bound.
    np.testing.assert_allclose(mine[2]["margin"], theirs[2]["log_odds_chosen"], rtol=0, atol=1e-6)


# Reward models


@pytest.mark.parametrize("margins", [None, [0.5, 0.0, -1.0, 2.0]])
@pytest.mark.parametrize("centering_coef", [None, 0.01])
def test_reward_model_loss(margins, centering_coef):
    scores = np.random.default_rng(11).normal(size=(2, PAIRS))
    leaf = torch.tensor(scores.reshape(-1, 1), requires_grad=True)
    model = Model({"logits": leaf})
    state = trainer(model, args=SimpleNamespace(center_rewards_coefficient=centering_coef))
    inputs = {"attention_mask": torch.ones(2 * PAIRS, 3)}
    inputs |= {} if margins is None else {"margin": torch.tensor(margins, dtype=torch.float64)}
    loss = RewardTrainer.compute_loss(state, model, inputs)
    theirs = loss.item(), torch.autograd.grad(loss, leaf)[0].numpy().reshape(2, PAIRS)
    link = links.logistic if margins is None else links.demand_margin(links.logistic, np.array(margins))
    link = link if centering_coef is None else links.centered_rewards(link, centering_coef)

    def mine(x: jax.Array):
        return pair_loss(link, x[0], x[1], jnp.full(PAIRS, 1 / PAIRS))

    (value, metrics), gradient = jax.value_and_grad(mine, has_aux=True)(jnp.asarray(scores))
    assert_same((value, gradient), theirs)
    np.testing.assert_allclose(metrics["margin"], state._metrics["train"]["margin"], rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], state._metrics["train"]["accuracy"], rtol=1e-6)


# Labels


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("labels", [[1, 0, 1, 1, 0], [1] * 5, [0] * 5])
@pytest.mark.parametrize("seed", [12, 13])
def test_kto_losses(loss_type, labels, seed):
    labels = np.array(labels, bool)
    mask = masks(seed, 5)
    log_probs, ref_log_probs = numbers(seed, mask)
    # The mismatched pairs' log-probabilities are numbers of their own: other prompts, other numbers.
    rows = np.asarray(mismatched_rows(5))
    other_log_probs, other_ref = numbers(seed + 50, mask[rows])
    shift = 0.3 if seed == 12 else -0.3  # a reference point above 0, and one that is clamped
    other_log_probs = np.where(mask[rows], other_log_probs + shift, 0)
    leaf = torch.tensor(log_probs, requires_grad=True)
    mismatched, policy = outputs(torch.tensor(other_log_probs)), outputs(torch.where(torch.tensor(mask), leaf, 0.0))
    reference = [outputs(torch.tensor(other_ref)), outputs(torch.tensor(ref_log_probs))]
    if loss_type != "kto":
        mismatched, reference = None, reference[1:]
    model = Model(*[x for x in (mismatched, policy) if x is not None])
    args = SimpleNamespace(gradient_checkpointing_kwargs=None)
    state = trainer(model, ref_model=Model(*reference), args=args, loss_type=loss_type)
    state.calculate_KL = loss_type == "kto"
    state._compute_kl_logps = lambda *given: KTOTrainer._compute_kl_logps(state, *given)
    state.desirable_weight, state.undesirable_weight = 1.2, 0.7
    inputs = whole(mask) | {f"KL_{name}": value for name, value in whole(mask[rows]).items()}
    loss = KTOTrainer._compute_loss(state, model, inputs | {"label": torch.tensor(labels)}, False)
    theirs = loss.item(), torch.autograd.grad(loss, leaf)[0].numpy()

    algorithm = kto(BETA)
    weights = label_mean(jnp.asarray(mask), jnp.asarray(labels), 1.2, 0.7)
    anchor = 0.0
    if loss_type == "kto":
        anchor = reference_point(algorithm.reward, Responses(other_log_probs, jnp.asarray(mask[rows]), other_ref))
        np.testing.assert_allclose(anchor, BETA * state._metrics["train"]["kl"][0], rtol=1e-6)
        assert (anchor > 0) == (seed == 12)

    def mine(x: jax.Array):
        batch = LabeledBatch(Responses(x, jnp.asarray(mask), ref_log_probs), jnp.asarray(labels), weights)
        return unpaired_loss(algorithm, batch, anchor)[0]

    assert_same(jax.value_and_grad(mine)(jnp.asarray(log_probs)), theirs)
