"""Diagnoses of the steps themselves: how far they go, what holds them, and what became of the policy."""

from __future__ import annotations

import math

from rlax_llm.commands.doctor.finding import (
    EVERY,
    GROUPS,
    LANGUAGE,
    Diagnosis,
    Finding,
    halves,
    percent,
    rises,
)
from rlax_llm.commands.doctor.scores import DEAD, dead_shares
from rlax_llm.host.evidence import Evidence, known, mean, quarter

LOST = 0.5
"""Share of the updates that rounding undid: most of what the optimizer wants does not happen."""
LOSSES = (
    *("loss", "policy_loss", "value_loss", "loss/policy_avg", "loss/value_avg"),
    *("grad_norm", "value_grad_norm", "cg_residual", "kl", "kl_per_token", "entropy", "objective/entropy"),
)
"""What every step has that learned something: once one of them is not finite, all that comes after is not."""
STILL = 1e-5
"""KL to the reference, nats per token: ratios of 1 ± 0.4 %, far within what a single useful step does."""
CLIPPED = 0.5
"""Share of tokens outside the clip, which have no gradient."""
PULL = 0.5
"""Force of the KL term over that of an advantage of 1: it takes back half of what a good completion pushes."""
COLLAPSED = 0.1
"""Entropy that is left of the first; with it a group of 8 is mostly one text."""
SOLVED = 0.8
"""Accuracy from which on a low entropy is what was wanted."""
ALIKE = 0.5
FAR = 1.0
"""KL to the reference, nats per token: a token is e times as likely as the reference finds it, at every token."""
ZERO = 1e-5
EFFECTIVE = 0.5
"""Share of the sampled tokens that the correction leaves in effect."""
APART = 0.2
"""Accuracy on what is trained on above that on held-out prompts."""


def find_stopped(evidence: Evidence) -> Finding | None:
    """An error has ended the run."""
    stopped = evidence.summary.get("stopped")
    return None if not stopped else Finding(f"The run ended by an error: {stopped}")


def find_not_finite(evidence: Evidence) -> Finding | None:
    """From some step on a loss or a gradient is no number any more, and no sentence of the run's end says so."""
    if find_stopped(evidence) or not _something_to_learn(evidence):
        return None
    # Alone it says little: a step with no token to learn from has no loss either, and the next has one again.
    since = {name: _not_finite_since(evidence, name) for name in LOSSES}
    broken = {name: place for name, place in since.items() if len(evidence.rows) - place >= _fewest(evidence)}
    if not broken:
        return None
    first = evidence.rows[min(broken.values())]["step"]
    return Finding(
        f"From step {first} to the last, {evidence.rows[-1]['step']}, these are not finite: {', '.join(broken)}."
    )


def _not_finite_since(evidence: Evidence, name: str) -> int:
    """Place of the row from which on a metric has no finite value to the end; the number of rows where it has one."""
    rows = evidence.rows
    place = len(rows)
    while place and name in rows[place - 1] and not known([rows[place - 1][name]]):
        place -= 1
    return place


def _fewest(evidence: Evidence) -> int:
    return max(len(quarter(evidence.rows, first=False)), 2)


def find_lost(evidence: Evidence) -> Finding | None:
    """Updates are smaller than what the parameters' number format can hold."""
    lost = evidence.values("lost_updates")
    if not lost or mean(lost) < LOST:
        return None
    rate = evidence.settings.get("learning_rate")
    return Finding(
        f"{percent(mean(lost))} of the updates changed nothing, as each is below half a unit in the last place of its "
        f"parameter (learning_rate {rate})."
    )


def _kl_coef(evidence: Evidence) -> float:
    """Weight of a KL term in the loss, the recipe's own where none was given; 0 where there is none."""
    settings = evidence.settings
    given = settings.get("kl_coef")
    if settings.get("kl_in") == "reward":
        return 0.0
    if given is not None:
        return float(given)
    from rlax_llm.recipes.building import parameters  # here: recipes need JAX
    from rlax_llm.recipes.registry import recipes

    named = recipes("group").get(str(settings.get("recipe")))
    weight = None if named is None else parameters(named).get("kl_coef")
    return 0.0 if weight is None else float(weight.default)


def find_foreign(evidence: Evidence) -> Finding | None:
    """The sampler draws from another policy than the one that learns, beyond what a correction makes up for."""
    effective = evidence.late("sampler/ess")
    if not effective < EFFECTIVE:
        return None
    return Finding(
        f"The sampler draws from another policy than the learner's: at the end {percent(effective)} of its tokens are "
        f"in effect, the KL between them is {evidence.late('sampler/kl_k3'):.2g} nats per token."
    )


