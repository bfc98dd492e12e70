"""The presets named after prime-rl, NeMo-RL, slime, AReaL, SkyRL and open-instruct, from scores to loss and slopes.

Each is transcribed from what that trainer does with a batch, in NumPy, float64.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import PolicyBatch, Scored
from rlax_llm.credit.groups import leave_one_out, per_group
from rlax_llm.policy.objectives import policy_loss
from rlax_llm.policy.terms import term_weights
from rlax_llm.recipes import areal, nemo_rl, open_instruct, prime_rl, skyrl, slime

pytestmark = pytest.mark.usefixtures("float64")

P, G, T = 2, 3, 5
MASK = np.arange(T) < np.array([5, 2, 3, 1, 5, 4])[:, None]


def prepared(seed: int = 0, drift: float = 0.4):
    random = np.random.default_rng(seed)
    now = -random.gamma(1.0, size=(P * G, T))
    old, ref = now + drift * random.normal(size=(2, P * G, T))
    return now, np.minimum(old, -1e-3), ref, random.normal(size=(P, G))


# Advantages [P, G], or [P * G, T], of scores.


def z_scores(scores, ddof=1, eps=1e-6):
    return (scores - scores.mean(-1, keepdims=True)) / (scores.std(-1, ddof=ddof, keepdims=True) + eps)


def centered(scores):
    return scores - scores.mean(-1, keepdims=True)


def others(scores, normalized=True):
    found = np.zeros_like(scores)
    for p, g in np.ndindex(scores.shape):
        rest = np.delete(scores[p], g)
        found[p, g] = scores[p, g] - rest.mean()
        if normalized and rest.std() > 0:
            found[p, g] /= rest.std() + 1e-6
    return found


def of_tokens(credit):
    return np.repeat(credit.reshape(-1, 1), T, 1)


def whitened(credit):
    taken = of_tokens(credit)[MASK]
    return (of_tokens(credit) - taken.mean()) / np.sqrt(taken.var() + 1e-8)


def twice(scores):
    credit = of_tokens(z_scores(scores, eps=1e-5))
    return (credit - credit[MASK].mean()) / (credit[MASK].std(ddof=1) + 1e-5)


# Losses of tokens, of the log-probabilities now and before, the advantages, and those at hand without a gradient.


def clipped(low=0.8, high=1.2, ceiling=None):
    def loss(now, old, credit, fixed):
        ratio = np.exp(np.clip(now - old, -20, 20))
        found = np.maximum(-credit * ratio, -credit * np.clip(ratio, low, high))
        return found if ceiling is None else np.where(credit < 0, np.minimum(found, -credit * ceiling), found)

    return loss


def squared(tau, kept):
    def loss(now, old, credit, fixed):
        inside = kept(np.exp(fixed) - np.exp(old), credit)
        return tau * (now - old) ** 2 - inside * credit * np.exp(now - old)

    return loss


def in_its_direction(limit):
    return lambda change, credit: np.where(credit > 0, change <= limit, change >= -limit)


def either_way(limit):
    return lambda change, credit: np.abs(change) <= limit


def masked_ratio(limit):
    return squared(0.0, in_its_direction(limit))


def row_means(x):
    return np.repeat(((x * MASK).sum(-1) / MASK.sum(-1))[:, None], T, 1)


def of_rows(low, high):
    return lambda now, old, credit, fixed: np.maximum(
        -credit * np.exp(row_means(now - old)), -credit * np.clip(np.exp(row_means(now - old)), low, high)
    )


def of_rows_by_token(low, high):
    def loss(now, old, credit, fixed):
        ratio = np.exp(now - fixed + row_means(fixed - old))
        return np.maximum(-credit * ratio, -credit * np.clip(ratio, low, high))

    return loss


def weighed(low, high):
    return lambda now, old, credit, fixed: -np.clip(np.exp(fixed - old), low, high) * credit * (now - old)


def soft(now, old, credit, fixed):
    tau = np.where(credit > 0, 1.0, 1.05)
    return -4 / tau / (1 + np.exp(-tau * (np.exp(now - old) - 1))) * credit


def without_left(limit):
    def loss(now, old, credit, fixed):
        left = (credit < 0) & (row_means(old - fixed) > limit)
        return np.where(left, 0.0, clipped()(now, old, credit, fixed))

    return loss


def plain(now, old, credit, fixed):
    return -credit * (now - old)


def largest_moved(now, old, credit, fixed):
    covariance = (credit - credit[MASK].mean()) * (fixed - fixed[MASK].mean())
    count = max(1, int(0.2 * MASK.sum()))
    large = covariance >= np.sort(covariance[MASK])[-count]
    return -credit * np.exp(now - old) + np.where(large, np.abs(now - old), 0.0)


def within_variation(limit, cap):
    """Each prompt's distance from its completions', each of its tokens'; frozen tokens keep their value, told as 0."""

    def loss(now, old, credit, fixed):
        far = 0.5 * np.abs(np.exp(fixed - old) - 1)
        kept = np.zeros(MASK.shape, bool)
        for p in range(P):
            rows = range(p * G, (p + 1) * G)
            distance = np.mean([far[b][MASK[b]].mean() for b in rows])
            for b in rows:
                for t in range(T):
                    kept[b, t] = (
                        distance <= limit or credit[b, t] * np.sign(np.exp(fixed[b, t]) - np.exp(old[b, t])) <= 0
                    )
        found = -credit * np.minimum(np.exp(fixed - old), cap) * (now - old)
        return np.where(kept, found, 0.0)

    return loss


