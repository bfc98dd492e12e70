"""Metrics of a rollout: rewards, lengths and speeds, by TRL's names."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rlax_llm.commands.rollouts import Rollout
from rlax_llm.generation.rollout import Told
from rlax_llm.rewards.calling import Scores


class Tally:
    """Counts what generations tell of their work, from one step to the next.

    >>> tally = Tally()
    >>> tally(Told(30, 0, 0))
    >>> tally(Told(20, 8, 2))
    >>> tally.metrics(), tally.metrics()
    ({'sampling/prefilled_tokens': 50.0, 'sampling/guessed_share': 0.25}, {})
    """

    def __init__(self) -> None:
        self.read = self.drawn = self.guessed = 0

    def __call__(self, told: Told) -> None:
        """Count a generation."""
        self.read += told.read
        self.drawn += told.drawn
        self.guessed += told.guessed

    def metrics(self) -> dict[str, float]:
        """Tokens that were read before draws, and the share of the drawn ones that guesses saved a pass.

        Nothing where nothing was read, no share where no guesses were asked for. The count begins anew.
        """
        found = {"sampling/prefilled_tokens": float(self.read)} if self.read else {}
        if self.drawn:
            found["sampling/guessed_share"] = self.guessed / self.drawn
        self.read = self.drawn = self.guessed = 0
        return found


def describe(
    rollout: Rollout, scores: Scores, solved: Callable[[float], bool] | None, group_size: int = 1
) -> dict[str, float]:
    """Metrics of a rollout by TRL's names: rewards, lengths in tokens, truncated share; and the samples' accuracy, and
    the share of them without a score.

    Accuracy is the share of completions that are ``solved`` by their first reward; None has no right and wrong.
    Rows without a chosen token, which fill a batch up, do not count.
    """
    there = rollout.lengths() > 0
    metrics = _rewards(np.where(there, scores.total, np.nan), group_size)
    cut = np.asarray(rollout.completions.truncated)[there]
    metrics["completions/clipped_ratio"] = float(cut.mean())
    metrics["completions/unscored_ratio"] = float(np.isnan(scores.total[there]).mean())
    if solved is not None:
        graded = scores.first[there & ~np.isnan(scores.first)]
        metrics["accuracy"] = float(np.mean([solved(float(x)) for x in graded])) if graded.size else float("nan")
    metrics |= _lengths(rollout.lengths()[there], cut) | _steps(scores.rows(there))
    if len(scores.by_name) > 1:
        for name, values in scores.by_name.items():
            metrics |= _reward(name, values[there & ~np.isnan(values)])
    return metrics


def _rewards(totals: np.ndarray, group_size: int) -> dict[str, float]:
    known = totals[~np.isnan(totals)]
    if not known.size:
        return {"reward": float("nan"), "reward_std": float("nan")}
    spread = _spread(totals.reshape(-1, group_size)) if group_size > 1 else known.std()
    return {"reward": float(known.mean()), "reward_std": float(spread)}


def _reward(name: str, present: np.ndarray) -> dict[str, float]:
    return {
        f"rewards/{name}/mean": float(present.mean()) if present.size else float("nan"),
        f"rewards/{name}/std": float(present.std(ddof=1)) if present.size > 1 else float("nan"),
    }


def _steps(scores: Scores) -> dict[str, float]:
    """How many steps of a completion have a reward, where steps are scored."""
    if scores.steps is None:
        return {}
    return {"completions/mean_steps": float((~np.isnan(scores.steps)).sum(-1).mean())}


def _lengths(lengths: np.ndarray, cut: np.ndarray) -> dict[str, float]:
    found = {}
    for name, chosen in (("", lengths), ("terminated_", lengths[~cut])):
        for kind, statistic in (("mean", np.mean), ("min", np.min), ("max", np.max)):
            found[f"completions/{kind}_{name}length"] = float(statistic(chosen)) if chosen.size else 0.0
    return found


def _spread(groups: np.ndarray) -> float:
    """Mean over groups of the standard deviation of their scores."""
    several = [group[~np.isnan(group)] for group in groups]
    stds = [group.std(ddof=1) for group in several if group.size > 1]
    return float(np.mean(stds)) if stds else float("nan")


def speeds(rollout: Rollout, seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of each part of a step, and tokens per second: of a rollout those sampled, of an update all."""
    sampled = float(rollout.lengths().sum())
    read = float(np.asarray(rollout.completions.valid).sum())
    return {
        "rollout_tokens_per_second": sampled / (seconds["rollout"] or math.nan),
        "update_tokens_per_second": read / seconds["update"],
        "tokens_per_second": sampled / sum(seconds.values()),
    } | {f"{name}_seconds": value for name, value in seconds.items()}
