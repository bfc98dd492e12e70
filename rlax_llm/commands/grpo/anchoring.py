"""The turns of completions that called tools: which tokens they have, which state they begin in, what they earned.

A state is what the tool answered last; before the first answer it is the prompt. So turns of a group are compared that
read the same answer, however they came to it (GiGPO's anchors, arXiv 2505.10978).
"""

from __future__ import annotations

import numpy as np

from rlax_llm.commands.grpo.gathering import Taken
from rlax_llm.commands.rollouts import Rollout
from rlax_llm.core.types import Completions

TURNS = 4
"""Times that a model generates in a completion with a tool, at most."""
DISCOUNT = 0.95
"""Of a turn, as in the paper: a right answer is worth the more, the sooner it comes."""
_NOWHERE = -1


def turn_numbers(completions: Completions, width: int) -> np.ndarray:
    """The turn that each token belongs to, ``[B, T]`` int32: the answers of tools that begin before it, or with it.

    Args:
        completions: on the host.
        width: the columns of prompts.
    """
    answered = _answered(completions, width)
    before = np.pad(answered, ((0, 0), (1, 0)))[:, :-1]
    return np.cumsum(answered & ~before, -1, dtype=np.int32)


def _answered(completions: Completions, width: int) -> np.ndarray:
    """Tokens behind a prompt that the policy did not choose."""
    valid, mask = np.asarray(completions.valid), np.asarray(completions.mask)
    return valid & ~mask & (np.arange(valid.shape[1]) >= width)


def call_metrics(rollout: Rollout) -> dict[str, float]:
    """By TRL's name, how many calls of a completion a tool answered, in the mean.

    Args:
        rollout: of a model with a tool; rows without a chosen token do not count.
    """
    answers = turn_numbers(rollout.completions, rollout.prompt_width).max(-1)
    return {"tools/call_frequency": float(answers[rollout.lengths() > 0].mean())}


def turn_anchors(completions: Completions, width: int) -> np.ndarray:
    """The state that each turn begins in, ``[B, TURNS]`` int32: 0 is the prompt, others are equal where answers are.

    Args:
        completions: on the host.
        width: the columns of prompts.
    """
    answered, numbers = _answered(completions, width), turn_numbers(completions, width)
    tokens, known = np.asarray(completions.tokens), dict[tuple[int, ...], int]()
    found = np.full((len(tokens), TURNS), _NOWHERE, np.int32)
    found[:, 0] = 0
    for row, turn in np.ndindex(len(tokens), TURNS):
        answer = tuple(tokens[row, answered[row] & (numbers[row] == turn)].tolist())
        if answer:
            found[row, turn] = known.setdefault(answer, len(known) + 1)
    return found


def turn_returns(completions: Completions, width: int, scores: np.ndarray) -> np.ndarray:
    """What is earned from each turn on, ``[B, TURNS]``: ``γ^(last − k) · score``; NaN where nothing was chosen in it.

    Args:
        completions: on the host.
        width: the columns of prompts.
        scores: ``[B]``, earned with the last token.
    """
    numbers, mask = turn_numbers(completions, width), np.asarray(completions.mask)
    turns = np.arange(TURNS)
    there = ((numbers[..., None] == turns) & mask[..., None]).any(1)
    last = np.where(mask, numbers, 0).max(-1, keepdims=True)
    return np.where(there, scores[:, None] * DISCOUNT ** (last - turns), np.nan).astype(np.float32)


def numbers_of(taken: Taken) -> np.ndarray:
    """``turn_numbers`` of scored groups, ``[P, G, T]``."""
    return _by_group(taken, turn_numbers(taken.rollout.completions, taken.rollout.prompt_width))


def anchors_of(taken: Taken) -> np.ndarray:
    """``turn_anchors`` of scored groups, ``[P, G, TURNS]``."""
    return _by_group(taken, turn_anchors(taken.rollout.completions, taken.rollout.prompt_width))


def returns_of(taken: Taken) -> np.ndarray:
    """``turn_returns`` of scored groups, ``[P, G, TURNS]``."""
    rollout = taken.rollout
    return _by_group(taken, turn_returns(rollout.completions, rollout.prompt_width, taken.scores.total))


def _by_group(taken: Taken, of_rows: np.ndarray) -> np.ndarray:
    return of_rows.reshape(len(taken.indices), taken.group_size, -1)
