"""Diagnoses of control."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlax_llm.commands.doctor.finding import CONTROL, Diagnosis, Finding, halves, percent
from rlax_llm.host.evidence import Evidence, known, mean, quarter
from rlax_llm.host.spread import spread

REFUSED = 0.9
"""Share of steps that the line search turned down."""
STOPPED = 0.9
ALIKE = 0.05
"""Change of a single seed's return, as a share: there is no interval over seeds to ask."""
CERTAIN = 0.1
LEAP = 1.0
"""KL to the old policy, nats: a step that is good for something goes a few hundredths."""
UNTOLD = ("RockPaperScissors", "probe:")
"""Environments whose return says nothing: a game of value 0, and tests with a constant reward."""


def find_endless(evidence: Evidence) -> Finding | None:
    """No episode has ended."""
    ended = evidence.values("episodes")
    if not ended or any(ended):
        return None
    steps = evidence.rows[-1].get("environment_steps")
    return Finding(
        f"No episode of any seed ended within {steps:,} steps of {evidence.settings.get('env')}, so there is no return."
    )


def _gains(evidence: Evidence) -> list[float]:
    """For each seed its mean return in the last quarter above that in the first."""
    seeds = list(zip(*[row["episode_return_seeds"] for row in evidence.rows if "episode_return_seeds" in row]))
    found = [known(returns) for returns in seeds]
    return [mean(quarter(x, first=False)) - mean(quarter(x, first=True)) for x in found if len(x) > 1]


def _does_not_rise(evidence: Evidence) -> bool:
    """Whether returns, where they say anything, are no higher in the end than in the beginning."""
    if str(evidence.settings.get("env")).startswith(UNTOLD):
        return False
    gains = _gains(evidence)
    return bool(gains) and _is_flat(gains, evidence.early("episode_return"))


def find_leap(evidence: Evidence) -> Finding | None:
    """A step has taken the policy so far that nothing of it is left."""
    steps = [(kl, row["step"]) for row in evidence.rows for kl in known([row.get("kl_old"), row.get("kl")])]
    if not steps or max(steps)[0] < LEAP or not _does_not_rise(evidence):
        return None
    kl, step = max(steps)
    before, after = evidence.early("episode_return"), evidence.late("episode_return")
    return Finding(
        f"Step {step} went {kl:.3g} nats from the policy that its data is of, at learning_rate "
        f"{evidence.settings.get('learning_rate')}, and the return does not rise: {before:.4g} in the first quarter, "
        f"{after:.4g} in the last."
    )


def find_flat(evidence: Evidence) -> Finding | None:
    """Returns do not rise, and no step has gone too far."""
    if not _does_not_rise(evidence) or find_leap(evidence):
        return None
    gains = _gains(evidence)
    before, after = evidence.early("episode_return"), evidence.late("episode_return")
    same = " Every episode had the same: no reward was ever met." if _constant(evidence) else ""
    return Finding(
        f"The return is {before:.4g} in the first quarter and {after:.4g} in the last, over {len(gains)} "
        f"{'seed' if len(gains) == 1 else 'seeds'}.{same}"
    )


def _is_flat(gains: Sequence[float], start: float) -> bool:
    """Whether the mean gain is within two standard errors over seeds of 0, or below."""
    if len(gains) == 1:
        return gains[0] <= ALIKE * abs(start)
    return mean(gains) <= 2 * spread(gains).std / math.sqrt(len(gains))


def _constant(evidence: Evidence) -> bool:
    returns = {x for row in evidence.rows for x in known(row.get("episode_return_seeds", ()))}
    return len(returns) == 1


