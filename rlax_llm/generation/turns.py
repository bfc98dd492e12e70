"""Completions over several turns with tools: token in and token out, nothing is ever encoded a second time.

The model generates; its tokens after the first complete call, such as ``<calc>12*3</calc>``, are cut, the answer is
appended as tokens that it did not choose, and it goes on from exactly those ids. Whether to cut depends on nothing
after the cut, so each chosen token is a draw from the policy given the tokens before it, and the learner's ratio is 1.
"""

from __future__ import annotations

import ast
import operator
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from rlax_llm.core.checks import at_least_one
from rlax_llm.core.mesh import fetch
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.types import Completions
from rlax_llm.generation.histories import History, KeysHeld, Later, ReadAgain, holds
from rlax_llm.generation.prompts import Prompts, pad_prompts
from rlax_llm.generation.request import Request, refuse_routed
from rlax_llm.generation.rollout import generate, listener
from rlax_llm.generation.sampling import row_keys
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params
from rlax_llm.models.tokenizer import Tokenizer


class Generate(Protocol):
    """``generate`` and its like."""

    def __call__(
        self,
        config: DecoderConfig,
        params: Params,
        prompts: Prompts,
        key: jax.Array,
        request: Request,
        slots: int | None = None,
        limits: Any | None = None,
    ) -> Completions:
        """Completions of prompts; see ``generate``."""
        ...


SMALLEST_BATCH = 8  # rows; below it a program of its own costs more than the padding
LONGEST_EXPRESSION = 200  # characters; it bounds the depth of the expression too
LARGEST_NUMBER = 10**100  # in magnitude, of every number in a calculation
_ARITHMETIC = frozenset("0123456789.eE+-*/%() ")
_POWER_BITS = 1000  # more than any power below LARGEST_NUMBER has by the count in _power
_NO_ARITHMETIC = "not an arithmetic expression"


@dataclass(frozen=True)
class Tool:
    """A function from text to text that a completion calls by writing ``opening``, the text, ``closing``.

    Attributes:
        name: what errors call it.
        opening: the tag before the text.
        closing: the tag after it.
        call: what answers; an exception is an answer too.
    """

    name: str
    opening: str
    closing: str
    call: Callable[[str], str]

    def answer(self, text: str) -> str:
        """What ``call`` returns, or ``error: …`` where it raises: the model reads it, and the rollout goes on.

        >>> calculator.answer("12*3"), calculator.answer("1/0")
        ('36', 'error: division by zero')
        """
        try:
            return str(self.call(text))
        except Exception as error:
            return f"error: {(str(error).strip() or type(error).__name__).splitlines()[0]}"


def calculate(text: str) -> str:
    """The value of an expression in numbers, ``+ - * / // % **`` and parentheses, with Python's meaning of them.

    Args:
        text: at most ``LONGEST_EXPRESSION`` characters.

    Returns:
        A whole number in full, any other number to 15 digits.

    Raises:
        ValueError: it is no such expression, is too long, or its value is complex.
        ArithmeticError: a division by zero, or a number beyond ``LARGEST_NUMBER``.

    >>> calculate("2 * (3 + 4) ** 2"), calculate("7 / 2"), calculate("0.1 + 0.2")
    ('98', '3.5', '0.3')
    """
    text = text.strip()
    if len(text) > LONGEST_EXPRESSION:
        raise ValueError(f"longer than {LONGEST_EXPRESSION} characters")
    # The tree is checked too; but at words between numbers Python's parser prints warnings.
    if not _ARITHMETIC.issuperset(text):
        raise ValueError(_NO_ARITHMETIC)
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(_NO_ARITHMETIC) from None
    except ZeroDivisionError:
        raise ZeroDivisionError("division by zero") from None
    except OverflowError:
        raise OverflowError("number too large") from None
    # Adding 0.0 takes the sign from -0.0.
    return str(value) if isinstance(value, int) else f"{value + 0.0:.15g}"


calculator: Tool = Tool("calculator", "<calc>", "</calc>", calculate)
"""Arithmetic: ``<calc>12*3</calc>``."""


def _power(base: Any, exponent: Any) -> Any:
    """``base ** exponent``, refused before it is computed where the result would have very many digits."""
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(base) > 1 and base.bit_length() * exponent > _POWER_BITS:
        raise OverflowError
    return base**exponent


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float()):
            value: Any = node.value
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            value = _OPERATORS[type(node.op)](_value(node.operand))
        case ast.BinOp() if type(node.op) in _OPERATORS:
            value = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
        case _:
            raise ValueError(_NO_ARITHMETIC)
    if isinstance(value, complex):
        raise ValueError("not a real number")
    # Written so that NaN is refused too.
    if not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise OverflowError
    return value


