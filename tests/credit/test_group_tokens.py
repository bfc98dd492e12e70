"""Baselines of least variance and turns in equal states, against loops written from the papers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.log_probs import token_collisions
from rlax_llm.core.token_sets import to_bits
from rlax_llm.core.types import Known, Scored
from rlax_llm.credit.group_tokens import (
    anchored,
    by_step,
    optimal_token_baseline,
    process_supervision,
    step_wise,
    token_energy,
)
from rlax_llm.credit.groups import best_of_group, centered, leave_one_out, length_centered, per_group, z_score

pytestmark = pytest.mark.usefixtures("float64")

P, G, T, V, K = 2, 4, 5, 7, 3


def prepared(seed: int = 0):
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.ones(V), size=(P, G, T))
    tokens = random.integers(0, V, (P, G, T))
    chosen = np.take_along_axis(p, tokens[..., None], -1)[..., 0]
    mask = np.arange(T) < random.integers(1, T + 1, (P, G, 1))
    mask[:, :, 1] &= random.random((P, G)) < 0.7  # an answer of a tool
    return random.normal(size=(P, G)), p, tokens, chosen, mask


def test_energy_is_the_squared_norm_of_the_gradient_of_the_logits():
    _, p, tokens, chosen, _ = prepared()
    wanted = ((np.eye(V)[tokens] - p) ** 2).sum(-1)
    np.testing.assert_allclose(token_energy(jnp.log(chosen), jnp.asarray((p**2).sum(-1))), wanted, rtol=1e-9)


def literal_baseline(scores, energy, mask, discount):
    """Per prompt and token: G_t of each completion, W_t summed up to it, and their ratio."""
    found = np.zeros(mask.shape)
    for p in range(P):
        alive = [g for g in range(G) if not np.isnan(scores[p, g])]
        for t in range(T):
            returns, weights = {}, {}
            for g in alive:
                if mask[p, g, t]:
                    returns[g] = scores[p, g] * discount ** mask[p, g, t + 1 :].sum()
                    weights[g] = sum(energy[p, g, j] for j in range(t + 1) if mask[p, g, j])
            for g in returns:
                baseline = sum(returns[i] * weights[i] for i in returns) / sum(weights.values())
                found[p, g, t] = returns[g] - baseline if len(alive) > 1 else 0.0
    return found


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_optimal_token_baseline_is_that_of_the_paper(discount):
    scores, p, _, chosen, mask = prepared(1)
    scores[0, 2] = np.nan
    scores[1, 1:] = np.nan
    collisions = (p**2).sum(-1)
    scored = Scored(jnp.asarray(scores), jnp.log(chosen), jnp.asarray(mask), known=Known(collisions=collisions))
    found = optimal_token_baseline(discount=discount)(scored)
    energy = 1 - 2 * chosen + collisions
    np.testing.assert_allclose(found, literal_baseline(scores, energy, mask, discount), rtol=1e-9, atol=1e-12)
    assert np.abs(found[0]).max() > 0.1
    assert np.all(found[1] == 0)


def test_with_equal_energies_it_is_the_mean_of_those_that_go_on():
    scores, _, _, chosen, _ = prepared(2)
    mask = np.broadcast_to(np.arange(T) < np.array([5, 3, 2, 4])[:, None], (P, G, T))
    flat = np.full_like(chosen, 0.3)
    scored = Scored(jnp.asarray(scores), jnp.log(flat), jnp.asarray(mask), known=Known(collisions=flat))
    found = optimal_token_baseline()(scored)
    np.testing.assert_allclose(found[:, :, 0], per_group(centered)(scored), rtol=1e-9)
    last = scores[:, [0, 3]].mean(-1)
    np.testing.assert_allclose(found[:, 3, 3], scores[:, 3] - last, rtol=1e-9)


def test_collisions_are_those_of_the_softmax_that_was_drawn_from():
    random = np.random.default_rng(3)
    hidden, head, targets = random.normal(size=(9, 4)), random.normal(size=(V, 4)), random.integers(0, V, 9)
    kept = random.random((9, V)) < 0.6
    kept[np.arange(9), targets] = True
    logits = (hidden @ head.T + 0.3 * np.arange(V)) / 0.7
    for own, bits in ((np.ones((9, V), bool), None), (kept, to_bits(jnp.asarray(kept)))):
        p = np.where(own, np.exp(logits), 0.0)
        p /= p.sum(-1, keepdims=True)
        read = jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets)
        found = token_collisions(*read, 0.7, bits, 0.3 * jnp.arange(V))
        np.testing.assert_allclose(found, (p**2).sum(-1), rtol=1e-9)


def turns(seed: int = 4):
    scores, _, _, chosen, mask = prepared(seed)
    random = np.random.default_rng(seed)
    of_tokens = np.sort(random.integers(0, K, (P, G, T)), -1)
    states, returns = random.integers(0, 4, (P, G, K)), random.normal(size=(P, G, K))
    returns[0, 1, 2] = np.nan
    known = Known(turns=jnp.asarray(of_tokens), anchors=jnp.asarray(states), turn_returns=jnp.asarray(returns))
    return Scored(jnp.asarray(scores), jnp.log(chosen), jnp.asarray(mask), known=known)


def test_step_wise_credit_is_that_of_the_paper():
    scored = turns()
    scores, known = np.asarray(scored.scores), jax.tree.map(np.asarray, scored.known)
    found = step_wise(per_group(z_score), 0.7)(scored)
    for p, g, t in np.ndindex(P, G, T):
        own = known.turns[p, g, t]
        here = known.anchors[p] == known.anchors[p, g, own]
        values = [x for x in known.turn_returns[p][here] if not np.isnan(x)]
        mine, step = known.turn_returns[p, g, own], 0.0
        if len(values) > 1 and not np.isnan(mine):
            step = (mine - np.mean(values)) / (np.std(values, ddof=1) + 1e-4)
        episode = (scores[p, g] - scores[p].mean()) / (scores[p].std(ddof=1) + 1e-4)
        assert float(found[p, g, t]) == pytest.approx(episode + 0.7 * step, rel=1e-9)


def test_step_wise_credit_without_turns_is_that_of_the_episode():
    scored = turns(5)
    plain = np.broadcast_to(per_group(z_score)(scored)[..., None], scored.mask.shape)
    np.testing.assert_array_equal(step_wise(per_group(z_score), 0.0)(scored), plain)
    apart = scored.known._replace(anchors=jnp.arange(G * K).reshape(1, G, K).repeat(P, 0))
    np.testing.assert_array_equal(step_wise(per_group(z_score))(scored._replace(known=apart)), plain)
    one = Known(jnp.zeros(P), turns=jnp.zeros((P, G, T), int), anchors=jnp.zeros((P, G, 1), int))
    one = one._replace(turn_returns=scored.scores[..., None])
    np.testing.assert_allclose(step_wise(per_group(z_score), 2.0)(scored._replace(known=one)), 3 * plain, rtol=1e-9)


def stepped(seed: int = 6):
    """Scored completions with step rewards; the last chosen token of most ends a step, not that of all."""
    scores, _, _, chosen, mask = prepared(seed)
    random = np.random.default_rng(seed)
    ends = mask & (random.random(mask.shape) < 0.6)
    rewards = np.where(ends, random.normal(size=mask.shape), np.nan)
    return scores, chosen, mask, rewards


def scored_steps(scores, chosen, mask, rewards):
    known = Known(step_rewards=jnp.asarray(rewards))
    return Scored(jnp.asarray(scores), jnp.log(chosen), jnp.asarray(mask), known=known)


def literal_process_supervision(scores, mask, rewards):
    """Per prompt: the rewards r_i^index(j) of all steps of all completions, normalized, and summed from each token."""
    found = np.zeros(mask.shape)
    for p in range(P):
        steps = []  # completion, index(j), reward
        for g in range(G):
            if np.isnan(scores[p, g]):
                continue
            own = {t: rewards[p, g, t] for t in range(T) if mask[p, g, t] and not np.isnan(rewards[p, g, t])}
            last = max(t for t in range(T) if mask[p, g, t])
            rest = scores[p, g] - sum(own.values())
            if not own or abs(rest) > 1e-9:  # what no step was paid is due at the end
                own[last] = own.get(last, 0.0) + rest
            steps += [(g, t, reward) for t, reward in own.items()]
        values = np.array([reward for *_, reward in steps])
        for g, t in np.ndindex(G, T):
            following = [(r - values.mean()) / (values.std(ddof=1) + 1e-4) for i, j, r in steps if i == g and j >= t]
            found[p, g, t] = sum(following) if mask[p, g, t] else 0.0
    return found


@pytest.mark.parametrize("outcome", [False, True])
def test_process_supervision_is_that_of_the_paper(outcome):
    scores, chosen, mask, rewards = stepped()
    paid = np.nansum(np.where(mask, rewards, np.nan), -1)
    scores = paid + outcome * scores
    scores[0, 2] = np.nan
    found = process_supervision()(scored_steps(scores, chosen, mask, rewards))
    np.testing.assert_allclose(found, literal_process_supervision(scores, mask, rewards), rtol=1e-9, atol=1e-9)
    assert np.all(found[0, 2] == 0)
    assert len(np.unique(np.round(found[1, 0][mask[1, 0]], 6))) > 1


@pytest.mark.parametrize("estimator", [z_score, centered, leave_one_out])
def test_one_step_in_each_completion_is_outcome_supervision(estimator):
    scores, chosen, mask, _ = stepped()
    scores[1, 1] = np.nan
    last = mask & (np.cumsum(mask[..., ::-1], -1)[..., ::-1] == 1)
    outcome = np.where(mask, np.asarray(per_group(estimator)(scored_steps(scores, chosen, mask, scores)))[..., None], 0)
    for rewards in (np.where(last, scores[..., None], np.nan), np.full(mask.shape, np.nan)):
        found = by_step(per_group(estimator))(scored_steps(scores, chosen, mask, rewards))
        np.testing.assert_allclose(found, outcome, rtol=1e-9, atol=1e-12)


def test_equal_steps_teach_nothing_whatever_their_sum():
    _, chosen, mask, rewards = stepped()
    rewards = np.where(np.isnan(rewards), np.nan, 0.1).astype(np.float32)
    scores = np.nansum(np.where(mask, rewards, np.nan), -1).astype(np.float32)
    assert mask.any(-1).all() and (mask & ~np.isnan(rewards)).any(-1).sum() > 1
    known = np.where((mask & ~np.isnan(rewards)).any(-1), scores, np.nan)
    assert np.all(process_supervision()(scored_steps(known, chosen, mask, rewards)) == 0)


def test_what_compares_no_rewards_with_one_another_has_no_steps():
    with pytest.raises(ValueError, match="by_step: best_of_group asks which completion is best"):
        by_step(per_group(best_of_group))
    with pytest.raises(ValueError, match="by_step: the advantage is none of a group's scores by themselves"):
        by_step(length_centered)


def test_what_is_not_known_is_told():
    scored = Scored(jnp.ones((1, 2)), jnp.zeros((1, 2, 3)), jnp.ones((1, 2, 3), bool))
    with pytest.raises(ValueError, match=r"optimal_token_baseline: known.collisions is None; give Groups\(..., known="):
        optimal_token_baseline()(scored)
    with pytest.raises(ValueError, match=r"step_wise: known.turns is None"):
        step_wise(per_group(z_score))(scored)
    with pytest.raises(ValueError, match=r"process_supervision: known.step_rewards is None"):
        process_supervision()(scored)
    with pytest.raises(ValueError, match="anchored: anchors has shape"):
        anchored(jnp.ones((2, 3)), jnp.ones((2, 2), int))
