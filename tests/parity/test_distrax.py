"""Distributions against distrax, and the functions of values and policies that rlax has beside its returns."""

from __future__ import annotations

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from rlax._src.transforms import transform_to_2hot_nonlinear

from rlax_llm.core.distributions import categorical, gaussian, normal
from rlax_llm.credit.values import huber_value_loss, symexp, symlog, two_hot
from rlax_llm.policy.trust_regions import clip

pytestmark = pytest.mark.usefixtures("float64")

ROWS, SIZE = 7, 5


def drawn(seed: int) -> dict[str, jax.Array]:
    random = np.random.default_rng(seed)
    names = ("logits", "ref_logits", "mean", "log_std", "ref_mean", "ref_log_std", "actions")
    return {name: jnp.asarray(random.normal(size=(ROWS, SIZE))) for name in names}


CHOSEN = np.random.default_rng(9).integers(0, SIZE, ROWS)


def theirs(d: dict[str, jax.Array], prefix: str = "") -> tuple:
    scale = jnp.exp(d[f"{prefix}log_std"])
    return (
        distrax.Categorical(d[f"{prefix}logits"]),
        distrax.Normal(d[f"{prefix}mean"], scale),
        distrax.MultivariateNormalDiag(d[f"{prefix}mean"], scale),
    )


def ours(d: dict[str, jax.Array], prefix: str = "") -> tuple:
    pair = d[f"{prefix}mean"], d[f"{prefix}log_std"]
    return d[f"{prefix}logits"], pair, pair


KINDS = {"categorical": (0, categorical), "normal": (1, normal), "gaussian": (2, gaussian)}
PAIRS = {}
for name, (place, distribution) in KINDS.items():
    PAIRS |= {
        f"{name} log-probability": (
            lambda d, p=place, x=distribution: x.log_prob(ours(d)[p], d["actions"] if p else CHOSEN),
            lambda d, p=place: theirs(d)[p].log_prob(d["actions"] if p else CHOSEN),
        ),
        f"{name} entropy": (
            lambda d, p=place, x=distribution: x.entropy(ours(d)[p]),
            lambda d, p=place: theirs(d)[p].entropy(),
        ),
        f"{name} KL": (
            lambda d, p=place, x=distribution: x.kl(ours(d)[p], ours(d, "ref_")[p]),
            lambda d, p=place: theirs(d)[p].kl_divergence(theirs(d, "ref_")[p]),
        ),
        f"{name} mode": (
            lambda d, p=place, x=distribution: x.mode(ours(d)[p]) * 1.0,
            lambda d, p=place: theirs(d)[p].mode() * 1.0,
        ),
    }
BINS = np.linspace(-3, 3, 13)
PAIRS |= {
    "KL of logits in rlax": (
        lambda d: categorical.kl(d["logits"], d["ref_logits"]),
        lambda d: jax.vmap(rlax.categorical_kl_divergence)(d["logits"], d["ref_logits"]),
    ),
    "PPO's clip": (
        lambda d: clip(0.2)(d["logits"], d["actions"]).mean(),
        lambda d: rlax.clipped_surrogate_pg_loss(
            jnp.exp(d["logits"]).ravel(), d["actions"].ravel(), 0.2, use_stop_gradient=False
        ),
    ),
    "Huber": (
        lambda d: huber_value_loss(0.7)(d["mean"], d["actions"]),
        lambda d: rlax.huber_loss(d["mean"] - d["actions"], 0.7),
    ),
    "two-hot": (
        lambda d: two_hot(d["mean"].ravel(), jnp.asarray(BINS)),
        # Its form for even bins has 1e-5 in a denominator.
        lambda d: transform_to_2hot_nonlinear(d["mean"].ravel(), jnp.asarray(BINS)),
    ),
    "symlog": (lambda d: symlog(d["mean"]), lambda d: rlax.signed_logp1(d["mean"])),
    "symexp": (lambda d: symexp(d["mean"]), lambda d: rlax.signed_expm1(d["mean"])),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_values_and_gradients(pair):
    shape = jax.eval_shape(pair[0], drawn(0)).shape
    weights = np.random.default_rng(100).normal(size=shape)
    both = [jax.jit(jax.value_and_grad(lambda d, f=f: ((f(d) * weights).sum(), f(d)), has_aux=True)) for f in pair]
    for seed in range(3):
        (_, value), gradient = both[0](drawn(seed))
        (_, expected), expected_gradient = both[1](drawn(seed))
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)
        for key in gradient:
            np.testing.assert_allclose(gradient[key], expected_gradient[key], rtol=1e-8, atol=1e-9, err_msg=key)


def test_draws_are_of_the_same_distribution():
    """Mean and variance of many draws against distrax's own moments."""
    d = drawn(3)
    count = 40_000
    many = jnp.broadcast_to(d["mean"][0], (count, SIZE)), jnp.broadcast_to(d["log_std"][0], (count, SIZE))
    actions = gaussian.sample(jax.random.key(0), many)
    peer = theirs(d)[2]
    np.testing.assert_allclose(actions.mean(0), peer.mean()[0], atol=5 * float(peer.stddev()[0].max()) / count**0.5)
    np.testing.assert_allclose(actions.var(0), peer.variance()[0], rtol=5 * (2 / count) ** 0.5)
