"""What stands in groups that the policy did not choose and a recipe learns from: demonstrations, answers of tools."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlax_llm.commands.grpo.gathering import Taken, widened
from rlax_llm.commands.grpo.objective import given_by
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.rollouts import Rollout, learned_widths
from rlax_llm.commands.sampling_settings import LimitSettings
from rlax_llm.commands.tasks import tell
from rlax_llm.core.processes import check_alike
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.types import Completions
from rlax_llm.data.encoding import DemonstrationTokens, encode_demonstrations
from rlax_llm.data.limits import Limits, keep_within
from rlax_llm.data.preferences import Demonstration
from rlax_llm.data.rows import DataError, Row
from rlax_llm.data.sifting import Kept
from rlax_llm.data.tables import list_columns
from rlax_llm.data.tasks import Task
from rlax_llm.models.padding import pad_right
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.rewards.calling import Scores

Giving = Callable[[Taken, int], Taken]
"""``(scored groups, steps that the policy has taken) → the groups to learn from``, with what is given."""


def nothing_given(taken: Taken, step: int) -> Taken:
    """The groups as they are.

    Args:
        taken: scored groups.
        step: not read.
    """
    del step
    return taken


def answers_given(taken: Taken, step: int) -> Taken:
    """The groups, and in them what tools answered: the tokens behind a prompt that the policy did not choose.

    Args:
        taken: scored groups.
        step: not read.
    """
    del step
    completions: Any = taken.rollout.completions
    valid, mask = np.asarray(completions.valid), np.asarray(completions.mask)
    behind = np.arange(valid.shape[1]) >= taken.rollout.prompt_width
    # A completion without a chosen token only fills the batch up.
    given = valid & ~mask & behind & mask.any(1, keepdims=True)
    return taken._replace(rollout=taken.rollout._replace(completions=completions._replace(given=given)))


def of_drawn(advantages: jax.Array, taken: Taken) -> jax.Array:
    """Of what was learned from, ``[P · G, T]``, the part of the completions that were drawn, in their columns.

    Args:
        advantages: of all rows; the demonstration of each group is its last.
        taken: the groups without what was given.
    """
    groups, columns = len(taken.indices), taken.rollout.completions.tokens.shape[1]
    if advantages.shape == (groups * taken.group_size, columns):
        return advantages
    by_group = advantages.reshape(groups, -1, advantages.shape[1])
    return by_group[:, : taken.group_size, :columns].reshape(-1, columns)


class Shown(NamedTuple):
    """Demonstrations of a task's prompts.

    Attributes:
        tokens: of each row to train on.
        tokenizer: that they are of.
        limit: of their tokens.
    """

    tokens: Sequence[DemonstrationTokens]
    tokenizer: Tokenizer
    limit: int

    def rollout(self, taken: Taken, step: int) -> Rollout:
        """A demonstration of each group's prompt, in columns that hold all that was drawn and given; none is chosen.

        Args:
            taken: the groups.
            step: that the policy has taken.
        """
        drawn: Any = taken.rollout.completions
        width, found = taken.rollout.prompt_width, [self.tokens[i] for i in taken.indices]
        longest = max(len(one.completion) for one in found)
        fits = min(size for size in learned_widths(self.limit) if size >= longest)
        columns = max(fits, drawn.tokens.shape[1] - width)
        ids, valid = pad_right([one.completion for one in found], columns, self.tokenizer.pad_id)
        learned = pad_right([one.learned or [True] * len(one.completion) for one in found], columns, 0)[0] != 0
        first: Any = jax.tree.map(lambda x: np.asarray(x)[:: taken.group_size], drawn)
        shape = (len(found), width + columns)

        def behind(prompt: np.ndarray, completion: np.ndarray) -> np.ndarray:
            return np.concatenate([prompt[:, :width], completion], 1)

        fields: dict[str, Any] = {
            "tokens": behind(first.tokens, ids.astype(np.int32)),
            "valid": behind(first.valid, valid),
            "mask": np.zeros(shape, bool),
            "log_probs": np.zeros(shape, np.float32),
            "truncated": np.zeros(len(found), bool),
            "given": behind(np.zeros_like(first.valid), learned),
        }
        fields |= _where_drawn(first, shape, width, step)
        texts = [self.tokenizer.decode(one.completion) for one in found]
        return Rollout(taken.rollout.rows[:: taken.group_size], Completions(**fields), texts, width, 0.0)


def _where_drawn(drawn: Any, shape: tuple[int, int], width: int, step: int) -> dict[str, np.ndarray]:
    """The fields of demonstrations that only some samplers tell of.

    Args:
        drawn: a completion of each prompt.
        shape: of the demonstrations.
        width: columns of prompts.
        step: that the policy has taken.
    """
    fields = {}
    if drawn.kept is not None:
        fields["kept"] = np.full((*shape, drawn.kept.shape[-1]), EVERY)
    if drawn.versions is not None:
        fields["versions"] = np.full(shape[: drawn.versions.ndim], step, np.int32)
    if drawn.routed is not None:  # a prompt's experts are those of its group; of a demonstration nobody says
        fields["routed"] = np.zeros((*shape, drawn.routed.shape[-1]), drawn.routed.dtype)
        fields["routed"][:, :width] = drawn.routed[:, :width]
    return fields


class Demonstrations:
    """Puts a demonstration of its prompt behind the completions of each group, to be imitated beside them: it has no
    score and counts in nothing that is drawn.

    Args:
        shown: the demonstrations.
    """

    def __init__(self, shown: Shown):
        self.shown = shown

    def __call__(self, taken: Taken, step: int) -> Taken:
        """The groups with their demonstrations.

        Args:
            taken: scored groups of what was drawn.
            step: that the policy has taken.
        """
        return _with_last(taken, *self.given(taken, step))

    def given(self, taken: Taken, step: int) -> tuple[Rollout, Scores]:
        """The demonstrations of the groups, one of each, and their scores."""
        rollout, unknown = self.shown.rollout(taken, step), np.full(len(taken.indices), math.nan, np.float32)
        return rollout, Scores(unknown, dict.fromkeys(taken.scores.by_name, unknown), np.zeros(len(unknown), bool))


class Members(Demonstrations):
    """Demonstrations that are members of their groups: chosen by another policy, and scored as the others are.

    Args:
        shown: the demonstrations.
        judge: scores them.
    """

    def __init__(self, shown: Shown, judge: Judge):
        super().__init__(shown)
        self.judge = judge

    def given(self, taken: Taken, step: int) -> tuple[Rollout, Scores]:
        """The demonstrations of the groups, one of each, and their scores."""
        rollout, _ = super().given(taken, step)
        completions: Any = rollout.completions
        member = rollout._replace(completions=completions._replace(mask=completions.given))
        return member, self.judge(member, 1)


def _with_last(taken: Taken, shown: Rollout, scores: Scores) -> Taken:
    """The groups with one more completion each, the last."""
    groups, width, other = len(taken.indices), shown.prompt_width, _fields(shown.completions)
    own = _fields(widened(taken.rollout, width, other["tokens"].shape[1] - width))
    own["given"] = np.zeros(own["mask"].shape, bool)
    # Where a group only fills the batch up, so does its demonstration.
    there = own["mask"].reshape(groups, -1).any(1)[:, None]
    other |= {name: other[name] & there for name in ("mask", "given")}

    def join(x: np.ndarray, last: np.ndarray) -> np.ndarray:
        pair = [part.reshape(groups, -1, *part.shape[1:]) for part in (x, last)]
        return np.concatenate(pair, 1).reshape(-1, *x.shape[1:])

    size = taken.group_size
    rollout = taken.rollout._replace(
        rows=_listed(taken.rollout.rows, shown.rows, size),
        texts=_listed(taken.rollout.texts, shown.texts, size),
        completions=_completions({name: join(own[name], other[name]) for name in own}),
    )
    numbers = [each._replace(feedback=None) for each in (taken.scores, scores)]
    return Taken(taken.indices, rollout, jax.tree.map(join, *numbers))


def _fields(completions: Completions) -> dict[str, Any]:
    """Those that are there, as arrays on the host."""
    return {name: np.asarray(x) for name, x in completions._asdict().items() if x is not None}


def _completions(fields: dict[str, Any]) -> Completions:
    return Completions(**fields)


def _listed(drawn: Sequence[Any], last: Sequence[Any], size: int) -> list[Any]:
    return [one for place, end in enumerate(last) for one in [*drawn[place * size : (place + 1) * size], end]]


def shown_rows(task: Task, column: str, learner: Learner, limits: LimitSettings) -> tuple[Task, Shown]:
    """The task with those rows to train on that have a demonstration which can be used, and these; the others are left
    out, which is said.

    Args:
        task: its rows.
        column: of the demonstrations.
        learner: its tokenizer and vocabulary.
        limits: of prompts and completions.

    Raises:
        DataError: no row has one.
    """
    rows, tokenizer = task.train, learner.tokenizer
    within = keep_within(Limits(limits.max_prompt_tokens, limits.max_new_tokens, learner.shape.vocab_size))

    def encoded(placed: Sequence[tuple[Row, str]]) -> list[tuple[Row, DemonstrationTokens]]:
        records = [Demonstration(row["prompt"], _demonstration(row, column, where), where) for row, where in placed]
        tokens = within(encode_demonstrations(tokenizer, records))
        return list(zip((row for row, _ in placed), tokens, strict=True))

    found = Kept(rows.name, list(zip(rows, rows.places, strict=True)), rows.places).then(encoded)
    check_alike(found.name, [tokens for _, tokens in found])
    tell(found.report())
    train = Kept(rows.name, [row for row, _ in found], found.places)
    shown = Shown([tokens for _, tokens in found], tokenizer, limits.max_new_tokens)
    return dataclasses.replace(task, train=train), shown


def _demonstration(row: Row, column: str, where: str) -> Any:
    if column not in row:
        raise DataError(f"{where}: no column {column!r} for demonstrations; the columns are {list_columns(row)}.")
    value = row[column]
    if not value or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: the demonstration in column {column!r} is empty.")
    if not isinstance(value, str | list):
        raise DataError(f"{where}: the demonstration in column {column!r} is {value!r}, wanted text or messages.")
    return value


def build_giving(settings: GrpoSettings, task: Task, learner: Learner, judge: Judge) -> tuple[Task, Giving]:
    """The task with the rows that can be used, and what is given in its groups.

    Args:
        settings: of the command.
        task: prompts.
        learner: reads demonstrations.
        judge: scores those that are members of groups.

    Raises:
        DataError: demonstrations are wanted and no row has one.
    """
    given, column = given_by(settings), settings.rollout.demonstrations
    if column is None:
        return task, answers_given if given == "answers" else nothing_given
    task, shown = shown_rows(task, column, learner, settings.sampling)
    return task, Members(shown, judge) if given == "members" else Demonstrations(shown)
