"""What the numbers say, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from experiments.common import said, short, table
from experiments.kl_estimators.estimators import (
    ESTIMATES,
    FORWARD,
    IN_SCORE,
    K1,
    K2,
    K2_TOKENS,
    K3,
    K3_TOKENS,
    REVERSE,
)
from experiments.kl_estimators.placements import K1_LOSS, NO_KL


def judged(numbers: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The verdict and the exceptions to what is claimed."""
    values, training, nats = numbers["values"], numbers["training"], numbers["settings"]["distances"]
    unbiased = all(abs(x["mean"]) < 1e-3 for name in (K1, K3_TOKENS, K3) for x in values[name]["bias"])
    biased = all(x["low"] * x["high"] > 0 for name in (K2_TOKENS, K2) for x in values[name]["bias"][-1:])
    agree = numbers["largest pooled standard errors off"] < bound(numbers)
    equal = all(x < 1e-3 for x in numbers["largest relative difference"].values())
    free = training[NO_KL]["kl"]
    idle = abs(training[K1_LOSS]["kl less that without"]["mean"]) < 0.05 * free["mean"]
    others = [x for name, x in training.items() if name not in (NO_KL, K1_LOSS)]
    holds = all(x["kl"]["high"] < free["low"] for x in others)
    exceptions = []
    for name in (K2_TOKENS, K2, K3_TOKENS, K3):
        pairs = zip(nats, values[name]["deviation"], values[K1]["deviation"])
        where = [f"{distance:g}" for distance, one, k1 in pairs if one["high"] >= k1["low"]]
        if where:
            exceptions.append(f"{name} does not have a lower standard deviation than k1 at {' and '.join(where)} nats")
    for name, target in ((K2_TOKENS, FORWARD), (K3_TOKENS, REVERSE)):
        far = numbers["gradients"][name][f"distance from ∇{target}"][-1]
        if far["low"] > 1e-2:
            share = f"{said(far, 3)} of the latter's length at {nats[-1]:g} nats"
            exceptions.append(f"the expected gradient of {name} is not ∇{target}: the two are apart by {share}")
    positive = all(numbers["least value"][name] >= 0 for name in (K3_TOKENS, K3))
    whole = unbiased and positive and biased and agree and equal and idle and holds
    return ("held in part" if exceptions else "held") if whole else "did not hold", exceptions


def bound(numbers: Mapping[str, Any]) -> float:
    """Standard errors that the largest of all sampled means exceeds once in twenty times."""
    tests = len(ESTIMATES) * len(numbers["settings"]["distances"])
    return short(NormalDist().inv_cdf(1 - 0.025 / tests))


def tables(numbers: Mapping[str, Any]) -> tuple[str, str, str]:
    """Of values, of gradients, of training."""
    nats, values, gradients = numbers["settings"]["distances"], numbers["values"], numbers["gradients"]
    shown = range(0, len(nats), 2)
    head = [f"{what}, {nats[i]:g} nats" for what in ("bias", "std") for i in shown]
    last = f"std from samples, {nats[-1]:g} nats"
    rows = [
        [name, *(said(values[name][what][i], 3) for what in ("bias", "deviation") for i in shown)]
        + [said(values[name]["sampled deviation"][-1], 3)]
        for name in ESTIMATES
    ]
    middle = len(nats) // 2
    measured = [x for target in (FORWARD, REVERSE) for x in (f"cosine to ∇{target}", f"norm over ∇{target}")]
    directions = [
        [name, *(said(gradients[name][what][-1], 3) for what in measured)]
        + [said(gradients[name]["noise"][place]) for place in (middle, -1)]
        for name in (*ESTIMATES, IN_SCORE)
    ]
    noise = [f"noise of a batch, {nats[place]:g} nats" for place in (middle, -1)]
    training = [
        [name, said(x["reward"], 3), said(x["kl"]), said(x["share of the best at this KL"], 3), said(x["lost"], 4)]
        for name, x in numbers["training"].items()
    ]
    return (
        table(["estimate", *head, last], rows),
        table([f"expected gradient, {nats[-1]:g} nats", *measured, *noise], directions),
        table(["KL", "true reward", "KL(π‖ref), nats", "share of the best at this KL", "lost"], training),
    )


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    of_values, of_gradients, of_training = tables(numbers)
    return "\n\n".join(
        [
            "# KL estimators: values, gradients, training",
            "![Values and gradients over the KL, and reward over KL after training](figure.png)",
            opening(numbers),
            on_values(numbers),
            of_values,
            "Shares of KL(π‖ref); the deviation is that of one completion, given its prompt.",
            on_gradients(numbers),
            of_gradients,
            on_batches(numbers),
            on_training(numbers),
            of_training,
            on_settings(numbers["settings"]),
        ]
    )