def find_refused(evidence: Evidence) -> Finding | None:
    """TRPO's search accepts no step."""
    accepted = halves(evidence.values("accepted"))[1]
    dead = evidence.values("frac_reward_zero_std")
    if not accepted or 1 - mean(accepted) < REFUSED or (dead and mean(dead) >= REFUSED):
        return None
    return Finding(
        f"In the second half {percent(1 - mean(accepted))} of the steps were turned down by the line search, after "
        f"{evidence.late('rejected'):.0f} halvings, at kl_radius {evidence.settings.get('kl_radius')}; the residual "
        f"of the conjugate gradients is {evidence.late('cg_residual'):.2g}."
    )


def find_limited(evidence: Evidence) -> Finding | None:
    """Updates end at their KL limit almost at once."""
    stopped = halves(evidence.values("stopped"))[1]
    if not stopped or mean(stopped) < STOPPED:
        return None
    return Finding(
        f"{percent(mean(stopped))} of the optimizer steps were not taken, as the KL to the old policy was above "
        f"kl_limit {evidence.settings.get('kl_limit')}."
    )


def find_certain(evidence: Evidence) -> Finding | None:
    """The policy has become certain while its return does not rise."""
    first, last = evidence.early("entropy"), evidence.late("entropy")
    if not (first > 0 and last < CERTAIN * first) or not find_flat(evidence):
        return None
    return Finding(f"Entropy fell from {first:.3g} to {last:.3g} nats, and returns do not rise.")


def find_blind(evidence: Evidence) -> Finding | None:
    """The critic explains nothing while returns do not rise."""
    explained = halves(evidence.values("explained_variance"))[1]
    if not explained or mean(explained) > 0 or not find_flat(evidence):
        return None
    return Finding(
        f"The critic's explained variance is {mean(explained):.2g} in the second half: a constant does as well."
    )


DIAGNOSES = (
    Diagnosis(
        "a step that goes too far",
        CONTROL,
        f"the KL to the old policy (`kl_old`, `kl`) of a step is at least {LEAP:g} nat, and returns do not rise",
        "Give a smaller --learning-rate (a tenth, and again), or a --kl-limit; what else is wrong follows from it.",
        find_leap,
    ),
    Diagnosis(
        "no episode ends",
        CONTROL,
        "`episodes` is 0 at every look",
        "Give more --steps or a longer --horizon-steps than an episode; of an environment of your own, see that it "
        "terminates, or truncates after a number of steps.",
        find_endless,
    ),
    Diagnosis(
        "returns that do not rise",
        CONTROL,
        "the last quarter's return is not above the first's by two standard errors over seeds (of one seed: by "
        f"{percent(ALIKE)})",
        "Give more --steps; then --normalize-observations and --normalize-rewards, another --learning-rate, a larger "
        "--entropy-coef. Where every episode has the same return, exploration never meets a reward: a shaped reward, "
        "or another environment first.",
        find_flat,
    ),
    Diagnosis(
        "a KL radius that accepts no step",
        (*CONTROL, "grpo"),
        f"in the second half `accepted` is below {percent(1 - REFUSED)}",
        "In control give a larger --damping or more --cg-iterations (a large `cg_residual` is a direction that is "
        "wrong), a larger --kl-radius, or more steps in a rollout.",
        find_refused,
    ),
    Diagnosis(
        "a KL limit that stops everything",
        CONTROL,
        f"in the second half `stopped` is at least {percent(STOPPED)}",
        "Give a larger --kl-limit, a smaller --learning-rate, or fewer --epochs.",
        find_limited,
    ),
    Diagnosis(
        "certain and not better",
        CONTROL,
        f"`entropy` is below {percent(CERTAIN)} of what it was, and returns do not rise",
        "Give a larger --entropy-coef or a smaller --learning-rate.",
        find_certain,
    ),
    Diagnosis(
        "a critic that explains nothing",
        CONTROL,
        "in the second half `explained_variance` is 0 or less, and returns do not rise",
        "Give --normalize-rewards, a larger --value-coef or --learning-rate, --value-eps 0, and a --discount that ends "
        "within an episode.",
        find_blind,
    ),
)
