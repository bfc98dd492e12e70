from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core import checks, kl
from rlax_llm.core.types import PolicyBatch, Scored
from rlax_llm.credit import groups
from rlax_llm.policy import objectives, ratios, trust_regions, weightings
from rlax_llm.recipes import group as recipes

SHORT, LONG = jnp.zeros((2, 3)), jnp.zeros((2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl.k1(SHORT, LONG), "k1: ref_log_probs has shape (2, 4), log_probs has (2, 3)"),
        (lambda: kl.k2(SHORT, LONG), "k1: ref_log_probs has shape (2, 4), log_probs has (2, 3)"),
        (lambda: kl.k3(SHORT, LONG), "k1: ref_log_probs has shape (2, 4), log_probs has (2, 3)"),
        (
            lambda: ratios.token_ratio(SHORT, SHORT, LONG > 0),
            "token_ratio: mask has shape (2, 4), log_probs has (2, 3)",
        ),
        (
            lambda: trust_regions.score_function(SHORT, LONG),
            "score_function: advantages has shape (2, 4), log_ratio has (2, 3)",
        ),
        (
            lambda: trust_regions.unclipped(SHORT, LONG),
            "unclipped: advantages has shape (2, 4), log_ratio has (2, 3)",
        ),
        (lambda: trust_regions.clip()(SHORT, LONG), "clip: advantages has shape (2, 4), log_ratio has (2, 3)"),
        (
            lambda: objectives.policy_loss(recipes.dapo(), PolicyBatch(SHORT, SHORT, SHORT, SHORT > 0, LONG)),
            "policy_loss: weights has shape (2, 4), log_probs has (2, 3)",
        ),
        (
            lambda: objectives.policy_loss(recipes.dapo(), PolicyBatch(SHORT, SHORT, SHORT, SHORT > 0, SHORT, LONG)),
            "policy_loss: ref_log_probs has shape (2, 4), log_probs has (2, 3)",
        ),
        (
            lambda: objectives.policy_loss(recipes.grpo(), PolicyBatch(SHORT, SHORT, SHORT, SHORT > 0, SHORT)),
            "policy_loss: objective.kl needs ref_log_probs, got None; give them, or set kl=None.",
        ),
        (lambda: groups.centered(SHORT), "centered: scores has shape (2, 3), wanted [G]; vmap over the other axes."),
        (lambda: groups.leave_one_out(SHORT), "centered: scores has shape (2, 3), wanted [G]"),
        (lambda: groups.z_score(SHORT), "centered: scores has shape (2, 3), wanted [G]"),
        (
            lambda: groups.kl_in_score(groups.per_group(groups.centered), 0.1)(Scored(SHORT, LONG, LONG > 0)),
            "kl_in_score: ref_log_probs is None; give the reference's, or set kl_coef to 0.",
        ),
        (lambda: weightings.sequence_mean(jnp.ones(3, bool)), "sequence_mean: mask has shape (3,), wanted [B, T]"),
        (lambda: weightings.sequence_sum(jnp.ones(3, bool)), "sequence_sum: mask has shape (3,), wanted [B, T]"),
        (lambda: weightings.fixed_length(4)(jnp.ones(3, bool)), "sequence_sum: mask has shape (3,), wanted [B, T]"),
        (lambda: weightings.fixed_length(0), "fixed_length: max_new_tokens is 0, wanted a number greater than 0."),
        (lambda: recipes.dr_grpo(-1), "fixed_length: max_new_tokens is -1, wanted a number greater than 0."),
        (lambda: trust_regions.clip(0.0), "clip: eps_low is 0.0, wanted a number greater than 0."),
        (lambda: trust_regions.clip(0.2, -0.1), "clip: eps_high is -0.1, wanted a number greater than 0."),
        (lambda: trust_regions.clip(float("nan")), "clip: eps_low is nan, wanted a number greater than 0."),
        (lambda: recipes.grpo(eps=-1), "clip: eps_low is -1, wanted a number greater than 0."),
        (lambda: kl.kl_penalty(kl.k1, 0.1), "kl_penalty: k1 as a loss has an expected gradient of zero"),
    ],
)
def test_errors_say_what_got_and_wanted(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


def test_absent_arrays_are_passed_over():
    checks.same_shape("f", a=None)
    checks.same_shape("f", a=np.zeros(2), b=None, c=np.ones(2))
    with pytest.raises(ValueError, match=r"f: c has shape \(3,\), b has \(2,\)"):
        checks.same_shape("f", a=None, b=np.zeros(2), c=np.ones(3))


def test_rank_accepts_the_wanted_and_scalars():
    checks.rank("f", "x", np.zeros((2, 3)), 2, "[B, T]")
    checks.rank("f", "x", 1.0, 0, "[]")
    with pytest.raises(ValueError, match=r"f: x has shape \(\), wanted \[T\]"):
        checks.rank("f", "x", 1.0, 1, "[T]")


def test_checks_run_while_tracing_and_pass_traced_scalars():
    with pytest.raises(ValueError, match="unclipped: advantages has shape"):
        jax.eval_shape(trust_regions.unclipped, SHORT, LONG)
    widths = jnp.array([0.1, 0.3])
    losses = jax.vmap(lambda eps: trust_regions.clip(eps)(jnp.log(2.0), jnp.array(1.0)))(widths)
    np.testing.assert_allclose(losses, [-1.1, -1.3], rtol=1e-6)


def test_numbers_of_at_least_zero_and_one():
    checks.not_negative("f", x=0, y=0.0, traced=jnp.array(-1.0))
    checks.at_least_one("f", n=1, traced=jnp.array(0))
    for value in (-1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"f: x is {value}, wanted a number of at least 0"):
            checks.not_negative("f", x=value)
    for value in (0, -3, 0.5, float("nan")):
        with pytest.raises(ValueError, match=f"f: n is {value}, wanted a whole number of at least 1"):
            checks.at_least_one("f", n=value)


def test_trees_of_one_structure_and_shapes():
    checks.same_tree("f", a={"w": SHORT}, b={"w": np.ones((2, 3))}, c={"w": jax.ShapeDtypeStruct((2, 3), jnp.int32)})
    with pytest.raises(
        ValueError, match=r"f: b is PyTreeDef\(\[\*\]\), a is PyTreeDef\(\(\*,\)\); give pytrees of one"
    ):
        checks.same_tree("f", a=(SHORT,), b=[SHORT])
    with pytest.raises(ValueError, match=r"f: b has shape \(2, 4\), a has \(2, 3\); give arrays of one shape"):
        checks.same_tree("f", a=(SHORT,), b=(LONG,))
