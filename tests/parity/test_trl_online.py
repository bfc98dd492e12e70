"""Online preference against TRL: its trainers' own loss methods on prepared numbers in float64, and gradients.

TRL 1.16 has trainers of online DPO, TPO and A*-PO (as A2PO); those of XPO and Nash-MD are gone, GVPO it never had.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from trl.experimental.a2po.a2po_trainer import A2POTrainer
from trl.experimental.online_dpo.online_dpo_trainer import OnlineDPOTrainer
from trl.experimental.tpo.tpo_trainer import TPOTrainer
from trl.trainer.callbacks import BEMACallback

from rlax_llm.core.types import Completions, Groups, PolicyBatch
from rlax_llm.credit.rivals import above_value
from rlax_llm.loops.averages import Bema, averaged_params, averaging
from rlax_llm.loops.minibatches import optimizer_step
from rlax_llm.loops.online import paired
from rlax_llm.policy.objectives import policy_loss
from rlax_llm.policy.weightings import token_mean
from rlax_llm.preference.implicit_rewards import Responses
from rlax_llm.preference.pairs import PreferenceBatch, pair_mean, preference_loss
from rlax_llm.recipes.online import a_star_po, online_dpo
from rlax_llm.recipes.preference import tpo, tpo_length

pytestmark = pytest.mark.usefixtures("float64")
torch.set_num_threads(1)

P, T, V = 3, 4, 7
RANDOM = np.random.default_rng(0)
MASK = np.arange(T) < np.array([4, 2, 3, 1, 4, 3, 2, 4, 1])[:, None]


class Accelerator:
    device = torch.device("cpu")

    @staticmethod
    def gather(x):
        return x

    gather_for_metrics = gather


def same(ours, theirs) -> None:
    for found, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
        assert np.abs(wanted).max() > 1e-3


# TPO


def their_tpo(kind: str, logits: np.ndarray, tokens: np.ndarray, mask: np.ndarray, settings: dict) -> list:
    """A row's logits at each place predict its next token; the first is the prompt."""
    tensor = torch.tensor(logits, requires_grad=True)

    class Model:
        training = True

        def __call__(self, **unused):
            return SimpleNamespace(logits=tensor)

    trainer = SimpleNamespace(
        loss_type=kind,
        label_smoothing=0.0,
        accelerator=Accelerator(),
        _metrics=defaultdict(lambda: defaultdict(list)),
        model=Model(),
        aux_loss_enabled=False,
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )
    inputs = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.ones(tokens.shape, dtype=torch.long),
        "completion_mask": torch.tensor(mask, dtype=torch.long),
    }
    loss = TPOTrainer._compute_loss(trainer, Model(), inputs, False)
    loss.backward()
    return [loss.detach().numpy(), tensor.grad.numpy()]


@pytest.mark.parametrize("kind", ["sigmoid", "tpo-l"])
def test_tpo_and_its_gradients_are_trls(kind):
    logits, tokens = RANDOM.normal(size=(3 * P, T + 1, V)), RANDOM.integers(0, V, (3 * P, T + 1))
    mask = np.concatenate([np.zeros((3 * P, 1), bool), MASK], 1)
    settings = {"beta": 0.4, "tpo_alpha": 0.7, "tpo_l_gamma": 0.5}
    preference = tpo(0.4, 0.7) if kind == "sigmoid" else tpo_length(0.4, 0.5, 0.7)

    def ours(logits):
        log_p = jax.nn.log_softmax(logits[:, :-1])
        chosen = jnp.take_along_axis(log_p, jnp.asarray(tokens)[:, 1:, None], -1)[..., 0]
        sides = [Responses(x, jnp.asarray(m)) for x, m in zip(chosen.reshape(3, P, T), MASK.reshape(3, P, T))]
        weights = token_mean(sides[2].mask).astype(float)
        batch = PreferenceBatch(*sides[:2], pair_mean(sides[0].mask, sides[1].mask), None, weights, sides[2])
        return preference_loss(preference, batch)[0]

    same(jax.value_and_grad(ours)(jnp.asarray(logits)), their_tpo(kind, logits, tokens, mask, settings))


# A*-PO


