"""Where the one loop of distillation is known in closed form, or is another loop."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.divergences import reverse_kl
from rlax_llm.core.types import Completions, Groups
from rlax_llm.loops.distillation import Views, distillation_loop, given_or_drawn
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.loops.language import Collector
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.distilling import Reading, distilled_log_probs, row_top_tokens, teacher_log_probs
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.policy.weightings import token_mean
from rlax_llm.recipes import distillation as recipes

V, WIDTH, NEW, P, G = 7, 3, 4, 2, 2
STUDENT = DecoderConfig(V, 16, 32, 1, 2, 2, 8)
TEACHER = DecoderConfig(V, 24, 48, 1, 2, 2, 12, qk_norm="head")
LAYOUT = (G, WIDTH)
SGD = optax.sgd(1.0)


@cache
def student():
    return decoder.init_decoder(STUDENT, jax.random.key(0))


@cache
def teacher():
    return decoder.init_decoder(TEACHER, jax.random.key(1))


@cache
def drawn() -> Groups:
    """Completions of several lengths behind prompts padded on the left, with the student's own log-probabilities."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, V, (P * G, WIDTH + NEW))
    tokens[:, :WIDTH] = np.repeat(tokens[::G, :WIDTH], G, 0)
    columns, ends = np.arange(WIDTH + NEW), WIDTH + np.array([4, 2, 3, 1])
    valid = (columns >= np.repeat([1, 0], G)[:, None]) & (columns < ends[:, None])
    mask = valid & (columns >= WIDTH)
    rows = Completions(*(jnp.asarray(x) for x in (tokens.astype(np.int32), valid, mask, 0.0 * mask, ends > 6)))
    own = group_log_probs(STUDENT, LAYOUT)(student(), rows)[0]
    return Groups(rows._replace(log_probs=own), jnp.asarray(random.normal(size=(P, G)), jnp.float32))


def views(distillation, teacher=TEACHER, top_k=0) -> Views:
    compared = None
    if distillation.divergence is not None:
        compared = distilled_log_probs((STUDENT, teacher), LAYOUT, distillation.divergence, top_k=top_k)
    return Views(group_log_probs(STUDENT, LAYOUT), teacher_log_probs(teacher, LAYOUT), compared)


def stepped(distillation, batch=None, *, learning=None, **given):
    """The parameters after a step of gradient descent at rate 1, and the metrics."""
    batch, reference = batch or drawn(), given.pop("reference", teacher())
    loop = distillation_loop(views(distillation, **given), distillation, SGD, learning or GroupLearning())
    state, metrics = jax.jit(loop[1])(loop[0](student()), batch, reference=reference)
    return state.params, metrics


def assert_same(one, other, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), one, other)


@pytest.mark.parametrize(
    "recipe",
    [recipes.opd, recipes.iw_opd, recipes.gkd, recipes.forward_kl, recipes.reverse_kl, recipes.minillm],
)
def test_a_teacher_equal_to_the_student_teaches_nothing(recipe):
    params, metrics = stepped(recipe(), reference=student(), teacher=STUDENT)
    assert metrics["grad_norm"] < 1e-5
    assert_same(params, student(), 1e-5)
    assert stepped(recipe())[1]["grad_norm"] > 0.1


def of_teacher(log_p, log_q):
    """KL(q‖p) word by word."""
    return jnp.exp(log_q) * (log_q - log_p)


def of_student(log_p, log_q):
    """KL(p‖q) word by word."""
    return jnp.exp(log_p) * (log_p - log_q)


@pytest.mark.parametrize(
    ("beta", "recipe", "literal"), [(0.0, recipes.forward_kl, of_teacher), (1.0, recipes.reverse_kl, of_student)]
)
def test_gkd_at_its_ends_is_the_two_kls(beta, recipe, literal):
    wanted = stepped(recipes.gkd()._replace(divergence=literal))[0]
    for found in (recipes.gkd(beta), recipe()):
        assert_same(stepped(found)[0], wanted)


def test_without_an_amplification_iw_opd_is_opd():
    assert_same(stepped(recipes.iw_opd(0.0))[0], stepped(recipes.opd())[0])
    assert abs(stepped(recipes.iw_opd(1.0))[1]["grad_norm"] - stepped(recipes.opd())[1]["grad_norm"]) > 1e-3


def test_without_a_divergence_it_is_group_loop_whose_reference_is_the_teacher():
    objective = recipes.opd().objective
    init, step = group_loop(group_log_probs(STUDENT, LAYOUT), objective, SGD)
    state, metrics = jax.jit(step)(init(student()), drawn(), reference=jax.tree.map(lambda x: 1.5 * x, student()))
    params, told = stepped(recipes.opd(), reference=jax.tree.map(lambda x: 1.5 * x, student()), teacher=STUDENT)
    assert_same(params, state.params)
    assert float(metrics["kl"]) == pytest.approx(float(told["kl"]), rel=1e-5)


@pytest.mark.parametrize("recipe", [recipes.gkd, recipes.reverse_kl])
def test_all_tokens_of_the_teacher_are_the_whole_divergence_asked_now_or_before(recipe):
    whole, metrics = stepped(recipe())
    for k, close in ((V, True), (2, False)):
        said = row_top_tokens(TEACHER, k)(teacher(), drawn().completions)
        stored = drawn()._replace(completions=drawn().completions._replace(teacher=said))
        found = stepped(recipe(), top_k=k)
        before = distillation_loop(views(recipe())._replace(teacher=None), recipe(), SGD)
        state, told = jax.jit(before[1])(before[0](student()), stored)
        assert_same(found[0], state.params)
        assert float(found[1]["divergence"]) == pytest.approx(float(told["divergence"]), rel=1e-5)
        assert (abs(found[1]["divergence"] - metrics["divergence"]) < 1e-5) == close
        if close:
            assert_same(found[0], whole)


