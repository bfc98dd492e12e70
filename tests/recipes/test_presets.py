"""The presets named after verl and OpenRLHF against transcriptions of their formulas, from scores to loss, float64.

TRL's are compared with its own code in ``tests/parity``.
"""

from __future__ import annotations

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import PolicyBatch, Scored
from rlax_llm.policy.objectives import policy_loss
from rlax_llm.policy.trust_regions import clip
from rlax_llm.policy.weightings import fixed_length, sequence_mean, sequence_sum
from rlax_llm.recipes import group as recipes
from rlax_llm.recipes import openrlhf, trl, verl

pytestmark = pytest.mark.usefixtures("float64")

GROUPS, SIZE, COLUMNS = 2, 3, 5
ROWS = GROUPS * SIZE


def prepared():
    random = np.random.default_rng(0)
    log_probs = -random.gamma(2.0, size=(ROWS, COLUMNS))
    old = log_probs + 0.4 * random.normal(size=log_probs.shape)
    ref = log_probs + 0.4 * random.normal(size=log_probs.shape)
    mask = np.arange(COLUMNS) < np.array([5, 2, 3, 1, 5, 4])[:, None]
    return log_probs, old, ref, mask, random.normal(size=(GROUPS, SIZE))


def lengths(mask):
    return [sum(1 for chosen in row if chosen) for row in mask]


def grouped(scores, of_group):
    """One number a row, from a function of its group's scores and its place in the group."""
    return [of_group(list(group), i) for group in scores for i in range(len(group))]


def mean(values):
    return sum(values) / len(values)


def std(values):
    return math.sqrt(sum((x - mean(values)) ** 2 for x in values) / (len(values) - 1))


def per_token(advantages, mask):
    return [[advantages[b] for _ in row] for b, row in enumerate(mask)]


def whitened(table, mask, ddof):
    taken = [table[b][t] for b, row in enumerate(mask) for t, chosen in enumerate(row) if chosen]
    center = mean(taken)
    variance = sum((x - center) ** 2 for x in taken) / (len(taken) - ddof)
    return [[(x - center) / math.sqrt(variance + 1e-8) for x in row] for row in table]


def z_scores(eps):
    return lambda scores, mask, old, ref: per_token(
        grouped(scores, lambda g, i: (g[i] - mean(g)) / (std(g) + eps)), mask
    )


def centered(scores, mask, old, ref):
    return per_token(grouped(scores, lambda g, i: g[i] - mean(g)), mask)


def leave_one_out(scores, mask, old, ref):
    return per_token(grouped(scores, lambda g, i: g[i] - (sum(g) - g[i]) / (len(g) - 1)), mask)


def length_weighted(scores, mask, old, ref):
    n = lengths(mask)
    advantages = []
    for p, group in enumerate(scores):
        size = [n[p * SIZE + i] for i in range(SIZE)]
        baseline = sum(s * w for s, w in zip(group, size, strict=True)) / sum(size)
        advantages += [s - baseline for s in group]
    return per_token(advantages, mask)


def nonzero_scaled(scores, mask, old, ref):
    alpha = ROWS / sum(1 for group in scores for s in group if s != 0)
    return [[alpha * a for a in row] for row in centered(scores, mask, old, ref)]