def first_call(text: str, tools: Sequence[Tool]) -> tuple[Tool, str] | None:
    """The first complete call in a text: a tool, and what stands between its tags.

    At each closing tag the tags since the one before decide: exactly its own opening tag, and it is a call. Nested,
    unfinished and mismatched ones are left alone. So a longer text never takes a call back, nor adds an earlier one.

    Args:
        text: what the model wrote.
        tools: no tag of theirs inside another.

    >>> first_call("so <calc>1+1</calc> is <calc>2", [calculator])[1]
    '1+1'
    >>> first_call("<calc>1+<calc>2</calc></calc>", [calculator]) is None
    True
    """
    tags = {tag: tool for tool in tools for tag in (tool.opening, tool.closing)}
    opened: list[tuple[Tool, int]] = []
    for match in re.finditer("|".join(map(re.escape, tags)), text):
        tool = tags[match.group()]
        if match.group() == tool.opening:
            opened.append((tool, match.end()))
        elif len(opened) == 1 and opened[0][0] is tool:
            return tool, text[opened[0][1] : match.start()]
        else:
            opened = []
    return None


def with_tools(
    tokenizer: Tokenizer,
    tools: Sequence[Tool],
    max_turns: int,
    answer_tags: tuple[str, str] = ("<result>", "</result>"),
    complete: Generate = generate,
    told: Callable[[int], None] = lambda tokens: None,
) -> Generate:
    """A ``generate`` whose completions call tools, and read the answers, up to ``max_turns − 1`` times.

    A call is answered and the tokens after it are cut; in the last turn it stays text. ``max_new_tokens`` bounds the
    whole completion, answers included: an answer that does not fit is cut there, and the completion is truncated;
    ``min_new_tokens`` is of each turn, as far as there is room. Later
    turns generate in few shapes: batches halve, limits come in quarters, widths in the buckets of ``pad_prompts``.
    The engine holds the keys of what was read and drawn, so a later turn reads the answers alone. Where rows take turns
    in slots, with guesses at every step, on several devices, and with another ``complete`` it reads all tokens so far.
    Limiting case: ``generate`` for ``max_turns`` 1, and at any for a batch without a call.

    Args:
        tokenizer: the model's.
        tools: what completions may call.
        max_turns: times that the model generates, at least 1.
        answer_tags: written before and after an answer. Characters that the tokenizer cannot write are left out of it.
        complete: the first turn's and, in groups of one and with shorter limits, every later turn's generation.
        told: is told of each turn how many tokens it read before its first draw, each prompt once for its group.

    Returns:
        A function with ``generate``'s signature to ``Completions`` on the host: in ``valid``, the completion follows
        its prompt without gaps; ``mask`` is False on answers.

    Raises:
        ValueError: ``max_turns`` below 1, no tool, a tag that contains another, or one that the tokenizer cannot write.
    """
    at_least_one("with_tools", max_turns=max_turns)
    _check_tags(tokenizer, tools, answer_tags)
    return _OverTurns(_Calls(tokenizer, tuple(tools), answer_tags), max_turns, complete, told)


def _check_tags(tokenizer: Tokenizer, tools: Sequence[Tool], answer_tags: tuple[str, str]) -> None:
    tags = [(tool.name, tag) for tool in tools for tag in (tool.opening, tool.closing)]
    if not tags:
        raise ValueError("with_tools: no tool was given; give at least one, or use generate.")
    for name, tag in tags:
        try:
            back = tokenizer.decode(tokenizer.encode(tag))
        except ValueError as error:
            raise ValueError(
                f"with_tools: the model cannot write the tag {tag!r} of {name}; choose another tag, or a tokenizer "
                f"that has all of its characters. {error}"
            ) from None
        if back != tag or not tag:
            raise ValueError(
                f"with_tools: the tag {tag!r} of {name} reads {back!r} once encoded and decoded, wanted text that "
                "comes back; choose one that is no special token."
            )
    for (name, tag), (other, longer) in permutations(tags, 2):
        if tag in longer:
            raise ValueError(
                f"with_tools: the tag {tag!r} of {name} is inside {longer!r} of {other}; choose tags that are not."
            )
    tokenizer.encode("".join(answer_tags))


