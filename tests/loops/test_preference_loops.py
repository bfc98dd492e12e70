"""The loops of pairs and of reward models: literal oracles, and what must change nothing."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_batches import log_sigma
from preference_tables import (
    BETA,
    PAIRS,
    PARAMS,
    QUICKLY,
    REFERENCE,
    TOKENS,
    assert_gradient,
    assert_same,
    completions_of,
    mean_entropy,
    one_step,
    padded,
    refused,
    scalar,
    spoilt,
    table,
    totals,
)
from scipy.special import log_softmax

from rlax_llm.core.types import Completions, PairedCompletions
from rlax_llm.loops.preference import preference_loop, reward_loop
from rlax_llm.policy.weightings import sequence_sum
from rlax_llm.preference import links
from rlax_llm.preference.implicit_rewards import log_prob
from rlax_llm.preference.marks import pairwise, reads_reference, reference_free
from rlax_llm.preference.pairs import Preference, on_policy, per_response
from rlax_llm.recipes.preference import aot, cpo, dpo, ipo, orpo, simpo

pytestmark = pytest.mark.usefixtures("float64")

RECIPES = {
    "dpo": dpo(BETA),
    "ipo": ipo(BETA),
    "simpo": simpo(),
    "orpo": orpo(0.3),
    "cpo": cpo(BETA, 0.5),
    "mixed": dpo(BETA)._replace(
        link=links.weighted_sum((0.7, links.logistic), (0.3, links.compare_with_zero(links.misranking))), nll_coef=0.2
    ),
}
VARIED = ["ipo", "orpo", "mixed"]
each = pytest.mark.parametrize("name", RECIPES)


# Pairs


def literal_dpo(params, completions: Completions, margins) -> dict[str, float]:
    ratios = BETA * (totals(params, completions) - totals(REFERENCE, completions))
    chosen, rejected = ratios[::2], ratios[1::2]
    log_probs = totals(params, completions)
    return {
        "loss": np.mean([-log_sigma(w - x - m) for w, x, m in zip(chosen, rejected, margins)]),
        "chosen_reward": chosen.mean(),
        "rejected_reward": rejected.mean(),
        "margin": (chosen - rejected).mean(),
        "accuracy": (chosen > rejected).mean(),
        "chosen_log_prob": log_probs[::2].mean(),
        "rejected_log_prob": log_probs[1::2].mean(),
        "nll": -log_probs[::2].sum() / completions.mask[::2].sum(),
        "entropy": mean_entropy(params, completions.mask),
    }


@pytest.mark.parametrize("margins", [None, [0.3, -0.2, 0.0, 1.0]])
def test_dpo_is_what_the_paper_writes(margins):
    completions = completions_of(0)
    demanded = np.zeros(PAIRS) if margins is None else np.array(margins)
    given = None if margins is None else jnp.asarray(demanded)
    loop = preference_loop(table, RECIPES["dpo"], optax.sgd(1.0))
    gradient, metrics = one_step(loop, PARAMS, PairedCompletions(completions, given), reference=REFERENCE)
    expected = literal_dpo(PARAMS, completions, demanded)
    assert set(metrics) == {*expected, "preference_loss", "grad_norm", "lost_updates"}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient["logits"]), rtol=1e-6)
    assert_gradient(gradient, lambda params: literal_dpo(params, completions, demanded)["loss"])


def test_the_likelihood_reads_the_chosen_responses_alone():
    completions = completions_of(1)

    def literal(params) -> float:
        log_probs = totals(params, completions)
        margins = BETA * (log_probs[::2] - log_probs[1::2])
        return np.mean([-log_sigma(m) for m in margins]) - 0.5 * log_probs[::2].mean()

    loop = preference_loop(table, cpo(BETA, 0.5), optax.sgd(1.0), token_weighting=sequence_sum)
    gradient, metrics = one_step(loop, PARAMS, PairedCompletions(completions))
    np.testing.assert_allclose(metrics["loss"], literal(PARAMS), rtol=1e-6)
    np.testing.assert_allclose(metrics["nll"], -totals(PARAMS, completions)[::2].mean(), rtol=1e-6)
    assert_gradient(gradient, literal)


def with_collisions(params, completions: Completions):
    """``table`` with a third array, as WPO's factors read it."""
    log_p = jax.nn.log_softmax(jnp.asarray(params["logits"]))
    agreeing = jnp.broadcast_to(jnp.log(jnp.exp(2 * log_p).sum(-1)), completions.tokens.shape)
    return *table(params, completions), agreeing


