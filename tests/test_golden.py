"""Losses and gradients of the peers, as their own code computed them, without the peers."""

from __future__ import annotations

import pytest
import trl_preference_cases as preferences
from trl_policy_cases import CASES, assert_equal, golden

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("empty_row", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_policy_losses_are_trls(name, empty_row):
    assert_equal(name, empty_row, *golden(name, empty_row))


@pytest.mark.parametrize("loss_type", preferences.DPO)
def test_dpo_losses_are_trls(loss_type):
    mask = preferences.masks(0, 2 * preferences.PAIRS)
    ours = preferences.ours(preferences.DPO[loss_type][0], mask, *preferences.numbers(0, mask))
    preferences.assert_same(ours, preferences.golden(loss_type))
