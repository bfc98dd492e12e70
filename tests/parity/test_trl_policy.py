"""The presets named after TRL against TRL's own loss code, run on prepared tensors: values and gradients, float64."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.experimental.gmpo import GMPOTrainer
from trl_policy_cases import CASES, LIMIT, assert_equal, golden, prepared

pytestmark = pytest.mark.usefixtures("float64")


def trainer(**settings) -> SimpleNamespace:
    """What the loss methods read of a trainer, with TRL's defaults."""
    arguments = {
        "delta": None,
        "use_bias_correction_kl": False,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "steps_per_generation": 1,
    }
    names = {name: settings.pop(name) for name in list(settings) if name in arguments}
    own = {
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": "dapo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": False,
        "max_completion_length": LIMIT,
        "_entropy_bonus_enabled": False,
    }
    one = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=False)
    return SimpleNamespace(
        args=SimpleNamespace(**arguments | names),
        model=SimpleNamespace(training=True),
        accelerator=one,
        current_gradient_accumulation_steps=1,
        _metrics=defaultdict(lambda: defaultdict(list)),
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        **own | settings,
    )


def theirs(method, stub, data) -> tuple[float, np.ndarray]:
    log_probs, old, ref, mask, advantages = data
    current = torch.tensor(log_probs, requires_grad=True)
    stub._get_per_token_logps_and_entropies = lambda *_, **__: (current, torch.zeros(log_probs.shape), None)
    ids, kept = torch.zeros(log_probs.shape, dtype=torch.long), torch.tensor(mask, dtype=torch.float64)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": kept,
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": torch.tensor(old),
        "old_logps": (torch.tensor(old) * kept).sum(1),
        "ref_per_token_logps": torch.tensor(ref),
        "num_items_in_batch": kept.sum(),
    }
    loss = method(stub, None, inputs)
    loss.backward()
    return float(loss.detach()), current.grad.numpy()


def computed(name: str, empty_row: bool) -> tuple[float, np.ndarray]:
    """TRL's loss and gradient of a case."""
    method = {"rloo": RLOOTrainer, "gmpo": GMPOTrainer}.get(name, GRPOTrainer)._compute_loss
    return theirs(method, trainer(**CASES[name][1]), prepared(empty_row))


@pytest.mark.parametrize("empty_row", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_trls(name, empty_row):
    assert_equal(name, empty_row, *computed(name, empty_row))


@pytest.mark.parametrize("empty_row", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_golden_file_is_what_trl_computes(name, empty_row):
    value, gradient = golden(name, empty_row)
    expected = computed(name, empty_row)
    assert value == pytest.approx(expected[0], abs=1e-9)
    np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-9)
