"""Rows of token ids as ``Completions``: prompts padded on the left, completions on the right, in few widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.types import Completions
from rlax_llm.data.encoding import DemonstrationTokens, LabeledTokens, PairTokens, StepwiseTokens
from rlax_llm.data.rows import DataError
from rlax_llm.models.padding import bucket, longest, pad_left, pad_right
from rlax_llm.preference.unpaired import mismatched_rows

Widths = tuple[int | None, int | None]
AS_NEEDED: Widths = (None, None)


class PairRows(NamedTuple):
    """A batch of B pairs.

    Attributes:
        completions: ``[2B, T]``; row 2b is chosen, row 2b + 1 rejected, of one prompt. With gold responses there are
            three rows for each pair.
        prompt_width: the columns that hold prompts.
        margins: ``[B]`` float32, in the units of rewards, or None where the pairs have none.
    """

    completions: Completions
    prompt_width: int
    margins: jax.Array | None


class LabeledRows(NamedTuple):
    """A batch of B labeled completions with B mismatched ones.

    Attributes:
        completions: ``[2B, T]``; row 2b is a prompt with its own completion, row 2b + 1 with another prompt's.
        prompt_width: the columns that hold prompts.
        desirable: ``[B]`` bool, the labels.
    """

    completions: Completions
    prompt_width: int
    desirable: jax.Array


class DemonstrationRows(NamedTuple):
    """A batch of B demonstrations.

    Attributes:
        completions: ``[B, T]``.
        prompt_width: the columns that hold prompts.
    """

    completions: Completions
    prompt_width: int


class StepwiseRows(NamedTuple):
    """A batch of B completions of labeled steps.

    Attributes:
        completions: ``[B, T]``.
        prompt_width: the columns that hold prompts.
        ends: ``[B, T]`` bool, the last token of each step.
        right: ``[B, T]`` bool, the labels, at ``ends``.
    """

    completions: Completions
    prompt_width: int
    ends: jax.Array
    right: jax.Array


def pair_rows(rows: Sequence[PairTokens], pad_id: int, widths: Widths = AS_NEEDED, third: bool = False) -> PairRows:
    """Pairs as the learner reads them, two rows per prompt: ``group_log_probs(config, (2, prompt_width))``.

    Args:
        rows: B pairs, at least one.
        pad_id: the padding's id; it is masked.
        widths: columns for prompts and for completions; None takes the bucket of the longest.
        third: with the gold response of each pair as a third row, which all must have.

    Raises:
        DataError: no row, or one that is longer than its columns.

    >>> batch = pair_rows([PairTokens([5, 6], [7, 1], [1], margin=0.5)], 0, widths=(3, 2))
    >>> batch.completions.tokens.tolist(), batch.completions.mask.astype(int).tolist(), batch.margins.tolist()
    ([[0, 5, 6, 7, 1], [0, 5, 6, 1, 0]], [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]], [0.5])
    """
    sides = [side for row in rows for side in _responses(row, third)]
    (tokens, valid, mask), width = _laid("pair_rows", [row.prompt for row in rows], sides, pad_id, widths)
    learned = [own for row in rows for own in (*row.learned, None)[: 2 + third]]
    mask[:, width:] &= _learned(sides, learned, mask.shape[1] - width)
    margins = None if rows[0].margin is None else jnp.asarray([row.margin for row in rows], jnp.float32)
    return PairRows(given_completions(tokens, valid, mask), width, margins)


def _responses(row: PairTokens, third: bool) -> tuple[list[int], ...]:
    return (row.chosen, row.rejected, row.gold or []) if third else (row.chosen, row.rejected)


def labeled_rows(rows: Sequence[LabeledTokens], pad_id: int, widths: Widths = AS_NEEDED) -> LabeledRows:
    """Labeled completions, each followed by its prompt with another row's completion: KTO's mismatched pairs.

    They are taken over the whole batch, row b from row ``b − offset`` (cyclic). The offset is the smallest of those
    with the fewest rows whose prompt is also the other row's: a completion of the same prompt is no mismatch. Where
    such a row is left, its mismatched completion is masked out, and counts nowhere.

    Args:
        rows: B labeled completions, of at least two prompts.
        pad_id: the padding's id; it is masked.
        widths: columns for prompts and for completions; None takes the bucket of the longest.

    Raises:
        DataError: no row, or one that is longer than its columns.

    >>> rows = [LabeledTokens([prompt], [completion, 1], True) for prompt, completion in ((5, 6), (5, 7), (8, 9))]
    >>> batch = labeled_rows(rows, 0, widths=(1, 2))
    >>> batch.completions.tokens[1::2].tolist(), batch.completions.mask[1::2, 1].tolist()
    ([[5, 9, 1], [5, 6, 1], [8, 7, 1]], [True, False, True])
    """
    prompts = [row.prompt for row in rows]
    offset, meets = _mismatch(prompts)
    other = mismatched_rows(len(rows), offset).tolist() if len(rows) > 1 else [0] * len(rows)
    taken = [one for row, index in zip(rows, other) for one in (row, rows[index])]
    sides = [row.completion for row in taken]
    (tokens, valid, mask), width = _laid("labeled_rows", prompts, sides, pad_id, widths)
    mask[:, width:] &= _learned(sides, [row.learned for row in taken], mask.shape[1] - width)
    mask[1::2] &= ~meets[:, None]
    return LabeledRows(given_completions(tokens, valid, mask), width, jnp.asarray([row.label for row in rows]))


def demonstration_rows(
    rows: Sequence[DemonstrationTokens], pad_id: int, widths: Widths = AS_NEEDED
) -> DemonstrationRows:
    """Demonstrations, one per row; ``mask`` is True on what is the assistant's.

    Args:
        rows: B demonstrations, at least one.
        pad_id: the padding's id; it is masked.
        widths: columns for prompts and for completions; None takes the bucket of the longest.

    Raises:
        DataError: no row, or one that is longer than its columns.

    >>> batch = demonstration_rows([DemonstrationTokens([5], [6, 1])], 0, widths=(2, 3))
    >>> batch.completions.tokens.tolist(), batch.completions.mask.astype(int).tolist()
    ([[0, 5, 6, 1, 0]], [[0, 0, 1, 1, 0]])
    """
    prompts = [row.prompt for row in rows]
    sides = [row.completion for row in rows]
    (tokens, valid, mask), width = _laid("demonstration_rows", prompts, sides, pad_id, widths)
    mask[:, width:] &= _learned(sides, [row.learned for row in rows], mask.shape[1] - width)
    return DemonstrationRows(given_completions(tokens, valid, mask), width)


def stepwise_rows(
    rows: Sequence[StepwiseTokens], pad_id: int, widths: Widths = AS_NEEDED, group_size: int = 1
) -> StepwiseRows:
    """Completions of labeled steps, one per row.

    Args:
        rows: B completions, at least one.
        pad_id: the padding's id; it is masked.
        widths: columns for prompts and for completions; None takes the bucket of the longest.
        group_size: consecutive rows of one prompt.

    Raises:
        DataError: no row, or one that is longer than its columns.

    >>> batch = stepwise_rows([StepwiseTokens([5], [[6, 1], [7, 1]], [True, False])], 0, widths=(2, 5))
    >>> batch.completions.tokens.tolist(), batch.ends.astype(int).tolist(), batch.right.astype(int).tolist()
    ([[0, 5, 6, 1, 7, 1, 0]], [[0, 0, 0, 1, 0, 1, 0]], [[0, 0, 0, 1, 0, 0, 0]])
    """
    prompts = [row.prompt for row in rows[::group_size]]
    (tokens, valid, mask), width = _laid("stepwise_rows", prompts, [row.completion for row in rows], pad_id, widths)
    ends, right = np.zeros_like(mask), np.zeros_like(mask)
    for place, row in enumerate(rows):
        columns = width - 1 + np.cumsum([len(step) for step in row.steps])
        ends[place, columns] = True
        right[place, columns] = row.labels
    return StepwiseRows(given_completions(tokens, valid, mask), width, jnp.asarray(ends), jnp.asarray(right))


def learned_ids(completion: Sequence[int], learned: Sequence[bool] | None) -> list[bool]:
    """For each id of a completion, whether it is learned; None stands for all.

    >>> learned_ids([6, 1], None)
    [True, True]
    """
    return [True] * len(completion) if learned is None else list(learned)


def _learned(
    completions: Sequence[Sequence[int]], learned: Sequence[Sequence[bool] | None], columns: int
) -> np.ndarray:
    """``learned_ids`` of every completion, in as many columns."""
    return pad_right(list(map(learned_ids, completions, learned)), columns, 0)[0].astype(bool)


def given_completions(tokens: np.ndarray, valid: np.ndarray, mask: np.ndarray) -> Completions:
    """Completions that no sampler drew: no log-probabilities, nothing cut off.

    Args:
        tokens: ``[B, T]`` int32.
        valid: ``[B, T]`` bool.
        mask: ``[B, T]`` bool.

    >>> given_completions(np.zeros((1, 2), np.int32), np.ones((1, 2), bool), np.ones((1, 2), bool)).kept is None
    True
    """
    # Made on the host: device arithmetic would be compiled for each width.
    unknown = np.zeros(tokens.shape, np.float32)
    return Completions(
        tokens=jnp.asarray(tokens.astype(np.int32)),
        valid=jnp.asarray(valid),
        mask=jnp.asarray(mask),
        log_probs=jnp.asarray(unknown),
        truncated=jnp.asarray(np.zeros(len(tokens), bool)),
    )


def _laid(
    where: str, prompts: Sequence[list[int]], completions: Sequence[list[int]], pad_id: int, widths: Widths
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
    """Tokens, valid and mask, as many rows per prompt as there are more completions; and the prompts' width."""
    if not prompts:
        raise DataError(f"{where}: no rows, wanted at least one.")
    prompt_columns = _columns(where, "prompts", prompts, widths[0])
    columns = _columns(where, "completions", completions, widths[1])
    prompt, prompt_valid = pad_left(prompts, prompt_columns, pad_id)
    completion, valid = pad_right(completions, columns, pad_id)
    group_size = len(completions) // len(prompts)
    prompt, prompt_valid = (np.repeat(x, group_size, 0) for x in (prompt, prompt_valid))
    tokens = np.concatenate([prompt, completion], 1)
    mask = np.concatenate([np.zeros_like(prompt_valid), valid], 1)
    return (tokens, np.concatenate([prompt_valid, valid], 1), mask), prompt.shape[1]


def _columns(where: str, name: str, rows: Sequence[list[int]], width: int | None) -> int:
    """The width that is given, or the bucket of the longest row."""
    most = longest(rows)
    if width is None:
        return bucket(most)
    if most > width:
        raise DataError(f"{where}: {most} tokens for {width} columns of {name}; give more columns or shorter rows.")
    return width


def _mismatch(prompts: Sequence[list[int]]) -> tuple[int, np.ndarray]:
    """The offset with the fewest rows that meet their own prompt, and which rows do."""
    names: dict[tuple[int, ...], int] = {}
    own = np.array([names.setdefault(tuple(prompt), len(names)) for prompt in prompts])
    best = 1
    fewest = len(own) + 1
    for offset in range(1, len(own)):
        meeting = int((own == np.roll(own, offset)).sum())
        if meeting < fewest:
            best = offset
            fewest = meeting
        if meeting == 0:
            break
    return best, own == np.roll(own, best)