@dataclass(frozen=True)
class _Calls:
    """Finds a call among chosen tokens and answers it."""

    tokenizer: Tokenizer
    tools: tuple[Tool, ...]
    answer_tags: tuple[str, str]

    def first(self, ids: Sequence[int]) -> tuple[int, Tool, str] | None:
        """The smallest number of tokens whose text holds a complete call, and that call; None without one."""

        def call(count: int) -> tuple[Tool, str] | None:
            return first_call(self.tokenizer.decode(ids[:count]), self.tools)

        if call(len(ids)) is None:
            return None
        # More tokens never take a call back, so the smallest number is found by bisection.
        count = bisect_left(range(len(ids)), True, key=lambda count: call(count) is not None)
        found = call(count)
        return None if found is None else (count, *found)

    def answer(self, tool: Tool, text: str) -> list[int]:
        """The tokens of a tool's answer, in its tags."""
        answer = tool.answer(text)
        before, behind = self.answer_tags
        try:
            return self.tokenizer.encode_inside(before + answer + behind)
        except ValueError:  # an alphabet that lacks a character must not lose the rollout
            return self.tokenizer.encode_inside(before + "".join(filter(self._can_write, answer)) + behind)

    def _can_write(self, text: str) -> bool:
        try:
            return bool(self.tokenizer.encode(text))
        except ValueError:
            return False


@dataclass(frozen=True)
class _OverTurns:
    """A ``generate`` of several turns."""

    calls: _Calls
    max_turns: int
    complete: Generate
    told: Callable[[int], None]

    def __call__(
        self,
        config: DecoderConfig,
        params: Params,
        prompts: Prompts,
        key: jax.Array,
        request: Request,
        slots: int | None = None,
        limits: Any | None = None,
    ) -> Completions:
        _refuse(limits, request)
        request = _without_doubtful_guesses(request)
        keys = _keys_of(key, prompts, request)
        history = self._history(config, params, len(keys), request, slots)
        self.told(int(np.asarray(prompts[1]).sum()))
        drawn: Completions = jax.tree.map(np.array, fetch(history.first(prompts, keys, request)))
        self._go_further(config, drawn, keys, request, history)
        return drawn

    def _go_further(
        self, config: DecoderConfig, drawn: Completions, keys: jax.Array, request: Request, history: History
    ) -> None:
        """All turns behind the first, in place."""
        width = drawn.tokens.shape[1] - request.max_new_tokens
        begins = dict.fromkeys(range(len(drawn.tokens)), width)
        places = np.arange(len(drawn.tokens))  # of the rows in the turn before
        for turn in range(1, self.max_turns):
            begins = _answer_calls(drawn, begins, self.calls, request.filler)
            if not begins:
                break
            rows = np.array(_going_on(drawn, begins))
            # The first turn folded its tokens' numbers into the keys, and they are below its limit: none is used twice.
            folded = _folded(keys[rows], request.max_new_tokens + turn)
            later = self._later(config, drawn, begins, places[rows], folded)
            self.told(int(history.run(later)[: len(begins)].sum()))
            shorter = _shorter(int(later.limits.max()), request)
            wide = _wide(config, later.prompts[0].shape[1] + shorter.max_new_tokens)
            _go_on(drawn, begins, fetch(history.later(wide, later, shorter)), request.filler)
            places[rows[: len(begins)]] = np.arange(len(begins))

    def _history(
        self, config: DecoderConfig, params: Params, rows: int, request: Request, slots: int | None
    ) -> History:
        """Of the engine's own generation the keys stay; any other is given all tokens in each turn."""
        heard = listener(self.complete)
        if heard is not None and holds(request, rows, slots):
            return KeysHeld(config, params, heard)
        return ReadAgain(self.complete, config, params, slots)

    def _later(
        self, config: DecoderConfig, drawn: Completions, begins: dict[int, int], places: np.ndarray, keys: jax.Array
    ) -> Later:
        """All tokens so far of the rows that go on, how many are new to them, and the room that each has left."""
        rows = _going_on(drawn, begins)
        tokens = [drawn.tokens[row][drawn.valid[row]].tolist() for row in rows]
        padded = pad_prompts(tokens, self.calls.tokenizer.pad_id, config.vocab_size)
        # The last token that was drawn was not read either: its keys are written when the next one is drawn.
        unread = np.array([begins[row] - np.flatnonzero(drawn.mask[row])[-1] for row in rows], np.int32)
        left = np.array([drawn.tokens.shape[1] - begins[row] for row in rows], np.int32)
        return Later(padded, places, unread, keys, left)