def to_go(scores, old, ref, kl_coef):
    """The score at the last chosen token, k1 of the reference at each, added up from the end."""
    found = np.zeros(MASK.shape)
    for b in range(P * G):
        running = 0.0
        for t in reversed(range(MASK[b].sum())):
            running += (t == MASK[b].sum() - 1) * scores.reshape(-1)[b] - kl_coef * (old[b, t] - ref[b, t])
            found[b, t] = running
    return found


def unbiased_whitened(credit):
    taken = credit[MASK]
    return (credit - taken.mean()) / np.sqrt(taken.var(ddof=1) + 1e-8)


def over_tokens(losses):
    return losses[MASK].mean()


def over_rows(losses):
    return row_means(losses)[:, 0].mean()


CASES = {
    "prime_rl grpo": (prime_rl.grpo(), centered, squared(1e-3, in_its_direction(0.2)), over_tokens, 0),
    "prime_rl max_rl": (
        prime_rl.max_rl(),
        lambda s: centered(s) / s.mean(-1, keepdims=True),
        squared(1e-3, in_its_direction(0.2)),
        over_tokens,
        0,
    ),
    "prime_rl ipo": (prime_rl.ipo(0.1), centered, squared(1e-3, either_way(0.1)), over_tokens, 0),
    "nemo_rl grpo": (nemo_rl.grpo(), others, clipped(), over_tokens, 0.01),
    "nemo_rl grpo_dual": (nemo_rl.grpo_dual(), others, clipped(ceiling=3.0), over_tokens, 0.01),
    "nemo_rl dr_grpo": (nemo_rl.dr_grpo(), lambda s: others(s, False), clipped(), over_tokens, 0.01),
    "nemo_rl rloo": (nemo_rl.rloo(), lambda s: others(s, False), plain, over_tokens, 0.01),
    "nemo_rl gspo": (nemo_rl.gspo(), others, of_rows(0.8, 1.2), over_rows, 0.01),
    "nemo_rl reinforce++": (
        nemo_rl.reinforce_plus_plus_baseline(),
        lambda s: whitened(centered(s)),
        clipped(),
        over_tokens,
        0.01,
    ),
    "slime grpo": (slime.grpo(), z_scores, clipped(), over_rows, 0),
    "slime dr_grpo": (slime.dr_grpo(), centered, clipped(), over_rows, 0),
    "slime gspo": (slime.gspo(), z_scores, of_rows(0.8, 1.2), over_rows, 0),
    "slime opsm": (slime.opsm(), z_scores, without_left(1e-4), over_rows, 0),
    "slime cispo": (slime.cispo(eps_high=0.3), z_scores, weighed(0.8, 1.3), over_rows, 0),
    "slime reinforce++": (
        slime.reinforce_plus_plus(0.05),
        lambda s: unbiased_whitened(to_go(s, *prepared()[1:3], 0.05)),
        clipped(),
        over_rows,
        0,
    ),
    "slime reinforce++ baseline": (
        slime.reinforce_plus_plus_baseline(),
        lambda s: unbiased_whitened(of_tokens(centered(s))),
        clipped(),
        over_rows,
        0,
    ),
    "areal grpo": (areal.grpo(), twice, clipped(), over_tokens, 0),
    "areal gspo": (areal.gspo(), twice, of_rows(0.8, 1.2), over_tokens, 0),
    "areal sapo": (areal.sapo(), twice, soft, over_tokens, 0),
    "skyrl grpo": (skyrl.grpo(), z_scores, clipped(), over_tokens, 1e-3),
    "skyrl dr_grpo": (skyrl.dr_grpo(), centered, clipped(), over_tokens, 1e-3),
    "skyrl rloo": (skyrl.rloo(), lambda s: others(s, False), clipped(), over_tokens, 1e-3),
    "skyrl maxrl": (
        skyrl.maxrl(),
        lambda s: centered(s) / (s.mean(-1, keepdims=True) + 1e-6),
        clipped(),
        over_tokens,
        1e-3,
    ),
    "skyrl gspo": (skyrl.gspo(), z_scores, of_rows_by_token(0.8, 1.2), over_tokens, 1e-3),
    "skyrl cispo": (skyrl.cispo(), z_scores, weighed(0.0, 5.0), over_tokens, 1e-3),
    "skyrl sapo": (skyrl.sapo(), z_scores, soft, over_tokens, 1e-3),
    "skyrl dppo_tv": (skyrl.dppo_tv(), z_scores, masked_ratio(0.2), over_tokens, 1e-3),
    "skyrl kl_cov": (skyrl.kl_cov(), z_scores, largest_moved, over_tokens, 1e-3),
    "open_instruct grpo": (
        open_instruct.grpo(),
        lambda s: z_scores(s, 0, 1e-8),
        clipped(0.8, 1.272),
        over_tokens,
        0.05,
    ),
    "open_instruct dr_grpo": (open_instruct.dr_grpo(), centered, clipped(0.8, 1.272), over_tokens, 0.05),
    "open_instruct cispo": (
        open_instruct.cispo(),
        lambda s: z_scores(s, 0, 1e-8),
        weighed(0.0, 1.272),
        over_tokens,
        0.05,
    ),
    "open_instruct dppo_tv": (
        open_instruct.dppo_tv(),
        lambda s: z_scores(s, 0, 1e-8),
        masked_ratio(0.1),
        over_tokens,
        0.05,
    ),
    **{
        f"open_instruct tvpo {limit}": (
            open_instruct.tvpo(G, limit=limit),
            lambda s: z_scores(s, 0, 1e-8),
            within_variation(limit, 20.0),
            over_tokens,
            0.05,
        )
        for limit in (0.02, 0.13, 1.0)
    },
}