def test_wpo_weighs_each_pair_by_what_the_policy_would_write():
    completions = completions_of(4)

    def factors(params) -> list[float]:
        log_p = log_softmax(params["logits"], -1)
        agreeing = np.log((np.exp(log_p) ** 2).sum(-1))
        tokens, mask = np.asarray(completions.tokens), np.asarray(completions.mask)
        of_rows = [
            np.mean([log_p[t, tokens[b, t]] - agreeing[t] for t in range(TOKENS) if mask[b, t]])
            for b in range(2 * PAIRS)
        ]
        return np.exp(np.add(of_rows[::2], of_rows[1::2]))

    weights = factors(PARAMS)

    def literal(params) -> float:
        ratios = BETA * (totals(params, completions) - totals(REFERENCE, completions))
        return np.mean([-f * log_sigma(w - x) for f, w, x in zip(weights, ratios[::2], ratios[1::2])])

    loop = preference_loop(with_collisions, dpo(BETA)._replace(factors=on_policy), optax.sgd(1.0), 2)
    gradient, metrics = one_step(loop, PARAMS, PairedCompletions(completions), reference=REFERENCE)
    np.testing.assert_allclose(metrics["loss"], literal(PARAMS), rtol=1e-6)
    assert_gradient(gradient, literal)
    with pytest.raises(ValueError, match=r"factors weigh single pairs .* the link reads the whole batch"):
        preference_loop(with_collisions, aot(BETA)._replace(factors=on_policy), optax.sgd(1.0))


def test_the_policy_as_its_own_reference():
    gradient, metrics = one_step(
        preference_loop(table, dpo(BETA), optax.sgd(1.0)),
        PARAMS,
        PairedCompletions(completions_of(0)),
        reference=PARAMS,
    )
    np.testing.assert_allclose(metrics["loss"], math.log(2), rtol=1e-12)
    for name in ("chosen_reward", "rejected_reward", "margin", "accuracy"):
        assert metrics[name] == 0
    assert np.abs(gradient["logits"]).max() > 1e-2


@pytest.fixture(scope="module")
def runs():
    """Five steps of each recipe in 1, 2 and 4 parts, compiled once."""

    def build(name: str, micro_batches: int):
        init, step = preference_loop(table, RECIPES[name], optax.adam(0.1), micro_batches)

        def run(completions, margins):
            start = init(jax.tree.map(jnp.asarray, PARAMS))
            return jax.lax.scan(
                lambda state, _: step(state, PairedCompletions(completions, margins), reference=REFERENCE),
                start,
                None,
                5,
            )

        return jax.jit(run, compiler_options=QUICKLY)

    with jax.enable_x64(True):
        yield {name: [build(name, parts) for parts in (1, 2, 4)] for name in VARIED}


@given(seed=st.integers(0, 2**16), name=st.sampled_from(VARIED))
@settings(max_examples=30, deadline=None)
def test_micro_batches_change_nothing(runs, seed, name):
    completions, margins = completions_of(seed), jnp.asarray(np.random.default_rng(seed).normal(size=PAIRS))
    whole, *parts = (run(completions, margins) for run in runs[name])
    for part in parts:
        assert_same(part, whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["dpo", "orpo", "mixed"])
def test_padding_changes_nothing(name):
    """A pair with an empty response, wherever it lies, whatever its other response holds."""
    completions = completions_of(2)
    expected = one_step(
        preference_loop(table, RECIPES[name], optax.sgd(1.0)),
        PARAMS,
        PairedCompletions(completions),
        reference=REFERENCE,
    )
    loop = preference_loop(spoilt, RECIPES[name], optax.sgd(1.0), 4)
    for kept in (0, 1):
        more = padded(completions, 2, kept)
        reference = jnp.where(more.mask, table(REFERENCE, more)[0], jnp.nan)
        assert_same(one_step(loop, PARAMS, PairedCompletions(more, ref_log_probs=reference)), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["dpo", "mixed"])