def returns_to_go(kl_coef, ddof):
    def advantages(scores, mask, old, ref):
        table = [[0.0] * COLUMNS for _ in range(ROWS)]
        for b in range(ROWS):
            chosen = [t for t in range(COLUMNS) if mask[b][t]]
            total = 0.0
            for t in reversed(chosen):
                reward = -kl_coef * (old[b][t] - ref[b][t])
                if t == chosen[-1]:
                    reward += scores[b // SIZE][b % SIZE]
                total += reward
                table[b][t] = total
        return whitened(table, mask, ddof)

    return advantages


def whitened_baseline(ddof):
    return lambda scores, mask, old, ref: whitened(centered(scores, mask, old, ref), mask, ddof)


def clipped(ratio, advantage, low, high, ceiling=math.inf):
    loss = max(-advantage * ratio, -advantage * min(max(ratio, low), high))
    return min(loss, -advantage * ceiling) if advantage < 0 else loss


def token_losses(loss):
    return lambda log_ratio, advantages, mask: [
        [loss(math.exp(min(max(x, -20.0), 20.0)), a, x) for x, a in zip(*rows, strict=True)]
        for rows in zip(log_ratio, advantages, strict=True)
    ]


def sequence_losses(loss):
    """One ratio a row, the exponential of the mean log-ratio of its tokens."""

    def losses(log_ratio, advantages, mask):
        table = []
        for row, credit, chosen in zip(log_ratio, advantages, mask, strict=True):
            average = mean([x for x, taken in zip(row, chosen, strict=True) if taken])
            table.append([loss(math.exp(average), a, average) for a in credit])
        return table

    return losses


def geometric(eps):
    def losses(log_ratio, advantages, mask):
        table = []
        for row, credit, chosen in zip(log_ratio, advantages, mask, strict=True):
            bounded = [
                min(x, eps) if a > 0 else max(x, -eps) for x, a, taken in zip(row, credit, chosen, strict=True) if taken
            ]
            table.append([-a * math.exp(mean(bounded)) for a in credit])
        return table

    return losses


def token_mean(losses, mask):
    return sum(
        x for row, chosen in zip(losses, mask, strict=True) for x, c in zip(row, chosen, strict=True) if c
    ) / sum(lengths(mask))


def row_mean(losses, mask):
    rows = zip(losses, mask, strict=True)
    return mean([mean([x for x, c in zip(row, chosen, strict=True) if c]) for row, chosen in rows])


def over_width(losses, mask):
    return token_mean(losses, mask) * sum(lengths(mask)) / COLUMNS


DUAL = token_losses(lambda r, a, x: clipped(r, a, 0.8, 1.2, 3.0))
PPO = token_losses(lambda r, a, x: clipped(r, a, 0.8, 1.2))
PLAIN = token_losses(lambda r, a, x: -a * x)
NARROW = sequence_losses(lambda r, a, x: clipped(r, a, 0.8, 1.2))
CASES = {
    "verl grpo": (verl.grpo(), z_scores(1e-6), DUAL, token_mean),
    "verl dr_grpo": (verl.dr_grpo(), centered, DUAL, over_width),
    "verl rloo": (verl.rloo(), leave_one_out, DUAL, token_mean),
    "verl reinforce++": (verl.reinforce_plus_plus(), returns_to_go(0.0, 1), DUAL, token_mean),
    "verl reinforce++ baseline": (verl.reinforce_plus_plus_baseline(), whitened_baseline(1), DUAL, token_mean),
    "verl opo": (verl.opo(), length_weighted, DUAL, token_mean),
    "verl gpg": (verl.gpg(), nonzero_scaled, PLAIN, token_mean),
    "verl gspo": (verl.gspo(), z_scores(1e-6), NARROW, row_mean),
    "verl gmpo": (verl.gmpo(), z_scores(1e-6), geometric(0.2), row_mean),
    "openrlhf group_norm": (openrlhf.grpo(), z_scores(1e-9), PPO, token_mean),
    "openrlhf dr_grpo": (openrlhf.dr_grpo(), centered, PPO, token_mean),
    "openrlhf rloo": (openrlhf.rloo(), leave_one_out, PPO, token_mean),
    "openrlhf reinforce": (openrlhf.reinforce_plus_plus(), returns_to_go(0.01, 0), PPO, token_mean),
    "openrlhf reinforce_baseline": (openrlhf.reinforce_plus_plus_baseline(), whitened_baseline(0), PPO, token_mean),
    "openrlhf gspo": (openrlhf.gspo(), z_scores(1e-9), NARROW, row_mean),
}


def ours(objective, log_probs, data):
    _, old, ref, mask, scores = data
    groups = (GROUPS, SIZE, COLUMNS)
    scored = Scored(jnp.asarray(scores), old.reshape(groups), mask.reshape(groups), ref.reshape(groups))
    advantages = objective.advantage(scored).reshape(ROWS, -1)
    advantages = jnp.broadcast_to(advantages, mask.shape)
    batch = PolicyBatch(log_probs, old, advantages, mask, objective.weighting(mask).astype(jnp.float64), ref)
    return policy_loss(objective, batch)[0]


@pytest.mark.parametrize("name", CASES)
def test_presets_equal_their_transcriptions(name):
    objective, advantages, losses, aggregate = CASES[name]
    data = tuple(jnp.asarray(x) for x in prepared())
    log_probs, old, ref, mask, scores = prepared()
    credit = advantages(scores.tolist(), mask.tolist(), old.tolist(), ref.tolist())

    def literal(current):
        return aggregate(losses((current - old).tolist(), credit, mask.tolist()), mask.tolist())

    value, gradient = jax.jit(jax.value_and_grad(lambda current: ours(objective, current, data)))(data[0])
    assert float(value) == pytest.approx(literal(log_probs), abs=1e-7)
    step = 1e-5
    for b, t in np.ndindex(mask.shape):
        moved = np.zeros_like(log_probs)
        moved[b, t] = step
        slope = (literal(log_probs + moved) - literal(log_probs - moved)) / (2 * step)
        assert float(gradient[b, t]) == pytest.approx(slope, abs=1e-6)


def test_verl_bounds_the_log_ratio():
    grads = jax.grad(lambda x: verl.grpo().ratio(x, jnp.zeros(3), jnp.ones(3, bool)).sum())(jnp.array([-90.0, 1, 90]))
    assert grads.tolist() == [0.0, 1.0, 0.0]


def test_cispo_names_a_ceiling_in_one_peer_and_a_half_width_in_another():
    log_ratio, advantages = jnp.log(jnp.array([0.5, 1.1, 3.0])), jnp.ones(3)
    slopes = [
        jax.grad(lambda x, o=o: o.trust_region(x, advantages).sum())(log_ratio).tolist()
        for o in (trl.cispo(0.2), verl.cispo(0.2))
    ]
    np.testing.assert_allclose(slopes, [[-0.2, -0.2, -0.2], [-0.8, -1.1, -1.2]], rtol=1e-9)


def test_the_peers_meet_the_papers_where_they_agree():
    """All rows chosen: TRL's means over all rows are the papers'; its RLOO without a clip in reach is the paper's."""
    mask = jnp.ones((4, 6), bool)
    for theirs, own in (
        (trl.grpo_sequence_mean(), sequence_mean),
        (trl.dr_grpo(9), fixed_length(9)),
        (trl.luspo(), sequence_sum),
    ):
        np.testing.assert_allclose(theirs.weighting(mask), own(mask), rtol=1e-6)
    data = tuple(jnp.asarray(x) for x in prepared())
    far = trl.rloo(0.0)._replace(trust_region=clip(0.999, 1e9), weighting=sequence_mean)
    on_policy = (data[1], *data[1:])
    pair = [jax.grad(lambda x, o=o: ours(o, x, on_policy))(data[1]) for o in (far, recipes.rloo(0.0))]
    np.testing.assert_allclose(*pair, rtol=1e-6, atol=0)  # weights are float32


def test_presets_are_reached_from_the_flat_face():
    """In a new process: here they are imported already."""
    code = (
        "import rlax_llm as rl; "
        "print(rl.recipes.trl.grpo().kl, rl.recipes.verl.grpo().kl, rl.policy.trust_regions.cispo)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("None None <function cispo")


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, trl.grpo()),
        ({"beta": 0.04}, trl.grpo_corrected_kl(0.04)),
        ({"beta": 0.04, "use_bias_correction_kl": False, "epsilon_high": 0.28}, trl.grpo(0.04, 0.2, 0.28)),
        ({"delta": 1.5}, trl.grpo(delta=1.5)),
        ({"loss_type": "bnpo"}, trl.grpo()),
        ({"loss_type": "dr_grpo", "max_completion_length": 9}, trl.dr_grpo(9)),
        ({"loss_type": "dr_grpo", "max_completion_length": 9, "scale_rewards": "none"}, recipes.dr_grpo(9)),
        ({"loss_type": "dr_grpo", "max_completion_length": 9, "scale_rewards": False}, recipes.dr_grpo(9)),
        ({"scale_rewards": "batch"}, recipes.lite_ppo()),
        ({"scale_rewards": True}, trl.grpo()),
        (
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
            recipes.gspo(),
        ),
        ({"loss_type": "sapo", "sapo_temperature_neg": 1.05}, recipes.sapo()),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, recipes.cispo(5.0)),
        ({"loss_type": "vespo"}, recipes.vespo()),
    ],
)
def test_trls_settings_are_the_presets_and_papers_that_they_name(settings, same):
    """Every row has a chosen token here, so that means over rows are those of the papers."""
    data = tuple(jnp.asarray(x) for x in prepared())
    pair = [
        jax.value_and_grad(lambda x, o=o: ours(o, x, data))(data[0]) for o in (trl.GRPOConfig(**settings).build(), same)
    ]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-12), *pair)
    assert np.abs(pair[0][1]).max() > 1e-4


