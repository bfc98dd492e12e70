"""What holds for every named policy objective, the peers' included: they are read from their modules."""

from __future__ import annotations

import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.types import Known, PolicyBatch, Scored
from rlax_llm.credit.running import remembering
from rlax_llm.loops.policy import policy_update
from rlax_llm.policy.objectives import policy_loss, reads_whole_batches
from rlax_llm.policy.terms import term_weights
from rlax_llm.recipes.registry import PEERS

pytestmark = pytest.mark.usefixtures("float64")

GROUPS, SIZE, COLUMNS = 2, 3, 6
ROWS = GROUPS * SIZE

PRINTED = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "print_algorithms.py"))
PRINTED["NEEDED"].update(group_size=SIZE, prompts=ROWS)
OBJECTIVES = {
    named.name: objective for peer in ("", *PEERS) for named, objective in PRINTED["algorithms"]("group", peer=peer)
}
# Their constants count rows or columns, so rows without a token or more padding are meant to change them.
COUNT_PADDING = [name for name in OBJECTIVES if name.startswith("trl") or name == "verl:dr_grpo"]
DRAWS = [name for name in OBJECTIVES if name.endswith("clip_cov")]  # a number for each place of the array
each = pytest.mark.parametrize("name", OBJECTIVES)


def prepared(seed: int = 0):
    random = np.random.default_rng(seed)
    log_probs = -random.gamma(2.0, size=(ROWS, COLUMNS))
    old, ref = (log_probs + 0.3 * random.normal(size=log_probs.shape) for _ in range(2))
    mask = np.arange(COLUMNS) < np.array([6, 2, 3, 1, 5, 4])[:, None]
    return tuple(jnp.asarray(x) for x in (log_probs, old, ref, mask, random.normal(size=(GROUPS, SIZE))))


def batch_of(objective, log_probs, old, ref, mask, scores) -> PolicyBatch:
    groups = (*scores.shape, mask.shape[-1])
    scored = Scored(scores, old.reshape(groups), mask.reshape(groups), ref.reshape(groups))
    known = Known(
        baselines=jnp.full(len(scores), 0.1),
        prompts=jnp.arange(len(scores)),
        roles=jnp.zeros(scores.shape, int),
        collisions=jnp.exp(2 * scored.log_probs),
        turns=jnp.zeros(groups, int),
        anchors=jnp.zeros((*scores.shape, 1), int),
        turn_returns=scores[..., None],
    )
    advantage = remembering(objective.advantage)
    credit, _ = advantage.credit(advantage.init(), scored._replace(known=known))
    advantages = jnp.broadcast_to(credit.reshape(len(mask), -1), mask.shape)
    weights, staleness = objective.weighting(mask), jnp.ones(mask.shape)
    given = jnp.zeros(mask.shape, bool)
    batch = PolicyBatch(log_probs, old, advantages, mask, weights, ref, given=given, staleness=staleness)
    return batch._replace(terms=term_weights(objective.terms, batch))


def gradient(objective, batch: PolicyBatch):
    return jax.grad(lambda x: policy_loss(objective, batch._replace(log_probs=x))[0])(batch.log_probs)


@functools.cache
def compiled_gradient(name):
    """The same of the data; compiled once for all tests."""
    objective = OBJECTIVES[name]
    return jax.jit(lambda data: gradient(objective, batch_of(objective, *data)))


@each
def test_micro_batches_add_up_whatever_the_cut(name):
    """And what is compiled is what is computed step by step."""
    objective = OBJECTIVES[name]
    if reads_whole_batches(objective):
        with pytest.raises(ValueError, match="micro_batches is 2, and the objective reads several rows at once"):
            policy_update(lambda params, rows: (params, params), objective, optax.sgd(1.0), 2)
        return

    @jax.jit
    def full_and_parts(data):
        batch = batch_of(objective, *data)
        parts = [jax.tree.map(lambda x, cut=cut: x[slice(*cut)], batch) for cut in ((0, 1), (1, 4), (4, ROWS))]
        losses = [policy_loss(objective, part)[0] for part in parts]
        whole = policy_loss(objective, batch)[0], gradient(objective, batch)
        return whole, (sum(losses), jnp.concatenate([gradient(objective, part) for part in parts]))

    whole, parts = full_and_parts(prepared())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), whole, parts)
    assert np.abs(whole[1]).max() > 1e-4
    np.testing.assert_allclose(policy_loss(objective, batch_of(objective, *prepared()))[0], whole[0], rtol=1e-9)


@each
def test_what_the_policy_did_not_choose_is_never_read(name):
    objective = OBJECTIVES[name]
    compiled = jax.jit(lambda data, poison: gradient(objective, poisoned(batch_of(objective, *data), poison)))

    def poisoned(batch: PolicyBatch, poison) -> PolicyBatch:
        numbers = {key: getattr(batch, key) for key in ("log_probs", "old_log_probs", "advantages", "ref_log_probs")}
        return batch._replace(**{key: jnp.where(batch.mask, x, poison) for key, x in numbers.items()})

    data = prepared(1)
    clean = compiled(data, 0.0)
    assert np.all(clean[~data[3]] == 0)
    for poison in (np.nan, np.inf, -np.inf, 80.0):
        np.testing.assert_array_equal(compiled(data, poison), clean)


@each
def test_padding_changes_nothing(name):
    """Columns of padding, and a group that was filtered out."""
    compiled, data = compiled_gradient(name), prepared(2)
    wide = [jnp.pad(x, ((0, SIZE), (0, 2))) for x in data[:4]]
    padded = compiled((*wide, jnp.pad(data[4], ((0, 1), (0, 0)), constant_values=jnp.nan)))[:ROWS, :COLUMNS]
    same = np.allclose(padded, compiled(data), rtol=1e-6, atol=1e-12)
    assert name in DRAWS or same == (name not in COUNT_PADDING or name in ALSO_PADDED)


# Of the peers that count rows, those with another weighting after all.
ALSO_PADDED = [name for name in COUNT_PADDING if OBJECTIVES[name].weighting.__name__ == "token_mean"]


@each
def test_extreme_ratios_leave_finite_gradients(name):
    compiled = compiled_gradient(name)
    log_probs, _, ref, mask, scores = prepared(3)
    for far in (80.0, -80.0):
        assert np.all(np.isfinite(compiled((log_probs, log_probs + far, ref, mask, scores))))
