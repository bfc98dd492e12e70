"""What routers cost: the loss of transformers over layers and masks, exact in parts and in groups, in every loop."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import logsumexp, softmax

from rlax_llm.core.divergences import reverse_kl
from rlax_llm.core.types import (
    Completions,
    CreditedCompletions,
    LabeledCompletions,
    PairedCompletions,
    ScoredCompletions,
)
from rlax_llm.loops.balance import routers
from rlax_llm.loops.labels import label_loop, zero_reference
from rlax_llm.loops.parts import fixed_log_probs, fixed_scores
from rlax_llm.loops.policy import Anchor, policy_loop, supervised_loop
from rlax_llm.loops.preference import preference_loop
from rlax_llm.loops.rlhf import RlhfLearning, rlhf_loop
from rlax_llm.loops.rlhf_credit import Shaping
from rlax_llm.models.config import Balance, DecoderConfig, Experts
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.distilling import compared_rows, distilled_log_probs
from rlax_llm.models.packing import Packed, packed_log_probs
from rlax_llm.models.routers import Routed, balance_loss, load_of, mismatch_of, route
from rlax_llm.models.scalar import init_scalar, token_values
from rlax_llm.models.scoring import by_tokens, group_log_probs, group_log_probs_with_collisions, row_log_probs
from rlax_llm.preference.unpaired import kto
from rlax_llm.recipes import control, group
from rlax_llm.recipes.preference import dpo

pytestmark = pytest.mark.usefixtures("float64")
BALANCE = Balance(aux_coef=0.3, z_coef=0.05)
EXPERTS = Experts(4, 2, 3, balance=BALANCE)
CONFIG = DecoderConfig(11, 4, 8, 2, 2, 1, 2, experts=EXPERTS)
PLAIN = replace(CONFIG, experts=replace(EXPERTS, balance=None))
WIDTH = 3
SIZES = {"aux_loss", "z_loss", "entropy", "load_max"}


def literal(logits: np.ndarray, counted: np.ndarray, k: int) -> dict[str, float]:
    """Of routers' logits ``[L, N, E]``, as ``load_balancing_loss_func`` has them: one after another."""
    chosen, likely = np.zeros(logits.shape[-1]), np.zeros(logits.shape[-1])
    squares = entropies = total = 0.0
    heaviest = []
    for layer in logits:
        own = np.zeros(logits.shape[-1])
        for token, count in zip(layer, counted, strict=True):
            p = softmax(token)
            own[np.argsort(-p)[:k]] += count
            likely += count * p
            squares += count * logsumexp(token) ** 2
            entropies -= count * (p * np.log(p)).sum()
            total += count
        chosen += own
        heaviest.append(own.max() * len(own) / own.sum())
    aux = len(chosen) * (chosen / total * likely / total).sum()
    return {"aux_loss": aux, "z_loss": squares / total, "entropy": entropies / total, "load_max": max(heaviest)}


def test_costs_of_a_router_are_those_of_the_papers():
    logits, counted = 2 * np.random.default_rng(0).normal(size=(3, 7, 5)), np.array([1, 0, 1, 1, 0, 2, 1.0])
    given = Experts(5, 2, 3)
    loads = [load_of(jnp.asarray(x), route(jnp.asarray(x), given), jnp.asarray(counted)) for x in logits]
    sent, likely, squares, entropies = (np.mean([x[i] for x in loads], 0) / counted.sum() for i in range(4))
    wanted = literal(logits, counted, 2)
    np.testing.assert_allclose(balance_loss(jnp.asarray(sent), jnp.asarray(likely)), wanted["aux_loss"], rtol=1e-10)
    np.testing.assert_allclose([squares, entropies], [wanted["z_loss"], wanted["entropy"]], rtol=1e-10)


@pytest.mark.parametrize("k", [1, 3])
def test_tokens_shared_out_alike_cost_as_many_as_their_experts(k):
    """transformers' convention: k, not 1; whatever is uncounted."""
    logits, counted = jnp.zeros((12, 6)).at[-1].set(jnp.inf), jnp.ones(12).at[-1].set(0.0)
    every = (jnp.arange(12 * k).reshape(12, k) % 6).astype(jnp.int32)
    load = load_of(logits, Routed(every, jnp.ones((12, k))), counted)
    np.testing.assert_allclose(balance_loss(load.sent / 11, load.probabilities / 11), k, rtol=1e-12)


def params_of(config: DecoderConfig = CONFIG):
    params = init_decoder(config, jax.random.key(0), jnp.float64)
    params["layers"]["router"] *= 3.0
    return params