def test_rloo_settings_from_scores_to_advantages():
    _, old, ref, mask, scores = prepared()
    groups = (GROUPS, SIZE, COLUMNS)
    scored = Scored(jnp.asarray(3 * scores), old.reshape(groups), mask.reshape(groups), ref.reshape(groups))
    settings = {"beta": 0.3, "reward_clip_range": (-1.0, 1.0), "normalize_advantages": True}
    found = trl.RLOOConfig(**settings).build().advantage(scored)
    rewards = []
    for b, score in enumerate((3 * scores).ravel()):
        divergence = sum(old[b, t] - ref[b, t] for t in range(COLUMNS) if mask[b, t])
        rewards.append(min(max(score, -1.0), 1.0) - 0.3 * divergence)
    table = [rewards[p * SIZE : (p + 1) * SIZE] for p in range(GROUPS)]
    credit = grouped(table, lambda g, i: g[i] - (sum(g) - g[i]) / (SIZE - 1))
    expected = [(a - mean(credit)) / (std(credit) + 1e-4) for a in credit]
    np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-6)
    plain = trl.RLOOConfig().build()
    assert (
        plain.ratio is trl.rloo().ratio
        and plain.weighting(scored.mask[0]).sum() == trl.rloo().weighting(scored.mask[0]).sum()
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"loss_type": "dapoo"}, "trl: loss_type is 'dapoo', wanted one of .*; did you mean 'dapo'"),
        ({"scale_rewards": "mean"}, "trl: scale_rewards is 'mean', wanted one of group, batch, none"),
        ({"importance_sampling_level": "word"}, "trl: importance_sampling_level is 'word', wanted one of token, seq"),
    ],
)
def test_settings_that_trl_does_not_have_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        trl.GRPOConfig(**settings).build()