def opening(numbers: Mapping[str, Any]) -> str:
    """The verdict."""
    values, nats, least = numbers["values"], numbers["settings"]["distances"], numbers["least value"]
    verdict, exceptions = judged(numbers)
    bias = max(abs(x["mean"]) for name in (K1, K3_TOKENS, K3) for x in values[name]["bias"])
    never = "k3 is never negative" if min(least[K3], least[K3_TOKENS]) >= 0 else "k3 is negative somewhere"
    return f"""**The claim {verdict}.** As values, k1 and k3 are unbiased (largest bias {bias:.0e} of the KL, all
completions enumerated) and k2 is not: at {nats[-1]:g} nats it is off by {said(values[K2]["bias"][-1])} of the KL for
the completion and by {said(values[K2_TOKENS]["bias"][-1])} for its tokens. At {nats[0]:g} nats k1's standard deviation
is {said(values[K1]["deviation"][0], 1)} times the KL, that of k3 {said(values[K3]["deviation"][0], 1)} for the
completion and {said(values[K3_TOKENS]["deviation"][0], 1)} for its tokens; {never}, k1 goes down to
−{abs(least[K1]):.1f} nats. As losses on samples of π, k1 averages to 0, k2 of the completion to ∇{FORWARD} and k3 of
the completion to ∇{REVERSE}, to a relative difference of
{max(numbers["largest relative difference"].values()):.0e} at most.
{f"Exceptions: {'; '.join(exceptions)}." if exceptions else ""}"""


def on_values(numbers: Mapping[str, Any]) -> str:
    """Samples beside enumeration."""
    values, s, off = numbers["values"], numbers["settings"], numbers["largest pooled standard errors off"]
    seen = values[K3]["sampled deviation"][-1]["mean"] / values[K3]["deviation"][-1]["mean"]
    return f"""*Values.* Means of samples {"agree" if off < bound(numbers) else "do not agree"} with enumeration
(largest of {len(ESTIMATES) * len(s["distances"])}: {off:.1f} standard errors, bound {bound(numbers):.1f}). Far from the
reference the variance of k3 sits in completions that π hardly ever writes: at {s["distances"][-1]:g} nats
{s["samples"]} samples a prompt show {100 * seen:.0f} % of the true deviation of k3 of the completion. Summed over
tokens, k3 stays unbiased, since each token's is, given what stands before it."""


def on_gradients(numbers: Mapping[str, Any]) -> str:
    """What sums over tokens leave out, and the noise."""
    nats, gradients = numbers["settings"]["distances"], numbers["gradients"]
    middle = len(nats) // 2
    noise = {name: [said(gradients[name]["noise"][place]) for place in (middle, -1)] for name in (K1, IN_SCORE, K2)}
    return f"""*Gradients.* A loss that sums estimates of tokens leaves out that a token also decides what comes after
it. On samples of π, k2 of tokens has the expected gradient of Σ KL(π(·|s_t)‖ref(·|s_t)) and k3 of tokens that of
Σ KL(ref(·|s_t)‖π(·|s_t)), both with the distribution of the prefixes s_t held fixed, and from π. ∇{FORWARD} has the
effect on later tokens beside it, E Σ_t ∇log π_t Σ_{{u>t}} d_u with d the log-ratio of a token; ∇{REVERSE} takes its
prefixes from the reference. All this holds to the difference above. In a batch k1 as a loss is no signal and noise of
{noise[K1][0]} times ‖∇{FORWARD}‖ at {nats[middle]:g} nats, {noise[K1][1]} at {nats[-1]:g}. k1 in the score has that
gradient with noise {noise[IN_SCORE][0]} and {noise[IN_SCORE][1]}; k2 of the completion is the same without a baseline,
{noise[K2][0]} and {noise[K2][1]}."""


def on_batches(numbers: Mapping[str, Any]) -> str:
    """What the gradients were sampled with."""
    batches = numbers["settings"]["batches"]
    return f"""Batches of {batches["prompts"]} prompts with {batches["group_size"]} completions; noise as a multiple of
‖∇{FORWARD}‖; means of {batches["number"]} batches are at most {numbers["gradients, standard errors off"]:.1f} standard
errors (mean over seeds) from the enumerated gradient, where 1 is expected. k1 has no direction."""


def on_training(numbers: Mapping[str, Any]) -> str:
    """What each place of the KL comes to."""
    training, best = numbers["training"], numbers["best"]
    k3 = training[f"{K3_TOKENS} as a loss"]
    spared = -training[K1_LOSS]["kl less that without"]["mean"] / training[NO_KL]["kl"]["mean"]
    return f"""*Training.* REINFORCE on the true reward, β = {numbers["settings"]["training"]["beta"]:g} everywhere; the
best policy at this β has reward {said(best["reward"], 3)} at {said(best["kl"])} nats. k1 as a loss is a constant taken
from every advantage; it spares {100 * spared:.1f} % of the KL that a run without any KL term ends at. Of the best
penalized reward E r − β KL(π‖ref) the policy loses {said(training[IN_SCORE]["lost"], 3)} with k1 in the score,
{said(training[f"{K2_TOKENS} as a loss"]["lost"], 3)} with k2 of tokens and {said(k3["lost"], 3)} with k3 of tokens,
which ends at {said(k3["kl"])} nats and has {said(k3["share of the best at this KL"], 3)} of the best reward there."""


def on_settings(s: Mapping[str, Any]) -> str:
    """How it was run."""
    learning = s["training"]
    return f"""Mean and 95 % interval over {s["seeds"]} seeds (references, samples and runs). Policies of the first two
parts lie on the line from the reference to the policy trained without a KL. Training: {learning["steps"]} steps of
{learning["prompts"]} prompts with {learning["group_size"]} completions, leave-one-out baseline, one update a batch,
sums over a completion's tokens, Adam at {learning["learning_rate"]:g} falling to 0.
`python -m experiments.kl_estimators`."""