def test_a_precomputed_reference_is_a_live_one(name):
    completions = completions_of(3)
    loop = preference_loop(table, RECIPES[name], optax.sgd(1.0), 2)
    live = one_step(loop, PARAMS, PairedCompletions(completions), reference=REFERENCE)
    assert_same(
        one_step(loop, PARAMS, PairedCompletions(completions, ref_log_probs=table(REFERENCE, completions)[0])), live
    )


@each
def test_only_what_reads_a_reference_computes_one(name):
    traced = []

    def model(params, completions):
        traced.append(params)
        return table(params, completions)

    needed = name in ("dpo", "ipo", "mixed")
    assert reads_reference(RECIPES[name].rewards) == needed
    loop = preference_loop(model, RECIPES[name], optax.sgd(1.0))
    one_step(loop, PARAMS, PairedCompletions(completions_of(0)), reference=REFERENCE)
    assert len(traced) == 1 + needed
    if not needed:
        one_step(loop, PARAMS, PairedCompletions(completions_of(0)))
        assert len(traced) == 2


def test_one_compilation_for_all_steps():
    traced = []

    def model(params, completions):
        traced.append(params)
        return table(params, completions)

    init, step = preference_loop(model, dpo(), optax.adam(0.1), 2)
    update, state = jax.jit(step), init(jax.tree.map(jnp.asarray, PARAMS))
    state, _ = update(state, PairedCompletions(completions_of(0)), reference=REFERENCE)
    first = len(traced)
    for seed in (1, 2):
        state, _ = update(state, PairedCompletions(completions_of(seed)), reference=REFERENCE)
    assert len(traced) == first
    assert state.step == 3


# Reward models


@pytest.mark.parametrize("margins", [None, [0.5, 0.0, -1.0, 2.0]])
@pytest.mark.parametrize("centering_coef", [0.0, 0.1])
def test_reward_model_is_what_the_papers_write(margins, centering_coef):
    completions = completions_of(5)
    demanded = np.zeros(PAIRS) if margins is None else np.array(margins)
    given = None if margins is None else jnp.asarray(demanded)

    def scores(params) -> np.ndarray:
        logits, tokens = np.asarray(params["logits"]), np.asarray(completions.tokens)
        mask = np.asarray(completions.mask)
        return np.array(
            [sum(math.tanh(logits[t, row[t]]) for t in range(TOKENS) if on[t]) for row, on in zip(tokens, mask)]
        )

    def literal(params) -> float:
        chosen, rejected = scores(params)[::2], scores(params)[1::2]
        losses = [-log_sigma(w - x - m) + centering_coef * (w + x) ** 2 for w, x, m in zip(chosen, rejected, demanded)]
        return np.mean(losses)

    values = scores(PARAMS)
    expected = {
        "loss": literal(PARAMS),
        "accuracy": (values[::2] > values[1::2]).mean(),
        "margin": (values[::2] - values[1::2]).mean(),
        "min_reward": values.min(),
        "mean_reward": values.mean(),
        "max_reward": values.max(),
    }
    for micro_batches in (1, 4):
        loop = reward_loop(scalar, links.logistic, optax.sgd(1.0), micro_batches, centering_coef)
        gradient, metrics = one_step(loop, PARAMS, PairedCompletions(completions, given))
        assert set(metrics) == {*expected, "grad_norm", "lost_updates"}
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
        assert_gradient(gradient, literal)


@pytest.mark.parametrize("kept", [0, 1])
def test_padding_changes_no_reward_model(kept):
    completions = completions_of(6)

    def spoilt_scores(params, completions):
        rows = completions.mask.any(-1)
        return scalar(params, completions) + jnp.where(rows, 0.0, jnp.nan)

    expected = one_step(
        reward_loop(scalar, links.logistic, optax.sgd(1.0), 1, 0.1), PARAMS, PairedCompletions(completions)
    )
    for micro_batches in (1, 4):
        loop = reward_loop(spoilt_scores, links.logistic, optax.sgd(1.0), micro_batches, 0.1)
        assert_same(one_step(loop, PARAMS, PairedCompletions(padded(completions, 2, kept))), expected, rtol=1e-6)


