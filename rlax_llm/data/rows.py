"""Rows of a data set and their split into training and held-out."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

import numpy as np

from rlax_llm.core.wording import counted

T = TypeVar("T")
Row = dict[str, Any]
"""``prompt`` (a string, or chat messages ``[{"role": ..., "content": ...}]``), ``completion`` where there is a
demonstration (always a string), and any columns for the reward functions."""


_NONE = "none (--eval-size 0), or take those of a file (--eval-data)."
_MOST_HELD_OUT = 128

_OF_TOKENIZER = re.compile(r"^Tokenizer(\.\w+)?: ")


class DataError(ValueError):
    """A data set or task that cannot be read, built or split."""


def of_row(error: ValueError) -> str:
    """What an error of the tokenizer says of a row, without the function that says it.

    Args:
        error: of the row's text.

    >>> of_row(ValueError("Tokenizer.encode: 'z' at position 1 is not in the alphabet."))
    "'z' at position 1 is not in the alphabet."
    """
    return _OF_TOKENIZER.sub("", str(error))


def user_message(content: str) -> list[dict[str, str]]:
    """Prompt of one user turn, for a model with a chat template.

    >>> user_message("Hi")
    [{'role': 'user', 'content': 'Hi'}]
    """
    return [{"role": "user", "content": content}]


def held_out_share(where: str, keys: Sequence[Hashable], wanted: int | None) -> tuple[int, str]:
    """How many rows to hold out, and a line about it where nobody chose and the data is small.

    Args:
        where: what the line calls the data.
        keys: as of ``split_rows``.
        wanted: the number that was asked for; None is a row for each ten prompts, at most 128.

    >>> held_out_share("letters", "abcdefghijklmnopqrstuvwxyz", None)
    (2, 'letters: 2 of 26 rows are held out, a tenth of the prompts; --eval-size takes another number.')
    >>> held_out_share("letters", "ab", 1), held_out_share("letters", range(5000), None)
    ((1, ''), (128, ''))
    """
    if wanted is not None:
        return wanted, ""
    size = min(len(set(keys)) // 10, _MOST_HELD_OUT)
    if size == _MOST_HELD_OUT:
        return size, ""
    if size == 0:
        few = "of fewer than 10 prompts; --eval-size or --eval-data gives rows to measure on."
        return 0, f"{where}: no row is held out {few}"
    held_out = f"{size} of {counted(len(keys), 'row')} {'is' if size == 1 else 'are'} held out"
    return size, f"{where}: {held_out}, a tenth of the prompts; --eval-size takes another number."


def split_rows(
    where: str, rows: Sequence[T], keys: Sequence[Hashable], held_out_size: int, seed: int
) -> tuple[list[T], list[T]]:
    """Split rows at random so that no key is on both sides.

    Args:
        where: what errors call the data.
        rows: at least one, of any type.
        keys: for each row, what makes it the same problem as another; at least two different ones to hold any out.
        held_out_size: number of held-out rows; 0 leaves all to train on. A key with more rows than are still wanted
            loses the others: they are on neither side.
        seed: not negative; the split is a function of the arguments.

    Returns:
        Training rows in their order, and held-out rows in random order.

    Raises:
        DataError: fewer than two keys of which some are to be held out, or a ``held_out_size`` that is negative or
            leaves nothing to train on.

    >>> train, held_out = split_rows("letters", [{"prompt": c} for c in "aabc"], "aabc", held_out_size=1, seed=1)
    >>> {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    set()
    """
    for name, value in (("held_out_size", held_out_size), ("seed", seed)):
        if value < 0:
            raise DataError(f"{where}: {name} is {value}, wanted 0 or more.")
    if held_out_size == 0:
        return list(rows), []
    groups = _indices_of_keys(keys)
    if len(groups) < 2:
        raise DataError(f"{where}: only one prompt in all, and holding some out needs at least 2; hold out {_NONE}")
    shuffled = list(groups)
    held_out: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(groups)).tolist():
        if len(held_out) == held_out_size:
            break
        held_out += groups.pop(shuffled[index])[: held_out_size - len(held_out)]
    if not groups:
        raise DataError(
            f"{where}: holding out {held_out_size} of {len(rows)} rows leaves none to train on; hold out fewer, {_NONE}"
        )
    left = sorted(itertools.chain.from_iterable(groups.values()))
    return [rows[index] for index in left], [rows[index] for index in held_out]


def _indices_of_keys(keys: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """The rows of each key, keys in the order in which they first appear."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return groups


def batch_indices(size: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Rows of batch number ``step`` (from 0): a pure function, so a resumed run needs nothing but its step.

    Every epoch is a fresh permutation of all rows; batches follow one another through it and may span two epochs.

    Args:
        size: number of rows in the data set.
        batch_size: number of rows in a batch; may exceed ``size``.
        seed: not negative.
        step: not negative.

    Returns:
        int64 ``[batch_size]``, each from 0 up to ``size``.

    Raises:
        DataError: an empty data set, or an argument out of range.

    >>> sorted(int(row) for step in range(3) for row in batch_indices(6, 2, seed=0, step=step))
    [0, 1, 2, 3, 4, 5]
    """
    if size < 1:
        raise DataError("batch_indices: the data set is empty; give at least one row.")
    if batch_size < 1:
        raise DataError(f"batch_indices: batch_size is {batch_size}, wanted at least 1.")
    for name, value in (("seed", seed), ("step", step)):
        if value < 0:
            raise DataError(f"batch_indices: {name} is {value}, wanted 0 or more.")
    first = step * batch_size
    epochs = range(first // size, math.ceil((first + batch_size) / size))
    shuffled = np.concatenate([np.random.default_rng([seed, epoch]).permutation(size) for epoch in epochs])
    offset = first - epochs[0] * size
    return shuffled[offset : offset + batch_size]
