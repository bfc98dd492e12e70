"""Reward functions for verifiable answers, in TRL's signature ``f(prompts, completions, **columns) -> list``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w)\]}])[-\u2212\u2010\u2013\uff0d])?    # a dash right after a word or a bracket is an operator
    [$\u20ac\u00a3]?
    (?:
        (?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)
        (?:\.(?P<fraction>[0-9]+))?
      | \.(?P<bare_fraction>[0-9]+)
    )
    """,
    re.VERBOSE,
)


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Text of a completion: itself, or the content of its last message.

    Args:
        completion: a string, or messages ``[{"role": "assistant", "content": ...}]``.

    >>> completion_text([{"role": "assistant", "content": "42"}])
    '42'
    """
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"]) if completion else ""


def last_integer(text: str) -> str | None:
    """Decimal digits, with a leading ``-`` if negative, of the last number in ``text``.

    Commas between thousands, currency signs, Unicode minus signs, leading zeros and a fraction of zeros are read as
    people write them. A dash right after a word or a closing bracket is an operator, not a sign. A string is returned
    because it has no limit on its number of digits.

    Returns:
        The integer in its shortest form; ``None`` if there is no number or the last one is not an integer.

    >>> last_integer("12 + 30 = 42."), last_integer("about -1,234.00"), last_integer("10-3"), last_integer("it is 2.5")
    ('42', '-1234', '3', None)
    """
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    found = numbers[-1]
    if (found["fraction"] or found["bare_fraction"] or "").strip("0"):
        return None
    digits = (found["whole"] or "0").replace(",", "").lstrip("0") or "0"
    return f"-{digits}" if found["sign"] and digits != "0" else digits


def exact_answer(prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
    """1 where the completion, stripped of surrounding white space, is the answer; else 0.

    Args:
        prompts: not used.
        completions: strings or assistant messages.
        answer: column of right answers, compared as text.

    >>> exact_answer(["1+1=", "2+2="], ["2 ", "5"], answer=["2", "4"])
    [1.0, 0.0]
    """
    return [float(completion_text(given).strip() == str(right).strip()) for given, right in zip(completions, answer)]


def integer_answer(prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
    """1 where the last number in the completion is the integer that the answer holds; else 0.

    Args:
        prompts: not used.
        completions: strings or assistant messages.
        answer: column of right answers: integers, or text whose last number is one.

    Raises:
        ValueError: an answer holds no integer.

    >>> integer_answer(["", ""], ["17 + 25 = 42.", "Forty-one"], answer=["42", 41])
    [1.0, 0.0]
    """
    return [
        float(last_integer(completion_text(given)) == _expected(right)) for given, right in zip(completions, answer)
    ]


def _expected(answer: Any) -> str:
    digits = last_integer(str(answer))
    if digits is None:
        raise ValueError(f"the answer {answer!r} holds no integer")
    return digits


def matching(pattern: str) -> Callable[..., list[float]]:
    """Reward function ``format=REGEX``: 1 where the pattern matches the whole completion, else 0.

    Args:
        pattern: regular expression, in which a dot matches a line break too.

    Raises:
        ValueError: not a regular expression.

    >>> matching("<answer>.*</answer>")(["", ""], ["<answer>1\\n2</answer>", "So <answer>3</answer>"])
    [1.0, 0.0]
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression ({error})") from error

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        return [float(compiled.fullmatch(completion_text(given)) is not None) for given in completions]

    return reward


def word_limit(limit: int) -> Callable[..., list[float]]:
    """Reward function ``words=LIMIT``: 0 up to ``limit`` words, then falling linearly to -1 at twice as many.

    Args:
        limit: number of words between white space, at least 1.

    Raises:
        ValueError: a limit below 1.

    >>> word_limit(2)(["", "", "", ""], ["one two", "one two three", "1 2 3 4", "1 2 3 4 5"])
    [0.0, -0.5, -1.0, -1.0]
    """
    if limit < 1:
        raise ValueError(f"the limit is {limit}, wanted at least 1 word")

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        counts = [len(completion_text(given).split()) for given in completions]
        return [max(-1.0, min(0.0, (limit - count) / limit)) for count in counts]

    return reward


def repeated(size: int) -> Callable[..., list[float]]:
    """Reward function ``repetition=N``: minus the share of the runs of ``size`` words that occurred before.

    Args:
        size: number of words in a run, at least 1; a text of fewer words gets 0.

    Raises:
        ValueError: a size below 1.

    >>> repeated(2)(["", "", ""], ["a b a b a", "a b c", "a"])
    [-0.5, 0.0, 0.0]
    """
    if size < 1:
        raise ValueError(f"the size is {size}, wanted at least 1 word")

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        return [_minus_repeated_share(completion_text(given).split(), size) for given in completions]

    return reward


def _minus_repeated_share(words: Sequence[str], size: int) -> float:
    runs = list(zip(*(words[start:] for start in range(size))))
    return (len(set(runs)) - len(runs)) / len(runs) if runs else 0.0