def test_errors_of_pairs():
    completions = completions_of(0)
    pairs, reference = PairedCompletions(completions), table(REFERENCE, completions)[0]
    loop = preference_loop(table, dpo(), optax.sgd(1.0))
    refused(r"a reference is read, got neither batch.ref_log_probs nor reference", loop, pairs)
    known = pairs._replace(ref_log_probs=reference)
    refused(r"got batch.ref_log_probs and reference, wanted one of them", loop, known, reference=REFERENCE)
    short = pairs._replace(ref_log_probs=reference[::2])
    refused(r"preference_loop: ref_log_probs has shape \(4, 3\)", loop, short)
    refused(r"preference_loop: batch is a Completions, wanted a PairedCompletions", loop, completions)
    refused(
        r"preference_loop: margins has shape \(8,\)",
        loop,
        pairs._replace(margins=jnp.ones(8)),
        reference=REFERENCE,
    )
    odd = jax.tree.map(lambda x: x[:-1], completions)
    refused(r"got 7 rows in 1 micro_batches, wanted an even number", loop, PairedCompletions(odd), reference=REFERENCE)
    for parts in (3, 8):
        loop = preference_loop(table, dpo(), optax.sgd(1.0), parts)
        refused(
            rf"got 8 rows in {parts} micro_batches, .* divisor of the pairs",
            loop,
            PairedCompletions(completions),
            reference=REFERENCE,
        )
    reads_all = r"micro_batches is 2 but the link reads the whole batch \(as sorted_pairs does\)"
    per_pair = links.demand_margin(links.logistic, jnp.ones(PAIRS))
    for preference in (aot(), dpo()._replace(link=per_pair)):
        with pytest.raises(ValueError, match=f"preference_loop: {reads_all}"):
            preference_loop(table, preference, optax.sgd(1.0), 2)
        _, metrics = one_step(
            preference_loop(table, preference, optax.sgd(1.0)),
            PARAMS,
            PairedCompletions(completions),
            reference=REFERENCE,
        )
        assert np.isfinite(metrics["loss"])
    with pytest.raises(ValueError, match=f"reward_loop: {reads_all}"):
        reward_loop(scalar, links.sorted_pairs(links.logistic), optax.sgd(1.0), 2)


def test_errors_of_reward_models():
    loop = reward_loop(lambda params, rows: params["logits"][0], links.logistic, optax.sgd(1.0))
    refused(r"reward_loop: scores has shape \(5,\)", loop, PairedCompletions(completions_of(0)))
    refused(r"reward_loop: margins has shape \(3,\)", loop, PairedCompletions(completions_of(0), jnp.ones(3)))
    with pytest.raises(ValueError, match=r"reward_loop: centering_coef is -0\.1"):
        reward_loop(scalar, links.logistic, optax.sgd(1.0), centering_coef=-0.1)


def test_functions_of_a_users_own_say_what_they_need():
    """One that says nothing is given the reference, and the whole batch: nothing is guessed by trying it."""
    pairs = PairedCompletions(completions_of(0))

    def mine(log_probs, ref_log_probs, mask):
        return jnp.where(mask, log_probs, 0.0).sum(-1)

    def link(chosen, rejected):
        return jax.nn.softplus(rejected - chosen)

    loop = preference_loop(table, Preference(per_response(mine), link), optax.sgd(1.0))
    refused(r"a reference is read, .* rewards that read none \(marks\.reference_free says so", loop, pairs)
    with pytest.raises(ValueError, match=r"or a link of single pairs \(marks\.pairwise says so of your own\)"):
        preference_loop(table, Preference(per_response(mine), link), optax.sgd(1.0), 2)
    said = Preference(per_response(reference_free(mine)), pairwise(link))
    ours = Preference(per_response(log_prob()), links.logistic)
    loops = [preference_loop(table, preference, optax.sgd(1.0), 2) for preference in (said, ours)]
    assert_same(*(one_step(loop, PARAMS, pairs) for loop in loops), rtol=1e-6)
