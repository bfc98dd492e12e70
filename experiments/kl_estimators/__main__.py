"""KL estimators k1, k2 and k3: bias and variance of their values, their gradients, and what each does to training.

In a language where every completion can be written down, all expectations are sums; samples are set beside them. A
policy is then trained on a reward with the KL in the score, in the loss, or nowhere, and measured exactly.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import COLORS, arguments, band, interval, label, new_figure, plain, short, write
from experiments.kl_estimators.estimators import (
    ESTIMATES,
    FORWARD,
    FORWARD_FIXED,
    GRADIENTS,
    IN_SCORE,
    K1,
    K2,
    K2_TOKENS,
    K3,
    K3_TOKENS,
    LATER,
    REVERSE,
    REVERSE_FIXED,
    Batches,
    chain_kl,
    exact_values,
    expected_gradients,
    sampled_gradients,
    sampled_values,
    toward,
)
from experiments.kl_estimators.placements import NO_KL, PLACES, Training, trained
from experiments.kl_estimators.report import report
from experiments.letters import Exact, Language, optimum, reference

IDENTITIES = {
    f"{K2}: ∇{FORWARD}": (K2, FORWARD),
    f"{K3}: ∇{REVERSE}": (K3, REVERSE),
    f"{K2_TOKENS}: ∇{FORWARD_FIXED}": (K2_TOKENS, FORWARD_FIXED),
    f"{K3_TOKENS}: ∇{REVERSE_FIXED}": (K3_TOKENS, REVERSE_FIXED),
}
STYLE = {
    name: {"color": COLORS[place], "linestyle": line}
    for name, place, line in zip(ESTIMATES, (0, 1, 1, 2, 2), ("-", "-", "--", "-", "--"))
}


class Settings(NamedTuple):
    """Of the measurements and the training.

    Attributes:
        seeds: independent references and runs.
        distances: KL(π‖ref) at which estimators are measured, nats; on the line to the policy trained without a KL.
        samples: completions of each prompt that the values are sampled with.
        batches: that the gradients are sampled with.
        training: of every placement.
        language: prompts, completions, reference.
    """

    seeds: int = 16
    distances: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 2.0)
    samples: int = 500
    batches: Batches = Batches()
    training: Training = Training()
    language: Language = Language()


def at_distances(settings: Settings, key: jax.Array, base: Any, far: Any) -> dict[str, Any]:
    """Values and gradients of one seed, ``[D, …]`` over distances."""
    language = settings.language
    policies = toward(language, base, far, jnp.asarray(settings.distances))

    def one(given: tuple[jax.Array, Any]) -> dict[str, Any]:
        value_key, gradient_key = jax.random.split(given[0])
        params, sampled = given[1], sampled_values(language, given[1], base, value_key, settings.samples)
        gradients = expected_gradients(language, params, base)
        noise = sampled_gradients(language, (params, base), gradients, gradient_key, settings.batches)
        vectors = jnp.stack([gradients[name] for name in GRADIENTS])
        left = gradients[FORWARD] - gradients[K2_TOKENS] - gradients[LATER]
        return {
            "kl": chain_kl(language, params, base),
            "exact": exact_values(language, params, base),
            "sampled": sampled,
            "products": vectors @ vectors.T,
            "off": jnp.linalg.norm(vectors[:, None] - vectors, axis=-1),
            "later": jnp.linalg.norm(left) / jnp.linalg.norm(gradients[FORWARD]),
            "noise": noise,
        }

    return jax.lax.map(one, (jax.random.split(key, len(settings.distances)), policies))


def runs(settings: Settings) -> tuple[dict[str, Exact], Exact, dict[str, Any]]:
    """Each placement's reward and KL ``[S]``, the optimum's ``[S, β]``, and what was found at the distances."""
    language, training = settings.language, settings.training
    keys = jax.random.split(jax.random.key(0), (3, settings.seeds))
    bases = jax.jit(jax.vmap(partial(reference, language)))(keys[0])
    weights = jnp.eye(len(PLACES))[:, 1:]

    @jax.jit
    def train(bases: Any) -> tuple[Any, Exact]:
        def one(weights: jax.Array) -> tuple[Any, Exact]:
            return jax.vmap(trained(language, training, weights))(keys[1], bases)

        return jax.lax.map(one, weights)

    params, ends = train(bases)
    far = jax.tree.map(lambda x: x[PLACES.index(NO_KL)], params)
    ends = {name: jax.tree.map(lambda x, place=place: x[place], ends) for place, name in enumerate(PLACES)}
    betas = jnp.concatenate([jnp.array([training.beta]), jnp.geomspace(0.03, 3.0, 40), jnp.array([1e6])])
    best = jax.jit(lambda bases: jax.lax.map(lambda base: optimum(language, base, betas), bases))(bases)
    one = partial(at_distances, settings)
    found = jax.jit(lambda *given: jax.lax.map(lambda x: one(*x), given))(keys[2], bases, far)
    return jax.tree.map(np.asarray, (ends, best, found))


def value_samples(settings: Settings, found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """``[S, D, E]``: bias and standard deviation as shares of the KL, and samples beside enumeration."""
    exact, sampled = found["exact"], found["sampled"]
    kl = found["kl"][..., None]
    completions = settings.samples * len(settings.language.prompts)
    return {
        "bias": (exact.mean - kl) / kl,
        "deviation": np.sqrt(exact.variance) / kl,
        "sampled bias": (sampled.mean - kl) / kl,
        "sampled deviation": np.sqrt(sampled.variance) / kl,
        "standard errors off": (sampled.mean - exact.mean) / np.sqrt(exact.variance / completions),
    }


def gradient_samples(found: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """``[S, D]`` by estimate: cosine and ratio of norms to either divergence's gradient; NaN where there is none."""
    products = found["products"]
    names = list(GRADIENTS)
    norms = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    samples = {}
    for place, name in enumerate((*ESTIMATES, IN_SCORE)):
        row = names.index(FORWARD) if name == IN_SCORE else place
        found_here = {"noise": found["noise"].noise[..., place] / norms[..., names.index(FORWARD)]}
        for target in (FORWARD, REVERSE):
            column = names.index(target)
            ratio = norms[..., row] / norms[..., column]
            cosine = products[..., row, column] / (norms[..., row] * norms[..., column])
            found_here |= {
                f"cosine to ∇{target}": np.where(ratio > 1e-3, cosine, np.nan),
                f"norm over ∇{target}": ratio,
                f"distance from ∇{target}": found["off"][..., row, column] / norms[..., column],
            }
        samples[name] = found_here
    forward, reverse = names.index(FORWARD), names.index(REVERSE)
    samples["targets"] = {"cosine": products[..., forward, reverse] / norms[..., forward] / norms[..., reverse]}
    return samples


