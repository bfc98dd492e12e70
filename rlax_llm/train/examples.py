"""Records as encoded rows to learn from and to measure on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlax_llm.data.encoding import Limits, encode_demonstrations, within
from rlax_llm.data.preferences import Demonstration, every_turn, last_turn, read_demonstrations, split_records
from rlax_llm.data.tasks import Task
from rlax_llm.train.configs import SftConfig
from rlax_llm.train.learner import Learner

Encode = Callable[[Any, Any], list[Any]]


class Split(NamedTuple):
    """Encoded rows.

    Attributes:
        train: to learn from.
        held_out: to measure on; no prompt of theirs is in ``train``.
    """

    train: list[Any]
    held_out: list[Any]


def encoded(name: str, parts: Sequence[Sequence[Any]], encode: Encode, learner: Learner, config: Any) -> Split:
    """The rows that fit the limits; one line on standard error tells of those that do not.

    Args:
        name: what the data is called.
        parts: records to learn from, and records to measure on.
        encode: ``(tokenizer, records) → rows``.
        learner: gives tokenizer and vocabulary.
        config: gives ``max_prompt_tokens`` and ``max_new_tokens``.

    Raises:
        ValueError: naming the row that cannot be encoded, or where no row is left.
    """
    limits = Limits(config.max_prompt_tokens, config.max_new_tokens, learner.shape.vocab_size)
    rows = [within(encode(learner.tokenizer, part), limits) for part in parts]
    for part, what in zip(rows, ("training", "held-out"), strict=True):
        if part.dropped:
            print(f"{name}, {what}: {part.report()}", file=sys.stderr)
    return Split(rows[0].rows, rows[1].rows)


def of_records(named: tuple[str, Sequence[Any]], encode: Encode, learner: Learner, config: Any) -> Split:
    """Records split by prompt and encoded.

    Args:
        named: what the data is called, and its records.
        encode: ``(tokenizer, records) → rows``.
        learner: gives tokenizer and vocabulary.
        config: gives the limits, ``eval_size`` and ``seed``.

    Raises:
        ValueError: as ``encoded``; too few records to hold any out.
    """
    name, records = named
    parts = split_records(name, records, config.eval_size or 1, config.seed)
    return encoded(name, parts, encode, learner, config)


def of_file(config: SftConfig, learner: Learner) -> Split:
    """The demonstrations of ``config.data``: prompts with completions, conversations or texts.

    Args:
        config: the settings.
        learner: gives tokenizer and vocabulary.

    Raises:
        ValueError: for a file or row that cannot be used.
    """
    path = config.data or ""
    records = read_demonstrations(path, form=every_turn if config.every_turn else last_turn)
    return of_records((path, records), encode_demonstrations, learner, config)


def of_task(task: Task, learner: Learner, config: Any) -> Split:
    """A task's own answers as demonstrations.

    Args:
        task: rows with completions.
        learner: gives tokenizer and vocabulary.
        config: gives the limits.

    Raises:
        ValueError: for a task without answers.
    """
    if "completion" not in task.train[0]:
        raise ValueError(
            f"task {task.name} has no column 'completion' to learn from; give rows that have one, "
            "or, before reinforcement learning, set --warm-start-steps 0."
        )
    parts = [
        [Demonstration(row["prompt"], row["completion"], f"row {index}") for index, row in enumerate(rows)]
        for rows in (task.train, task.held_out)
    ]
    return encoded(task.name, parts, encode_demonstrations, learner, config)