def ours(objective, log_probs, old, ref, scores):
    groups, mask = (P, G, T), jnp.asarray(MASK)
    credit = objective.advantage(Scored(scores, old.reshape(groups), mask.reshape(groups), ref.reshape(groups)))
    credit = jnp.broadcast_to(credit.reshape(P * G, -1), mask.shape)
    batch = PolicyBatch(log_probs, old, credit, mask, objective.weighting(mask), ref)
    return policy_loss(objective, batch._replace(terms=term_weights(objective.terms, batch)))[0]


@pytest.mark.parametrize("name", CASES)
def test_presets_equal_their_transcriptions(name):
    objective, advantages, losses, aggregate, kl_coef = CASES[name]
    now, old, ref, scores = prepared()
    scores = np.abs(scores) + 0.1 if "max" in name else scores
    credit = advantages(scores)
    credit = credit if credit.shape == MASK.shape else of_tokens(credit)

    def literal(log_probs):
        back = ref - log_probs
        return aggregate(losses(log_probs, old, credit, now) + kl_coef * (np.exp(back) - back - 1))

    data = tuple(map(jnp.asarray, (old, ref, scores)))
    value, gradient = jax.jit(jax.value_and_grad(lambda x: ours(objective, x, *data)))(jnp.asarray(now))
    assert float(value) == pytest.approx(literal(now), abs=1e-6)
    step = 1e-6
    for place in zip(*np.nonzero(MASK), strict=True):
        moved = np.zeros_like(now)
        moved[place] = step
        slope = (literal(now + moved) - literal(now - moved)) / (2 * step)
        assert float(gradient[place]) == pytest.approx(slope, abs=1e-6)


def test_a_policy_on_the_line_is_areals():
    """With every token two steps old: α is 2/3, and a token whose weight is beyond the bound is left out."""
    now, old, _, scores = prepared(1)
    credit, fixed = twice(scores), old + 2 / 3 * (now - old)
    ratio, weight = np.exp(now - fixed), np.exp(fixed - old)
    weight[weight > 1.1] = 0
    assert 0 < (weight[MASK] == 0).sum() < MASK.sum()
    wanted = (weight * np.maximum(-credit * ratio, -credit * np.clip(ratio, 0.8, 1.2)))[MASK].mean()
    objective, mask = areal.log_linear(ceiling=1.1), jnp.asarray(MASK)
    arrays = map(jnp.asarray, (now, old, credit))
    batch = PolicyBatch(*arrays, mask, objective.weighting(mask), staleness=jnp.full(mask.shape, 2.0))
    assert float(policy_loss(objective, batch)[0]) == pytest.approx(wanted, abs=1e-6)


def test_equal_others_are_not_divided_by_nothing():
    """A completion that is alone in being right keeps its difference; groups of equal scores have none."""
    scores = jnp.array([[1.0, 0.0, 0.0], [0.3, 0.3, 0.3]])
    found = per_group(nemo_rl.in_stds_of_the_others)(Scored(scores, None, None))
    assert found[0, 0] == leave_one_out(scores[0])[0] == 1
    np.testing.assert_allclose(found[0, 1:], -0.5 / (0.5 + 1e-6), rtol=1e-9)
    np.testing.assert_array_equal(found[1], np.zeros(3))
