"""Terms of a policy loss: literal sums, limiting cases, and micro-batches that change nothing."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.types import Completions, CreditedCompletions, Groups, PolicyBatch
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.loops.policy import policy_loop
from rlax_llm.policy import terms
from rlax_llm.policy.corrections import truncated_importance
from rlax_llm.policy.distillation import blended
from rlax_llm.policy.objectives import policy_loss
from rlax_llm.policy.terms import Term
from rlax_llm.policy.weightings import fixed_length, sequence_mean, token_mean
from rlax_llm.recipes import control, distillation, mixed, trl
from rlax_llm.recipes import group as recipes

pytestmark = pytest.mark.usefixtures("float64")

B, T, V = 6, 5, 4
RANDOM = np.random.default_rng(0)
MASK = RANDOM.random((B, T)) < 0.5
GIVEN = ~MASK & (RANDOM.random((B, T)) < 0.7)
TOKENS = RANDOM.integers(0, V, (B, T))
SCORES = RANDOM.normal(size=B)
CURRENT, OLD, TEACHER = -RANDOM.exponential(size=(3, B, T))
CREDIT = np.broadcast_to(RANDOM.normal(size=(B, 1)), (B, T))
BATCH = PolicyBatch(
    CURRENT, OLD, CREDIT, MASK, given=GIVEN, scores=np.broadcast_to(SCORES[:, None], (B, T)), entropy=-CURRENT / 2
)._replace(ref_log_probs=TEACHER)
BASE = recipes.grpo(0)


def literal(name: str) -> float:
    """One term by loops over tokens."""
    total = 0.0
    good = SCORES > 0.2
    for b in range(B):
        for t in range(T):
            p, ratio = np.exp(CURRENT[b, t]), CURRENT[b, t] - OLD[b, t]
            if name == "squared_ratio" and MASK[b, t]:
                total += ratio**2 / MASK.sum()
            if name == "imitation" and GIVEN[b, t]:
                total += -p * (1 - p) * CURRENT[b, t] / GIVEN.sum()
            if name == "given_nll" and GIVEN[b, t]:
                total += -CURRENT[b, t] / GIVEN.sum()
            if name == "positive_nll" and MASK[b, t] and good[b]:
                total += -CURRENT[b, t] / MASK[good].sum()
            if name == "bonus" and MASK[b, t]:
                rows = MASK.any(1).sum()
                total += CURRENT[b, t] / 2 / MASK[b].sum() / rows
            if name == "distillation_loss" and MASK[b, t]:
                total += -min(np.exp(ratio), 2) * (TEACHER[b, t] - OLD[b, t]) * ratio / MASK[b].sum() / B
    return total


EACH = {
    "squared_ratio": mixed.kimi().terms[0],
    "imitation": mixed.chord().terms[0],
    "given_nll": mixed.echo().terms[0],
    "positive_nll": mixed.positive_examples(0.3, 0.2),
    "bonus": Term("bonus", terms.negative_entropy, 0.7, weighting=sequence_mean),
    "distillation_loss": trl.sdpo(coef=0.3).objective.terms[0],
}


@pytest.mark.parametrize("name", EACH)
def test_a_term_is_its_literal_sum(name):
    alone = policy_loss(BASE, BATCH)[0]
    loss, metrics = policy_loss(BASE._replace(terms=(EACH[name],)), BATCH)
    np.testing.assert_allclose(metrics[name], literal(name), rtol=1e-6)
    np.testing.assert_allclose(loss - alone, EACH[name].coef * literal(name), rtol=1e-6)


def test_a_coefficient_of_0_is_the_parent():
    every = tuple(term._replace(coef=0.0) for term in EACH.values())

    def loss(objective, log_probs):
        return policy_loss(objective, BATCH._replace(log_probs=log_probs))[0]

    wanted = jax.value_and_grad(lambda x: loss(BASE, x))(CURRENT)
    chex.assert_trees_all_close(jax.value_and_grad(lambda x: loss(BASE._replace(terms=every), x))(CURRENT), wanted)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_blend_is_the_convex_sum_of_policy_loss_and_distillation(weight):
    distilled = trl.sdpo().objective

    def slopes(objective, **changed):
        def loss(log_probs):
            return policy_loss(objective, BATCH._replace(log_probs=log_probs, **changed))[0]

        return jax.value_and_grad(loss)(CURRENT)

    both = slopes(BASE), slopes(distilled, advantages=TEACHER - OLD)
    wanted = jax.tree.map(lambda x, y: (1 - weight) * x + weight * y, *both)
    chex.assert_trees_all_close(slopes(blended(BASE, distilled, weight)), wanted, atol=1e-7)
    with pytest.raises(ValueError, match="the distillation pays more than teacher_log_ratio"):
        blended(BASE, distillation.opd_grpo().objective, weight)


def test_what_no_term_reads_may_be_anything():
    loss = policy_loss(BASE._replace(terms=tuple(EACH.values())), BATCH)[0]
    free = ~(MASK | GIVEN)
    wild = BATCH._replace(log_probs=np.where(free, np.nan, CURRENT), old_log_probs=np.where(MASK, OLD, -np.inf))

    def of(log_probs):
        objective = BASE._replace(terms=tuple(EACH.values()))
        return policy_loss(objective, wild._replace(log_probs=log_probs))[0]

    found, slope = jax.value_and_grad(of)(wild.log_probs)
    np.testing.assert_allclose(found, loss)
    assert np.isfinite(slope).all() and (slope[free] == 0).all()


def test_likelihood_by_confidence():
    def slope(confidence):
        one = jnp.ones((1, 1))
        return jax.grad(lambda x: terms.likelihood(confidence)(PolicyBatch(x, one, one, one > 0)).sum())(-0.7 * one)

    np.testing.assert_allclose(slope(terms.certain), -1)
    np.testing.assert_allclose(slope(lambda p: p), -np.exp(-0.7))  # of −p
    np.testing.assert_allclose(slope(terms.undecided), -np.exp(-0.7) * (1 - np.exp(-0.7)))


def model(params, rows):
    """Log-probabilities and entropy of a table of logits for each column."""
    logits = jax.nn.log_softmax(params["logits"])[None]
    taken = jnp.take_along_axis(jnp.broadcast_to(logits, (rows.tokens.shape[0], T, V)), rows.tokens[..., None], -1)
    entropy = jnp.broadcast_to(-(jnp.exp(logits) * logits).sum(-1), rows.tokens.shape)
    return tuple(jnp.where(rows.read, x, 0.0) for x in (taken[..., 0], entropy))


PARAMS = {"logits": RANDOM.normal(size=(T, V))}
ROWS = Completions(TOKENS, MASK | GIVEN, MASK, np.where(MASK, OLD, 0.0), np.zeros(B, bool), given=GIVEN)


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_micro_batches_change_nothing(micro_batches):
    objective = BASE._replace(terms=tuple(EACH.values()))

    def run(parts):
        init, step = policy_loop(model, objective, optax.sgd(1.0), parts)
        return step(init(PARAMS), CreditedCompletions(ROWS, CREDIT, TEACHER, scores=SCORES))

    chex.assert_trees_all_close(run(micro_batches), run(1), rtol=1e-12)


def test_a_coefficient_may_be_traced_and_learns_from_given_rows():
    """At μ = 1 nothing but imitation is left, of rows without a chosen token too."""
    rows = ROWS._replace(mask=np.zeros_like(MASK), given=MASK | GIVEN)

    def after(mu):
        init, step = group_loop(model, mixed.chord(mu), optax.sgd(1.0), GroupLearning())
        return step(init(PARAMS), Groups(rows, SCORES.reshape(2, 3)))[0].params["logits"]

    found = jax.vmap(after)(jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(found[0], PARAMS["logits"])
    np.testing.assert_allclose(2 * (found[1] - found[0]), found[2] - found[0], rtol=1e-6)

    def imitation(params):
        p = jnp.exp(model(params, rows)[0])
        weigh = jax.lax.stop_gradient(p * (1 - p))
        return -(jnp.where(rows.given, weigh * jnp.log(p), 0.0)).sum() / rows.given.sum()

    np.testing.assert_allclose(found[2] - found[0], -jax.grad(imitation)(PARAMS)["logits"], rtol=1e-6)


def test_kimi_and_dro_by_hand():
    """Kimi: r·A − τ (log r)²; DRO's slope at the sampler is REINFORCE's."""
    ratio = np.where(MASK, CURRENT - OLD, 0.0)
    wanted = (np.where(MASK, -np.exp(ratio) * CREDIT + 0.3 * ratio**2, 0.0)).sum() / MASK.sum()
    np.testing.assert_allclose(policy_loss(mixed.kimi(0.3), BATCH)[0], wanted, rtol=1e-6)
    wanted = (np.where(MASK, -ratio * CREDIT + 0.5 * 0.3 * ratio**2, 0.0)).sum() / MASK.sum()
    np.testing.assert_allclose(policy_loss(mixed.dro(0.3), BATCH)[0], wanted, rtol=1e-6)


def test_chord_and_echo_by_hand():
    """GRPO's clip, a mean over rows of means over tokens: 1 − μ of it and μ of the imitation; or it and the answers."""
    ratio = np.exp(np.where(MASK, CURRENT - OLD, 0.0))
    clipped = -np.minimum(ratio * CREDIT, np.clip(ratio, 0.8, 1.2) * CREDIT)
    grpo = np.mean([clipped[b][MASK[b]].mean() for b in range(B) if MASK[b].any()])
    wanted = 0.7 * grpo + 0.3 * literal("imitation"), grpo + 0.3 * literal("given_nll")
    for made, value in zip((mixed.chord, mixed.echo), wanted, strict=True):
        np.testing.assert_allclose(policy_loss(made(0.3), BATCH)[0], value, rtol=1e-6)
        np.testing.assert_allclose(policy_loss(made(0.0), BATCH)[0], policy_loss(BASE, BATCH)[0], rtol=1e-12)