def test_a_star_po_and_its_gradients_are_trls():
    """V* is the line of its first stage, which there runs before training."""
    current, reference = -RANDOM.exponential(size=(2, P, T))
    rewards, of_reference = RANDOM.random(P), RANDOM.random((P, 5))
    beta1, beta2 = 0.5, 0.3
    tensor, mask = torch.tensor(current, requires_grad=True), torch.tensor(MASK[:P], dtype=torch.float64)
    trainer = SimpleNamespace(
        args=SimpleNamespace(beta2=beta2),
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_sequence_logps=lambda *unused: (tensor * mask).sum(-1),
    )
    inputs = dict.fromkeys(("input_ids", "attention_mask", "logits_to_keep")) | {
        "ref_logps": torch.tensor((reference * MASK[:P]).sum(-1)),
        "rewards": torch.tensor(rewards),
        "v_star": beta1 * (torch.logsumexp(torch.tensor(of_reference) / beta1, dim=1) - math.log(5)),
    }
    loss = A2POTrainer.compute_loss(trainer, None, inputs)
    loss.backward()

    def ours(log_probs):
        worth = jax.vmap(above_value(beta1))(jnp.asarray(rewards)[:, None], jnp.asarray(of_reference))
        credit = jnp.broadcast_to(worth, log_probs.shape)
        old = jnp.asarray(current)
        batch = PolicyBatch(log_probs, old, credit, jnp.asarray(MASK[:P]), ref_log_probs=jnp.asarray(reference))
        return policy_loss(a_star_po(beta2, beta1).objective, batch)[0]

    same(jax.value_and_grad(ours)(jnp.asarray(current)), [loss.detach().numpy(), tensor.grad.numpy()])


# Online DPO


def their_online_dpo(log_probs: np.ndarray, reference: np.ndarray, mask: np.ndarray, rewards: np.ndarray) -> list:
    """Rows i and i + P are of prompt i."""
    tensor = torch.tensor(log_probs, requires_grad=True)
    answers = iter((tensor, torch.tensor(reference)))
    ids = torch.zeros(mask.shape, dtype=torch.long)

    class Model:
        training = True

        def train(self):
            return self

    class Backward(Accelerator):
        @staticmethod
        def backward(loss, **unused):
            loss.backward()

    trainer = SimpleNamespace(
        args=SimpleNamespace(
            use_vllm=False,
            missing_eos_penalty=None,
            loss_type="sigmoid",
            torch_empty_cache_steps=None,
            optim="adamw_torch",
            n_gpu=1,
            gradient_accumulation_steps=1,
        ),
        accelerator=Backward(),
        beta=0.3,
        model=Model(),
        ref_model=Model(),
        eos_token_ids=[1],
        processing_class=SimpleNamespace(batch_decode=lambda ids, **unused: [""] * len(ids)),
        reward_funcs=[None],
        stats=defaultdict(list),
        _generate=lambda *unused: (ids, ids, ids, torch.tensor(mask, dtype=torch.long), None),
        _forward=lambda *unused: next(answers),
        _calculate_rewards_from_functions=lambda **unused: torch.tensor(rewards),
    )
    loss = OnlineDPOTrainer.training_step(trainer, Model(), {"prompt": ["?"] * P})
    return [loss.numpy(), tensor.grad.numpy()]


def test_online_dpo_and_its_gradients_are_trls():
    log_probs, reference = -RANDOM.exponential(size=(2, 2 * P, T))
    rewards, mask = RANDOM.random(2 * P), MASK[: 2 * P]
    online, order = online_dpo(0.3), np.arange(2 * P).reshape(2, P).T.ravel()  # a prompt's completions side by side

    def ours(log_probs):
        rows = jnp.arange(2 * P)[:, None] * jnp.ones((1, T), jnp.int32)
        placed = jnp.asarray(mask)[order]
        made = Completions(rows, placed, placed, jnp.zeros((2 * P, T)), jnp.zeros(2 * P, bool))
        pairs, _ = paired(online, Groups(made, jnp.asarray(rewards)[order].reshape(P, 2)))
        taken = order[np.asarray(pairs.completions.tokens)[:, 0]]
        sides = [
            Responses(
                log_probs[taken][side::2], jnp.asarray(mask)[taken][side::2], jnp.asarray(reference)[taken][side::2]
            )
            for side in (0, 1)
        ]
        return preference_loss(online.preference, PreferenceBatch(*sides, jnp.full(P, 1 / P)))[0]

    same(jax.value_and_grad(ours)(jnp.asarray(log_probs)), their_online_dpo(log_probs, reference, mask, rewards))


# BEMA


class Small(torch.nn.Module):
    """It can be made again from its config."""

    def __init__(self, config=None):
        super().__init__()
        self.config = config
        self.weight = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))


def test_the_bias_corrected_average_is_trls():
    """Its callback on a model of one matrix that SGD moves, updated at every step."""
    start = RANDOM.normal(size=(2, 3))
    gradients = RANDOM.normal(size=(5, 2, 3))
    theirs = Small()
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(start))
    callback = BEMACallback(update_freq=1)
    callback.on_train_begin(None, SimpleNamespace(global_step=0), None, model=theirs)
    optimizer = averaging(optax.sgd(0.1), Bema())
    params, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    callback.on_step_end(None, SimpleNamespace(global_step=0), None, model=theirs)
    for step, gradient in enumerate(gradients, 1):
        with torch.no_grad():
            theirs.weight.sub_(0.1 * torch.tensor(gradient))
        callback.on_step_end(None, SimpleNamespace(global_step=step), None, model=theirs)
        params, state = optimizer_step(optimizer, jnp.asarray(gradient), params, state)
        same([averaged_params(params, state)], [callback.running_model.weight.detach().numpy()])
