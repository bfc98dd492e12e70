from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings
from jax.flatten_util import ravel_pytree

from rlax_llm.core.distributions import categorical, gaussian
from rlax_llm.core.trees import cast_like, dot, widen
from rlax_llm.natural.fisher import (
    add_damping,
    conjugate_gradient,
    fisher_vector_product,
    linearize_by_reverse,
    natural_direction,
    natural_gradient,
)

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=20, deadline=None)
ROWS, INPUTS, HIDDEN, ACTIONS = 6, 3, 4, 3


def network(seed: int, outputs: int = ACTIONS):
    random = np.random.default_rng(seed)
    return {
        "inner": {"w": jnp.asarray(random.normal(size=(INPUTS, HIDDEN))), "b": jnp.asarray(random.normal(size=HIDDEN))},
        "head": jnp.asarray(random.normal(size=(HIDDEN, outputs))),
    }


OBSERVATIONS = np.random.default_rng(20).normal(size=(ROWS, INPUTS))
WEIGHTS = np.array([0.1, 0.3, 0.0, 0.2, 0.25, 0.15])


def logits_of(params, observations=OBSERVATIONS):
    return jnp.tanh(observations @ params["inner"]["w"] + params["inner"]["b"]) @ params["head"]


def gaussian_of(params):
    out = logits_of(params)
    return out[:, :2], 0.3 * out[:, 2:]


POLICIES = {
    "categorical": (categorical, logits_of, lambda: network(0)),
    "gaussian": (gaussian, gaussian_of, lambda: network(1, outputs=4)),
}
each = pytest.mark.parametrize("name", POLICIES)


def random_like(seed: int, tree):
    flat, unravel = ravel_pytree(tree)
    return unravel(jnp.asarray(np.random.default_rng(seed).normal(size=flat.shape)))


@functools.cache
def divergence_hessian(name: str):
    """Hessian of the weighted KL from the policy where it is, forward over reverse, on the flat vector."""
    distribution, policy, make = POLICIES[name]
    params = make()
    flat, unravel = ravel_pytree(params)
    old = policy(params)
    return jax.jit(jax.hessian(lambda x: (WEIGHTS * distribution.kl(old, policy(unravel(x)))).sum()))(flat)


# Fisher-vector products


def test_fisher_vector_product_equals_the_enumerated_matrix():
    params = network(0)
    flat, unravel = ravel_pytree(params)
    matrix = np.zeros((flat.size, flat.size))
    scores = jax.jacobian(lambda x: jax.nn.log_softmax(logits_of(unravel(x))))(flat)
    probabilities = np.asarray(jax.nn.softmax(logits_of(params)))
    for row in range(ROWS):
        for action in range(ACTIONS):
            matrix += WEIGHTS[row] * probabilities[row, action] * np.outer(scores[row, action], scores[row, action])
    matvec = jax.jit(fisher_vector_product(logits_of, params, categorical.fisher, WEIGHTS))
    for seed in range(3):
        tangent = random_like(seed, params)
        product = ravel_pytree(matvec(tangent))[0]
        np.testing.assert_allclose(product, matrix @ ravel_pytree(tangent)[0], rtol=1e-9, atol=1e-12)


@each
def test_fisher_vector_product_equals_the_hessian_of_the_divergence(name):
    distribution, policy, make = POLICIES[name]
    params = make()
    hessian = divergence_hessian(name)
    matvec = fisher_vector_product(policy, params, distribution.fisher, WEIGHTS)
    unravel = ravel_pytree(params)[1]
    columns = jax.jit(jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0]))(jnp.eye(len(hessian)))
    np.testing.assert_allclose(columns, hessian, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(columns, columns.T, rtol=1e-12, atol=1e-14)
    assert np.linalg.eigvalsh(columns).min() > -1e-12


def test_a_policy_that_is_its_own_parameters():
    logits, tangent = jnp.asarray(np.random.default_rng(3).normal(size=(2, ROWS, ACTIONS)))
    matvec = fisher_vector_product(lambda x: x, logits, categorical.fisher, WEIGHTS)
    expected = WEIGHTS[:, None] * categorical.fisher(logits, tangent)
    np.testing.assert_allclose(matvec(tangent), expected, rtol=1e-14)


def test_weights_of_any_leading_shape_and_a_weight_of_zero():
    params, tangent = network(0), random_like(5, network(0))
    flat = fisher_vector_product(logits_of, params, categorical.fisher, WEIGHTS)(tangent)

    def square(params):
        return logits_of(params).reshape(2, 3, ACTIONS)

    shaped = fisher_vector_product(square, params, categorical.fisher, WEIGHTS.reshape(2, 3))(tangent)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), shaped, flat)

    def broken(params):
        return logits_of(params) + jnp.where(WEIGHTS == 0, jnp.nan, 0.0)[:, None]

    finite = fisher_vector_product(broken, params, categorical.fisher, WEIGHTS)(tangent)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), finite, flat)
    nothing = fisher_vector_product(logits_of, params, categorical.fisher, np.zeros(ROWS))(tangent)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.zeros(x.shape)), nothing)


