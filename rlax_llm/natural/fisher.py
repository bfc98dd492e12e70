"""The natural gradient on any pytree, in ``jit``, ``vmap`` and ``scan``: the *direction* half of TRPO (``trpo.py``).

The Fisher matrix is never formed: everything asks for its products ``matvec(tangent)`` only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core import checks
from rlax_llm.core.trees import Tree, cast_like, dot, widen

Matvec = Callable[[Tree], Tree]


class Solution(NamedTuple):
    """Of a linear system ``A x = b``.

    Attributes:
        x: a pytree like b.
        residual: ``‖b − A x‖ / ‖b‖``, as the iteration tracks it; 0 for b = 0, NaN where b is not finite.
        iterations: int32, products with A that were taken.
    """

    x: Tree
    residual: jax.Array
    iterations: jax.Array


class Direction(NamedTuple):
    """A step that *increases* what the gradient is of.

    Attributes:
        step: a pytree like the gradient; subtract it to descend.
        residual: relative residual of the linear system, see ``Solution``.
        iterations: int32.
    """

    step: Tree
    residual: jax.Array
    iterations: jax.Array


DirectionRule = Callable[[Matvec, Tree], Direction]


Linearize = Callable[[Callable[[Tree], Tree], Tree], tuple[Tree, Matvec]]


def linearize_by_reverse(function: Callable[[Tree], Tree], primals: Tree) -> tuple[Tree, Matvec]:
    """``jax.linearize`` for a function that has a reverse derivative alone, as one with a ``custom_vjp`` has.

    The pullback is linear in its cotangent, so its transpose is the Jacobian itself: one more backward pass a product.
    Limiting case: ``jax.linearize`` wherever that works.

    Args:
        function: of one pytree of floats.
        primals: where.

    Returns:
        Its value, and a function from tangents of ``primals`` to those of the value.

    >>> value, forwards = linearize_by_reverse(lambda x: x**2, jnp.array(3.0))
    >>> float(value), float(forwards(jnp.array(1.0)))
    (9.0, 6.0)
    """
    value, pullback = jax.vjp(function, primals)
    _, forwards = jax.vjp(pullback, jax.tree.map(jnp.zeros_like, value))
    return value, lambda tangent: forwards((tangent,))[0]


def fisher_vector_product(
    policy: Callable[[Tree], Tree],
    params: Tree,
    fisher: Callable[[Tree, Tree], Tree],
    weights: jax.Array,
    linearize: Linearize = jax.linearize,
) -> Matvec:
    """``F v = Σ_n w_n J_nᵀ F_n J_n v``: the Fisher information of a policy times a vector, in Gauss-Newton form.

    ``J_n`` is the Jacobian of the n-th distribution's parameters (``jvp``, then ``vjp``) and ``F_n`` its own Fisher
    information, in closed form. It equals ``Σ_n w_n E[∇log π ∇log πᵀ]`` and the Hessian of ``Σ_n w_n KL(π_old‖π)`` at
    π_old (arXiv 1412.1193), at the cost of one forward and one backward pass. The policy is linearized once,
    however many products follow.

    Limiting cases: the policy being its own parameters gives ``w ⊙ fisher``; a weight of 0 leaves its row out, also
    where its product is not finite.

    Args:
        policy: ``params → parameters`` of distributions ``[N…]`` (any leading shape), differentiable forwards.
        params: pytree of floats.
        fisher: ``(parameters, tangents) → products``, such as ``categorical.fisher``.
        weights: ``[N…]`` ≥ 0; ``1/N`` for the mean. ``Σ weights · KL`` is the divergence that is expanded.
        linearize: ``linearize_by_reverse`` where the policy has a reverse derivative alone.

    Returns:
        A function from a pytree like ``params`` to one.

    Raises:
        ValueError: where ``weights`` is not the leading shape of the parameters, or a tangent is not like ``params``.

    >>> from rlax_llm.core.distributions import categorical
    >>> matvec = fisher_vector_product(lambda logits: logits, jnp.zeros((1, 2)), categorical.fisher, jnp.ones(1))
    >>> matvec(jnp.array([[4.0, 0.0]])).tolist()
    [[1.0, -1.0]]
    """
    where = "fisher_vector_product"
    shape = jnp.shape(weights)
    parameters, forwards = linearize(policy, params)
    backwards = jax.linear_transpose(forwards, params)
    for leaf in jax.tree.leaves(parameters):
        if leaf.shape[: len(shape)] != shape:
            raise ValueError(
                f"{where}: weights has shape {shape}, the policy gives parameters {leaf.shape}; "
                "give one weight for each distribution."
            )

    def weighted(product: jax.Array, parameter: jax.Array) -> jax.Array:
        weight = jnp.reshape(weights, shape + (1,) * (product.ndim - len(shape)))
        return jnp.where(weight != 0, weight * product, 0.0).astype(parameter.dtype)

    def matvec(tangent: Tree) -> Tree:
        checks.same_tree(where, params=params, tangent=tangent)
        products = fisher(parameters, forwards(cast_like(tangent, params)))
        checks.same_tree(where, parameters=parameters, products=products)
        return backwards(jax.tree.map(weighted, products, parameters))[0]

    return matvec


def add_damping(matvec: Matvec, damping: float | jax.Array) -> Matvec:
    """``v → A v + damping · v``: Tikhonov's damping, which bounds the step where A is singular.

    Limiting case: damping 0 is A.

    Args:
        matvec: products with A, symmetric and positive semi-definite.
        damping: ≥ 0, in A's units; may be traced.

    Returns:
        Products with ``A + damping · I``.

    Raises:
        ValueError: for a negative damping.

    >>> add_damping(lambda v: 2 * v, 0.5)(jnp.array([2.0])).tolist()
    [5.0]
    """
    checks.not_negative("add_damping", damping=damping)
    return lambda tangent: cast_like(optax.tree.add_scale(matvec(tangent), jnp.asarray(damping), tangent), tangent)


def conjugate_gradient(
    matvec: Matvec, b: Tree, iterations: int | jax.Array = 10, tolerance: float | jax.Array = 1e-5
) -> Solution:
    """Solve ``A x = b`` from x = 0, for a symmetric positive definite A given by its products (Hestenes, Stiefel 1952).

    Stops after ``iterations`` products, or once ``‖b − A x‖ ≤ tolerance · ‖b‖``, or at a direction along which A has no
    positive curvature beyond rounding (next to its largest so far): x is then what was reached before.
    Limiting cases: b = 0 gives 0 without a product; ``A = I`` takes one; exact arithmetic needs as many as A has
    distinct eigenvalues.

    Args:
        matvec: products with A, on pytrees like b.
        b: pytree of floats; sums are taken in at least float32.
        iterations: ≥ 1, the most products.
        tolerance: ≥ 0, relative to ‖b‖.

    Returns:
        The solution with its residual and the number of products.

    Raises:
        ValueError: for fewer than one iteration, a negative tolerance, or products that are not like b.

    >>> conjugate_gradient(lambda x: 2 * x, jnp.array([2.0, 4.0])).x.tolist()
    [1.0, 2.0]
    """
    where = "conjugate_gradient"
    checks.at_least_one(where, iterations=iterations)
    checks.not_negative(where, tolerance=tolerance)
    checks.same_tree(where, b=b, products=jax.eval_shape(matvec, b))
    start = widen(b)
    norm = dot(start, start)
    limit = jnp.square(tolerance) * norm

    def unsolved(state: _Iterate) -> jax.Array:
        return state.sound & (state.square > limit) & (state.products < iterations)

    def product(direction: Tree) -> Tree:
        return widen(matvec(cast_like(direction, b)))

    first = _Iterate(
        x=jax.tree.map(jnp.zeros_like, start),
        residual=start,
        direction=start,
        square=norm,
        products=jnp.zeros((), jnp.int32),
        largest=jnp.zeros_like(norm),
        sound=jnp.array(True),
    )
    last = jax.lax.while_loop(unsolved, lambda state: _iterate(product, state), first)
    relative = jnp.where(norm == 0, 0.0, jnp.sqrt(last.square / jnp.where(norm == 0, 1.0, norm)))
    return Solution(cast_like(last.x, b), relative, last.products)


class _Iterate(NamedTuple):
    """Conjugate gradients so far.

    Attributes:
        x: the solution so far.
        residual: b − A x.
        direction: where the next step goes.
        square: of the residual's norm.
        products: taken so far.
        largest: curvature per squared length that was seen.
        sound: whether the last direction had a positive curvature.
    """

    x: Tree
    residual: Tree
    direction: Tree
    square: jax.Array
    products: jax.Array
    largest: jax.Array
    sound: jax.Array


def _iterate(matvec: Matvec, state: _Iterate) -> _Iterate:
    product = matvec(state.direction)
    curvature = dot(state.direction, product)
    length = dot(state.direction, state.direction)
    # A direction of a null space is left with the rounding of the others: a step along it has no bound.
    rounding = jnp.finfo(state.square.dtype).eps
    sound = curvature > rounding * state.largest * length
    size = jnp.where(sound, state.square / jnp.where(sound, curvature, 1.0), 0.0)
    residual = jax.tree.map(lambda r, a: jnp.where(sound, r - size * a, r), state.residual, product)
    square = dot(residual, residual)
    return _Iterate(
        x=optax.tree.add_scale(state.x, size, state.direction),
        residual=residual,
        direction=optax.tree.add_scale(residual, square / state.square, state.direction),
        square=square,
        products=state.products + 1,
        largest=jnp.maximum(state.largest, curvature / length),
        sound=sound,
    )


def natural_direction(
    kl_radius: float | jax.Array,
    damping: float | jax.Array = 0.1,
    iterations: int | jax.Array = 10,
    tolerance: float | jax.Array = 1e-5,
) -> DirectionRule:
    """The steepest step at a KL radius: ``s = √(2 kl_radius / xᵀ A x) · x``, ``A x = g`` and ``A = F + damping · I``.

    It maximizes ``gᵀs`` under ``½ sᵀ A s ≤ kl_radius`` (arXiv 1502.05477, appendix C), so the quadratic model of the KL
    is exactly ``kl_radius`` for damping 0, and less otherwise. Limiting cases: the plain gradient's direction for a
    large damping; does not depend on the gradient's length; for damping 0 does not depend on how the policy is
    parametrized; a gradient that is 0 or not finite gives 0.

    Args:
        kl_radius: > 0, nats; may be traced.
        damping: ≥ 0; may be traced.
        iterations: ≥ 1, of conjugate gradients.
        tolerance: ≥ 0, of conjugate gradients, relative.

    Returns:
        A function ``(matvec, gradient) → Direction``.

    Raises:
        ValueError: for a value out of its range.

    >>> direction = natural_direction(kl_radius=2.0, damping=0.0)
    >>> direction(lambda v: 4 * v, jnp.array([3.0])).step.tolist()
    [1.0]
    """
    where = "natural_direction"
    checks.positive(where, kl_radius=kl_radius)
    checks.not_negative(where, damping=damping, tolerance=tolerance)
    checks.at_least_one(where, iterations=iterations)

    def direction(matvec: Matvec, gradient: Tree) -> Direction:
        # The step does not depend on the gradient's scale; without it a tiny gradient would be squared to 0.
        wide = widen(gradient)
        largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(wide)]).max()
        scaled = jax.tree.map(lambda g: g / jnp.where(largest > 0, largest, 1.0), wide)
        product = add_damping(matvec, damping)
        x, residual, count = conjugate_gradient(product, scaled, iterations, tolerance)
        energy = dot(x, product(x))
        size = jnp.where(energy > 0, jnp.sqrt(2 * kl_radius / jnp.where(energy > 0, energy, 1.0)), 0.0)
        return Direction(cast_like(jax.tree.map(lambda leaf: size * leaf, x), gradient), residual, count)

    return direction


def natural_gradient(direction: DirectionRule) -> optax.GradientTransformationExtraArgs:
    """A direction as an optimizer: a loss's gradient becomes ``−direction(matvec, gradient).step``.

    Chains with any other transformation: ``optax.chain(natural_gradient(...), optax.scale(0.5))`` goes half of the way,
    ``trpo.line_search`` after it makes it TRPO. It keeps no state.

    Args:
        direction: such as ``natural_direction(kl_radius)``.

    Returns:
        A transformation whose ``update`` takes ``matvec``, the Fisher-vector product at the parameters, as an extra
        argument.

    Raises:
        ValueError: by ``update``, where ``matvec`` is not given.

    >>> optimizer = natural_gradient(natural_direction(kl_radius=2.0, damping=0.0))
    >>> params = jnp.array([0.0])
    >>> updates, _ = optimizer.update(jnp.array([3.0]), optimizer.init(params), params, matvec=lambda v: 4 * v)
    >>> updates.tolist()
    [-1.0]
    """

    def update(
        updates: Tree, state: optax.OptState, params: Tree = None, *, matvec: Matvec | None = None, **_: Any
    ) -> tuple[Tree, optax.OptState]:
        if matvec is None:
            raise ValueError(
                "natural_gradient: matvec is missing; give update the Fisher-vector product at params, matvec=...."
            )
        return jax.tree.map(jnp.negative, direction(matvec, updates).step), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
