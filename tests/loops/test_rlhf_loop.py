from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rlhf_tables import (
    ADAM,
    KEY,
    ONCE,
    PPO,
    PROMPT,
    REFERENCE,
    SGD,
    B,
    T,
    V,
    assert_same,
    batch,
    parameters,
    scores_of,
    stepped,
    table,
    table_values,
)
from scipy.special import log_softmax

from rlax_llm.core.kl import fixed_coef, k3, proportional_coef
from rlax_llm.core.masked import unit_variance, whiten
from rlax_llm.core.types import CreditedCompletions, Scored, ScoredCompletions
from rlax_llm.credit.batches import returns_to_go
from rlax_llm.credit.shaping import fixed_if_truncated, missing_eos_penalty
from rlax_llm.credit.token_returns import length_adaptive_trace
from rlax_llm.loops.minibatches import Passes, minibatch_rows
from rlax_llm.loops.policy import policy_loop
from rlax_llm.loops.rlhf import RlhfLearning, rlhf_loop
from rlax_llm.loops.rlhf_credit import KlInReward, Shaping, bootstrapped_at_limit, terminated_at_limit
from rlax_llm.loops.telling import whole_advantages
from rlax_llm.loops.updates import no_normalization
from rlax_llm.models.scoring import ByTokens
from rlax_llm.policy.trust_regions import score_function
from rlax_llm.recipes import group as recipes

pytestmark = pytest.mark.usefixtures("float64")

FROZEN = {"logits": REFERENCE}


def test_an_epoch_takes_every_row_once_and_keeps_groups_together():
    orders = np.asarray(minibatch_rows(12, KEY, Passes(epochs=3, minibatches=2, group_size=2))).reshape(3, 6, 2)
    np.testing.assert_array_equal(np.sort(orders.reshape(3, 12)), np.tile(np.arange(12), (3, 1)))
    np.testing.assert_array_equal(orders[..., 1], orders[..., 0] + 1)
    assert np.all(orders[..., 0] % 2 == 0)
    assert len({tuple(epoch.ravel()) for epoch in orders}) == 3


@pytest.mark.parametrize("objective", [PPO, recipes.dr_grpo(T)._replace(trust_region=score_function)])
def test_one_step_without_a_critic_is_the_policy_loop_on_returns_to_go(objective):
    completions, scores = batch(), scores_of()
    params = parameters() | {"value": {"values": jnp.zeros(V)}}
    shaping = Shaping(kl=KlInReward(0.4), trace=1.0, value_trace=1.0, advantages=no_normalization)
    state, metrics = stepped(shaping, ONCE, completions, scores, objective=objective, params=params)

    ref = table({"logits": jnp.asarray(REFERENCE)}, completions)[0]
    scored = Scored(*(x[None] for x in (scores, completions.log_probs, completions.mask, ref)))
    init, step = policy_loop(table, objective, optax.sgd(1.0))
    expected, known = jax.jit(step)(
        init(params["policy"]), CreditedCompletions(completions, returns_to_go(0.4)(scored)[0])
    )
    assert_same(state.params["policy"], expected.params)
    for name in ("policy_loss", "kl_old", "clip_fraction", "entropy", "grad_norm"):
        np.testing.assert_allclose(metrics[name], known[name], rtol=1e-10, err_msg=name)


def test_steps_are_paid_where_they_end_and_the_rest_of_the_score_at_the_end():
    completions, scores, params = batch(), scores_of(), parameters()
    mask, random = np.asarray(completions.mask), np.random.default_rng(3)
    steps = np.where(mask & (random.random(mask.shape) < 0.5), random.normal(size=mask.shape), np.nan)
    shaping = Shaping(kl=KlInReward(0.0), trace=1.0, value_trace=1.0, advantages=no_normalization)
    without = params | {"value": {"values": jnp.zeros(V)}}
    own = {"objective": PPO._replace(trust_region=score_function), "reference": None}
    found, _ = stepped(shaping, ONCE, completions, scores, params=without, step_rewards=jnp.asarray(steps), **own)
    to_go = np.zeros(mask.shape)
    for b, t in np.argwhere(mask):
        before = [steps[b, j] for j in range(t) if mask[b, j] and not np.isnan(steps[b, j])]
        to_go[b, t] = scores[b] - sum(before)  # all that is paid from here on
    step = policy_loop(table, own["objective"], optax.sgd(1.0))
    credited = CreditedCompletions(completions, jnp.asarray(to_go))
    expected = jax.jit(step[1])(step[0](params["policy"]), credited)[0]
    assert_same(found.params["policy"], expected.params)


