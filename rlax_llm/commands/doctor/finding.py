"""What a diagnosis is, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlax_llm.host.evidence import Evidence, mean

GROUPS = ("grpo", "ppo", "online")
"""Commands that learn from scores of completions which they sample."""
DRAWN = (*GROUPS, "distill")
"""Commands that learn from completions which they sample."""
PREFERENCES = ("dpo", "kto", "reward")
LANGUAGE = (*DRAWN, *PREFERENCES, "sft")
CONTROL = ("control",)
EVERY = (*LANGUAGE, *CONTROL)

FEWEST_STEPS = 5
"""Below it the first quarter of a run is a single noisy step."""


class Finding(NamedTuple):
    """What is wrong with a run.

    Attributes:
        what: in a sentence, with its figures.
        change: what to do about it, in a sentence; empty for what the diagnosis says of all runs.
    """

    what: str
    change: str = ""


class Diagnosis(NamedTuple):
    """One thing that can be wrong.

    Attributes:
        name: a few words.
        commands: whose runs can have it.
        sign: how it is seen.
        change: what to do about it.
        find: ``Evidence → Finding``, or None where the run does not have it.
        fault: it is one; else it explains what looks like one.
    """

    name: str
    commands: tuple[str, ...]
    sign: str
    change: str
    find: Callable[[Evidence], Finding | None]
    fault: bool = True


def percent(share: float) -> str:
    """A share as a person says it.

    >>> percent(0.994), percent(0.004), percent(1.0)
    ('99 %', '0.4 %', '100 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.01 or share <= 0 else f"{100 * share:.1g} %"


def quoted(text: Any, most: int = 60) -> str:
    """Text in quotes and on a line, cut where it is long.

    >>> quoted("a\\nb"), quoted("abcdef", 3)
    ("'a⏎b'", "'abc…'")
    """
    whole = str(text).replace("\n", "⏎")
    return repr(whole if len(whole) <= most else whole[:most] + "…")


def asked(prompt: Any) -> str:
    """A prompt's text; of a conversation that of its last message."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1].get("content", "")) if prompt else ""


def halves(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The first half of the steps, and the rest."""
    return values[: len(values) // 2], values[len(values) // 2 :]


def rises(values: Sequence[float]) -> bool:
    """Whether the second half of a metric lies above the first by more than its steps' noise, two standard errors.

    >>> rises([0.0, 0.1, 0.5, 0.6]), rises([0.5, 0.1, 0.2, 0.4]), rises([])
    (True, False, False)
    """
    before, after = halves(values)
    if not before:
        return False
    noise = math.sqrt(_variance(before) / len(before) + _variance(after) / len(after))
    return mean(after) - mean(before) > 2 * noise


def _variance(values: Sequence[float]) -> float:
    middle = mean(values)
    return sum((x - middle) ** 2 for x in values) / max(len(values) - 1, 1)
