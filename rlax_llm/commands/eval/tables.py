"""What an eval shows: a table of its sets, and one of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from rlax_llm.commands.eval.against import Comparison, chance
from rlax_llm.commands.eval.measured import Measured, measures, reward_of
from rlax_llm.commands.grids import Grid
from rlax_llm.rewards.measures import Interval

_MOST_MEASURES = 3  # in a terminal: with more than four completions, of pass@k the last alone


def results_grid(title: str, found: Sequence[Measured], all_measures: bool) -> Grid:
    """A line for each set, and of several the mean over sets.

    Args:
        title: above it.
        found: of each set.
        all_measures: pass@k for every k, and not the last alone.
    """
    values = [measures(one) for one in found]
    names = list(values[0])
    shown = names if all_measures or len(names) <= _MOST_MEASURES else [*names[:2], names[-1]]
    header = ["task", "prompts", *shown, "reward", "tokens", "cut"]
    return Grid(title, header, [_line(one, own, shown) for one, own in zip(found, values, strict=True)])


def mean_row(found: Sequence[Measured], header: Sequence[str]) -> list[str]:
    """The plain mean over sets, whatever their sizes.

    Args:
        found: of each set.
        header: of the columns to fill.
    """
    values = [measures(one) for one in found]
    means = [f"{sum(own[name].mean for own in values) / len(values):.3f}" for name in header if name in values[0]]
    prompts = sum(len(one.rows) for one in found)
    return ["mean of the tasks", str(prompts), *means, "", "", ""]


def _line(found: Measured, own: dict[str, Interval], shown: Sequence[str]) -> list[str]:
    reward = reward_of(found)
    return [
        found.name,
        str(len(found.rows)),
        *(with_ends(own[name]) for name in shown),
        "none" if reward is None else f"{reward.mean:.3f}",
        f"{found.lengths.mean():.1f}",
        f"{found.truncated.mean():.0%}",
    ]


def with_ends(found: Interval) -> str:
    """An estimate with its interval.

    >>> with_ends(Interval(0.5, 0.25, 0.75))
    '0.500 [0.250, 0.750]'
    """
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def comparison_grid(title: str, found: Sequence[Comparison]) -> Grid:
    """A line for each set that both models were asked.

    Args:
        title: above it.
        found: of each set, and of all.
    """
    header = ["task", "prompts", "this", "other", "difference", "better", "worse", "p"]
    rows = [
        [
            one.name,
            str(one.prompts),
            f"{one.own:.3f}",
            f"{one.other:.3f}",
            f"{one.difference.mean:+.3f} [{one.difference.low:+.3f}, {one.difference.high:+.3f}]",
            str(one.better),
            str(one.worse),
            chance(one.p),
        ]
        for one in found
    ]
    return Grid(title, header, rows)