@pytest.mark.parametrize("recipe", [recipes.opd, recipes.gkd, recipes.minillm])
def test_a_teacher_that_reads_the_students_prompts_is_one_that_reads_nothing_else(recipe):
    rows = drawn().completions
    wider = [jnp.pad(x, ((0, 0), (2, 0))) for x in (rows.tokens, rows.valid)]
    reading = drawn()._replace(completions=rows._replace(teacher=Reading(*wider)))
    one, other = stepped(recipe(), reading), stepped(recipe())
    assert_same(one[0], other[0])
    changed = drawn()._replace(completions=rows._replace(teacher=Reading(wider[0], jnp.ones_like(wider[1]))))
    assert abs(stepped(recipe(), changed)[1]["kl"] - other[1]["kl"]) > 1e-4


@pytest.mark.parametrize("recipe", [recipes.opd, recipes.gkd])
def test_what_the_teacher_has_no_hint_of_teaches_nothing(recipe):
    """The gradient is that of the hinted rows, at the weights of all."""
    rows = drawn().completions
    hinted = jnp.array([True, False, True, False])
    shown = Reading(rows.tokens, rows.valid)
    some = stepped(recipe(), drawn()._replace(completions=rows._replace(teacher=shown._replace(hinted=hinted))))[0]
    silent = recipe()._replace(
        objective=recipe().objective._replace(weighting=lambda mask: hinted[:, None] * token_mean(mask))
    )
    assert_same(some, stepped(silent, drawn()._replace(completions=rows._replace(teacher=shown)))[0])
    none = shown._replace(hinted=hinted & False)
    assert_same(stepped(recipe(), drawn()._replace(completions=rows._replace(teacher=none)))[0], student())


@pytest.mark.parametrize("recipe", [recipes.opd_grpo, recipes.minillm])
def test_micro_batches_change_nothing(recipe):
    whole = stepped(recipe())
    for parts in (2, 4):
        found = stepped(recipe(), learning=GroupLearning(micro_batches=parts))
        assert_same(found[0], whole[0])
        assert float(found[1]["policy_loss"]) == pytest.approx(float(whole[1]["policy_loss"]), abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_teacher_follows_the_student_by_its_share(share):
    distillation = recipes.sdft(share)
    loop = distillation_loop(views(distillation, teacher=STUDENT), distillation, SGD)
    start = loop[0](student())
    changed = start._replace(teacher=jax.tree.map(lambda x: 1.5 * x, student()))
    state = jax.jit(loop[1])(changed, drawn())[0]
    wanted = jax.tree.map(lambda new, old: 1.5 * old + share * (new - 1.5 * old), state.params, student())
    assert_same(state.teacher, wanted)
    with pytest.raises(ValueError, match="the teacher follows the student, got a reference too"):
        loop[1](start, drawn(), reference=teacher())


def test_a_divergence_needs_a_view_of_both():
    with pytest.raises(ValueError, match=r"there is a divergence and views\.compared is None"):
        distillation_loop(Views(group_log_probs(STUDENT, LAYOUT)), recipes.gkd(), SGD)


def bandit(params, rows):
    log_probs = jax.nn.log_softmax(params)[rows.tokens]
    return log_probs, jnp.zeros(log_probs.shape)


@pytest.mark.usefixtures("float64")
def test_on_policy_distillation_in_expectation_descends_the_reverse_kl():
    """Tokens as often as a student of dyadic probabilities draws them."""
    student, teacher = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.log(jnp.array([0.2, 0.7, 0.1]))
    tokens, ones = jnp.array([[0], [0], [1], [2]]), jnp.ones((4, 1), bool)
    rows = Completions(tokens, ones, ones, student[tokens], jnp.zeros(4, bool))
    init, step = distillation_loop(Views(bandit, bandit), recipes.opd(), SGD)
    state, _ = step(init(student), Groups(rows, jnp.full((4, 1), jnp.nan)), reference=teacher)
    wanted = jax.grad(lambda x: reverse_kl(jax.nn.log_softmax(x), jax.nn.log_softmax(teacher)).sum())(student)
    np.testing.assert_allclose(student - state.params, wanted, atol=1e-7)


def test_a_share_of_the_steps_is_given():
    def numbered(first):
        return jax.tree.map(lambda x: jnp.full_like(x, first) if x.dtype == jnp.int32 else x, drawn())

    given = jax.tree.map(lambda x: jnp.concatenate([x, x]), drawn())
    given = given._replace(
        completions=given.completions._replace(
            tokens=jnp.repeat(jnp.arange(4), 2)[:, None] + 0 * given.completions.tokens
        )
    )
    collector = Collector(lambda params: (), lambda memory, params, key, version: (memory, numbered(100), {}))
    for share in (0.0, 0.3, 1.0):
        collect = given_or_drawn(collector, given, share).collect
        draw = jax.jit(jax.vmap(lambda key, collect=collect: collect((), None, key, 0)[1:]))
        groups, metrics = draw(jax.random.split(jax.random.key(1), 200))
        tokens = np.asarray(groups.completions.tokens[:, :, 0])
        own = np.asarray(metrics["on_policy"])
        assert abs(own.mean() - share) < 0.08
        assert np.all(tokens[own == 1] == 100)
        # Two whole groups of the four, never one twice.
        rest = tokens[own == 0]
        assert np.all(rest[:, ::2] == rest[:, 1::2]) and np.all(rest[:, 0] != rest[:, 2])
    with pytest.raises(ValueError, match="1 − on_policy"):
        given_or_drawn(collector, given, 1.5)
