from __future__ import annotations

import numpy as np
import pytest

from rlax_llm.core import checks
from rlax_llm.core.types import Scored
from rlax_llm.credit.groups import per_group, z_score
from rlax_llm.credit.teachers import (
    mean_return_after,
    no_credit,
    prefix_weighted,
    teacher_log_ratio,
    with_teacher,
)


def prepared() -> Scored:
    """Two groups of three completions; tool output stands between the tokens of some."""
    random = np.random.default_rng(0)
    log_probs, teacher = random.normal(size=(2, 2, 3, 9))
    mask = random.random((2, 3, 9)) < 0.6
    mask[1, 2] = False
    return Scored(random.normal(size=(2, 3)), log_probs, mask, teacher)


def literal_returns(scored: Scored) -> np.ndarray:
    """MiniLLM's equation 6, token by token."""
    found = np.zeros(scored.mask.shape)
    for place in np.ndindex(2, 3):
        chosen = np.flatnonzero(scored.mask[place])
        for t, token in enumerate(chosen):
            later = [scored.ref_log_probs[place][u] - scored.log_probs[place][u] for u in chosen[t + 1 :]]
            found[place][token] = np.mean(later) if later else 0.0
    return found


def test_the_return_is_the_mean_of_what_comes_after():
    scored = prepared()
    np.testing.assert_allclose(mean_return_after(scored), literal_returns(scored), atol=1e-5)


def test_a_token_counts_by_the_gap_that_its_prefix_leaves():
    """IW-OPD's weights (arXiv 2606.22600, algorithm 1), token by token; without an amplification there are none."""
    scored = prepared()
    wanted = np.zeros(scored.mask.shape)
    for place in np.ndindex(2, 3):
        chosen = np.flatnonzero(scored.mask[place])
        gaps = scored.ref_log_probs[place][chosen] - scored.log_probs[place][chosen]
        before = 0.0
        for token, gap in zip(chosen, gaps, strict=True):
            wanted[place][token] = (1 + 0.7 * (1 - before / np.abs(gaps).sum())) * gap
            before += abs(gap)
    np.testing.assert_allclose(prefix_weighted(0.7)(scored), wanted, atol=1e-5)
    np.testing.assert_allclose(prefix_weighted(0.0)(scored), teacher_log_ratio(scored), atol=1e-6)
    agreed = prefix_weighted(0.7)(scored._replace(ref_log_probs=scored.log_probs))
    np.testing.assert_array_equal(agreed, 0 * wanted)


def test_a_reward_and_a_teacher_add_up():
    scored = prepared()
    ratio = np.where(scored.mask, scored.ref_log_probs - scored.log_probs, 0.0)
    np.testing.assert_allclose(teacher_log_ratio(scored), ratio, atol=1e-6)
    np.testing.assert_allclose(with_teacher(no_credit)(scored), ratio, atol=1e-6)
    reward = np.asarray(per_group(z_score)(scored))[..., None]
    found = with_teacher(per_group(z_score), 0.5)(scored)
    np.testing.assert_allclose(found, np.where(scored.mask, reward, 0.0) + 0.5 * ratio, atol=1e-5)
    np.testing.assert_allclose(
        with_teacher(per_group(z_score), 0.0)(scored), np.where(scored.mask, reward, 0.0), atol=1e-6
    )


@pytest.mark.parametrize("credit", [teacher_log_ratio, mean_return_after, prefix_weighted(), with_teacher(no_credit)])
def test_a_teacher_is_needed(credit):
    with pytest.raises(checks.NoReference, match="give the teacher's"):
        credit(prepared()._replace(ref_log_probs=None))