def find_held(evidence: Evidence) -> Finding | None:
    """The KL to the reference takes back what rewards give."""
    if evidence.command == "ppo":
        return _find_charged(evidence)
    kl = evidence.late("kl")
    if not kl > 0 or rises(evidence.values("reward")):
        return None
    coef = _kl_coef(evidence)
    # ∇k3 is (1 − π_ref/π) ∇log π, and log π − log π_ref has the size √(2 KL); an advantage of 1 has ∇log π.
    pull = coef * math.sqrt(2 * kl)
    if pull < PULL:
        return None
    return Finding(
        f"The reward does not rise, at a KL of {kl:.2g} nats per token: with kl_coef {coef:g} it pulls {pull:.2g} "
        "times as hard as an advantage of 1 pushes."
    )


def _find_charged(evidence: Evidence) -> Finding | None:
    """PPO's: what the KL costs is more than what completions differ by."""
    charged, spread = abs(evidence.late("objective/non_score_reward")), evidence.late("reward_std")
    if not charged > spread or not spread > 0 or rises(evidence.values("objective/scores")):
        return None
    return Finding(
        f"The score does not rise: the KL costs {charged:.3g} of a completion's reward, more than scores differ by "
        f"({spread:.3g}), at kl_coef {evidence.settings.get('kl_coef')}."
    )


def find_still(evidence: Evidence) -> Finding | None:
    """The policy is where it was."""
    name = "kl_per_token" if evidence.command == "ppo" else "kl"
    kl = evidence.values(name)
    trpo = evidence.settings.get("recipe") == "trpo"
    if len(kl) < 2 or trpo or kl[-1] >= STILL or evidence.settings.get("reference_every"):
        return None
    if find_held(evidence) or not _something_to_learn(evidence):
        return None
    return Finding(
        f"After {len(evidence.rows)} steps at learning_rate {evidence.settings.get('learning_rate')} the KL to the "
        f"policy of the beginning is {kl[-1]:.1g} nats per token."
    )


def _something_to_learn(evidence: Evidence) -> bool:
    dead = dead_shares(evidence)
    return not dead or mean(dead) < DEAD


def find_clipped(evidence: Evidence) -> Finding | None:
    """Most tokens are outside the clip."""
    names = ("clip_ratio/region_mean", "policy/clipfrac_avg", "clip_fraction")
    values = next((found for found in map(evidence.values, names) if found), [])
    clipped = halves(values)[1]
    if not clipped or mean(clipped) < CLIPPED:
        return None
    settings = evidence.settings
    return Finding(
        f"{percent(mean(clipped))} of the tokens or steps of an update lie outside the clip and move nothing (epochs "
        f"{settings.get('epochs')}, minibatches {settings.get('minibatches')}, learning_rate "
        f"{settings.get('learning_rate')})."
    )


def find_collapse(evidence: Evidence) -> Finding | None:
    """The policy has become certain before it was right."""
    name = "objective/entropy" if evidence.command == "ppo" else "entropy"
    first, last = evidence.early(name), evidence.late(name)
    if not (first > 0 and last < COLLAPSED * first) or evidence.late("accuracy") >= SOLVED:
        return None
    dead = evidence.late("frac_reward_zero_std")
    if dead < ALIKE:
        return None
    groups = "" if math.isnan(dead) else f", and {percent(dead)} of the groups have no difference any more"
    solved = "" if math.isnan(evidence.late("accuracy")) else f" at an accuracy of {evidence.late('accuracy'):.3f}"
    return Finding(f"Entropy fell from {first:.3g} to {last:.3g} nats per token{solved}{groups}.")


def find_far(evidence: Evidence) -> Finding | None:
    """The policy is far from its reference."""
    name = "kl_per_token" if evidence.command == "ppo" else "kl"
    if evidence.settings.get("recipe") == "trpo" or not evidence.late(name) >= FAR:
        return None
    held = evidence.measured("held_out_reward")
    on_held_out = f"; held-out reward {held[0]:.3f} → {held[-1]:.3f}" if len(held) > 1 else ""
    return Finding(f"The KL to the reference is {evidence.late(name):.3g} nats per token{on_held_out}.")


def find_zero_loss(evidence: Evidence) -> Finding | None:
    """The loss is 0, as it should be."""
    losses, settings = evidence.values("policy_loss"), evidence.settings
    once = settings.get("epochs", 1) == settings.get("minibatches", 1) == 1
    if not losses or not once or max(map(abs, losses)) > ZERO or not _something_to_learn(evidence):
        return None
    norm = mean(evidence.values("grad_norm"))
    if not norm > 0:
        return None
    return Finding(
        f"The policy_loss is within {max(map(abs, losses)):.1g} of 0 at every step, and that is no fault: with one "
        "update per batch the ratio is 1, and the advantages of a group sum to 0. The gradient is not 0 (a norm of "
        f"{norm:.2g} on average)."
    )