def largest_errors(found: Mapping[str, Any]) -> dict[str, float]:
    """Largest relative difference between the two sides of each equation of gradients."""
    names = list(GRADIENTS)
    norms = np.sqrt(np.diagonal(found["products"], axis1=-2, axis2=-1))
    places = {name: (names.index(x), names.index(y)) for name, (x, y) in IDENTITIES.items()}
    sides = {name: (found["off"][..., x, y] / norms[..., y]).max() for name, (x, y) in places.items()}
    nothing = (norms[..., 0] / norms[..., names.index(FORWARD)]).max()
    later = f"{FORWARD} less {K2_TOKENS}: {LATER}"
    return {f"{K1}: 0": short(nothing), later: short(found["later"].max())} | {x: short(y) for x, y in sides.items()}


def training_numbers(settings: Settings, ends: Mapping[str, Exact], best: Exact) -> dict[str, Any]:
    """Reward, KL, share of the best reward at that KL, and what is lost of the best penalized reward."""
    beta, found = settings.training.beta, {}
    for name in PLACES:
        reward, kl = ends[name]
        bought = [np.interp(x, kls[:0:-1], rewards[:0:-1]) for x, kls, rewards in zip(kl, best.kl, best.reward)]
        lost = (best.reward - beta * best.kl)[:, 0] - (reward - beta * kl)
        found[name] = {
            "reward": interval(reward),
            "kl": interval(kl),
            "kl less that without": interval(kl - ends[NO_KL].kl),
            "share of the best at this KL": interval(reward / np.array(bought)),
            "lost": interval(lost),
        }
    return found