def _keys_of(key: jax.Array, prompts: Prompts, request: Request) -> jax.Array:
    return row_keys(key, prompts[0].shape[0] * request.group_size)


def _refuse(limits: Any | None, request: Request) -> None:
    if any(automaton.forbids for automaton in request.automata):
        raise ValueError("with_tools: a pattern is one of completions without calls and answers; leave one out.")
    if limits is not None:
        raise ValueError("with_tools: limits are of completions without tools; lower max_new_tokens instead.")
    refuse_routed("with_tools", request, "completions of several turns")


def _without_doubtful_guesses(request: Request) -> Request:
    """Keys that stay are worth more than guesses that may pay; those that are asked for are made."""
    doubtful = request.speculation is not None and not request.speculation.always
    return request._replace(speculation=None) if doubtful else request


@jax.jit
def _folded(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


class _Part(NamedTuple):
    """Consecutive tokens of one row, with what ``Completions`` says of each; one value stands for all."""

    tokens: Any
    mask: Any = False
    log_probs: Any = 0.0
    kept: Any = EVERY


def _write(drawn: Completions, row: int, column: int, part: _Part, filler: int) -> None:
    """Put ``part`` at ``column`` of a row, in place, and nothing after it; the arrays are NumPy's."""
    arrays = drawn.tokens, drawn.valid, drawn.mask, drawn.log_probs, drawn.kept
    values = part.tokens, True, part.mask, part.log_probs, part.kept
    for array, value, empty in zip(arrays, values, (filler, False, False, 0.0, EVERY), strict=True):
        if array is not None:
            held = np.asarray(array)
            held[row, column:] = empty
            held[row, column : column + len(part.tokens)] = value


def _answer_calls(drawn: Completions, begins: dict[int, int], calls: _Calls, filler: int) -> dict[int, int]:
    """Cut rows after their first call since column ``begins[row]`` and answer it, in place.

    Returns:
        The column from which each of these rows goes on; a row that is full is not among them.
    """
    further = {}
    columns = drawn.tokens.shape[1]
    for row, begin in begins.items():
        found = calls.first(drawn.tokens[row, begin:][drawn.mask[row, begin:]].tolist())
        # Behind a call that ends at the limit there is no room for an answer.
        if found is None or begin + found[0] == columns:
            continue
        column = begin + found[0]
        answer = calls.answer(*found[1:])[: columns - column]
        _write(drawn, row, column, _Part(answer), filler)
        if column + len(answer) < columns:
            further[row] = column + len(answer)
        else:
            np.asarray(drawn.truncated)[row] = True
    return further


def _going_on(drawn: Completions, begins: dict[int, int]) -> list[int]:
    """The rows that go on; the first one again and again up to one of few numbers of rows."""
    size = len(drawn.tokens)
    while size // 2 >= max(len(begins), SMALLEST_BATCH):
        size //= 2
    rows = list(begins)
    return rows + rows[:1] * (size - len(rows))


def _shorter(left: int, request: Request) -> Request:
    """What a later turn draws where the row with the most room has so much: rounded up to quarters of the limit."""
    quarter = -(-request.max_new_tokens // 4)
    room = min(request.max_new_tokens, -(-left // quarter) * quarter)
    return request._replace(max_new_tokens=room, group_size=1, min_new_tokens=min(request.min_new_tokens, room))


def _wide(config: DecoderConfig, reach: int) -> DecoderConfig:
    """The longest row and the shortest one's room may be too much together, but no row comes past the positions that
    the first turn was checked for.
    """
    return replace(config, max_positions=max(config.max_positions, reach))


def _go_on(drawn: Completions, begins: dict[int, int], further: Completions, filler: int) -> None:
    """Write a turn's chosen tokens after those so far, up to each row's own limit, in place."""
    columns = drawn.tokens.shape[1]
    for index, (row, begin) in enumerate(begins.items()):
        chosen = np.flatnonzero(further.mask[index])
        own = chosen[: columns - begin]
        kept = EVERY if further.kept is None else further.kept[index, own]
        part = _Part(further.tokens[index, own], True, further.log_probs[index, own], kept)
        _write(drawn, row, begin, part, filler)
        np.asarray(drawn.truncated)[row] = bool(further.truncated[index]) or len(own) < len(chosen)
