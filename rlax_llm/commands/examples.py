"""Records as encoded rows to learn from and to measure on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from rlax_llm.commands.learner import Learner
from rlax_llm.commands.sampling_settings import LimitSettings
from rlax_llm.commands.sft.settings import DemonstrationSettings
from rlax_llm.commands.task_settings import HeldOutSettings
from rlax_llm.commands.tasks import held_tables, tell
from rlax_llm.core.processes import check_alike
from rlax_llm.data.encoding import encode_demonstrations
from rlax_llm.data.limits import Limits, keep_within
from rlax_llm.data.preferences import Demonstration, every_turn, last_turn, prompt_key, read_demonstrations
from rlax_llm.data.rows import Row, held_out_share, split_rows
from rlax_llm.data.sifting import Kept, Tables
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


class Encoder(NamedTuple):
    """From records to rows of tokens.

    Attributes:
        encode: ``(tokenizer, records) → rows``.
        learner: gives tokenizer and vocabulary.
        limits: of the rows.
    """

    encode: Encode
    learner: Learner
    limits: LimitSettings

    def __call__(self, kept: Kept[Any]) -> Kept[tuple[Any, Any]]:
        """Records that can be encoded and fit the limits, each with its tokens; what was left out is reported.

        Args:
            kept: records.

        Raises:
            ValueError: where no row is left.
        """
        limits = Limits(self.limits.max_prompt_tokens, self.limits.max_new_tokens, self.learner.shape.vocab_size)
        check = keep_within(limits)

        def tokens(records: Sequence[Any]) -> list[tuple[Any, Any]]:
            return list(zip(records, self.encode(self.learner.tokenizer, records), strict=True))

        def checked(rows: Sequence[tuple[Any, Any]]) -> Sequence[tuple[Any, Any]]:
            check([row for _, row in rows])
            return rows

        found = kept.then(tokens).then(checked)
        check_alike(found.name, _tokens(found))
        tell(found.report())
        return found


def of_tables(read: Callable[[Tables, str], Kept[Any]], encoder: Encoder, data: HeldOutSettings, seed: int) -> Split:
    """Encoded records of files, split by prompt, or held-out ones from a file or a split of their own.

    Args:
        read: ``(paths, split) → records``.
        encoder: makes rows of them.
        data: the files.
        seed: splits them.

    Raises:
        ValueError: for a file that cannot be used; as ``of_records``.
    """
    assert data.data is not None
    tables = held_tables(data)
    if tables is None:
        return of_records(read(data.data, data.split), encoder, data.eval_size, seed)
    train, held_out = (encoder(read(*of)) for of in ((data.data, data.split), tables))
    return Split(_tokens(train), some_of(_tokens(held_out), data.eval_size, seed))


def of_records(kept: Kept[Any], encoder: Encoder, held_out: int | None, seed: int) -> Split:
    """Records encoded and split by prompt.

    Args:
        kept: records.
        encoder: makes rows of them.
        held_out: records to hold out; None is as of ``held_out_share``, which says it.
        seed: splits them.

    Raises:
        ValueError: as of ``Encoder``; too few records to hold any out.
    """
    found = encoder(kept)
    keys = [prompt_key(record) for record, _ in found]
    size, line = held_out_share(found.name, keys, held_out)
    tell(line)
    return Split(*split_rows(found.name, _tokens(found), keys, size, seed))


def _tokens(kept: Kept[tuple[Any, Any]]) -> list[Any]:
    return [tokens for _, tokens in kept]


def of_file(settings: DemonstrationSettings, limits: LimitSettings, seed: int, learner: Learner) -> Split:
    """Demonstrations of a file: prompts with completions, conversations or texts.

    Args:
        settings: of the file.
        limits: of its rows.
        seed: splits it.
        learner: gives tokenizer and vocabulary.

    Raises:
        ValueError: for a file that cannot be used.
    """
    form = every_turn if settings.every_turn else last_turn
    encoder = Encoder(encode_demonstrations, learner, limits)
    return of_tables(partial(read_demonstrations, form=form), encoder, settings, seed)


def of_task(task: Task, limits: LimitSettings, learner: Learner, otherwise: str = "") -> Split:
    """A task's own answers as demonstrations; held-out rows without answers are passed over.

    Args:
        task: rows with completions.
        limits: of its rows.
        learner: gives tokenizer and vocabulary.
        otherwise: end of the sentence about a task without answers: what else could be done.

    Raises:
        ValueError: for a task without answers.
    """
    if "completion" not in task.train[0]:
        raise ValueError(
            f"task {task.name} has no column 'completion' to learn from; give rows that have one{otherwise}."
        )
    parts = [_shown(part) for part in (task.train, task.held_out)]
    encoder = Encoder(encode_demonstrations, learner, limits)
    return Split(*(_tokens(encoder(part)) for part in parts))


def _shown(rows: Kept[Row]) -> Kept[Demonstration]:
    placed = [(row, where) for row, where in zip(rows, rows.places, strict=True) if "completion" in row]
    records = [Demonstration(row["prompt"], row["completion"], where) for row, where in placed]
    return Kept(rows.name, records, [where for _, where in placed])
