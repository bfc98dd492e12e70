"""Least squares of implicit rewards on advantages: GVPO and A*-PO by loops, their gradients, and their limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.types import Completions, Groups, PolicyBatch
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.policy.coupled import against_reference, centered_in_group
from rlax_llm.policy.objectives import Objective, policy_loss
from rlax_llm.policy.ratios import summed_ratio
from rlax_llm.policy.trust_regions import regression, score_function
from rlax_llm.policy.weightings import sequence_mean
from rlax_llm.recipes.online import a_star_po, gvpo, raft, raft_plus_plus

pytestmark = pytest.mark.usefixtures("float64")

P, G, T, BETA = 2, 3, 4, 0.3
ROWS = P * G


def batch_of(seed: int, drift: float = 0.5) -> PolicyBatch:
    random = np.random.default_rng(seed)
    old = -random.exponential(size=(ROWS, T))
    current, reference = (old + drift * random.normal(size=old.shape) for _ in range(2))
    mask = np.arange(T) < random.integers(1, T + 1, (ROWS, 1))
    scores = random.normal(size=(P, G))
    credit = (scores - scores.mean(1, keepdims=True)).reshape(-1, 1)
    rows = (np.broadcast_to(x.reshape(-1, 1), old.shape) for x in (credit, scores))
    credit, scores = map(jnp.asarray, rows)
    current, old, reference, mask = map(jnp.asarray, (current, old, reference, mask))
    return PolicyBatch(current, old, credit, mask, ref_log_probs=reference, scores=scores)


def total(x, y, mask) -> np.ndarray:
    return np.array([sum(a - b for a, b, m in zip(*row, strict=True) if m) for row in zip(x, y, mask, strict=True)])


def literal_gvpo(current, batch: PolicyBatch) -> float:
    implicit = BETA * total(current, batch.old_log_probs, batch.mask).reshape(P, G)
    scores = np.asarray(batch.scores)[:, 0].reshape(P, G)
    errors = (implicit - implicit.mean(1, keepdims=True)) - (scores - scores.mean(1, keepdims=True))
    return 0.5 * (errors**2).sum() / ROWS


def literal_a_star(current, batch: PolicyBatch) -> float:
    implicit = BETA * total(current, batch.ref_log_probs, batch.mask)
    return ((implicit - np.asarray(batch.advantages)[:, 0]) ** 2).sum() / ROWS


CASES = {"gvpo": (gvpo(G, BETA), literal_gvpo), "a_star_po": (a_star_po(BETA).objective, literal_a_star)}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_paper(name):
    objective, literal = CASES[name]
    batch = batch_of(0)
    value, gradient = jax.value_and_grad(lambda x: policy_loss(objective, batch._replace(log_probs=x))[0])(
        jnp.asarray(batch.log_probs)
    )
    np.testing.assert_allclose(value, literal(batch.log_probs, batch), rtol=1e-6)
    for row, column in ((0, 0), (2, 0), (ROWS - 1, 0), (1, T - 1)):
        moved = np.array([batch.log_probs, batch.log_probs])
        moved[0, row, column] += 1e-6
        moved[1, row, column] -= 1e-6
        slope = (literal(moved[0], batch) - literal(moved[1], batch)) / 2e-6
        np.testing.assert_allclose(gradient[row, column], slope, rtol=1e-6, atol=1e-8)


def test_before_the_first_step_gvpo_is_reinforce_of_whole_completions():
    batch = batch_of(1, drift=0.0)
    parent = Objective(lambda scored: scored.scores, summed_ratio, score_function, sequence_mean)
    ours, theirs = (
        jax.grad(lambda x, objective=objective: policy_loss(objective, batch._replace(log_probs=x))[0])(
            jnp.asarray(batch.log_probs)
        )
        for objective in (gvpo(G, BETA), parent)
    )
    np.testing.assert_allclose(ours, BETA * theirs, rtol=1e-6, atol=1e-9)


def test_on_samples_of_the_reference_a_star_po_reads_the_sampler():
    batch = batch_of(2)
    same = batch._replace(ref_log_probs=batch.old_log_probs)
    log_ratio = summed_ratio(batch.log_probs, batch.old_log_probs, batch.mask)
    found = against_reference(regression(BETA)).loss(log_ratio, same)
    np.testing.assert_allclose(found, jnp.where(batch.mask, regression(BETA)(log_ratio, batch.advantages), 0.0))


def test_a_completion_without_tokens_or_score_is_in_no_mean():
    batch = batch_of(3)
    gone = np.zeros(ROWS, bool)
    gone[[1, 3]] = True
    without = batch._replace(
        mask=batch.mask & (np.arange(ROWS) != 1)[:, None],
        scores=jnp.where((np.arange(ROWS) == 3)[:, None], jnp.nan, jnp.asarray(batch.scores)),
    )
    found = np.asarray(centered_in_group(lambda x, _: x, G).loss(summed(without), without))
    for group in range(P):
        rows = [b for b in range(group * G, group * G + G) if not gone[b]]
        ratios = [total(batch.log_probs, batch.old_log_probs, batch.mask)[b] for b in rows]
        for b, ratio in zip(rows, ratios, strict=True):
            np.testing.assert_allclose(found[b, 0], ratio - np.mean(ratios), rtol=1e-10)
    assert not found[gone].any()


def summed(batch: PolicyBatch):
    return summed_ratio(batch.log_probs, batch.old_log_probs, batch.mask)


# In a loop


def table(params, rows: Completions):
    """Tokens by place, whatever stands before."""
    log_p = jax.nn.log_softmax(params)
    return log_p[jnp.arange(T), rows.tokens], jnp.zeros(rows.tokens.shape)


def drawn(seed: int) -> Groups:
    random = np.random.default_rng(seed)
    tokens = jnp.asarray(random.integers(0, 3, (ROWS, T)), jnp.int32)
    mask = jnp.asarray(np.arange(T) < random.integers(1, T + 1, (ROWS, 1)))
    zeros = jnp.zeros((ROWS, T))
    rows = Completions(tokens, mask, mask, zeros, jnp.zeros(ROWS, bool))
    return Groups(rows._replace(log_probs=table(jnp.zeros((T, 3)), rows)[0]), jnp.asarray(random.normal(size=(P, G))))


def gradient_of(objective, groups, params, **learning):
    init, step = group_loop(table, objective, optax.sgd(1.0), GroupLearning(**learning))
    return params - step(init(params), groups)[0].params


def test_gvpo_reads_a_batch_whole():
    params, groups = jnp.asarray(np.random.default_rng(5).normal(size=(T, 3))), drawn(4)
    with pytest.raises(ValueError, match="micro_batches is 2, and the objective reads several rows at once"):
        gradient_of(gvpo(G, BETA), groups, params, micro_batches=P)


def test_raft_is_supervised_training_on_the_best():
    """By loops: mean over the prompts of the mean nats of their best completion; RAFT++ on policy the same."""
    params, groups = jnp.asarray(np.random.default_rng(6).normal(size=(T, 3))), drawn(7)

    def literal(params):
        best = np.argmax(groups.scores, 1) + G * np.arange(P)
        rows, mask = groups.completions, groups.completions.mask
        found = table(params, rows)[0]
        return sum(-jnp.where(mask[b], found[b], 0.0).sum() / mask[b].sum() for b in best) / P

    wanted = jax.grad(literal)(params)
    np.testing.assert_allclose(gradient_of(raft(), groups, params), wanted, rtol=1e-6, atol=1e-9)
    own = groups._replace(completions=groups.completions._replace(log_probs=table(params, groups.completions)[0]))
    np.testing.assert_allclose(gradient_of(raft_plus_plus(), own, params), wanted, rtol=1e-6, atol=1e-9)
