"""Reward functions for verifiable answers, in TRL's signature ``f(prompts, completions, **columns) -> list``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlax_llm.rewards.golds import answer_text, known_answer

_BLANK = r"[ \u00a0\u2009\u202f]|\\[,!:; ]|\\?\{,\}|,\\!|,"
_NUMBER = re.compile(
    r"""
    (?P<part>    # of a fraction, a power or a name
        (?:[\d)}\]a-zA-Z]\s?/|[_^]|(?<=[\w)])\*\*)\s?[{(]?
      | \\[dtc]?frac\s*(?:\{[^{}]*\}|\d)\s*\{?
    )?
    (?P<sign>(?<![\w)\]}])[-\u2212\u2010\u2013\uff0d])?    # a dash right after a word or a bracket is an operator
    (?:\\?[$\u20ac\u00a3])?
    (?:
        (?P<whole>[0-9]{1,3}(?:(?:BLANK)[0-9]{3})+(?![0-9])|[0-9]+)
        (?:\.(?P<fraction>[0-9]+))?
      | \.(?P<bare_fraction>[0-9]+)
    )
    (?:[eE](?P<exponent>[-+]?[0-9]{1,4})(?![\w]))?
    """.replace("BLANK", _BLANK.replace(" ", "\\ ")),
    re.VERBOSE,
)
_LARGEST_EXPONENT = 1000


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

    Commas or blanks between thousands, currency signs, Unicode minus signs, leading zeros, a fraction of zeros and a
    power of ten are read as people write them. A dash right after a word or a closing bracket is an operator, not a
    sign. A string is returned because it has no limit on its number of digits.

    Returns:
        The integer in its shortest form; ``None`` if there is no number, or the last one is not an integer, is part of
        a fraction or a power, or is one of two different numbers with "or" between them.

    >>> last_integer("12 + 30 = 42."), last_integer("about -1,234.00"), last_integer("10-3"), last_integer("it is 2.5")
    ('42', '-1234', '3', None)
    >>> last_integer("1e3 or 1 000"), last_integer("3 1/2"), last_integer("4 or 5")
    ('1000', None, None)
    """
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    found = _integer(numbers[-1])
    if len(numbers) > 1 and re.fullmatch(r"[\s,$*]*\bor\b[\s$*]*", text[numbers[-2].end() : numbers[-1].start()]):
        return found if found == _integer(numbers[-2]) else None
    return found


def _integer(found: re.Match[str]) -> str | None:
    if found["part"]:
        return None
    whole = re.sub(r"\D", "", found["whole"] or "")
    fraction = found["fraction"] or found["bare_fraction"] or ""
    exponent = int(found["exponent"] or 0)
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    point = len(whole) + exponent
    written = "0" * max(0, -point) + (whole + fraction).ljust(point, "0")
    if written[max(point, 0) :].strip("0"):
        return None
    digits = written[: max(point, 0)].lstrip("0") or "0"
    return f"-{digits}" if found["sign"] and digits != "0" else digits


def exact_answer(
    prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any], **_: Any
) -> list[float | None]:
    """1 where the completion, stripped of surrounding white space, is the answer; else 0.

    Args:
        prompts: not used.
        completions: strings or assistant messages.
        answer: column of right answers, compared as text; a whole number is written without a fraction.

    Returns:
        None where the answer is missing: null, NaN, empty, or neither text nor a number.

    >>> exact_answer(["1+1=", "2+2=", ""], ["2 ", "5", "?"], answer=["2", 4.0, None])
    [1.0, 0.0, None]
    """
    rights = [answer_text(right) for right in answer]
    return [
        None if right is None else float(completion_text(given).strip() == right)
        for given, right in zip(completions, rights)
    ]


def integer_answer(
    prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any], **_: Any
) -> list[float | None]:
    """1 where the last number in the completion is the integer that the answer holds; else 0.

    Args:
        prompts: not used.
        completions: strings or assistant messages.
        answer: column of right answers: integers, or text whose last number is one.

    Returns:
        None where the answer is missing or holds no integer.

    >>> integer_answer(["", "", ""], ["17 + 25 = 42.", "Forty-one", "1"], answer=["42", 41, None])
    [1.0, 0.0, None]
    """
    rights = [expected_integer(right) for right in answer]
    return [
        None if right is None else float(last_integer(completion_text(given)) == right)
        for given, right in zip(completions, rights)
    ]


def expected_integer(answer: Any) -> str | None:
    """The integer that an answer holds; ``None`` where it is missing or holds none.

    Args:
        answer: one value of a column.

    >>> expected_integer("so #### 1,042"), expected_integer(1e22), expected_integer("3 1/2"), expected_integer(None)
    ('1042', '10000000000000000000000', None, None)
    """
    text = known_answer(answer)
    return None if text is None else last_integer(text)


def format_match(pattern: str) -> Callable[..., list[float]]:
    """Reward function ``format=REGEX``: 1 where the pattern matches the whole completion, else 0.

    Args:
        pattern: regular expression, in which a dot matches a line break too.

    Raises:
        ValueError: not a regular expression.

    >>> format_match("<answer>.*</answer>")(["", ""], ["<answer>1\\n2</answer>", "So <answer>3</answer>"])
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


def repetition(size: int) -> Callable[..., list[float]]:
    """Reward function ``repetition=N``: minus the share of the runs of ``size`` words that occurred before.

    Args:
        size: number of words in a run, at least 1; a text of fewer words gets 0.

    Raises:
        ValueError: a size below 1.

    >>> repetition(2)(["", "", ""], ["a b a b a", "a b c", "a"])
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
