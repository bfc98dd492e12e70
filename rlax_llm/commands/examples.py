"""Records as encoded rows to learn from and to measure on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlax_llm.commands.learner import Learner
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.commands.tasks import tell
from rlax_llm.data.encoding import encode_demonstrations
from rlax_llm.data.limits import Limits, keep_within
from rlax_llm.data.preferences import Demonstration, every_turn, last_turn, prompt_key, read_demonstrations
from rlax_llm.data.rows import Row, split_rows
from rlax_llm.data.sifting import Kept
from rlax_llm.data.tasks import Task, some_of

Encode = Callable[[Any, Any], list[Any]]


class Split(NamedTuple):
    """Encoded rows.

    Attributes:
        train: to learn from.
        held_out: to measure on. Where they were split off, no prompt of theirs is in ``train``.
    """

    train: list[Any]
    held_out: list[Any]


def encoded(kept: Kept[Any], encode: Encode, learner: Learner, config: Any) -> Kept[tuple[Any, Any]]:
    """Records that can be encoded and fit the limits, each with its tokens; it is told which were left out.

    Args:
        kept: records.
        encode: ``(tokenizer, records) → rows``.
        learner: gives tokenizer and vocabulary.
        config: gives ``max_prompt_tokens`` and ``max_new_tokens``.

    Raises:
        ValueError: where no row is left.
    """
    check = keep_within(Limits(config.max_prompt_tokens, config.max_new_tokens, learner.shape.vocab_size))

    def tokens(records: Sequence[Any]) -> list[tuple[Any, Any]]:
        return list(zip(records, encode(learner.tokenizer, records), strict=True))

    def checked(rows: Sequence[tuple[Any, Any]]) -> Sequence[tuple[Any, Any]]:
        check([row for _, row in rows])
        return rows

    found = kept.then(tokens).then(checked)
    tell(found.report())
    return found


def of_tables(read: Callable[[str], Kept[Any]], encode: Encode, learner: Learner, config: Any) -> Split:
    """Encoded records of ``config.data``, split by prompt, or held-out ones from ``config.eval_data``.

    Args:
        read: ``path → records``.
        encode: ``(tokenizer, records) → rows``.
        learner: gives tokenizer and vocabulary.
        config: gives the files, the limits, ``eval_size`` and ``seed``.

    Raises:
        ValueError: for a file that cannot be used; as ``of_records``.
    """
    if config.eval_data is None:
        return of_records(read(config.data), encode, learner, config)
    train, held_out = (encoded(read(path), encode, learner, config) for path in (config.data, config.eval_data))
    return Split(_tokens(train), some_of(_tokens(held_out), config.eval_size, config.seed))


def of_records(kept: Kept[Any], encode: Encode, learner: Learner, config: Any) -> Split:
    """Records encoded and split by prompt.

    Args:
        kept: records.
        encode: ``(tokenizer, records) → rows``.
        learner: gives tokenizer and vocabulary.
        config: gives the limits, ``eval_size`` and ``seed``.

    Raises:
        ValueError: as ``encoded``; too few records to hold any out.
    """
    found = encoded(kept, encode, learner, config)
    keys = [prompt_key(record) for record, _ in found]
    return Split(*split_rows(found.name, _tokens(found), keys, config.eval_size, config.seed))


def _tokens(kept: Kept[tuple[Any, Any]]) -> list[Any]:
    return [tokens for _, tokens in kept]


def of_file(config: SftSettings, learner: Learner) -> Split:
    """The demonstrations of ``config.data``: prompts with completions, conversations or texts.

    Args:
        config: the settings.
        learner: gives tokenizer and vocabulary.

    Raises:
        ValueError: for a file that cannot be used.
    """
    form = every_turn if config.every_turn else last_turn
    return of_tables(lambda path: read_demonstrations(path, form=form), encode_demonstrations, learner, config)


def of_task(task: Task, learner: Learner, config: Any) -> Split:
    """A task's own answers as demonstrations; held-out rows without answers are passed over.

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
    parts = [_shown(part) for part in (task.train, task.held_out)]
    return Split(*(_tokens(encoded(part, encode_demonstrations, learner, config)) for part in parts))


def _shown(rows: Kept[Row]) -> Kept[Demonstration]:
    placed = [(row, where) for row, where in zip(rows, rows.places, strict=True) if "completion" in row]
    records = [Demonstration(row["prompt"], row["completion"], where) for row, where in placed]
    return Kept(rows.name, records, [where for _, where in placed])
