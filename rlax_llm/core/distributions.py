"""Distributions as records of pure functions over their parameters: no classes, no state, any leading shape.

``categorical`` has the parameter ``logits [..., K]``, ``normal`` and ``gaussian`` the pair ``(mean, log_std)``. A
distribution is a ``Distribution``, so whatever reads one (a policy loss, a natural gradient) takes any.
A logit of −inf is an impossible action: probability 0, and a gradient of exactly 0. Everything is computed in at least
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks, kl
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.exponentials import exp_then_line

Parameters = Any
Pair = tuple[jax.Array, jax.Array]


class Distribution(NamedTuple):
    """What a policy needs of a distribution.

    Attributes:
        log_prob: ``(parameters, actions) → [...]``, nats.
        entropy: ``parameters → [...]``, nats.
        kl: ``(parameters, ref_parameters) → [...]``, KL(p‖ref), exact, nats.
        fisher: ``(parameters, tangents) → like parameters``, Fisher information times a vector, per distribution.
        noise: ``(key, parameters) → noise``, all the randomness of one sample each; only shapes are read, so a loop
            draws it for many steps at once (``jax.ShapeDtypeStruct`` will do).
        transform: ``(noise, parameters) → actions``; ``sample`` is both, with a key.
        mode: ``parameters → actions``, the likeliest.
    """

    log_prob: Callable[[Parameters, jax.Array], jax.Array]
    entropy: Callable[[Parameters], jax.Array]
    kl: Callable[[Parameters, Parameters], jax.Array]
    fisher: Callable[[Parameters, Parameters], Parameters]
    noise: Callable[[jax.Array, Parameters], jax.Array]
    transform: Callable[[jax.Array, Parameters], jax.Array]
    mode: Callable[[Parameters], jax.Array]

    def sample(self, key: jax.Array, parameters: Parameters) -> jax.Array:
        """One action for each distribution, drawn with a key."""
        return self.transform(self.noise(key, parameters), parameters)


class _Softmax(NamedTuple):
    log_probs: jax.Array  # 0 where impossible
    probs: jax.Array  # 0 where impossible
    possible: jax.Array


def _wide(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _softmax(where: str, logits: Any) -> _Softmax:
    logits = _wide(logits)
    if logits.ndim == 0:
        raise ValueError(f"{where}: logits has shape (), wanted [..., K]; give one logit for each action.")
    possible = logits != -jnp.inf
    # Every excluded element is replaced before it meets a function whose derivative would be infinite there.
    lowest = jnp.where(possible, logits, jnp.finfo(logits.dtype).min)
    shifted = jnp.where(possible, logits - jax.lax.stop_gradient(lowest.max(-1, keepdims=True)), 0.0)
    total = jnp.where(possible, jnp.exp(shifted), 0.0).sum(-1, keepdims=True)
    log_probs = jnp.where(possible, shifted - jnp.log(jnp.where(possible.any(-1, keepdims=True), total, 1.0)), 0.0)
    return _Softmax(log_probs, jnp.where(possible, jnp.exp(log_probs), 0.0), possible)


@check_arguments
def categorical_log_prob(logits: jax.Array, actions: jax.Array) -> jax.Array:
    """``log p_a = logit_a − log Σ_j exp(logit_j)``.

    Limiting cases: ``−log K`` for equal logits; −inf, with gradient 0, for an impossible action, and
    for one that is none of the K. Adding one number to
    all logits changes nothing.

    Args:
        logits: ``[..., K]``, nats up to a constant.
        actions: ``[...]`` int, in ``0 … K − 1``.

    Returns:
        ``[...]``, nats.

    Raises:
        ValueError: unless there is one action for each distribution.

    >>> float(categorical_log_prob(jnp.array([0.0, -jnp.inf]), jnp.array(0)))
    0.0
    """
    softmax = _softmax("categorical_log_prob", logits)
    if jnp.shape(actions) != jnp.shape(logits)[:-1]:
        raise ValueError(
            f"categorical_log_prob: actions has shape {jnp.shape(actions)}, logits has {jnp.shape(logits)}; "
            f"give one action for each distribution, {jnp.shape(logits)[:-1]}."
        )
    # Selected by comparison: the derivative of a gather is a scatter, which a CPU runs an element at a time.
    taken = jnp.arange(softmax.possible.shape[-1]) == jnp.asarray(actions)[..., None]
    chosen = jnp.where(taken, softmax.log_probs, 0.0).sum(-1)
    possible = (taken & softmax.possible).any(-1)
    return jnp.where(possible, chosen, -jnp.inf)


@check_arguments
def categorical_entropy(logits: jax.Array) -> jax.Array:
    """``H(p) = −Σ_j p_j log p_j``.

    Limiting cases: ``log K`` for equal logits, 0 for a single possible action (or none).

    Args:
        logits: ``[..., K]``, nats up to a constant.

    Returns:
        ``[...]``, nats.

    >>> float(categorical_entropy(jnp.zeros(4))) == float(jnp.log(4.0))
    True
    """
    softmax = _softmax("categorical_entropy", logits)
    return -(softmax.probs * softmax.log_probs).sum(-1)


@check_arguments
def categorical_kl(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    """``KL(p‖q) = Σ_j p_j log(p_j / q_j)``, exact: the expectation of ``kl.k3`` (and of ``kl.k1``) under p.

    Every term is summed as ``p log(p/q) + q − p ≥ 0``: the extra parts cancel in the sum, and a small divergence keeps
    its digits in float32. Limiting cases: exactly 0 for equal logits; infinite where p chooses what q cannot.

    Args:
        logits: ``[..., K]`` of p.
        ref_logits: ``[..., K]`` of q.

    Returns:
        ``[...]``, nats, ≥ 0.

    Raises:
        ValueError: for two shapes.

    >>> float(categorical_kl(jnp.array([0.0, -jnp.inf]), jnp.zeros(2))) == float(jnp.log(2.0))
    True
    """
    checks.same_shape("categorical_kl", logits=logits, ref_logits=ref_logits)
    p = _softmax("categorical_kl", logits)
    q = _softmax("categorical_kl", ref_logits)
    both = p.possible & q.possible
    gap = jnp.where(both, p.log_probs - q.log_probs, 0.0)
    # k3 where p/q is not small; elsewhere its exponential could overflow, and the plain form loses no digits.
    near = jnp.maximum(gap, -1.0)
    close = p.probs * kl.k3(near, jnp.zeros_like(near))
    terms = jnp.where(both & (gap > -1), close, p.probs * gap + q.probs - p.probs)
    impossible = ((p.probs > 0) & ~q.possible).any(-1)
    return jnp.where(impossible, jnp.inf, terms.sum(-1))


@check_arguments
def categorical_fisher(logits: jax.Array, tangents: jax.Array) -> jax.Array:
    """Fisher information of the logits times a vector, ``F v = p ⊙ (v − Σ_j p_j v_j)``, ``F = diag(p) − p pᵀ``.

    Limiting cases: 0 for a constant vector (logits are defined up to a constant) and for a deterministic p.
    It is the Hessian of ``KL(p‖q)`` in either argument at ``p = q``.

    Args:
        logits: ``[..., K]``.
        tangents: ``[..., K]``; not read where the action is impossible.

    Returns:
        ``[..., K]``, in the logits' dtype.

    Raises:
        ValueError: for two shapes.

    >>> categorical_fisher(jnp.zeros(2), jnp.array([4.0, 0.0])).tolist()
    [1.0, -1.0]
    """
    checks.same_shape("categorical_fisher", logits=logits, tangents=tangents)
    softmax = _softmax("categorical_fisher", logits)
    tangents = jnp.where(softmax.possible, _wide(tangents), 0.0)
    mean = (softmax.probs * tangents).sum(-1, keepdims=True)
    return (softmax.probs * (tangents - mean)).astype(jnp.asarray(logits).dtype)


def _gumbel_noise(key: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.random.gumbel(key, logits.shape, jnp.promote_types(logits.dtype, jnp.float32))


def _gumbel_argmax(noise: jax.Array, logits: jax.Array) -> jax.Array:
    return jnp.argmax(_wide(logits) + noise, -1).astype(jnp.int32)


categorical: Distribution = Distribution(
    log_prob=categorical_log_prob,
    entropy=categorical_entropy,
    kl=categorical_kl,
    fisher=categorical_fisher,
    noise=_gumbel_noise,
    transform=_gumbel_argmax,
    mode=lambda logits: jnp.argmax(logits, -1),
)


def _pair(where: str, parameters: Pair, **others: Any) -> Pair:
    mean, log_std = parameters
    checks.same_shape(where, mean=mean, log_std=log_std, **others)
    return _wide(mean), _wide(log_std)


@check_arguments
def normal_log_prob(parameters: Pair, actions: jax.Array) -> jax.Array:
    """``log p(a) = −½ ((a − μ)/σ)² − log σ − ½ log 2π``, elementwise.

    Limiting case: ``−log σ − ½ log 2π`` at the mean.

    Args:
        parameters: ``(mean, log_std)``, any shape, in the actions' units and their logarithm.
        actions: same shape.

    Returns:
        Same shape, nats.

    Raises:
        ValueError: for arrays of different shapes.

    >>> zero = jnp.array(0.0)
    >>> float(normal_log_prob((zero, zero), 1 + zero) - normal_log_prob((zero, zero), zero))
    -0.5
    """
    mean, log_std = _pair("normal_log_prob", parameters, actions=actions)
    return -0.5 * jnp.square((_wide(actions) - mean) * exp_then_line(-log_std)) - log_std - 0.5 * math.log(2 * math.pi)


@check_arguments
def normal_entropy(parameters: Pair) -> jax.Array:
    """``H = log σ + ½ log 2πe``, elementwise; negative for a narrow density.

    Limiting case: does not depend on the mean.

    Args:
        parameters: ``(mean, log_std)``, any shape.

    Returns:
        Same shape, nats.

    Raises:
        ValueError: for arrays of different shapes.

    >>> one = jnp.array(1.0)
    >>> float(normal_entropy((one, one + 1)) - normal_entropy((one, one)))
    1.0
    """
    return _pair("normal_entropy", parameters)[1] + 0.5 * math.log(2 * math.pi * math.e)


@check_arguments
def normal_kl(parameters: Pair, ref_parameters: Pair) -> jax.Array:
    """``KL(p‖q) = log(σ_q/σ_p) + (σ_p² + (μ_p − μ_q)²) / 2σ_q² − ½``, elementwise.

    Written as ``½ k3(2 log σ_q, 2 log σ_p) + ½ ((μ_p − μ_q)/σ_q)²``, whose two parts are each ≥ 0, so a small
    divergence keeps its digits. Limiting cases: exactly 0 for equal parameters; half the squared distance in units of σ
    for equal σ.

    Args:
        parameters: ``(mean, log_std)`` of p, any shape.
        ref_parameters: ``(mean, log_std)`` of q, same shape.

    Returns:
        Same shape, nats, ≥ 0.

    Raises:
        ValueError: for arrays of different shapes.

    >>> one = jnp.array(1.0)
    >>> float(normal_kl((3 * one, 0 * one), (one, 0 * one)))
    2.0
    """
    mean, log_std = _pair("normal_kl", parameters, ref_mean=ref_parameters[0])
    ref_mean, ref_log_std = _pair("normal_kl", ref_parameters)
    return 0.5 * (kl.k3(2 * ref_log_std, 2 * log_std) + jnp.square((mean - ref_mean) * exp_then_line(-ref_log_std)))


@check_arguments
def normal_fisher(parameters: Pair, tangents: Pair) -> Pair:
    """Fisher information of ``(μ, log σ)`` times a vector, ``F (v_μ, v_s) = (v_μ / σ², 2 v_s)``, elementwise.

    Limiting case: does not depend on the mean; the two parameters never mix.

    Args:
        parameters: ``(mean, log_std)``, any shape.
        tangents: a pair of the same shapes.

    Returns:
        A pair of the same shapes, in the parameters' dtypes.

    Raises:
        ValueError: for arrays of different shapes.

    >>> one = jnp.array(1.0)
    >>> [float(x) for x in normal_fisher((one, 0 * one), (3 * one, 3 * one))]
    [3.0, 6.0]
    """
    _, log_std = _pair("normal_fisher", parameters, mean_tangents=tangents[0], log_std_tangents=tangents[1])
    # Twice by 1/σ: 1/σ² alone may overflow, and 0 times infinity is NaN.
    products = _wide(tangents[0]) * exp_then_line(-log_std) * exp_then_line(-log_std), 2 * _wide(tangents[1])
    of_mean, of_log_std = (x.astype(jnp.asarray(old).dtype) for x, old in zip(products, parameters, strict=True))
    return of_mean, of_log_std


def _normal_noise(key: jax.Array, parameters: Pair) -> jax.Array:
    mean, _ = parameters
    return jax.random.normal(key, mean.shape, jnp.promote_types(mean.dtype, jnp.float32))


def _scaled_and_shifted(noise: jax.Array, parameters: Pair) -> jax.Array:
    mean, log_std = _pair("normal_sample", parameters)
    return mean + exp_then_line(log_std) * noise


normal: Distribution = Distribution(
    log_prob=normal_log_prob,
    entropy=normal_entropy,
    kl=normal_kl,
    fisher=normal_fisher,
    noise=_normal_noise,
    transform=_scaled_and_shifted,
    mode=lambda parameters: jnp.asarray(parameters[0]),
)


@check_arguments
def independent(distribution: Distribution) -> Distribution:
    """The last axis of independent distributions as one: log-probabilities, entropies and divergences are summed.

    ``independent(normal)`` is a Gaussian with a diagonal covariance; ``independent(categorical)`` with logits
    ``[..., D, K]`` chooses D actions at once. The Fisher information is block-diagonal, so its product stays as it is.
    Limiting case: an axis of length one is the distribution itself.

    Args:
        distribution: over parameters ``[..., D]`` (categorical: ``[..., D, K]``).

    Returns:
        A distribution with actions ``[..., D]`` and log-probabilities ``[...]``.

    >>> twice = independent(categorical)
    >>> float(twice.entropy(jnp.zeros((2, 4)))) == 2 * float(categorical.entropy(jnp.zeros(4)))
    True
    """

    def total(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda *parameters: function(*parameters).sum(-1)

    return distribution._replace(
        log_prob=total(distribution.log_prob), entropy=total(distribution.entropy), kl=total(distribution.kl)
    )


gaussian: Distribution = independent(normal)
