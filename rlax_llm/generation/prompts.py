"""Ragged prompts as one array, in few widths, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rlax_llm.core import checks
from rlax_llm.core.mesh import lies_here
from rlax_llm.models.padding import bucket, longest, pad_left

FEWEST = 8  # columns; fewer save nothing

Prompts = tuple[jax.Array, jax.Array] | tuple[np.ndarray, np.ndarray]
"""``tokens [P, W]`` int32 and ``valid [P, W]`` bool, padded on the left; on the host until a program reads them."""


class Widths(NamedTuple):
    """Columns for prompts, few in a run: the most that there can be, halved as long as the prompts fit.

    Nothing depends on the batches before: a run that goes on takes the widths of an unbroken one.

    Attributes:
        most: of the longest prompt that there can be, tokens.

    >>> widths = Widths(200)
    >>> [widths(longest) for longest in (40, 30, 50, 20, 97, 198)]
    [64, 32, 64, 32, 128, 256]
    """

    most: int

    def __call__(self, longest: int) -> int:
        """The columns for prompts of which the longest has so many tokens."""
        width = bucket(self.most)
        while width >= 2 * max(longest, FEWEST):
            width //= 2
        return width


def pad_prompts(
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    vocab_size: int,
    max_prompt_tokens: int | None = None,
    width: Callable[[int], int] = bucket,
) -> Prompts:
    """Pad token lists on the left to one bucketed width.

    Args:
        prompts: token ids of each prompt.
        pad_id: the padding's id; it is masked, so any id in the vocabulary does.
        vocab_size: ids must be below it.
        max_prompt_tokens: the longest prompt allowed, and the most columns; or None for any.
        width: columns for prompts of which the longest has so many tokens.

    Returns:
        ``tokens [P, W]`` int32 and ``valid [P, W]`` bool, on the host.

    Raises:
        ValueError: naming the row of an empty prompt, one that is too long, or one with a token beyond the vocabulary.

    >>> tokens, valid = pad_prompts([[5, 6], [7]], 0, 10)
    >>> tokens[:, -3:].tolist(), valid[:, -3:].tolist()
    ([[0, 5, 6], [0, 0, 7]], [[False, True, True], [False, False, True]])
    """
    for row, prompt in enumerate(prompts):
        _check(row, prompt, vocab_size, max_prompt_tokens)
    columns = width(longest(prompts))
    # No prompt needs more, and a model may have no positions for more.
    columns = columns if max_prompt_tokens is None else min(columns, max_prompt_tokens)
    return pad_left(prompts, columns, pad_id)


def check_prompts(where: str, prompts: Prompts) -> None:
    """Raise for what is no prompts to complete: under ``jit`` by its shapes, on the host by what is in it too.

    Args:
        where: what the message begins with.
        prompts: ``tokens [P, W]`` and ``valid [P, W]``.

    Raises:
        ValueError: for no prompts, no columns, two shapes, a ``valid`` that is not bool, or a prompt that does not end
            in the last column or has padding between its tokens.

    >>> check_prompts("generate", (np.array([[5, 6, 0]]), np.array([[True, True, False]])))
    Traceback (most recent call last):
    ValueError: generate: prompt 0 has no token in the last column; pad prompts on the left, as pad_prompts does.
    """
    tokens, valid = prompts
    shape = checks.shape(where, "tokens", tokens)
    checks.same_shape(where, valid=valid, tokens=tokens)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"{where}: tokens has shape {shape}, wanted [prompts, columns] with at least one of each; make them by "
            "pad_prompts."
        )
    if valid.dtype != bool:  # numbers would be read as places
        raise ValueError(f"{where}: valid is {valid.dtype}, wanted bool; give valid.astype(bool).")
    if not lies_here(valid):
        return
    held = np.asarray(valid)
    ends, holes = held[:, -1], (held[:, :-1] & ~held[:, 1:]).any(1)
    if not ends.all():
        raise ValueError(
            f"{where}: prompt {ends.argmin()} has no token in the last column; pad prompts on the left, as pad_prompts "
            "does."
        )
    if holes.any():
        raise ValueError(
            f"{where}: prompt {holes.argmax()} has padding between its tokens; pad prompts on the left, as pad_prompts "
            "does."
        )


def _check(row: int, prompt: Sequence[int], vocab_size: int, limit: int | None) -> None:
    if len(prompt) == 0:
        raise ValueError(f"pad_prompts: prompt {row} is empty; a completion needs at least one token before it.")
    if limit is not None and len(prompt) > limit:
        raise ValueError(
            f"pad_prompts: prompt {row} has {len(prompt)} tokens, max_prompt_tokens is {limit}; raise the limit or "
            "leave the row out."
        )
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise ValueError(
            f"pad_prompts: prompt {row} holds token {max(prompt) if min(prompt) >= 0 else min(prompt)}, the "
            f"vocabulary has {vocab_size}; use the model's own tokenizer."
        )
