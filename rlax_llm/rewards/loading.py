"""Finding reward functions by name: built-in ones, ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``, with weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from rlax_llm.core.names import did_you_mean
from rlax_llm.core.user_code import named_function, whole_path
from rlax_llm.rewards import mathematics
from rlax_llm.rewards.calling import Reward, RewardError
from rlax_llm.rewards.functions import (
    exact_answer,
    expected_integer,
    format_match,
    integer_answer,
    repetition,
    word_limit,
)
from rlax_llm.rewards.golds import answer_text


class Family(NamedTuple):
    """Built-in reward functions that differ in one argument, written ``NAME=ARGUMENT``.

    Attributes:
        argument: what messages call the argument.
        function: from the text of the argument to the reward function; raises ``ValueError`` where it does not fit.
    """

    argument: str
    function: Callable[[str], Callable[..., Any]]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a whole number") from error


BUILT_IN = {
    "exact_answer": exact_answer,
    "integer_answer": integer_answer,
    "math_answer": mathematics.math_answer,
}
_READ: dict[Callable[..., Any], Callable[[Any], bool]] = {
    exact_answer: lambda answer: answer_text(answer) is not None,
    integer_answer: lambda answer: expected_integer(answer) is not None,
    mathematics.math_answer: mathematics.is_readable,
}
FAMILIES = {
    "format": Family("REGEX", format_match),
    "words": Family("LIMIT", lambda text: word_limit(_whole(text))),
    "repetition": Family("N", lambda text: repetition(_whole(text))),
}


def load_rewards(spec: str) -> tuple[Reward, ...]:
    """Reward functions and weights of a sum such as ``integer_answer + 0.2*format=<answer>.*</answer>``.

    Args:
        spec: terms with `` + `` between them, blanks on both sides; each is what ``load_reward`` takes, after
            ``WEIGHT*`` if its weight is not 1. A weight of 0 only logs the scores. In a regular expression, write
            ``[+]`` or ``\\+`` for a plus between blanks.

    Raises:
        RewardError: a weight that is not a finite number, two rewards of one name, or as ``load_reward``.

    >>> [(reward.name, reward.weight) for reward in load_rewards("integer_answer + 0.2*format=<answer>.*</answer>")]
    [('integer_answer', 1.0), ('format', 0.2)]
    """
    rewards = tuple(_term(spec, text.strip()) for text in spec.split(" + "))
    names = [reward.name for reward in rewards]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RewardError(
            f"rewards {spec!r}: two are named {twice!r}, wanted different names, for metrics go by them; put one of "
            "them into a function with a name of its own."
        )
    return rewards


def _term(spec: str, text: str) -> Reward:
    if not text:
        raise RewardError(f"rewards {spec!r}: there is an empty term, wanted a reward on both sides of each ' + '.")
    weighted = _weighted(text)
    if weighted is None:
        return load_reward(text)
    try:
        weight = float(weighted[1])
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise RewardError(f"rewards {spec!r}: the weight {weighted[1].strip()!r} is not a finite number.")
    return load_reward(weighted[2].strip())._replace(weight=weight)


def anchor_files(spec: str) -> str:
    """The rewards of ``load_rewards`` by names that find them from any directory: files by their whole paths.

    Args:
        spec: as ``load_rewards`` takes it; a name that is no file here stays as it is.

    >>> anchor_files("integer_answer + 0.5*no_such_file.py:score")
    'integer_answer + 0.5*no_such_file.py:score'
    """
    return " + ".join(_anchored(text) for text in spec.split(" + "))


def _anchored(text: str) -> str:
    weight, rest = (f"{weighted[1]}*", weighted[2]) if (weighted := _weighted(text)) else ("", text)
    found = whole_path(rest)
    return text if found == rest else f"{weight}{found}"


def _weighted(text: str) -> re.Match[str] | None:
    """``weight*reward``; an asterisk after the name belongs to a regular expression or a path."""
    return re.fullmatch(r"([^*=:]*)\*(.*)", text, re.DOTALL)


def load_reward(spec: str) -> Reward:
    """Reward function that ``spec`` names, with weight 1.

    Args:
        spec: ``exact_answer``, ``integer_answer``, ``math_answer``, ``format=REGEX``, ``words=LIMIT``,
            ``repetition=N``, ``MODULE:FUNCTION`` (looked up in the working directory first) or ``FILE.py:FUNCTION``.

    Raises:
        RewardError: as ``named_function``, an argument that does not fit, or math-verify missing.

    >>> load_reward("integer_answer").name
    'integer_answer'
    >>> load_reward("rlax_llm.rewards.functions:exact_anser")
    Traceback (most recent call last):
    rlax_llm.rewards.calling.RewardError: reward 'rlax_llm.rewards.functions:exact_anser':
    rlax_llm.rewards.functions has no function 'exact_anser'; did you mean 'exact_answer'?
    """
    family, equals, argument = spec.partition("=")
    if spec == "math_answer":
        mathematics.import_math_verify()  # now, not in the middle of a run or in the time of a worker's first row
    if spec in BUILT_IN:
        return Reward(spec, BUILT_IN[spec], spec=spec)
    if equals and family in FAMILIES:
        return _member(spec, family, argument)
    place, _, name = spec.rpartition(":")
    if not (place and name) or (equals and family.isidentifier() and not place.endswith(".py")):
        known = ", ".join([*BUILT_IN, *(f"{family}={FAMILIES[family].argument}" for family in FAMILIES)])
        hint = did_you_mean(family, [*BUILT_IN, *FAMILIES])
        raise RewardError(f"reward {spec!r}: wanted MODULE:FUNCTION, FILE.py:FUNCTION or one of {known}{hint}")
    return Reward(name, named_function("reward", spec, RewardError), spec=spec)


def unread_answers(reward: Reward, answers: Iterable[Any]) -> list[Any]:
    """The right answers that a built-in reward cannot read, so that their rows have no score from it.

    Args:
        reward: any; of other functions nothing is known, and the list is empty.
        answers: the column ``answer``.

    >>> unread_answers(load_reward("integer_answer"), ["42", None, "many", 3.0])
    [None, 'many']
    """
    read = _READ.get(reward.function)
    return [] if read is None else [answer for answer in answers if not read(answer)]


def _member(spec: str, family: str, argument: str) -> Reward:
    try:
        return Reward(family, FAMILIES[family].function(argument), spec=spec)
    except ValueError as error:
        raise RewardError(f"reward {spec!r}: {error}; it is written {family}={FAMILIES[family].argument}.") from error
