"""Losses and gradients of the peers, as their own code computed them, without the peers."""

from __future__ import annotations

import pytest
from trl_policy_cases import CASES, assert_equal, golden

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("empty_row", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_policy_losses_are_trls(name, empty_row):
    assert_equal(name, empty_row, *golden(name, empty_row))
