"""Comparing mathematical answers by their value: exactly where they are numbers, formulas with math-verify, an optional
dependency."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from types import ModuleType
from typing import Any

from rlax_llm.rewards.calling import RewardError
from rlax_llm.rewards.comparing import Formulas, agreement
from rlax_llm.rewards.final_answer import answer_runs, final_answer, leading_run
from rlax_llm.rewards.functions import completion_text
from rlax_llm.rewards.golds import known_answer
from rlax_llm.rewards.readings import Formula, Group, Reading, Words, readings

_SECONDS = 5.0
_LARGEST = 1e300


class _TooLong(BaseException):
    """Not an ``Exception``, which the libraries that it ends would catch."""


def math_answer(
    prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any], **_: Any
) -> list[float | None]:
    r"""1 where the completion's final answer equals the right one, else 0; ``None`` where that is uncertain.

    The final answer is what ``final_answer`` finds: the last ``<answer>``, ``\boxed``, ``####`` or "the answer is", or
    else the last formula in LaTeX's delimiters or number. Several answers side by side are one, a list: ``4 or 5`` is
    not 5. ``1/2``, ``0.5`` and ``\boxed{\frac{2}{4}}`` are equal; numbers are compared exactly, but a decimal of six
    places or more equals what it is rounded from. A unit or a percent sign may be left out, a wrong one is wrong.

    A row has 5 seconds, after which it scores 0; in a thread other than the main one, which gets no signals, it has no
    limit.

    Args:
        prompts: not used.
        completions: strings or assistant messages.
        answer: column of right answers: numbers, formulas, words or letters of multiple choice, with LaTeX's delimiters
            or without, or solutions that end in ``\boxed{...}`` or ``#### ...``.

    Returns:
        None where the answer is missing (null, NaN, "N/A", true), cannot be read, or can be read in two ways that
        disagree on the completion, as ``3,14`` does.

    Raises:
        RewardError: math-verify is not installed.

    >>> math_answer(["", ""], ["It is 0.5.", "It is $\\frac{1}{3}$."], answer=["1/2", "1/2"])
    [1.0, 0.0]
    """
    import_math_verify()
    return [_score(completion_text(given), known_answer(right)) for given, right in zip(completions, answer)]


def import_math_verify() -> ModuleType:
    """The module ``math_verify``, whose import takes a second.

    Raises:
        RewardError: it is not installed.

    >>> import_math_verify().__name__
    'math_verify'
    """
    try:
        import math_verify
    except ImportError as error:
        raise RewardError(
            f"reward 'math_answer': math-verify is not installed ({error}); pip install 'rlax-llm[math]'."
        ) from error
    # It would warn that it keeps no time: the time is kept here.
    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)
    return math_verify


def is_readable(answer: Any) -> bool:
    """Whether ``math_answer`` can read a right answer.

    Args:
        answer: one value of its column.

    >>> is_readable("1/2"), is_readable(None), is_readable("5 @ 3")
    (True, False, False)
    """
    text = known_answer(answer)
    return text is not None and bool(_in_time(lambda: _gold(text), ()))


def same_answers(completions: Sequence[str]) -> list[int | None]:
    r"""Which of several completions give the same answer: for each the place of the first one that does.

    Args:
        completions: texts. ``None`` is found for one that gives no answer.

    Raises:
        RewardError: math-verify is not installed.

    >>> same_answers(["It is 0.5.", "", "So $\\frac{1}{2}$", "It is 3."])
    [0, None, 0, 3]
    """
    import_math_verify()
    found: dict[int, tuple[Reading, ...]] = {}
    votes: list[int | None] = []
    for place, completion in enumerate(completions):
        given = _in_time(lambda text=completion: _given(text), ())
        same = (first for first, readings in found.items() if _in_time(lambda r=readings, g=given: _agree(r, g), False))
        votes.append(next(same, place) if given else None)
        if votes[-1] == place:
            found[place] = given
    return votes


def _agree(right: tuple[Reading, ...], given: tuple[Reading, ...]) -> bool:
    formulas = Formulas(_equal_formulas, _value)
    return any(agreement(reading, given, formulas) is True for reading in right)


def _score(completion: str, answer: str | None) -> float | None:
    right = () if answer is None else _in_time(lambda: _gold(answer), ())
    if not right:
        return None
    return _in_time(lambda: _compared(right, completion), 0.0)


def _compared(right: tuple[Reading, ...], completion: str) -> float | None:
    given = _given(completion)
    if not given:
        return 0.0
    told = {agreement(reading, given, Formulas(_equal_formulas, _value)) for reading in right}
    # Where the readings of the right answer disagree, nobody knows.
    same = told.pop() if len(told) == 1 else None
    return None if same is None else float(same)


@lru_cache(maxsize=4096)
def _gold(answer: str) -> tuple[Reading, ...]:
    """What the right answer may mean: nothing where that is not certain."""
    marked = final_answer(answer) if re.search(r"\\boxed|\\fbox|####|<answer>", answer) else None
    found = readings(marked.text if marked else answer)
    if not found and not marked and len(runs := answer_runs(answer)) == 1 and "$" in answer:
        # "The answer is $5$": prose around one formula.
        found = readings(runs[0])
    return found if all(_parsed_well(reading) for reading in found) else ()


def _given(completion: str) -> tuple[Reading, ...]:
    """What the completion's answer may mean: nothing where it gives none."""
    found = final_answer(completion)
    whole = readings(found.text if found and found.marked else completion)
    if found is None or found.boxed or (whole and not any(map(_wordy, whole))):
        return whole
    run = leading_run(found.text) or next(reversed(answer_runs(found.text)), None) if found.marked else found.text
    return (*whole, *(readings(run) if run else ()))


