"""Whole-number arithmetic, as digits for a character-level model and as words for a chat model."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rlax_llm.data.rows import DataError, Row, split_rows, user_message

ALPHABET = "0123456789+-*="
"""Every character that the prompts and completions of ``digit_rows`` can hold."""

_LARGEST = 10**9  # the number of problems then fits an int64
_INSTRUCTION = "Answer with the number only."
_TEMPLATES = {
    "+": (
        "What is {a} plus {b}?",
        "Compute {a} + {b}.",
        "Tom has {a} apples and buys {b} more. How many apples does Tom have now?",
        "There are {a} red balls and {b} blue balls in a box. How many balls are in the box?",
    ),
    "-": (
        "What is {a} minus {b}?",
        "Compute {a} - {b}.",
        "Sara had {a} coins and gave away {b} of them. How many coins does Sara have left?",
        "{a} birds sat in a tree and {b} flew away. How many birds are still in the tree?",
    ),
    "*": (
        "What is {a} times {b}?",
        "Compute {a} * {b}.",
        "There are {a} boxes with {b} pencils in each. How many pencils are there in total?",
        "A garden has {a} rows of {b} trees. How many trees are in the garden?",
    ),
}


@dataclasses.dataclass(frozen=True)
class Problems:
    """Which problems there are. Subtraction is always of the smaller number, so no answer is negative.

    Attributes:
        smallest: lower end of both operands, not negative.
        largest: upper end of both operands, included.
        operators: one or more of ``+``, ``-`` and ``*``, written together.
        most: about how many problems to use: a larger space is sampled, a smaller one used whole.

    Raises:
        DataError: an argument out of range.
    """

    smallest: int = 0
    largest: int = 99
    operators: str = "+"
    most: int = 50_000

    def __post_init__(self) -> None:
        numbers = (self.smallest, self.largest, self.most)
        if not all(isinstance(number, int) for number in numbers) or not 0 <= self.smallest < self.largest:
            raise DataError(
                f"arithmetic: operands from {self.smallest} to {self.largest}, wanted whole numbers, "
                "the first 0 or more and the second above it."
            )
        unknown = sorted(set(str(self.operators)) - set(_TEMPLATES))
        if unknown or not self.operators:
            raise DataError(
                f"arithmetic: operators are {self.operators!r}, wanted one or more of {''.join(_TEMPLATES)}."
            )
        if self.largest > _LARGEST:
            raise DataError(f"arithmetic: largest is {self.largest}, wanted at most {_LARGEST}.")
        if self.most < 4:
            raise DataError(f"arithmetic: most is {self.most}, wanted at least 4.")


def answer(a: int, operator: str, b: int) -> int:
    """Value of ``a operator b``.

    >>> answer(3, "-", 1), answer(3, "*", 2)
    (2, 6)
    """
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def digit_rows(problems: Problems, held_out_size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows such as prompt ``12+7=``, answer and completion ``19``.

    A held-out problem is not in training, with its operands swapped neither.

    Args:
        problems: operands and operators.
        held_out_size: number of held-out rows.
        seed: chooses the split, and the problems where there are more than ``problems.most``.

    Raises:
        DataError: no training row is left.

    >>> train, held_out = digit_rows(Problems(largest=9), held_out_size=20, seed=0)
    >>> len(train) + len(held_out) in (99, 100), list(held_out[0])
    (True, ['prompt', 'completion', 'answer'])
    """
    chosen = _problems(problems, seed)
    rows = [_row(f"{a}{operator}{b}=", a, operator, b) for a, operator, b in chosen]
    return split_rows("arithmetic", rows, _keys(chosen), held_out_size, seed)


def word_rows(problems: Problems, held_out_size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows whose prompts are chat messages in plain English; the answer is a whole number.

    Each problem is asked in one wording of several, chosen by ``seed``. A held-out problem is not in training in any
    wording, with its operands swapped neither.

    Args:
        problems: operands and operators.
        held_out_size: number of held-out rows.
        seed: chooses the wordings, the split, and the problems where there are more than ``problems.most``.

    Raises:
        DataError: no training row is left.

    >>> train, _ = word_rows(Problems(smallest=2, largest=3), held_out_size=1, seed=0)
    >>> train[0]["prompt"][0]["content"].endswith("Answer with the number only.")
    True
    """
    chosen = _problems(problems, seed)
    wordings = np.random.default_rng([seed, 1]).integers(0, 2**31, len(chosen))
    rows = []
    for (a, operator, b), wording in zip(chosen, wordings):
        templates = _TEMPLATES[operator]
        question = templates[wording % len(templates)].format(a=a, b=b)
        rows.append(_row(user_message(f"{question} {_INSTRUCTION}"), a, operator, b))
    return split_rows("arithmetic-words", rows, _keys(chosen), held_out_size, seed)


def _row(prompt: object, a: int, operator: str, b: int) -> Row:
    right = str(answer(a, operator, b))
    return {"prompt": prompt, "completion": right, "answer": right}


def _keys(problems: list[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
    """The problems without regard to the order of their operands."""
    return [(min(a, b), operator, max(a, b)) for a, operator, b in problems]


def _problems(problems: Problems, seed: int) -> list[tuple[int, str, int]]:
    """All problems ``(a, operator, b)``, or a sample without replacement of about ``problems.most``."""
    operators = "".join(dict.fromkeys(problems.operators))
    operands = problems.largest - problems.smallest + 1
    pairs = operands * (operands + 1) // 2  # without regard to order
    found = []
    for index in _chosen(pairs * len(operators), problems.most, seed):
        operator = operators[index // pairs]
        pair = index % pairs
        larger = (math.isqrt(8 * pair + 1) - 1) // 2
        smaller = pair - larger * (larger + 1) // 2
        a = problems.smallest + larger
        b = problems.smallest + smaller
        found.append((a, operator, b))
        if operator != "-" and a != b:
            found.append((b, operator, a))
    return found


def _chosen(size: int, most: int, seed: int) -> list[int]:
    """All of ``range(size)`` if that makes at most ``most`` problems, two to a pair; else a sample."""
    if 2 * size <= most:
        return list(range(size))
    return np.random.default_rng([seed, 0]).choice(size, min(size, most // 2), replace=False).tolist()