def test_vapo_by_hand():
    """The clip's mean over tokens, and μ times the mean negative log-likelihood of rows that score well."""
    ratio = np.exp(np.where(MASK, CURRENT - OLD, 0.0))
    clipped = -np.minimum(ratio * CREDIT, np.clip(ratio, 0.8, 1.28) * CREDIT)
    wanted = np.where(MASK, clipped, 0.0).sum() / MASK.sum() + 0.3 * literal("positive_nll")
    np.testing.assert_allclose(policy_loss(mixed.vapo(0.3, 0.2), BATCH)[0], wanted, rtol=1e-6)
    plain = policy_loss(control.ppo(), BATCH)[0]
    np.testing.assert_allclose(policy_loss(mixed.vapo(0.0, eps_high=None), BATCH)[0], plain, rtol=1e-12)


def test_luffy_by_hand():
    """Clip on the policy's own tokens, p / (p + γ) on given ones, one mean over both."""
    taught = MASK | GIVEN
    ratio, p = np.exp(np.where(MASK, CURRENT - OLD, 0.0)), np.exp(CURRENT)
    own = -np.minimum(ratio * CREDIT, np.clip(ratio, 0.8, 1.2) * CREDIT)
    wanted = np.where(MASK, own, np.where(GIVEN, -CREDIT * p / (p + 0.1), 0.0)).sum() / taught.sum()
    found = policy_loss(mixed.luffy(), BATCH._replace(mask=taught))[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    alone = BATCH._replace(given=np.zeros_like(GIVEN))
    plain = recipes.dapo(0.2, 0.2)._replace(advantage=recipes.dr_grpo(1).advantage)
    np.testing.assert_allclose(policy_loss(mixed.luffy(), alone)[0], policy_loss(plain, alone)[0])


def test_who_drew_what_is_given_is_not_asked():
    """Metrics of ratios read what was drawn alone, and no correction makes up for what nobody drew."""
    taught = BATCH._replace(mask=MASK | GIVEN)
    other = taught._replace(old_log_probs=np.where(GIVEN, OLD - 3.0, OLD))
    found = jax.jit(lambda batch: policy_loss(mixed.luffy(), batch))
    chex.assert_trees_all_close(found(other), found(taught), rtol=1e-12)
    drawn = found(taught)[1]["kl_old"] * (MASK | GIVEN).sum()
    np.testing.assert_allclose(drawn, found(BATCH)[1]["kl_old"] * MASK.sum(), rtol=1e-6)

    own = jnp.where(MASK, model(PARAMS, ROWS)[0], 0.0)  # what was drawn was drawn by the learner
    rows = ROWS._replace(mask=MASK | GIVEN, log_probs=own)

    def after(correction):
        init, step = group_loop(model, mixed.luffy(), optax.sgd(1.0), GroupLearning(correction=correction))
        return jax.jit(step)(init(PARAMS), Groups(rows, SCORES.reshape(2, 3)))[0].params["logits"]

    np.testing.assert_allclose(after(truncated_importance(ceiling=2.0)), after(None), rtol=1e-9)


@pytest.mark.parametrize(
    ("term", "missing", "told"),
    [("given_nll", "given", "reads given tokens"), ("positive_nll", "scores", "reads scores"),
     ("bonus", "entropy", "reads the entropy")],
)  # fmt: skip
def test_what_a_term_misses_is_told(term, missing, told):
    with pytest.raises(ValueError, match=told):
        policy_loss(BASE._replace(terms=(EACH[term],)), BATCH._replace(**{missing: None}))


def test_a_term_of_another_shape_is_told():
    short = Term("short", lambda batch: batch.log_probs[:, 0], 1.0)
    with pytest.raises(ValueError, match="the term short"):
        policy_loss(BASE._replace(terms=(short,)), BATCH)


def test_a_term_has_its_own_weighting():
    own = Term("nll", terms.likelihood(), 1.0, weighting=fixed_length(T))
    wanted = -np.where(MASK, CURRENT, 0).sum() / T / MASK.any(1).sum()
    np.testing.assert_allclose(policy_loss(BASE._replace(terms=(own,)), BATCH)[1]["nll"], wanted, rtol=1e-6)
    assert token_mean is Term("nll", terms.likelihood(), 1.0).weighting
