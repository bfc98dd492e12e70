"""Steps of a completion: where its text and its tokens are parted, and what a function says of the parts.

A step is a piece of text that a separator ends. Blank pieces are no steps: they belong to the one that follows.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlax_llm.core.user_code import named_function
from rlax_llm.rewards.calling import Reward, RewardError, numbers_of


class Step(NamedTuple):
    """A piece of a completion.

    Attributes:
        text: without the separator that ends it.
        end: characters of the completion up to its end, the separator's included; or the number of its last token.
    """

    text: str
    end: int


def split_steps(text: str, separator: str) -> list[Step]:
    """The steps of a text, at least one; what stands after the last separator is one too, unless it is blank.

    Args:
        text: of a completion.
        separator: that ends a step, not empty.

    >>> split_steps("1+2 is 3\\n\\n3+3 is 6", "\\n")
    [Step(text='1+2 is 3', end=9), Step(text='3+3 is 6', end=18)]
    >>> split_steps(" ", "\\n")
    [Step(text=' ', end=1)]
    """
    found, end = [], 0
    for piece in text.split(separator):
        end = min(end + len(piece) + len(separator), len(text))
        if piece.strip():
            found.append(Step(piece, end))
    return found or [Step(text, len(text))]


def locate_steps(decode: Callable[[Sequence[int]], str], ids: Sequence[int], text: str, separator: str) -> list[Step]:
    """The steps of a completion by their last tokens: that with which a step's separator is whole.

    The last step ends with the last token, a stop token too. Steps that end within one token are one.

    Args:
        decode: tokens to text.
        ids: of the tokens that were chosen; of none there is no step.
        text: what they say, or the beginning of it.
        separator: that ends a step.

    >>> letters = lambda ids: "".join("ab.#"[i] for i in ids)
    >>> locate_steps(letters, [0, 1, 2, 1, 2, 3], "ab.b.", ".")
    [Step(text='ab', end=2), Step(text='b', end=5)]
    """
    found: list[Step] = []
    steps = split_steps(text, separator) if ids else []
    for step in steps:
        token = len(ids) - 1
        if step is not steps[-1]:
            begun = text[: step.end]
            rest = range(found[-1].end if found else 0, token)
            token = rest.start + bisect.bisect_left(rest, True, key=lambda n: decode(ids[: n + 1]).startswith(begun))
        before = found.pop() if found and found[-1].end == token else None
        found.append(Step(step.text if before is None else before.text + separator + step.text, token))
    return found


def load_step_reward(spec: str) -> Reward:
    """The function of steps that ``spec`` names: ``f(row, steps) → numbers``, one for each step.

    Args:
        spec: ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``.

    Raises:
        RewardError: as ``named_function``.

    >>> load_step_reward("rlax_llm.rewards.steps:split_stepps")
    Traceback (most recent call last):
    rlax_llm.rewards.calling.RewardError: step reward 'rlax_llm.rewards.steps:split_stepps': rlax_llm.rewards.steps has
    no function 'split_stepps'; did you mean 'split_steps'?
    """
    return Reward(spec.rpartition(":")[2], named_function("step reward", spec, RewardError), spec=spec)


def score_steps(reward: Reward, row: Mapping[str, Any], steps: Sequence[str], index: int) -> list[float]:
    """What a function of steps says of one completion: a number for each step, NaN where it abstains (``None``).

    Args:
        reward: of ``load_step_reward``.
        row: of the data, its prompt included.
        steps: texts.
        index: what errors call the row.

    Raises:
        RewardError: what it returned is not a number for each step. Exceptions inside the function pass as they are.

    >>> score_steps(Reward("size", lambda row, steps: [len(step) for step in steps]), {}, ["a", "bcd"], 0)
    [1.0, 3.0]
    """
    returned = reward.function(dict(row), list(steps))
    places = [f"step {number} of row {index}" for number in range(len(steps))]
    return numbers_of(reward, returned, places, f"steps of row {index}")
