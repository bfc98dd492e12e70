"""Diagnoses of what the rewards give: a group teaches by the differences of its scores, and by nothing else."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rlax_llm.commands.doctor.finding import GROUPS, Diagnosis, Finding, asked, percent, quoted
from rlax_llm.host.evidence import Evidence, mean, quarter

DEAD = 0.9
"""Share of groups without a difference: what is left of a step is less than a tenth of its completions."""
HARDLY_ANY = 0.05
NEARLY_ALL = 0.95
UNSCORED = 0.1
"""Share of completions without a score: more than a few odd rows of a data set."""
SAME = 1e-6
"""Spread of scores that is rounding."""
SAME_TEXT = 0.5


def dead_shares(evidence: Evidence) -> list[float]:
    """Share of a step's groups without a difference, those that dynamic sampling has thrown away among them.

    Of a command without groups, whether the step's scores are all the same.
    """
    kept, dead = evidence.values("sampling/kept"), evidence.values("frac_reward_zero_std")
    if kept:
        return [1 - share for share in kept]
    return dead or [float(spread <= SAME) for spread in evidence.values("reward_std")]


def _described(evidence: Evidence) -> str:
    share, steps = percent(mean(dead_shares(evidence))), len(evidence.rows)
    if evidence.values("frac_reward_zero_std"):
        return f"{share} of the groups of all {steps} steps have no difference"
    return f"In {share} of the {steps} steps all completions have the same score"


def _example(evidence: Evidence) -> str:
    if not evidence.completions:
        return ""
    last = evidence.completions[-1]
    said = f"{quoted(last['completion'])} to {quoted(asked(last['prompt']))}, reward {last['reward']}"
    return f"; the last that was written down is {said}"


def _unscored_share(evidence: Evidence) -> float:
    shares = evidence.values("completions/unscored_ratio")
    if shares:
        return mean(shares)
    rewards = [row.get("reward") for row in evidence.completions]
    return sum(reward is None for reward in rewards) / len(rewards) if rewards else math.nan


def find_unscored(evidence: Evidence) -> Finding | None:
    """Rewards that abstain or fail."""
    share, failures = _unscored_share(evidence), sum(evidence.values("reward_failures"))
    if not share >= UNSCORED:
        return None
    without = [row for row in evidence.completions if row.get("reward") is None]
    example = f", as {quoted(without[-1]['completion'])} to {quoted(asked(without[-1]['prompt']))}" if without else ""
    why = (
        f"; on {failures:.0f} the reward raised or was late"
        if failures
        else "; the reward gave None, and did not raise"
    )
    return Finding(f"{percent(share)} of the completions have no score{example}{why}.")


def find_all_failed(evidence: Evidence) -> Finding | None:
    """No completion of nearly all groups is right."""
    solved, dead = evidence.values("accuracy"), dead_shares(evidence)
    if not (dead and solved and mean(dead) >= DEAD and mean(solved) <= HARDLY_ANY):
        return None
    if mean(evidence.values("reward")) > HARDLY_ANY:
        return None  # something is paid for, and to all alike
    return Finding(
        f"{_described(evidence)}: all failed; {percent(mean(solved))} of the completions are right{_example(evidence)}."
    )


def find_all_solved(evidence: Evidence) -> Finding | None:
    """All completions of nearly all groups are right from the beginning."""
    solved, dead = quarter(evidence.values("accuracy"), first=True), quarter(dead_shares(evidence), first=True)
    if not (dead and solved and mean(dead) >= DEAD and mean(solved) >= NEARLY_ALL):
        return None
    return Finding(
        f"{percent(mean(solved))} of the completions are right from the first steps on, so {percent(mean(dead))} of "
        "the groups have no difference: there is nothing left to learn."
    )


def find_equal_scores(evidence: Evidence) -> Finding | None:
    """Groups without a difference that are neither all right nor all wrong."""
    dead = dead_shares(evidence)
    if not (dead and mean(dead) >= DEAD) or find_all_failed(evidence) or find_all_solved(evidence):
        return None
    if mean(evidence.values("accuracy")) >= NEARLY_ALL:
        return None  # it was learned
    same = _same_text_share(evidence.completions)
    if same >= SAME_TEXT:
        return Finding(
            f"{_described(evidence)}, and in {percent(same)} of those that were written down all completions are the "
            "same text.",
            "Sample with a higher --temperature, without a small --top-k or --top-p; an entropy near 0 from the first "
            "step on says that the model gives one answer only.",
        )
    return Finding(f"{_described(evidence)}: the reward gives different texts the same score{_example(evidence)}.")


def _same_text_share(completions: Sequence[Any]) -> float:
    """Share of the groups of which all completions that were written down are the same; 0 of none."""
    groups: dict[tuple[int, str], list[str]] = defaultdict(list)
    for row in completions:
        groups[row["step"], str(row["prompt"])].append(row["completion"])
    several = [texts for texts in groups.values() if len(texts) > 1]
    return sum(len(set(texts)) == 1 for texts in several) / len(several) if several else 0.0


def find_never_met(evidence: Evidence) -> Finding | None:
    """One of several rewards that no completion ever gets."""
    ends = ("rewards/", "/mean")
    names = {
        name.removeprefix(ends[0]).removesuffix(ends[1]) for row in evidence.rows for name in row if _is_mean(name)
    }
    never = sorted(name for name in names if _is_never_met(evidence, name))
    if not never:
        return None
    told = ", ".join(never)
    return Finding(
        f"The reward {told} was the same, and not above 0, for every completion of all steps{_example(evidence)}."
    )


def _is_mean(name: str) -> bool:
    return name.startswith("rewards/") and name.endswith("/mean")


def _is_never_met(evidence: Evidence, name: str) -> bool:
    means, spreads = (evidence.values(f"rewards/{name}/{kind}") for kind in ("mean", "std"))
    if name == "overlong" and evidence.settings.get("overlong_buffer"):
        return False  # a punishment is 0 where nothing is too long
    return bool(means) and len(set(means)) == 1 and means[0] <= 0 and not any(spreads)


DIAGNOSES = (
    Diagnosis(
        "no score",
        GROUPS,
        f"at least {percent(UNSCORED)} of the completions have no score (`completions/unscored_ratio`)",
        "Look at what the reward reads: a right answer that is missing or in another form has no score, a function "
        "that raises or is late has none either. Mend the answers' column or the function (--reward-timeout for a "
        "slow one), and return a number for a completion that is only wrong.",
        find_unscored,
    ),
    Diagnosis(
        "all failed",
        GROUPS,
        f"at least {percent(DEAD)} of the groups have no difference of score (`frac_reward_zero_std`; without groups: "
        "of the steps, `reward_std`), and `accuracy` "
        f"is at most {percent(HARDLY_ANY)}",
        "Nothing right is ever drawn, so nothing right can become likelier. Begin with a model that solves some of the "
        "prompts: supervised steps first (rlax-llm sft, or --warm-start-steps), easier prompts, more completions "
        "(--group-size), or a reward that pays for parts; and make sure that the reward can read a right answer.",
        find_all_failed,
    ),
    Diagnosis(
        "all solved",
        GROUPS,
        f"in the first quarter `accuracy` is at least {percent(NEARLY_ALL)} and {percent(DEAD)} of the groups have no "
        "difference",
        "Take harder prompts, or leave out those that are always solved (--dynamic-rounds, --curriculum).",
        find_all_solved,
    ),
    Diagnosis(
        "groups without a difference",
        GROUPS,
        f"at least {percent(DEAD)} of the groups have no difference of score, and they are neither all right nor wrong",
        "Give a reward that tells more apart: several rewards, or one that pays for parts.",
        find_equal_scores,
    ),
    Diagnosis(
        "a format that is never met",
        GROUPS,
        "one of several rewards (`rewards/NAME/mean`) is 0 or less for every completion of the run",
        "Ask for the format in the prompt, with an example; teach it by some supervised steps (rlax-llm sft); or pay "
        "for parts of it. A reward that is always the same moves nothing, whatever its weight.",
        find_never_met,
    ),
)
