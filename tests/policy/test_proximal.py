"""Trust regions between policies, along what follows and over groups, against loops written from the papers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import PolicyBatch
from rlax_llm.policy.corrections import truncated_importance
from rlax_llm.policy.coupled import as_coupled, gmpo
from rlax_llm.policy.objectives import Objective, policy_loss
from rlax_llm.policy.proximal import classify, future_kl, log_linear
from rlax_llm.policy.ratios import token_ratio
from rlax_llm.policy.trust_regions import cispo, clip, score_function, unclipped
from rlax_llm.policy.weightings import sequence_mean, sequence_sum

pytestmark = pytest.mark.usefixtures("float64")

B, T, GROUP = 6, 5, 3


def prepared(seed: int = 0, drift: float = 0.5) -> PolicyBatch:
    random = np.random.default_rng(seed)
    log_probs = -random.gamma(2.0, size=(B, T))
    old = log_probs + drift * random.normal(size=(B, T))
    mask = np.arange(T) < np.array([5, 2, 3, 1, 4, 5])[:, None]
    mask[0, 2] = False
    staleness = random.integers(0, 4, (B, T)).astype(float)
    arrays = (log_probs, old, random.normal(size=(B, T)), mask)
    return PolicyBatch(*map(jnp.asarray, arrays), staleness=jnp.asarray(staleness))


def loss_and_slope(term, batch: PolicyBatch, weighting=sequence_sum):
    objective = Objective(lambda scored: scored.scores, token_ratio, term, weighting)

    def loss(log_probs):
        return policy_loss(objective, batch._replace(log_probs=log_probs))[0]

    return jax.jit(jax.value_and_grad(loss))(batch.log_probs)


def slopes_of(literal, batch: PolicyBatch):
    """Central differences."""
    log_probs, step = np.asarray(batch.log_probs), 1e-6
    found = np.zeros_like(log_probs)
    for place in np.ndindex(log_probs.shape):
        moved = [log_probs.copy(), log_probs.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        found[place] = (literal(moved[0]) - literal(moved[1])) / (2 * step)
    return found


def fixed_at(batch: PolicyBatch):
    numbers = (batch.log_probs, batch.old_log_probs, batch.advantages, batch.mask, batch.staleness)
    return map(np.asarray, numbers)


def literal_log_linear(batch: PolicyBatch, eps: float, ceiling: float):
    now, old, advantages, mask, staleness = fixed_at(batch)

    def loss(log_probs):
        total = 0.0
        for b, t in np.ndindex(B, T):
            if mask[b, t]:
                alpha = (staleness[b, t] - 0) / (staleness[b, t] + 1)
                between = old[b, t] + alpha * (now[b, t] - old[b, t])  # of the policy at hand, without a gradient
                ratio = math.exp(log_probs[b, t] - between)
                kept = min(ratio * advantages[b, t], min(max(ratio, 1 - eps), 1 + eps) * advantages[b, t])
                total -= min(math.exp(between - old[b, t]), ceiling) * kept
        return total / B

    return loss


def test_the_policy_between_is_on_the_line_from_the_sampler():
    batch = prepared()
    value, slope = loss_and_slope(log_linear(clip(0.2), truncated_importance(ceiling=1.5)), batch)
    literal = literal_log_linear(batch, 0.2, 1.5)
    assert float(value) == pytest.approx(literal(np.asarray(batch.log_probs)), rel=1e-6)
    np.testing.assert_allclose(slope, slopes_of(literal, batch), atol=1e-6)


def test_of_fresh_tokens_it_is_the_trust_region_and_of_old_ones_cispo():
    batch = prepared(1)
    fresh = batch._replace(staleness=0 * batch.staleness)
    for region in (clip(0.2), gmpo()):
        pair = [loss_and_slope(term, fresh) for term in (log_linear(region), region)]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), *pair)
    old = batch._replace(staleness=0 * batch.staleness + 1e12)
    slopes = [
        loss_and_slope(term, old)[1]
        for term in (log_linear(clip(0.2), truncated_importance(ceiling=1.5)), cispo(ceiling=1.5))
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-6, atol=1e-9)


def literal_future(batch: PolicyBatch, half_life, floor, ceiling, limit, safe):
    now, old, advantages, mask, _ = fixed_at(batch)
    gamma = 2 ** (-1 / half_life)

    def loss(log_probs):
        total = 0.0
        for b in range(B):
            places = [t for t in range(T) if mask[b, t]]
            for i, t in enumerate(places):
                ahead = 0.0
                for k, later in enumerate(places[i:]):
                    moved = now[b, later] - old[b, later]
                    ahead += gamma**k * moved * (math.exp(moved) <= limit)
                weight = min(max(math.exp(ahead), floor), ceiling)
                if advantages[b, t] < 0 and math.exp(now[b, t] - old[b, t]) > safe:
                    weight = min(weight, 1.0)
                ratio, credit = math.exp(log_probs[b, t] - old[b, t]), weight * advantages[b, t]
                total -= min(ratio * credit, min(max(ratio, 0.8), 1.28) * credit)
        return total / B

    return loss


def test_what_follows_a_token_weighs_its_advantage():
    numbers = (2.0, 0.7, 1.4, 1.8, 1.3)
    batch = prepared(2)
    value, slope = loss_and_slope(future_kl(clip(0.2, 0.28), *numbers), batch)
    literal = literal_future(batch, *numbers)
    assert float(value) == pytest.approx(literal(np.asarray(batch.log_probs)), rel=1e-6)
    np.testing.assert_allclose(slope, slopes_of(literal, batch), atol=1e-6)


def test_on_policy_nothing_follows_and_between_bounds_of_1_neither():
    batch = prepared(3)
    for term, given in (
        (future_kl(clip(0.2)), batch._replace(old_log_probs=batch.log_probs)),
        (future_kl(clip(0.2), floor=1.0, ceiling=1.0), batch),
    ):
        pair = [loss_and_slope(region, given) for region in (term, clip(0.2))]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), *pair)


def literal_classes(batch: PolicyBatch, tau: float):
    _, old, advantages, mask, _ = fixed_at(batch)

    def loss(log_probs):
        total = 0.0
        for first in range(0, B, GROUP):
            right = wrong = 0.0
            for b in range(first, first + GROUP):
                places = [t for t in range(T) if mask[b, t]]
                mean = sum(log_probs[b, t] - old[b, t] for t in places) / len(places)
                if advantages[b, places[0]] > 0:
                    right += math.exp(-mean / tau)
                elif advantages[b, places[0]] < 0:
                    wrong += math.exp(mean / tau)
            total += math.log(1 + right) + math.log(1 + wrong)
        return total / (B // GROUP)

    return loss


def labelled(seed: int, labels):
    batch = prepared(seed)
    return batch._replace(advantages=jnp.broadcast_to(jnp.asarray(labels, float)[:, None], (B, T)))


@pytest.mark.parametrize("labels", [[1, -1, 1, -1, -1, 0], [1, 1, 1, -1, -1, -1]])
def test_groups_are_classified_as_in_the_paper(labels):
    batch = labelled(4, labels)
    value, slope = loss_and_slope(classify(GROUP, 0.5), batch, sequence_mean)
    literal = literal_classes(batch, 0.5)
    assert float(value) == pytest.approx(literal(np.asarray(batch.log_probs)), rel=1e-6)
    np.testing.assert_allclose(slope, slopes_of(literal, batch), atol=1e-6)
    # The weight of a completion is bounded, and falls where it is told apart.
    weights = np.abs(np.asarray(slope).sum(-1)) * B / GROUP
    assert np.all(weights <= 1 / 0.5 + 1e-6)


def test_a_group_of_one_is_the_logistic_loss():
    batch = labelled(5, [1, -1, 1, -1, 1, -1])
    log_ratio = jnp.where(batch.mask, batch.log_probs - batch.old_log_probs, 0.0)
    means = log_ratio.sum(-1) / batch.mask.sum(-1)
    wanted = jnp.logaddexp(0.0, -batch.advantages[:, 0] * means / 0.3).mean()
    assert float(loss_and_slope(classify(1, 0.3), batch, sequence_mean)[0]) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize(
    "term", [log_linear(clip()), future_kl(clip()), classify(GROUP)], ids=["line", "future", "real"]
)
def test_far_policies_leave_finite_slopes(term):
    for far in (80.0, -80.0, 1000.0):
        batch = labelled(6, [1, -1, 1, -1, -1, 1])
        value, slope = loss_and_slope(term, batch._replace(old_log_probs=batch.log_probs - far), sequence_mean)
        assert np.isfinite(value) and np.all(np.isfinite(slope))


def test_what_they_stand_on():
    assert classify(2).whole and not log_linear(unclipped).whole
    term = as_coupled(classify(2))
    assert log_linear(term).whole and future_kl(term).whole
    with pytest.raises(ValueError, match=r"log_linear: batch.staleness is None; give Groups\(..., staleness="):
        loss_and_slope(log_linear(score_function), prepared()._replace(staleness=None))
    with pytest.raises(ValueError, match=r"classify: the batch has 6 rows, wanted whole groups of 4"):
        loss_and_slope(classify(4), prepared())
    with pytest.raises(ValueError, match=r"future_kl: ceiling − floor is -0\.5"):
        future_kl(clip(), floor=1.0, ceiling=0.5)