def measure(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Samples, and the numbers."""
    ends, best, found = runs(settings)
    values, gradients = value_samples(settings, found), gradient_samples(found)
    pooled = values["standard errors off"].sum(0) / np.sqrt(settings.seeds)

    def by_distance(samples: np.ndarray) -> list[dict[str, Any]]:
        return [interval(x) for x in samples.T]

    numbers = {
        "settings": plain(settings),
        "kl": by_distance(found["kl"]),
        "values": {
            name: {what: by_distance(x[..., place]) for what, x in values.items()}
            for place, name in enumerate(ESTIMATES)
        },
        "least value": {name: short(x) for name, x in zip(ESTIMATES, found["exact"].least.min((0, 1)))},
        "largest pooled standard errors off": short(np.abs(pooled).max()),
        "gradients": {name: {what: by_distance(x) for what, x in one.items()} for name, one in gradients.items()},
        "gradients, standard errors off": short(found["noise"].off.mean(0).max()),
        "largest relative difference": largest_errors(found),
        "training": training_numbers(settings, ends, best),
        "best": {"reward": interval(best.reward[:, 0]), "kl": interval(best.kl[:, 0])},
    }
    return {"values": values, "gradients": gradients, "ends": ends, "best": best, "kl": found["kl"]}, numbers


def draw(samples: Mapping[str, Any]) -> Any:
    """Values over the KL, cosines over the KL, and reward over KL after training."""
    figure, panels = new_figure("KL estimators: values, gradients, training", 3)
    values, gradients = samples["values"], samples["gradients"]
    nats = samples["kl"].mean(0)
    for place, (name, style) in enumerate(STYLE.items()):
        band(panels[0], nats, values["deviation"][..., place], f"{name}", **style)
    for name, marker in ((K2_TOKENS, "o"), (K2, "s")):
        bias = np.abs(values["bias"][..., list(ESTIMATES).index(name)])
        panels[0].plot(nats, bias.mean(0), marker, color=COLORS[1], markersize=4, label=f"|bias| of {name}")
    panels[0].set(yscale="log", ylim=(3e-3, 300))
    label(
        panels[0], "Deviation and bias of a completion's estimate", "KL(π‖ref), nats", "share of the KL", legend=False
    )
    panels[0].legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    for name, target in ((K2, FORWARD), (K2_TOKENS, FORWARD), (K3, REVERSE), (K3_TOKENS, REVERSE)):
        band(panels[1], nats, gradients[name][f"cosine to ∇{target}"], f"{name} to ∇{target}", **STYLE[name])
    band(panels[1], nats, gradients["targets"]["cosine"], f"∇{FORWARD} to ∇{REVERSE}", COLORS[6], linestyle=":")
    label(panels[1], "Cosine of expected gradients, exact; k1's is 0", "KL(π‖ref), nats", "cosine")
    for panel in panels[:2]:
        panel.set_xscale("log")
        panel.set_xticks(nats, [f"{x:.2g}" for x in nats])
        panel.minorticks_off()
    draw_training(panels[2], samples["ends"], samples["best"])
    return figure


def draw_training(panel: Any, ends: Mapping[str, Exact], best: Exact) -> None:
    """Reward over KL, and the best that can be had from where the first run ends."""
    kl, reward = best.kl.mean(0), best.reward.mean(0)
    near = kl > 0.75 * min(x.kl.min() for x in ends.values())
    near[0] = False
    panel.plot(kl[near], reward[near], "k--", linewidth=1, label="best possible")
    panel.plot(kl[0], reward[0], "k*", markersize=11, label="best at this β")
    for name, color, marker in zip(PLACES, (6, 0, 4, 1, 1, 2, 2), "o^xosos"):
        reward, kl = ends[name]
        style = {"color": COLORS[color], "markerfacecolor": "none" if marker == "s" else COLORS[color]}
        panel.plot(kl, reward, marker, markersize=2.5, markeredgewidth=0.6, **style)
        panel.plot(kl.mean(), reward.mean(), marker, markersize=9, markeredgewidth=1.6, label=name, **style)
    label(panel, "After training; small marks are seeds", "KL(π‖ref), nats a completion", "true reward")


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    tiny = Language(letters=3, length=2, hidden=8, imitation_steps=4)
    quick = Settings(2, (0.01, 0.02), 8, Batches(2, 2, 2), Training(0.15, 4, 2, 2, 0.05), tiny)
    settings = quick if options.quick else Settings()
    samples, numbers = measure(settings)
    write(options.out, draw(samples), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
