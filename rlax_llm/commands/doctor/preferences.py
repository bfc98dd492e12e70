"""Diagnoses of learning from preferences, from demonstrations, and of a reward model."""

from __future__ import annotations

import math

from rlax_llm.commands.doctor.finding import PREFERENCES, Diagnosis, Finding, halves, percent
from rlax_llm.host.evidence import Evidence, mean, quarter

STILL = 0.02
"""Change of the mean margin: a pair's probability moves by half a percent."""
FLAT = 0.02
"""Share that a supervised loss must fall by."""
SMALLEST = 0.1
"""Margin below which there is nothing to compare a fall with."""
OVERFITTED = 0.1
"""Share by which held-out loss has risen above its best."""
PAIRS = ("dpo", "reward")


def _margins(evidence: Evidence) -> list[float]:
    return evidence.values("rewards/margins") or evidence.values("margin")


def find_margins(evidence: Evidence) -> Finding | None:
    """Chosen and rejected are as far apart as at the beginning."""
    margins = _margins(evidence)
    if not margins:
        return None
    late = mean(quarter(margins, first=False))
    if abs(late - margins[0]) >= STILL:
        return None
    return Finding(
        f"The mean margin is {margins[0]:.2g} at the first step and {late:.2g} in the last quarter of {len(margins)}, "
        f"at learning_rate {evidence.settings.get('learning_rate')}."
    )


def find_chance(evidence: Evidence) -> Finding | None:
    """Chosen and rejected are told apart as by a coin."""
    values = evidence.values("rewards/accuracies") or evidence.values("accuracy")
    later = halves(values)[1]
    pairs = len(later) * int(evidence.settings.get("batch_size") or 1)
    if not later or find_margins(evidence):
        return None
    noise = 2 * math.sqrt(0.25 / pairs)
    if mean(later) > 0.5 + noise:
        return None
    return Finding(
        f"In the second half {percent(mean(later))} of {pairs:,} pairs have the chosen above the rejected; a coin has "
        f"50 % ± {100 * noise:.1f}."
    )


def find_falling(evidence: Evidence) -> Finding | None:
    """Both sides become unlikely, and the margin is only their difference."""
    chosen, margin = evidence.late("rewards/chosen"), mean(quarter(_margins(evidence), first=False))
    if not (margin >= SMALLEST and -chosen >= margin):
        return None
    before, after = evidence.early("logps/chosen"), evidence.late("logps/chosen")
    return Finding(
        f"The chosen response falls too: its reward against the reference is {chosen:.3g} at a margin of "
        f"{margin:.3g}, and its log-probability went from {before:.1f} to {after:.1f} nats."
    )


def find_one_label(evidence: Evidence) -> Finding | None:
    """All labels are the same."""
    counts = {name: sum(evidence.values(f"count/{name}")) for name in ("chosen", "rejected")}
    if not any(counts.values()) or all(counts.values()):
        return None
    return Finding(f"{counts['chosen']:,.0f} completions were desirable and {counts['rejected']:,.0f} undesirable.")


def find_flat(evidence: Evidence) -> Finding | None:
    """A supervised loss that does not fall."""
    losses = evidence.values("loss")
    if not losses:
        return None
    first, last = mean(quarter(losses, first=True)), mean(quarter(losses, first=False))
    if last < (1 - FLAT) * first:
        return None
    return Finding(f"The loss is {first:.4g} in the first quarter and {last:.4g} in the last of {len(losses)} steps.")


def find_overfitting(evidence: Evidence) -> Finding | None:
    """Held-out loss has turned upwards while the loss went on falling."""
    held = evidence.measured("held_out_loss")
    if len(held) < 3 or held[-1] <= (1 + OVERFITTED) * min(held) or not evidence.late("loss") < evidence.early("loss"):
        return None
    return Finding(
        f"Held-out loss was {min(held):.4g} at its best and is {held[-1]:.4g} now, while the loss fell from "
        f"{evidence.early('loss'):.4g} to {evidence.late('loss'):.4g}."
    )


DIAGNOSES = (
    Diagnosis(
        "margins that do not move",
        PREFERENCES,
        f"the mean margin (`rewards/margins`, `margin`) of the last quarter is within {STILL} of the first step's",
        "Give a larger --learning-rate (ten times, and again) or more --steps; a loss of log 2 = 0.693 in dpo is "
        "that of margins of 0.",
        find_margins,
    ),
    Diagnosis(
        "accuracy at chance",
        PAIRS,
        "in the second half `rewards/accuracies` (`accuracy`) is within two standard errors of 0.5, or below",
        "Read some pairs: are chosen and rejected in the right columns, and do they differ in what they are judged by? "
        "(rlax-llm data FILE shows them.) Where labels are noisy, take more pairs and --recipe robust or cdpo.",
        find_chance,
    ),
    Diagnosis(
        "chosen responses that fall",
        ("dpo", "kto"),
        f"`rewards/chosen` is negative by at least the margin, which is at least {SMALLEST}",
        "Give a smaller --learning-rate or a larger --beta, or add the likelihood of the chosen responses "
        "(--nll-coef 1); supervised steps on them before (rlax-llm sft) put both sides within the policy's reach.",
        find_falling,
    ),
    Diagnosis(
        "labels of one kind",
        ("kto",),
        "one of `count/chosen` and `count/rejected` is 0 over the whole run",
        "Look at the label column: it wants true and false both, of a few of each kind at least.",
        find_one_label,
    ),
    Diagnosis(
        "a loss that does not fall",
        ("sft",),
        f"`loss` of the last quarter is not {percent(FLAT)} below that of the first",
        "Give a larger --learning-rate; where it is large already (a loss that jumps), a smaller one with "
        "--warmup-steps.",
        find_flat,
    ),
    Diagnosis(
        "overfitting",
        (*PREFERENCES, "sft"),
        f"`held_out_loss` is {percent(OVERFITTED)} above its best, while `loss` falls",
        "Stop earlier (--best held_out_loss keeps the best step), or give more data, fewer epochs, adapters "
        "(--lora-rank).",
        find_overfitting,
    ),
)