def test_without_a_step_before_the_last_token_nothing_changes():
    completions, scores = batch(), scores_of()
    mask = np.asarray(completions.mask)
    last = mask & (np.cumsum(mask[:, ::-1], -1)[:, ::-1] == 1)
    plain = stepped(Shaping(kl=KlInReward(0.3)), ONCE, completions, scores)
    steps = jnp.where(last, scores[:, None], jnp.nan)
    assert_same(stepped(Shaping(kl=KlInReward(0.3)), ONCE, completions, scores, step_rewards=steps), plain)


# Where nothing has moved yet


def test_before_anything_moved_ratios_are_one_and_kl_is_zero():
    params = parameters()
    completions = batch(drift=0.0)
    state, metrics = stepped(
        Shaping(kl=KlInReward(0.3)), ONCE, completions, scores_of(), reference=params["policy"], params=params
    )
    assert metrics["ratio"] == 1
    for name in ("kl", "kl_per_token", "approx_kl", "kl_old", "ratio_var", "clip_fraction", "non_score_reward"):
        assert metrics[name] == 0, name
    assert metrics["rlhf_reward"] == metrics["score"]
    assert np.abs(state.params["policy"]["logits"] - params["policy"]["logits"]).max() > 1e-3


# Rows that teach nothing


def test_rows_without_a_score_or_a_token_teach_neither_model_and_are_counted():
    completions, scores = batch(), scores_of()
    shaping, learning = Shaping(kl=KlInReward(0.3)), RlhfLearning(epochs=2)
    fewer = jax.tree.map(lambda x: x[:5], completions)
    expected, known = stepped(shaping, learning, fewer, scores[:5], optimizers=ADAM)
    padded = completions._replace(mask=completions.mask.at[5].set(False))
    # NaN and infinity stand where nothing may read them.
    dirty = padded._replace(log_probs=jnp.where(padded.mask, padded.log_probs, jnp.nan))
    state, metrics = stepped(shaping, learning, dirty, scores.at[6:].set(jnp.nan).at[5].set(jnp.inf), optimizers=ADAM)
    assert_same(state, expected)
    assert (metrics["unscored_rows"], metrics["empty_rows"]) == (2, 1)
    assert (known["unscored_rows"], known["empty_rows"]) == (0, 0)
    for name in set(known) - {"unscored_rows", "empty_rows"}:
        np.testing.assert_allclose(metrics[name], known[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_what_a_value_model_says_elsewhere_is_not_read():
    def noisy(params, completions):
        return jnp.where(completions.mask, table_values(params, completions), jnp.nan)

    completions, scores, shaping = batch(), scores_of(), Shaping(kl=KlInReward(0.3))
    reference = {"logits": jnp.asarray(REFERENCE)}
    init, step = rlhf_loop(table, noisy, PPO, ADAM, shaping, RlhfLearning(epochs=2))
    state, metrics = jax.jit(step)(
        init(parameters()), ScoredCompletions(completions, scores), key=KEY, reference=reference
    )
    expected, known = stepped(shaping, RlhfLearning(epochs=2), completions, scores, optimizers=ADAM)
    assert_same((state, metrics), (expected, known))


def test_a_batch_without_any_score_changes_no_parameter():
    state, metrics = stepped(Shaping(), ONCE, batch(), jnp.full(B, jnp.nan))
    assert_same(state.params, parameters(), 0)
    assert metrics["unscored_rows"] == B and metrics["grad_norm"] == 0
    assert all(np.isfinite(x) for x in metrics.values())


# Memory


def test_micro_batches_change_nothing():
    completions, scores = batch(), scores_of()
    shaping = Shaping(kl=KlInReward(0.3))
    results = [
        stepped(shaping, RlhfLearning(2, 2, micro_batches), completions, scores, optimizers=ADAM)
        for micro_batches in (1, 4)
    ]
    for result in results[1:]:
        assert_same(result[0], results[0][0])
        assert_same(result[1], results[0][1], 1e-6)  # shares of tokens are float32
    assert np.abs(results[0][0].params["policy"]["logits"] - parameters()["policy"]["logits"]).max() > 0.05


@pytest.mark.parametrize("ending", [terminated_at_limit, bootstrapped_at_limit])
def test_a_critic_that_leaves_padding_out_does_so_in_all_of_its_passes(ending):
    seen = {"policy": [], "value": []}

    def noted(name, function):
        def read(params, completions):
            seen[name].append(completions.room is not None)
            return function(params, completions)

        return ByTokens(read, PROMPT, (0.5,))

    functions = noted("policy", table), noted("value", table_values)
    init, step = rlhf_loop(*functions, PPO, SGD, Shaping(ending=ending), ONCE)
    jax.eval_shape(step, init(parameters()), ScoredCompletions(batch(), scores_of()), key=KEY, reference=FROZEN)
    assert set(seen["value"]) == {True, False}
    assert sum(seen["value"]) * 2 == len(seen["value"])  # each pass in the room, and in all columns


def test_the_frozen_part_is_joined_with_the_trained_one():
    """Params are a difference to frozen tables: the same run as of the tables themselves."""

    def added(params, completions):
        return table({"logits": params["logits"] + params["adapter"]}, completions)

    def added_values(params, completions):
        return table_values({"values": params["values"] + params["adapter"]}, completions)

    completions, scores, tables = batch(), scores_of(), parameters()
    adapters = {"policy": {"adapter": jnp.zeros((V, V))}, "value": {"adapter": jnp.zeros(V)}}
    shaping, learning = Shaping(kl=KlInReward(0.3)), RlhfLearning(2)
    init, step = rlhf_loop(added, added_values, PPO, ADAM, shaping, learning)
    run = jax.jit(partial(step, frozen=tables))
    scored = ScoredCompletions(completions, scores)
    state, metrics = run(init(adapters), scored, key=KEY, reference=adapters["policy"])
    expected, known = stepped(shaping, learning, completions, scores, optimizers=ADAM, reference=tables["policy"])
    moved = jax.tree.map(lambda x, y: x - y, expected.params, tables)
    assert_same(state.params["policy"]["adapter"], moved["policy"]["logits"])
    assert_same(state.params["value"]["adapter"], moved["value"]["values"])
    assert_same(metrics, known)


# The KL in the reward


def test_the_reference_may_be_given_as_numbers():
    completions, scores, shaping = batch(), scores_of(), Shaping(kl=KlInReward(0.3, k3))
    ref_log_probs = table({"logits": jnp.asarray(REFERENCE)}, completions)[0]
    found = stepped(shaping, ONCE, completions, scores, ref_log_probs=ref_log_probs)
    assert_same(found, stepped(shaping, ONCE, completions, scores))
    per_token = np.asarray(k3(completions.log_probs, ref_log_probs))[np.asarray(completions.mask)]
    np.testing.assert_allclose(found[1]["kl_per_token"], per_token.mean(), rtol=1e-9)


def test_a_coefficient_of_zero_reads_no_reference():
    completions, scores, shaping = batch(), scores_of(), Shaping(kl=KlInReward(0))
    init, step = rlhf_loop(table, table_values, PPO, SGD, shaping, ONCE)
    state, metrics = jax.jit(step)(init(parameters()), ScoredCompletions(completions, scores), key=KEY)
    nan = jnp.full((B, T), jnp.nan)
    watched, seen = stepped(shaping, ONCE, completions, scores, ref_log_probs=nan)
    assert_same(watched, state, 0)
    assert "kl" not in metrics and np.isnan(seen["kl"]) and metrics["non_score_reward"] == 0
    traced = jax.jit(lambda beta: stepped(Shaping(kl=KlInReward(beta)), ONCE, completions, scores)[0].params)
    assert_same(traced(0.0), state.params)
    assert np.abs(traced(0.5)["policy"]["logits"] - state.params["policy"]["logits"]).max() > 1e-3


def test_the_kl_may_stand_in_the_loss_too():
    completions, scores, shaping = batch(), scores_of(), Shaping(kl=KlInReward(0.2))
    plain, _ = stepped(shaping, ONCE, completions, scores)
    penalized, _ = stepped(shaping, ONCE, completions, scores, objective=PPO._replace(kl=lambda p, q: 0.5 * k3(p, q)))

    def penalty(policy):
        mask = completions.mask
        difference = table({"logits": jnp.asarray(REFERENCE)}, completions)[0] - table(policy, completions)[0]
        return 0.5 * jnp.where(mask, jnp.exp(difference) - 1 - difference, 0.0).sum() / mask.sum()

    slope = jax.grad(penalty)(parameters()["policy"])["logits"]
    moved = plain.params["policy"]["logits"] - penalized.params["policy"]["logits"]
    np.testing.assert_allclose(moved, slope, rtol=1e-6, atol=1e-9)  # weights are float32


def test_zieglers_controller_follows_the_kl_of_a_completion():
    target, gain, beta = 0.5, 0.7, 0.2
    shaping = Shaping(kl=KlInReward(beta, control=proportional_coef(target, gain, 0.3)))
    init, step = rlhf_loop(table, table_values, PPO, ADAM, shaping, RlhfLearning(2))
    run, state = jax.jit(step), init(parameters())
    ref_log_p, betas = log_softmax(REFERENCE, -1), []
    for seed in range(4):
        completions = batch(seed=seed)
        state, metrics = run(state, ScoredCompletions(completions, scores_of(seed)), key=KEY, reference=FROZEN)
        tokens, mask = np.asarray(completions.tokens), np.asarray(completions.mask)
        ref = ref_log_p[np.roll(tokens, 1, -1), tokens]
        kl = np.where(mask, np.asarray(completions.log_probs) - ref, 0.0).sum() / B
        np.testing.assert_allclose(metrics["kl_coef"], beta, rtol=1e-9)
        beta *= 1 + gain * min(max(kl / target - 1, -0.3), 0.3)
        betas.append(beta)
        np.testing.assert_allclose(state.kl_coef, beta, rtol=1e-9)
    assert len(set(betas)) == 4


# Warm-up


def test_a_warm_up_teaches_the_value_model_alone():
    traces = []

    def counted(params, completions):
        traces.append(None)
        return table(params, completions)

    schedule = optax.linear_schedule(0.01, 0.1, 10)
    optimizers = {"policy": optax.adamw(schedule), "value": optax.adam(0.05)}
    kl = KlInReward(0.3, control=proportional_coef(0.1, 1.0))
    init, step = rlhf_loop(counted, table_values, PPO, optimizers, Shaping(kl=kl), RlhfLearning(2, 2, warmup_steps=3))
    run, start = jax.jit(step), init(parameters())
    reference, state, losses = {"logits": jnp.asarray(REFERENCE)}, start, []
    completions, scores = batch(), scores_of()
    for _ in range(3):
        state, metrics = run(state, ScoredCompletions(completions, scores), key=KEY, reference=reference)
        losses.append(float(metrics["value_loss"]))
        assert_same(
            (state.params["policy"], state.opt_state["policy"]), (start.params["policy"], start.opt_state["policy"]), 0
        )
        assert state.kl_coef == start.kl_coef
    assert losses[0] > losses[1] > losses[2]
    count = len(traces)
    after, _ = run(state, ScoredCompletions(completions, scores), key=KEY, reference=reference)
    assert len(traces) == count
    # What follows is what a run without a warm-up does that starts with this value model.
    init, step = rlhf_loop(table, table_values, PPO, optimizers, Shaping(kl=kl), RlhfLearning(2, 2))
    fresh = init(state.params)
    fresh = fresh._replace(opt_state=fresh.opt_state | {"value": state.opt_state["value"]})
    expected, _ = jax.jit(step)(fresh, ScoredCompletions(completions, scores), key=KEY, reference=reference)
    assert_same((after.params, after.opt_state, after.kl_coef), (expected.params, expected.opt_state, expected.kl_coef))
    assert np.abs(after.params["policy"]["logits"] - start.params["policy"]["logits"]).max() > 1e-3


# The parts that are functions


def test_scores_are_shaped_before_anything_else():
    completions = batch(truncated=np.arange(B) % 3 == 0)
    scores, shaping = scores_of(), Shaping(kl=KlInReward(0.2))
    penalized = shaping._replace(scores=partial(missing_eos_penalty, penalty=0.7))
    expected = stepped(shaping, ONCE, completions, missing_eos_penalty(scores, completions.truncated, 0.7))
    assert_same(stepped(penalized, ONCE, completions, scores), expected)
    # A rule may give a score to a completion that has none: it then teaches.
    replaced = shaping._replace(scores=partial(fixed_if_truncated, score=-1.0))
    metrics = stepped(replaced, ONCE, completions, scores.at[0].set(jnp.nan))[1]
    assert metrics["unscored_rows"] == 0


def test_rewards_and_advantages_are_normalized_by_the_given_functions():
    completions, scores = batch(), scores_of()
    seen = {}

    def recorded(name, function):
        def normalize(x, mask):
            seen[name] = (x, mask)
            return function(x, mask)

        return normalize

    shaping = Shaping(
        kl=KlInReward(0.3), rewards=recorded("rewards", unit_variance), advantages=recorded("advantages", whiten)
    )
    init, step = rlhf_loop(table, table_values, PPO, SGD, shaping, ONCE._replace(telling=whole_advantages))
    state, told = step(init(parameters()), ScoredCompletions(completions, scores), key=KEY, reference=FROZEN)
    rewards, mask = (np.asarray(x) for x in seen["rewards"])
    np.testing.assert_array_equal(mask, completions.mask)
    assert rewards.shape == (B, T)
    whitened = rewards / np.sqrt(rewards[mask].var(ddof=1) + 1e-8)
    whitened += rewards[mask].mean() * (1 - 1 / np.sqrt(rewards[mask].var(ddof=1) + 1e-8))
    now = np.asarray(table_values(parameters()["value"], completions))
    for b in range(B):
        chosen, running = np.flatnonzero(mask[b]), 0.0
        for t, following in reversed(list(zip(chosen, [*now[b, chosen[1:]], 0.0], strict=True))):
            running = whitened[b, t] + following - now[b, t] + 0.95 * running
            np.testing.assert_allclose(seen["advantages"][0][b, t], running, rtol=1e-9)
    raw = np.asarray(seen["advantages"][0])[mask]
    whitened = (raw - raw.mean()) / np.sqrt(raw.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(np.asarray(told["advantages"])[mask], whitened, rtol=1e-6)
    assert not np.asarray(told["advantages"])[~mask].any()
    assert np.all(np.isfinite(state.params["policy"]["logits"]))


def test_a_trace_may_depend_on_the_length():
    """A batch of rows of one length has that length's λ, here ½."""
    mask = np.zeros((B, T), bool)
    mask[:, PROMPT:] = True
    completions, scores = batch(mask), scores_of()
    adaptive = Shaping(trace=partial(length_adaptive_trace, alpha=2 / (T - PROMPT)), value_trace=1.0)
    expected = Shaping(trace=0.5, value_trace=1.0)
    assert_same(stepped(adaptive, ONCE, completions, scores), stepped(expected, ONCE, completions, scores))


def test_bootstrapping_changes_truncated_rows_alone():
    shaping = Shaping(kl=KlInReward(0.3), ending=bootstrapped_at_limit)
    cut, scores = batch(truncated=np.arange(B) < 3), scores_of()
    whole = cut._replace(truncated=jnp.zeros(B, bool))
    ended = stepped(shaping._replace(ending=terminated_at_limit), ONCE, whole, scores)
    assert_same(stepped(shaping, ONCE, whole, scores), ended)
    apart = stepped(shaping, ONCE, cut, scores)[1]["advantage_mean"] - ended[1]["advantage_mean"]
    assert abs(apart) > 1e-3


@pytest.mark.parametrize("name", ["cispo", "gspo", "gmpo"])
def test_any_trust_region_serves(name):
    objective = recipes.cispo(2.0) if name == "cispo" else getattr(recipes, name)()
    state, metrics = stepped(Shaping(), RlhfLearning(2), batch(), scores_of(), objective=objective, optimizers=ADAM)
    assert all(np.isfinite(x) for x in metrics.values())
    assert np.abs(state.params["policy"]["logits"] - parameters()["policy"]["logits"]).max() > 1e-2


def test_coefficients_and_seeds_are_one_program():
    completions, scores = batch(), scores_of()

    def run(beta, key):
        shaping = Shaping(kl=KlInReward(beta, control=fixed_coef))
        init, step = rlhf_loop(table, table_values, PPO, ADAM, shaping, RlhfLearning(2, 2))
        return step(init(parameters()), ScoredCompletions(completions, scores), key=key, reference=FROZEN)[0].params

    betas, keys = jnp.array([0.0, 0.4]), jax.random.split(KEY, 2)
    many = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))(betas, keys)
    alone = jax.jit(run)(betas[1], keys[0])
    assert_same(jax.tree.map(lambda x: x[0, 1], many), alone)
    logits = np.asarray(many["policy"]["logits"])
    assert len(np.unique(logits.reshape(4, -1), axis=0)) == 4


# Errors


@pytest.mark.parametrize(
    ("shaping", "learning", "message"),
    [
        (Shaping(), RlhfLearning(epochs=0), "epochs is 0, wanted a whole number of at least 1"),
        (Shaping(), RlhfLearning(minibatches=0), "minibatches is 0, wanted a whole number of at least 1"),
        (Shaping(), RlhfLearning(micro_batches=0), "micro_batches is 0, wanted a whole number of at least 1"),
        (Shaping(), RlhfLearning(group_size=0), "group_size is 0, wanted a whole number of at least 1"),
        (Shaping(), RlhfLearning(value_coef=-1.0), "value_coef is -1.0, wanted a number of at least 0"),
        (Shaping(), RlhfLearning(warmup_steps=-1), "warmup_steps is -1, wanted a number of at least 0"),
        (Shaping(kl=KlInReward(-0.1)), ONCE, "kl.coef is -0.1, wanted a number of at least 0"),
        (Shaping(discount=-1.0), ONCE, "discount is -1.0, wanted a number of at least 0"),
        (Shaping(trace=1.5), ONCE, "trace is 1.5, wanted a number from 0 to 1, or a function of the length"),
        (Shaping(value_trace=-1), ONCE, "value_trace is -1, wanted a number from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(shaping, learning, message):
    with pytest.raises(ValueError, match=f"rlhf_loop: {message}"):
        rlhf_loop(table, table_values, PPO, SGD, shaping, learning)


def test_bad_input_is_refused_while_tracing():
    with pytest.raises(ValueError, match=r"optimizers has the entries .'policy'., wanted 'policy' and 'value'"):
        rlhf_loop(table, table_values, PPO, {"policy": optax.sgd(1.0)}, Shaping(), ONCE)
    init, step = rlhf_loop(table, table_values, PPO, SGD, Shaping(), RlhfLearning(minibatches=3, micro_batches=2))
    with pytest.raises(ValueError, match=r"params has the entries .'logits'., wanted 'policy' and 'value'"):
        init({"logits": jnp.zeros((V, V))})
    state, scored = init(parameters()), ScoredCompletions(batch(), scores_of())
    with pytest.raises(ValueError, match=r"minibatches 3 · group_size 1 is 3, wanted a divisor .* 8 rows"):
        step(state, scored, key=KEY)
    with pytest.raises(ValueError, match=r"scores has shape \(4, 2\), wanted \[B\] = \(8,\)"):
        step(state, scored._replace(scores=scored.scores.reshape(4, 2)), key=KEY)
    with pytest.raises(ValueError, match=r"step_rewards has shape \(8,\), tokens has \(8, 6\)"):
        step(state, scored._replace(step_rewards=scored.scores), key=KEY)
    with pytest.raises(ValueError, match="several minibatches are drawn at random and key is None; give step a key"):
        step(state, scored)
    step = rlhf_loop(table, table_values, PPO, SGD, Shaping(), ONCE)[1]
    with pytest.raises(ValueError, match=r"got neither batch\.ref_log_probs .*, or take a Shaping with kl="):
        step(state, scored, key=KEY)
    known = scored._replace(ref_log_probs=scored.completions.log_probs)
    with pytest.raises(ValueError, match=r"got batch.ref_log_probs and reference, wanted one of them"):
        step(state, known, key=KEY, reference=parameters()["policy"])
    with pytest.raises(ValueError, match=r"ref_log_probs has shape \(8,\), tokens has \(8, 6\)"):
        step(state, scored._replace(ref_log_probs=jnp.zeros(B)), key=KEY)