def rows(count: int = 4, length: int = 7) -> Completions:
    """Pairs of rows behind one prompt each, of several lengths; the last has nothing that is learned from."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 11, (count, length))
    tokens[1::2, :WIDTH] = tokens[::2, :WIDTH]
    valid = np.ones((count, length), bool)
    valid[:2, 0] = False
    for row in range(1, count):
        valid[row, length - row % 3 :] = False
    mask = valid & (np.arange(length) >= WIDTH)
    mask[-1] = False
    numbers = np.where(mask, -rng.uniform(size=mask.shape), 0.0)
    return Completions(*map(jnp.asarray, (tokens, valid, mask, numbers, np.zeros(count, bool))))


def routed_rows() -> Completions:
    """Each token is sent where chance says, a prompt alike in both of its rows; of the last tokens nobody says."""
    taken = rows()
    shape = *taken.tokens.shape, CONFIG.num_layers, EXPERTS.count
    routed = 1 + np.random.default_rng(2).uniform(size=shape).argsort(-1)[..., : EXPERTS.per_token]
    routed[1::2, :WIDTH] = routed[::2, :WIDTH]
    routed[:, -1] = 0
    return taken._replace(routed=jnp.asarray(routed.reshape(*shape[:2], -1).astype(np.uint8)))


@pytest.mark.parametrize("made", [rows, routed_rows])
def test_groups_load_as_their_rows_do(made):
    """A prompt that is computed once counts in each of its rows from which anything is learned."""

    @jax.jit
    def told(params, taken):
        packed = Packed(*taken, jnp.zeros(taken.tokens.shape, jnp.int32))
        found = row_log_probs(CONFIG)(params, taken), group_log_probs(CONFIG, (2, WIDTH))(params, taken)
        found += (group_log_probs_with_collisions(CONFIG, (2, WIDTH))(params, taken),)
        found += (distilled_log_probs((CONFIG, PLAIN), (2, WIDTH), reverse_kl)(params, params, taken),)
        found += (compared_rows(CONFIG, reverse_kl)(params, params, taken), packed_log_probs(CONFIG)(params, packed))
        return [(each[0], each[-1]) for each in found]

    taken = made()
    alone, *together = told(params_of(), taken)
    assert float(alone[1].load.sent.sum()) == 2 * 2 * int(taken.valid[:-1].sum())
    for other in together:
        assert other[1].balance == BALANCE
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-12), alone, other)


@jax.jit
def own_cost(params, taken):
    return routers(row_log_probs(CONFIG), params, taken, 1)(params, taken)[1]


PLAIN_ROWS = row_log_probs(PLAIN)


def test_a_load_is_of_the_experts_that_tokens_are_sent_to():
    taken = routed_rows()
    load = jax.jit(row_log_probs(CONFIG))(params_of(), taken)[-1].load
    counted = np.asarray(taken.valid[:-1, :-1])  # of all others the router decides
    by_layer = np.asarray(taken.routed)[:-1, :-1].reshape(*counted.shape, CONFIG.num_layers, -1)[counted]
    for layer, sent in enumerate(load.sent):
        least = np.bincount(by_layer[:, layer].reshape(-1) - 1, minlength=EXPERTS.count)
        assert (sent >= least).all() and float(sent.sum()) == 2 * int(taken.valid[:-1].sum())


def test_a_mismatch_is_the_share_of_experts_that_a_router_would_not_choose():
    random = np.random.default_rng(0)
    logits, sent = random.normal(size=(9, 5)), random.uniform(size=(9, 5)).argsort(-1)[:, :2]
    counted = np.array([1, 0, 1, 1, 2, 1, 0, 1, 1.0])
    own = np.argsort(-logits, -1)[:, :2]
    wanted = sum(count * len(set(a) - set(b)) / 2 for count, a, b in zip(counted, sent, own, strict=True))
    found = mismatch_of(jnp.asarray(logits), Routed(jnp.asarray(sent), jnp.ones((9, 2))), jnp.asarray(counted))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_reference_goes_by_its_own_router():
    params, score = params_of(), row_log_probs(PLAIN)
    own, sent = (jax.jit(score)(params, taken)[0] for taken in (rows(), routed_rows()))
    found = jax.jit(partial(fixed_log_probs, score, micro_batches=2))(params, routed_rows())
    policy = jax.jit(partial(fixed_scores, score, micro_batches=2))(params, routed_rows())[0]
    np.testing.assert_allclose(found, own, rtol=1e-10)
    np.testing.assert_allclose(policy, sent, rtol=1e-10)
    assert np.abs(own - sent).max() > 0.1


def test_routes_of_another_model_are_named():
    taken = routed_rows()
    with pytest.raises(ValueError, match="routed has 4 numbers for each token, wanted 2 for each of 3 layers"):
        row_log_probs(replace(CONFIG, num_layers=3))(params_of(), taken)
    with pytest.raises(ValueError, match="routed says where tokens were sent, and the model has no experts"):
        row_log_probs(replace(CONFIG, experts=None))(params_of(), taken)


@cache
def policy_step(log_probs, parts, made=rows):
    """The slope of a step, and its metrics."""
    params, taken = params_of(), made()
    init, step = policy_loop(log_probs, group.rloo(), optax.sgd(1.0), parts)
    state, metrics = jax.jit(step)(init(params), CreditedCompletions(taken, jnp.ones(taken.tokens.shape)))
    return jax.tree.map(jnp.subtract, params, state.params), metrics


POLICY = {
    "groups": group_log_probs(CONFIG, (2, WIDTH)),
    "rows": row_log_probs(CONFIG, remat=True),
    "by tokens": by_tokens(CONFIG, (2, WIDTH), (0.3, 0.6)),
}


@pytest.mark.parametrize(("form", "micro_batches"), [("groups", 4), ("rows", 1), ("by tokens", 2)])
def test_a_step_adds_the_routers_costs_whatever_its_parts(form, micro_batches):
    params, taken = params_of(), rows()
    slope, metrics = policy_step(POLICY[form], micro_batches)
    without, plain = policy_step(PLAIN_ROWS, 1)
    wanted = jax.tree.map(jnp.add, without, jax.grad(own_cost)(params, taken))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10), slope, wanted)
    assert set(metrics) - set(plain) == {f"router/{name}" for name in SIZES}
    np.testing.assert_allclose(metrics["policy_loss"], plain["policy_loss"], rtol=1e-8)
    found = BALANCE.aux_coef * metrics["router/aux_loss"] + BALANCE.z_coef * metrics["router/z_loss"]
    np.testing.assert_allclose(found, own_cost(params, taken), rtol=1e-8)


def test_a_step_through_given_experts_is_the_same_whatever_its_parts():
    """Each part of a group computes its prompt anew, through the experts of its group."""
    taken = (("groups", 4), ("by tokens", 2))
    wanted, other = (policy_step(POLICY[form], parts, routed_rows) for form, parts in taken)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-10), other, wanted)
    assert 0.1 < float(wanted[1]["router/mismatch"]) < 1
    anew = policy_step(POLICY["rows"], 1)
    assert optax.global_norm(jax.tree.map(jnp.subtract, anew[0], wanted[0])) > 0.1 * optax.global_norm(wanted[0])


def supervised(log_probs, config, parts):
    anchor = Anchor(compared_rows(config, reverse_kl), 0.5)
    return supervised_loop(log_probs, optax.sgd(1.0), parts, anchor=anchor), rows(), params_of()


def preferred(log_probs, config, parts):
    """The last pair has an empty response, so that nothing of it counts."""
    return preference_loop(log_probs, dpo(), optax.sgd(1.0), parts), PairedCompletions(rows()), params_of()


def labeled(log_probs, config, parts):
    loop = label_loop(log_probs, kto(), optax.sgd(1.0), parts, reference_point=zero_reference)
    return loop, LabeledCompletions(rows(), jnp.array([True, False, True, False])), params_of()


def rewarded(log_probs, config, parts):
    values, optimizers = token_values(PLAIN, (1, WIDTH), False), dict.fromkeys(("policy", "value"), optax.sgd(1.0))
    learning = RlhfLearning(epochs=1, micro_batches=parts)
    loop = rlhf_loop(log_probs, values, control.ppo(), optimizers, Shaping(), learning)
    value = init_scalar(params_of(), jax.random.key(1))
    return loop, ScoredCompletions(rows(), jnp.arange(4.0)), {"policy": params_of(), "value": value}


@pytest.mark.parametrize("made", [supervised, preferred, labeled, rewarded])
def test_every_loop_adds_them(made):
    def step(config, parts):
        (init, step), batch, params = made(row_log_probs(config), config, parts)
        state, metrics = jax.jit(step)(init(params), batch, reference=params.get("policy", params))
        slope = jax.tree.map(jnp.subtract, params, state.params)
        return slope.get("policy", slope), metrics

    slope, metrics = step(CONFIG, 2)
    plain, without = step(PLAIN, 1)
    batch = made(None, CONFIG, 1)[1]
    taken = getattr(batch, "completions", batch)
    taken = taken._replace(mask=taken.mask.at[2:].set(False)) if made is preferred else taken
    cost = jax.grad(own_cost)(params_of(), taken)
    difference = jax.tree.map(jnp.subtract, slope, plain)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8), difference, cost)
    assert set(metrics) - set(without) == {f"router/{name}" for name in SIZES}


def test_a_load_is_told_without_a_cost():
    told = replace(CONFIG, experts=replace(EXPERTS, balance=Balance()))
    params, taken = params_of(), rows()
    _, cost, metrics = routers(row_log_probs(told), params, taken, 2)(params, taken)
    assert float(cost) == 0
    assert 1 <= float(metrics["router/aux_loss"]) < 4


def test_a_negative_coefficient_is_refused():
    with pytest.raises(ValueError, match="Experts: aux_coef is -1, wanted a number of at least 0"):
        Experts(4, 2, 3, balance=Balance(-1))