def find_by_heart(evidence: Evidence) -> Finding | None:
    """What is trained on is known, and nothing else."""
    held = evidence.measured("held_out_accuracy")
    trained = evidence.values("accuracy") or evidence.values("rewards/accuracies")
    if len(held) < 2 or not trained:
        return None
    last = mean(quarter(trained, first=False))
    if last - held[-1] < APART or held[-1] > held[0]:
        return None
    return Finding(
        f"Accuracy is {last:.3f} on what is trained on, and on held-out data {held[0]:.3f} → {held[-1]:.3f}."
    )


AT_ONCE = (find_stopped, find_not_finite)
"""What needs no more steps than there are."""

DIAGNOSES = (
    Diagnosis(
        "ended by an error",
        EVERY,
        "`summary.json` has `stopped`",
        "Do what its sentence says. Where numbers are no longer finite: a lower --learning-rate, a lower "
        "--max-grad-norm, --warmup-steps.",
        find_stopped,
    ),
    Diagnosis(
        "numbers that are not finite",
        EVERY,
        "from some step on to the last, a quarter of the run or more, a loss, a gradient's norm, the KL or the entropy "
        "is null or NaN",
        "All parameters are likely lost: go back to a checkpoint before that step, with a lower --learning-rate or a "
        "lower --max-grad-norm; look for inputs or rewards of that step that are not finite.",
        find_not_finite,
    ),
    Diagnosis(
        "a learning rate too small for the precision",
        LANGUAGE,
        f"at least {percent(LOST)} of the updates are rounded away (`lost_updates`): θ + Δ = θ though Δ ≠ 0",
        "Give a --learning-rate some hundred times larger; what is trained is float32, where a weight of 0.05 "
        "changes by steps of 4e-9.",
        find_lost,
    ),
    Diagnosis(
        "a policy that stands still",
        GROUPS,
        f"groups differ, and yet the KL to the policy of the beginning is below {STILL} nats per token in the end",
        "Give a larger --learning-rate (ten times, and again), more --steps, or a larger --max-grad-norm.",
        find_still,
    ),
    Diagnosis(
        "a KL term that holds the policy",
        GROUPS,
        f"the reward does not rise, and `kl_coef · √(2 kl)`, the pull of the KL term, is at least {PULL} (an advantage "
        "pushes by about 1); in `ppo`, the KL costs more than scores differ by",
        "Give a smaller --kl-coef: 0 needs no reference model, 0.001 to 0.05 are usual.",
        find_held,
    ),
    Diagnosis(
        "a sampler that is another policy",
        GROUPS,
        f"in the last quarter less than {percent(EFFECTIVE)} of the sampled tokens are in effect (`sampler/ess`, from "
        "the ratios of learner to sampler)",
        "Where a server draws: hand its weights over more often (--sampler-every 1), in the learner's dtype. Else a "
        "wider --sampler-dtype or --cache-dtype, fewer --partial-rollouts, --ahead 0, a smaller --replay or "
        "--learning-rate; --correction mask or sequence leaves out what differs most.",
        find_foreign,
    ),
    Diagnosis(
        "a clip that stops everything",
        (*GROUPS, "control"),
        f"in the second half at least {percent(CLIPPED)} of the tokens are outside the clip (`clip_ratio/region_mean`)",
        "Give a smaller --learning-rate, fewer --epochs or --minibatches, or a larger --eps; after the first updates "
        "of a batch nothing is left to learn from it.",
        find_clipped,
    ),
    Diagnosis(
        "entropy collapse",
        GROUPS,
        f"`entropy` is below {percent(COLLAPSED)} of what it was, `accuracy` is below {SOLVED}, and in most groups all "
        "completions have the same score",
        "The policy has become certain of one answer: it explores no more. Go back to an earlier checkpoint with a "
        "smaller --learning-rate, a wider upper clip (recipe dapo, --eps-high 0.28), an --entropy-coef or "
        "--entropy-target, or a KL term (--kl-coef).",
        find_collapse,
    ),
    Diagnosis(
        "a reference gone far",
        GROUPS,
        f"in the last quarter the KL to the reference is at least {FAR:g} nat per token",
        "Read some completions: a reward is often met there in a way that nobody wanted. Give a larger --kl-coef, a "
        "smaller --learning-rate or fewer --steps, or stop at the best step (--best held_out_reward).",
        find_far,
    ),
    Diagnosis(
        "learned by heart",
        LANGUAGE,
        f"accuracy on what is trained on is {APART} above that on held-out data, which has not risen",
        "Give more data, fewer --steps, a smaller --learning-rate or adapters (--lora-rank); --best "
        "held_out_accuracy keeps the best step.",
        find_by_heart,
    ),
    Diagnosis(
        "a loss of 0",
        ("grpo",),
        f"`policy_loss` is within {ZERO} of 0 at every step, with one update per batch",
        "Nothing. Look at `reward`, `frac_reward_zero_std` and held-out accuracy instead; the loss is of use only with "
        "several --epochs or --minibatches.",
        find_zero_loss,
        fault=False,
    ),
)
