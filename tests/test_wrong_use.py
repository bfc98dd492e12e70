"""What a newcomer gets wrong, each told in a sentence that names what was called, what it got and what to do."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rlax_llm as rl
from rlax_llm import credit, policy, preference, recipes
from rlax_llm.core import arguments, checks, distributions, kl, masked

SCORES = jnp.array([[0.0, 1.0], [1.0, 3.0]])
ROW, MASK = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
SCORED = rl.Scored(SCORES, jnp.zeros((2, 2, 3)), jnp.ones((2, 2, 3), bool))
NO_EQUATIONS = ("building", "marks", "openrlhf", "registry", "trl", "trl_config", "verl")
MODULES = [distributions, kl, masked] + [
    import_module(f"{folder.__name__}.{found.name}")
    for folder in (credit, policy, preference, recipes)
    for found in pkgutil.iter_modules(folder.__path__)
    if found.name not in NO_EQUATIONS
]


def functions():
    """Every public function of the equations, by module and name."""
    for module in MODULES:
        home = module.__name__.rpartition(".")[2]
        for name, function in vars(module).items():
            if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_"):
                yield f"{home}.{name}", function


CHECKS = ("check_groups", "check_rows", "check_scored")
FUNCTIONS = {name: function for name, function in functions() if not name.endswith(CHECKS)}


def makes_a_function(function) -> bool:
    kind = str(inspect.signature(function).return_annotation)
    return arguments._makes("f", kind) is not None


FACTORIES = {name: f for name, f in FUNCTIONS.items() if makes_a_function(f) and inspect.signature(f).parameters}
NOT_REFUSED = {
    # What these take may be an array of any shape: a margin or target for each pair, bins, a key.
    "links.shifted",
    "links.squared",
    "values.two_hot_value_loss",
    "values.two_hot_value",
}


def test_there_are_as_many_as_one_would_think():
    assert len(FUNCTIONS) > 150 and len(FACTORIES) > 60


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_that_is_called_like_what_it_makes_says_so(name):
    function = FACTORIES[name]
    first = next(iter(inspect.signature(function).parameters.values()))
    if name in NOT_REFUSED or first.kind is first.VAR_POSITIONAL:
        return
    given = {first.name: SCORES} if first.kind is first.KEYWORD_ONLY else None
    with pytest.raises(ValueError, match=rf"^{function.__name__}: {first.name} has shape \(2, 2\), wanted an? "):
        function(**given) if given else function(SCORES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_argument_that_there_is_not_is_named_with_those_that_there_are(name):
    function = FUNCTIONS[name]
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        return
    with pytest.raises(TypeError, match=rf"^{function.__name__}: there is no argument loss_type.* It takes "):
        function(loss_type="dapo")


ARRAYS = {
    name: function
    for name, function in FUNCTIONS.items()
    if str(next(iter(inspect.signature(function).parameters.values()), inspect.Parameter("x", 3)).annotation)
    in ("jax.Array", "PerStep")
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_list_or_a_record_where_an_array_is_wanted(name):
    function = ARRAYS[name]
    first = next(iter(inspect.signature(function).parameters))
    for given, what in (([0.0, 1.0], "list"), (SCORED, "Scored")):
        with pytest.raises(ValueError, match=rf"^{function.__name__}: {first} is a {what}, wanted an array; give "):
            function(given)


STEPS = (jnp.ones(3), 1.0, jnp.zeros(3), jnp.zeros(3), 1.0)
WRONG = {
    "batch_std of scores": (
        lambda: rl.credit.batch_std(SCORES),
        "batch_std(…) makes a function: give what that reads to its",
    ),
    "whiten_advantages of scores": (
        lambda: rl.credit.whiten_advantages(SCORES),
        "whiten_advantages: advantage has shape (2, 2), wanted a function",
    ),
    "a coefficient that is none": (lambda: rl.dapo(eps=None), "dapo: eps is None, wanted a number; dapo(…) makes"),
    "a coefficient of nan": (
        lambda: rl.grpo(kl_coef=float("nan")),
        "kl_penalty: kl_coef is nan, wanted a number of at least 0.",
    ),
    "a recipe of scores": (lambda: rl.grpo(SCORES), "grpo(…) makes an Objective, which goes to policy_loss or group"),
    "length_centered of scores": (
        lambda: rl.length_centered(SCORES),
        "length_centered: scored has shape (2, 2), wanted a Scored; give Scored(scores, log_probs, mask).",
    ),
    "z_score of a record": (lambda: rl.z_score(SCORED), "give one of its entries, scores.scores, scores.log_probs"),
    "a list of scores": (lambda: rl.z_score([0.0, 1.0]), "z_score: scores is a list, wanted an array; give jnp.array"),
    "lists in a trust region": (lambda: rl.clip()([0.0], [1.0]), "clip: log_ratio is a list, wanted an array"),
    "a peer's name": (lambda: rl.grpo(beta=0.1), "grpo: there is no argument beta; what others call beta is kl_coef"),
    "epsilon_high": (lambda: rl.dapo(epsilon_high=0.3), "what others call epsilon_high is eps_high here."),
    "gamma and lam": (lambda: rl.gae(*STEPS[:4], lam=0.9), "gae: there is no argument lam; what others call lam is tr"),
    "a misspelled name": (lambda: rl.grpo(kl_coeff=0.1), "there is no argument kl_coeff; did you mean 'kl_coef'?"),
    "values of T + 1 states": (
        lambda: rl.gae(STEPS[0], 1.0, jnp.zeros(4), jnp.zeros(3), 1.0),
        "of the values v of T + 1 states, values=v[:-1] and next_values=v[1:].",
    ),
    "the same of vtrace": (
        lambda: rl.vtrace(STEPS[0], 1.0, jnp.zeros(4), jnp.zeros(3), jnp.zeros(3)),
        "of the values v of T + 1 states, values=v[:-1] and next_values=v[1:].",
    ),
    "streams on two axes": (
        lambda: rl.gae(jnp.ones((3, 2)), *STEPS[1:]),
        "gae: rewards has shape (3, 2), wanted [T]; vmap over the other axes.",
    ),
    "scores for a recipe's advantage": (
        lambda: rl.grpo().advantage(SCORES),
        "per_group: scored has shape (2, 2), wanted a Scored; give Scored(scores, log_probs, mask).",
    ),
    "scores for the advantage of several rewards": (
        lambda: rl.gdpo((1.0, 1.0)).advantage(jnp.zeros((2, 2, 2))),
        "per_reward: scored has shape (2, 2, 2), wanted a Scored;",
    ),
    "logits for a sampler's class": (
        lambda: rl.Categorical(jnp.zeros((2, 3))),
        "Categorical: temperature has shape (2, 3), wanted a Python number; Categorical(…) makes a sampler, which dra",
    ),
    "half a token": (lambda: rl.Categorical(top_k=2.5), "Categorical: top_k is a float, wanted a whole number;"),
    "scores of three axes": (
        lambda: rl.grpo().advantage(SCORED._replace(scores=jnp.zeros((2, 2, 2)))),
        "per_group: scores has shape (2, 2, 2), wanted [P, G]; of several rewards take gdpo, or add them up first.",
    ),
    "scores of one axis": (
        lambda: rl.lite_ppo().advantage(SCORED._replace(scores=jnp.zeros(4))),
        "batch_std: scores has shape (4,), wanted [P, G]; give a row to each prompt.",
    ),
    "rows that are not in groups": (
        lambda: rl.opo().advantage(SCORED._replace(mask=jnp.ones((4, 3), bool))),
        "length_centered: mask has shape (4, 3), scores has (2, 2), wanted mask [P, G, T]; give mask.reshape(2, 2, -1)",
    ),
    "a mask of floats": (lambda: rl.token_mean(jnp.ones((2, 3))), "token_mean: mask has dtype float32, wanted bool;"),
    "a mask of integers in a record": (
        lambda: rl.policy_loss(rl.dapo(), rl.PolicyBatch(ROW, ROW, ROW, MASK.astype(int))),
        "policy_loss: mask has dtype int32, wanted bool; give mask != 0.",
    ),
    "log-probabilities that are whole": (
        lambda: rl.policy_loss(rl.dapo(), rl.PolicyBatch(jnp.zeros((2, 3), int), ROW, ROW, MASK)),
        "policy_loss: log_probs has dtype int32, wanted floats",
    ),
    "a transposed mask": (
        lambda: rl.policy_loss(rl.dapo(), rl.PolicyBatch(ROW, ROW, ROW, MASK.T)),
        "policy_loss: mask has shape (3, 2), log_probs has (2, 3); give arrays of one shape.",
    ),
    "a recipe that was not called": (
        lambda: rl.policy_loss(rl.grpo, rl.PolicyBatch(ROW, ROW, ROW, MASK)),
        "policy_loss: objective is the function grpo, wanted an Objective; call it.",
    ),
    "a tuple of arrays for a batch": (
        lambda: rl.policy_loss(rl.dapo(), ROW),
        "wanted a PolicyBatch; give PolicyBatch(log_probs, old_log_probs, advantages, mask).",
    ),
    "a loop of a recipe that was not called": (
        lambda: rl.group_loop(lambda *_: ROW, rl.dapo, optax.sgd(1.0)),
        "group_loop: objective is the function dapo, wanted an Objective; call it.",
    ),
    "words for a number": (lambda: rl.clip("0.2"), "clip: eps_low is a str, wanted a number"),
    "None for an array": (lambda: rl.k3(ROW, None), "k3: ref_log_probs is None, wanted an array."),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_told(name):
    call, message = WRONG[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert message in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_right_use_in_other_types_is_left_alone():
    """Numpy and whole rewards, traced coefficients, one number for all steps."""
    np.testing.assert_array_equal(rl.gae(np.array([1, 2]), 1, 0, 0, 1), [3, 2])
    np.testing.assert_array_equal(rl.centered(np.array([1, 3])), [-1, 1])
    losses = jax.vmap(lambda coef: rl.kl_penalty(rl.k3, coef)(-ROW[0] - 1, -ROW[0]))(jnp.array([0.0, 1.0]))
    assert losses.shape == (2, 3)
    assert jax.jit(rl.n_step_returns, static_argnames="n")(jnp.ones(3), 1.0, jnp.zeros(3), n=2).tolist() == [2, 2, 1]
    assert inspect.signature(rl.clip).parameters.keys() == {"eps_low", "eps_high"}
    with pytest.raises(checks.NoReference):
        rl.rloo().advantage(SCORED)


@pytest.mark.parametrize(("reduce", "shape"), [(jnp.mean, r"\(\)"), (lambda x: x[..., None], r"\(2, (3, )?1\)")])
def test_a_function_of_ones_own_that_sums_or_adds_an_axis_is_refused(reduce, shape):
    """Either would be broadcast against the weights, and train with other numbers in silence."""
    told = rf"returned shape {shape}, wanted \(2,.*, a number for each (pair|response|token); sums and means"
    with pytest.raises(ValueError, match=rf"^pair_loss: link {told}"):
        rl.preference.pair_loss(
            lambda chosen, rejected: reduce(rejected - chosen), jnp.ones(2), jnp.zeros(2), jnp.ones(2)
        )
    responses = rl.preference.Responses(ROW, MASK, ROW)
    labeled = rl.preference.LabeledBatch(responses, jnp.array([True, False]), jnp.ones(2))
    unpaired = rl.kto()._replace(link=lambda chosen, rejected: reduce(rejected - chosen))
    with pytest.raises(ValueError, match=rf"^unpaired_loss: link {told}"):
        rl.preference.unpaired_loss(unpaired, labeled, 0.0)
    batch = rl.PolicyBatch(ROW, ROW, ROW, MASK, ref_log_probs=ROW)
    functions = {
        "ratio": lambda new, old, mask: reduce(new - old),
        "trust_region": lambda log_ratio, advantages: reduce(log_ratio * advantages),
        "weighting": lambda mask: reduce(mask / 6),
        "kl": lambda new, reference: reduce(new - reference),
    }
    for name, function in functions.items():
        with pytest.raises(ValueError, match=rf"^policy_loss: objective.{name} {told}"):
            rl.policy_loss(rl.dapo()._replace(**{name: function}), batch)