def _wordy(reading: Reading) -> bool:
    """Whether there are words in a reading, which may then be those of a sentence around the answer."""
    if isinstance(reading, Group):
        return any(_wordy(one) for part in reading.parts for one in part)
    return isinstance(reading, Words) and not re.search(r"\d", reading.text)


def _parsed_well(reading: Reading) -> bool:
    """Whether each formula in a reading can be parsed."""
    if isinstance(reading, Formula):
        return _expression(reading.latex) is not None
    inner = getattr(reading, "parts", None) or [getattr(reading, "readings", ())]
    return all(_parsed_well(one) for part in inner for one in part)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ended(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ended)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _in_time(called: Callable[[], Any], otherwise: Any) -> Any:
    """What ``called`` returns, or ``otherwise`` where it takes too long or needs too much."""
    keeps_time = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    try:
        with _alarm() if keeps_time else contextlib.nullcontext():
            return called()
    except (_TooLong, RecursionError, MemoryError, OverflowError):
        return otherwise


@lru_cache(maxsize=1024)
def _expression(latex: str) -> Any:
    """What the formula is in symbols; ``None`` where that is nothing, or too large to be worked with."""
    if len(latex) > 500 or re.search(r"binom\s*{[^{}]*(?:\d{4}|\^)", latex):
        return None
    latex = re.sub(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ(?![a-zA-Z])|{\\circ})", r"(\\frac{\1\\pi}{180})", latex)
    from latex2sympy2_extended import NormalizationConfig

    math_verify = import_math_verify()
    plainly = NormalizationConfig(malformed_operators=True, boxed="none")
    config = math_verify.LatexExtractionConfig(boxed_match_priority=-1, normalization_config=plainly)
    # Only LaTeX: the reader of plain expressions would evaluate them as Python.
    found = math_verify.parse(f"${latex}$", [config], fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found and _size(found[0]) < _LARGEST else None


def _size(expression: Any) -> float:
    """An upper bound of the largest number within an expression, so that a tower of powers is never worked out."""
    if getattr(expression, "is_Rational", False):
        return float(min(max(abs(expression.p), expression.q), 10**301))
    if getattr(expression, "is_Float", False):
        return abs(float(expression))
    inner = [_size(part) for part in getattr(expression, "args", ())]
    kind = type(expression).__name__
    try:
        if kind == "Pow":
            return max(max(inner[0], 1.0) ** inner[1], *inner)
        if kind == "factorial":
            return math.gamma(inner[0] + 1) if inner[0] < 170 else math.inf
    except OverflowError:
        return math.inf
    return max([2.0, math.prod(inner) if kind == "Mul" else sum(inner)])


def _equal_formulas(right: str, given: str) -> bool:
    expressions = _expression(right), _expression(given)
    if any(one is None for one in expressions):
        return False
    equal = import_math_verify().verify(*expressions, timeout_seconds=None)
    return bool(equal) and not _far_apart(*expressions)


def _far_apart(right: Any, given: Any) -> bool:
    """Whether two numbers differ: math-verify takes small ones, which it rounds to six places, for 0."""
    try:
        values = [complex(one.evalf(30)) for one in (right, given)]
    except (TypeError, ValueError, AttributeError):
        return False
    return abs(values[0] - values[1]) > 1e-9 * max(map(abs, values))


def _value(latex: str) -> Fraction | None:
    expression = _expression(latex)
    try:
        return Fraction(str(expression.evalf(30)))
    except (TypeError, ValueError, AttributeError):
        return None
