"""What a model did with the prompts of a set, and the numbers that say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rlax_llm.commands.rollouts import Grades
from rlax_llm.data.jsonl import prompt_key
from rlax_llm.data.messages import begun_answer
from rlax_llm.data.rows import Row
from rlax_llm.data.tasks import Task
from rlax_llm.rewards.measures import Interval, best_of_k, majority, mean_interval, share_interval


class Measured(NamedTuple):
    """Completions of the prompts of a set, judged.

    Attributes:
        name: of the set.
        rows: of its P prompts.
        solved: bool ``[P, n]``, of each completion whether it is right.
        rewards: ``[P, n]``, NaN where a completion has none.
        elected: ``[P]``, the chance that the majority's answer is right.
        lengths: ``[P, n]``, tokens.
        truncated: bool ``[P, n]``, cut by the limit.
    """

    name: str
    rows: list[Row]
    solved: np.ndarray
    rewards: np.ndarray
    elected: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray

    @property
    def samples(self) -> int:
        """Completions of a prompt."""
        return self.solved.shape[1]

    def some(self, name: str, chosen: np.ndarray) -> Measured:
        """Those of some prompts, as a set of its own.

        Args:
            name: what it is called.
            chosen: bool ``[P]``.
        """
        rows = [row for row, taken in zip(self.rows, chosen, strict=True) if taken]
        return Measured(name, rows, *(x[chosen] for x in self[2:]))

    def keys(self) -> list[tuple[str, int]]:
        """What makes a prompt the same as another model's: its text, and which of equal texts it is."""
        seen: dict[str, int] = {}
        found = []
        for row in self.rows:
            key = prompt_key(row)
            seen[key] = seen.get(key, -1) + 1
            found.append((key, seen[key]))
        return found


def measured_of(name: str, task: Task, grades: Grades, samples: int) -> Measured:
    """What was drawn and scored, by prompt.

    Args:
        name: of the set.
        task: whose held-out rows they are.
        grades: of all of them.
        samples: completions of a prompt.
    """
    rows = list(task.held_out)
    shape = (len(rows), samples)
    counted = [(batch.rollout, batch.known) for batch in grades.batches]
    lengths = [rollout.lengths()[:known] for rollout, known in counted]
    truncated = [np.asarray(rollout.completions.truncated)[:known] for rollout, known in counted]
    texts = np.array([text for rollout, known in counted for text in rollout.texts[:known]], object).reshape(shape)
    solved = grades.solved().reshape(shape)
    elected = [
        majority(task.votes_of(row, [begun_answer(row["prompt"]) + text for text in own]), right) if samples > 1 else 0
        for row, own, right in zip(rows, texts, solved, strict=True)
    ]
    return Measured(
        name,
        rows,
        solved,
        grades.totals().reshape(shape),
        np.array(elected, float),
        np.concatenate(lengths).reshape(shape),
        np.concatenate(truncated).reshape(shape),
    )


def measures(found: Measured) -> dict[str, Interval]:
    """What is right of a set, by the name of the measure, each with its interval over prompts.

    One completion of a prompt has ``accuracy``; n have ``avg@n``, ``maj@n``, and ``pass@k`` for k = 2, 4, … and n.

    Args:
        found: of a set.
    """
    count = found.samples
    shares = found.solved.mean(-1)
    if count == 1:
        return {"accuracy": share_interval(shares)}
    powers = [2**power for power in range(1, count.bit_length()) if 2**power < count]
    passed = {f"pass@{k}": best_of_k(found.solved.astype(float), k).clip(0, 1) for k in (*powers, count)}
    named = {f"avg@{count}": shares, f"maj@{count}": found.elected} | passed
    return {name: share_interval(values, count) for name, values in named.items()}


def reward_of(found: Measured) -> Interval | None:
    """Mean reward over prompts, of the completions that have one; None where none has.

    Args:
        found: of a set.
    """
    scored = ~np.isnan(found.rewards)
    kept = scored.any(-1)
    sums = np.where(scored, found.rewards, 0.0)[kept].sum(-1)
    return mean_interval(sums / scored[kept].sum(-1)) if kept.any() else None


def entry(found: Measured) -> dict[str, Any]:
    """A set as ``summary.json`` holds it.

    Args:
        found: of the set.
    """
    reward = reward_of(found)
    return {
        "task": found.name,
        "prompts": len(found.rows),
        "completions": found.solved.size,
        "without_score": int(np.isnan(found.rewards).sum()),
        **{name: interval._asdict() for name, interval in measures(found).items()},
        "reward": None if reward is None else reward._asdict(),
        "mean_length": float(found.lengths.mean()),
        "truncated": float(found.truncated.mean()),
    }


def parts_by(found: Measured, column: str) -> list[Measured]:
    """A set's prompts by the values of a column; nothing where its rows have no such column.

    Args:
        found: of a set.
        column: of its rows.
    """
    if not all(column in row for row in found.rows):
        return []
    values = np.array([_value(row, column) for row in found.rows], object)
    return [found.some(f"{found.name}, {column} {value}", values == value) for value in sorted(set(values.tolist()))]


def _value(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