def test_a_recurrent_policy_with_parameters_that_it_does_not_read():
    params = network(0) | {"inner": {"w": jnp.zeros((INPUTS, HIDDEN)), "b": jnp.ones(HIDDEN)}, "spare": jnp.ones(2)}

    def policy(params):
        def cell(state, observation):
            state = jax.nn.relu(state + observation @ params["inner"]["w"] + params["inner"]["b"])
            return state, jnp.tanh(state) @ params["head"]

        return jax.lax.scan(cell, jnp.zeros(HIDDEN), OBSERVATIONS)[1]

    flat, unravel = ravel_pytree(params)
    old, tangent = policy(params), random_like(6, params)
    slope = jax.grad(lambda x: (WEIGHTS * categorical.kl(old, policy(unravel(x)))).sum())
    expected = jax.jit(lambda v: jax.jvp(slope, (flat,), (v,))[1])(ravel_pytree(tangent)[0])
    matvec = jax.jit(fisher_vector_product(policy, params, categorical.fisher, WEIGHTS))
    np.testing.assert_allclose(ravel_pytree(matvec(tangent))[0], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(matvec(tangent)["spare"], np.zeros(2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_and_directions_keep_the_parameters_dtype(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), network(0))
    observations = OBSERVATIONS.astype(dtype)
    matvec = jax.jit(fisher_vector_product(lambda p: logits_of(p, observations), params, categorical.fisher, WEIGHTS))
    found = jax.jit(lambda g: natural_direction(0.01)(matvec, g))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves((matvec(params), found.step))} == {jnp.dtype(dtype)}
    assert all(np.all(np.isfinite(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(found.step))
    expected = ravel_pytree(compiled("categorical")(network(0), 0.01).step)[0]
    error = np.linalg.norm(ravel_pytree(widen(found.step))[0] - expected) / np.linalg.norm(expected)
    assert error < (1e-4 if dtype == jnp.float32 else 0.2)


# The direction


def quadratic(matvec, step) -> float:
    return float(0.5 * dot(step, matvec(step)))


@functools.cache
def problem(name: str):
    distribution, policy, make = POLICIES[name]
    params = make()
    actions = distribution.mode(jax.tree.map(lambda x: x + 0.7, policy(params)))
    advantages = jnp.asarray(np.random.default_rng(30).normal(size=ROWS))
    matvec = fisher_vector_product(policy, params, distribution.fisher, WEIGHTS)
    loss = jax.jit(jax.grad(lambda p: -(WEIGHTS * advantages * distribution.log_prob(policy(p), actions)).sum()))
    return params, jax.jit(matvec), loss(params)


@functools.cache
def compiled(name: str):
    """One program for all radii, dampings, iterations and tolerances, which may all be traced."""
    matvec = problem(name)[1]

    def direction(gradient, radius, damping=0.1, iterations=10, tolerance=1e-5):
        return natural_direction(radius, damping, iterations, tolerance)(matvec, gradient)

    program = jax.jit(direction)
    return lambda gradient, radius, damping=0.1, iterations=10, tolerance=1e-5: program(
        gradient, radius, damping, iterations, tolerance
    )


@each
@pytest.mark.parametrize("iterations", [2, 100])
def test_the_quadratic_divergence_is_exactly_the_radius(name, iterations):
    _, matvec, gradient = problem(name)
    step = compiled(name)(gradient, 0.02, 0.0, iterations).step
    np.testing.assert_allclose(quadratic(matvec, step), 0.02, rtol=1e-9)
    step = compiled(name)(gradient, 0.02, 0.3, iterations).step
    np.testing.assert_allclose(quadratic(add_damping(matvec, 0.3), step), 0.02, rtol=1e-9)
    assert quadratic(matvec, step) < 0.02
    assert dot(gradient, step) > 0


@each
def test_the_direction_solves_the_damped_system(name):
    _, _, gradient = problem(name)
    found = compiled(name)(gradient, 0.02, 0.1, 200, 1e-12)
    flat = ravel_pytree(gradient)[0]
    solution = np.linalg.solve(divergence_hessian(name) + 0.1 * np.eye(flat.size), flat)
    expected = np.sqrt(2 * 0.02 / (solution @ flat)) * solution
    np.testing.assert_allclose(ravel_pytree(found.step)[0], expected, rtol=1e-7, atol=1e-9)
    assert found.residual <= 1e-12


def test_it_is_the_best_step_on_its_ellipsoid():
    _, matvec, gradient = problem("categorical")
    best = compiled("categorical")(gradient, 0.02, 0.1, 200, 1e-12).step
    for seed in range(5):
        other = optax.tree.add_scale(best, 0.1, random_like(seed, best))
        scale = (0.02 / quadratic(add_damping(matvec, 0.1), other)) ** 0.5
        other = jax.tree.map(lambda x, scale=scale: x * scale, other)
        assert dot(gradient, other) < dot(gradient, best)


def test_it_does_not_depend_on_the_parametrization_as_plain_gradients_do():
    # θ = sinh(M φ): the natural step in φ, pushed forward, is the natural step in θ.
    random = np.random.default_rng(40)
    theta = jnp.asarray(random.normal(size=(2, 3)))
    mixing = jnp.asarray(random.normal(size=(6, 6)))
    phi = jnp.linalg.solve(mixing, jnp.arcsinh(theta).ravel())
    advantages = jnp.asarray(random.normal(size=(2, 3)))

    def outer(phi):
        return jnp.sinh(mixing @ phi).reshape(2, 3)

    def loss(theta):
        return -(jax.nn.softmax(theta) * advantages).sum()

    @functools.partial(jax.jit, static_argnums=0)
    def step(policy, params):
        gradient = jax.grad(lambda p: loss(policy(p)))(params)
        matvec = fisher_vector_product(policy, params, categorical.fisher, jnp.full(2, 0.5))
        return gradient, natural_direction(0.01, 0.0, 100, 1e-10)(matvec, gradient).step

    gradient, natural = step(lambda x: x, theta)
    outer_gradient, outer_natural = step(outer, phi)

    def pushed(tangent):
        moved = jax.jvp(outer, (phi,), (tangent,))[1]
        return moved - moved.mean(-1, keepdims=True)  # a constant on all logits of a state changes no policy

    np.testing.assert_allclose(pushed(outer_natural), natural - natural.mean(-1, keepdims=True), rtol=1e-5, atol=1e-7)
    plain, moved = (x / jnp.linalg.norm(x) for x in (gradient, pushed(outer_gradient)))
    assert jnp.linalg.norm(plain - moved) > 0.1


def test_limits_of_the_direction():
    _, _, gradient = problem("categorical")
    direction = compiled("categorical")
    flat = ravel_pytree(gradient)[0]
    step = ravel_pytree(direction(gradient, 0.02, 1e9).step)[0]
    np.testing.assert_allclose(step / jnp.linalg.norm(step), flat / jnp.linalg.norm(flat), rtol=1e-6)
    expected = ravel_pytree(direction(gradient, 0.02).step)[0]
    for scale in (1e-30, 1e30):
        scaled = jax.tree.map(lambda x, scale=scale: (scale * x).astype(jnp.float32), gradient)
        small = cast_like(direction(scaled, 0.02).step, gradient)
        np.testing.assert_allclose(ravel_pytree(small)[0], expected, rtol=1e-3, atol=1e-4)
    for value in (0.0, np.nan, np.inf):
        useless = jax.tree.map(lambda x, value=value: jnp.full_like(x, value), gradient)
        none = direction(useless, 0.02)
        np.testing.assert_array_equal(ravel_pytree(none.step)[0], np.zeros(flat.size))
        assert np.isnan(none.residual) == (value != 0)


def test_radius_and_damping_may_be_mapped_over():
    # Without damping, conjugate gradients amplify the rounding in which the two programs differ.
    _, matvec, gradient = problem("categorical")
    radii, dampings = jnp.array([0.01, 0.1]), jnp.array([0.1, 0.5])
    mapped = jax.jit(jax.vmap(lambda radius, damping: natural_direction(radius, damping)(matvec, gradient)))
    many = mapped(radii, dampings)
    for lane in range(2):
        alone = compiled("categorical")(gradient, radii[lane], dampings[lane])
        step = jax.tree.map(lambda x, lane=lane: x[lane], many.step)
        np.testing.assert_allclose(ravel_pytree(step)[0], ravel_pytree(alone.step)[0], rtol=1e-9, atol=1e-12)


# Optax


def test_the_optimizer_is_the_negative_direction_and_chains():
    params, matvec, gradient = problem("categorical")
    direction = natural_direction(0.02)
    expected = ravel_pytree(direction(matvec, gradient).step)[0]
    for chain, factor in (
        (natural_gradient(direction), -1.0),
        (optax.chain(natural_gradient(direction), optax.scale(0.5)), -0.5),
        (optax.chain(optax.clip_by_global_norm(1e-3), natural_gradient(direction), optax.scale(-1.0)), 1.0),
    ):
        updates, _ = jax.jit(lambda g, o=chain: o.update(g, o.init(params), params, matvec=matvec, unknown=1))(gradient)
        np.testing.assert_allclose(ravel_pytree(updates)[0], factor * expected, rtol=1e-9, atol=1e-12)


# Bad input


PARAMS = {"w": jnp.zeros((2, 3))}


def identity_product(weights=None):
    weights = jnp.ones(2) if weights is None else weights
    return fisher_vector_product(lambda p: p["w"], PARAMS, categorical.fisher, weights)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: natural_direction(0.0), "natural_direction: kl_radius is 0.0, wanted a number greater than 0"),
        (lambda: natural_direction(-1), "natural_direction: kl_radius is -1, wanted a number greater than 0"),
        (lambda: natural_direction(1.0, -0.1), "natural_direction: damping is -0.1, wanted a number of at least 0"),
        (lambda: natural_direction(1.0, 0.1, 0), "natural_direction: iterations is 0, wanted a whole number"),
        (lambda: natural_direction(1.0, tolerance=-1), "natural_direction: tolerance is -1, wanted a number of at"),
        (lambda: add_damping(lambda x: x, -1.0), r"add_damping: damping is -1.0, wanted a number of at least 0\."),
        (lambda: conjugate_gradient(lambda x: x, jnp.ones(2), 0), "conjugate_gradient: iterations is 0, wanted"),
        (lambda: conjugate_gradient(lambda x: x, jnp.ones(2), 1, -1.0), "conjugate_gradient: tolerance is -1.0"),
        (lambda: conjugate_gradient(lambda x: {"x": x}, jnp.ones(2)), "conjugate_gradient: products is PyTreeDef"),
        (lambda: conjugate_gradient(lambda x: x[:1], jnp.ones(2)), r"products has shape \(1,\), b has \(2,\)"),
        (
            lambda: identity_product(jnp.ones(3)),
            r"weights has shape \(3,\), the policy gives parameters \(2, 3\); give one weight for each distribution\.",
        ),
        (lambda: identity_product()(jnp.zeros((2, 3))), r"tangent is PyTreeDef\(\*\), params is PyTreeDef\(\{'w': \*"),
        (lambda: identity_product()({"w": jnp.zeros(3)}), r"tangent has shape \(3,\), params has \(2, 3\)"),
        (
            lambda: fisher_vector_product(lambda p: p["w"], PARAMS, lambda p, v: (v, v), jnp.ones(2))(PARAMS),
            "fisher_vector_product: products is PyTreeDef",
        ),
        (
            lambda: natural_gradient(natural_direction(1.0)).update(PARAMS, optax.EmptyState(), PARAMS),
            "natural_gradient: matvec is missing; give update the Fisher-vector product at params",
        ),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_reverse_derivative_is_enough():
    """The Jacobian's products, and so Fisher's, without forward differentiation; and for a ``custom_vjp``."""

    @jax.custom_vjp
    def product(weights, x):
        return x @ weights

    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda res, slope: (res[1].T @ slope, slope @ res[0].T))
    random = np.random.default_rng(0)
    x, weights = jnp.asarray(random.normal(size=(4, 3))), jnp.asarray(random.normal(size=(3, 5)))
    tangent, counts = jnp.asarray(random.normal(size=(3, 5))), jnp.full(4, 0.25)
    plain = fisher_vector_product(lambda w: jnp.tanh(x @ w), weights, categorical.fisher, counts)
    own = fisher_vector_product(
        lambda w: jnp.tanh(product(w, x)), weights, categorical.fisher, counts, linearize_by_reverse
    )
    np.testing.assert_allclose(own(tangent), plain(tangent), rtol=1e-12)
