"""Regular expressions as automata over the bytes of UTF-8, and over tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rlax_llm.generation.automata import BYTES, NOWHERE, Automaton, over_tokens

T = TypeVar("T")

MOST_COUNTED = 2048  # characters: an automaton has a state for each, and takes time by their square to make
_COUNTS = re.compile(r"\{(\d*),?(\d*)\}")


class Bytes(NamedTuple):
    """An automaton over bytes; the first state is 0.

    Attributes:
        moves: ``[states, 256]``, −1 where a byte cannot come.
        final: ``[states]`` bool.
    """

    moves: np.ndarray
    final: np.ndarray


def pattern_automaton(
    pattern: str, pieces: Sequence[bytes | None], stop_ids: Collection[int], banned: Collection[int] = ()
) -> Automaton:
    """Lets those tokens be drawn that can go on to a text of a regular expression, and stop tokens at its end.

    Args:
        pattern: matches the whole text of a completion; without ``^``, ``$`` and backreferences.
        pieces: the bytes of each token, None of one that is no text and cannot be drawn.
        stop_ids: tokens that end a completion.
        banned: tokens that cannot be drawn anyway.

    Raises:
        ValueError: for a pattern that cannot be read, is too large, or of which the tokens can write no text; for no
            stop token.
        ModuleNotFoundError: the package ``interegular`` is not there.
    """
    stops = sorted(set(stop_ids) - set(banned))
    if not stops:
        raise ValueError("pattern: there is no stop token that could end a text of it; give stop_ids.")
    read = bytes_of_pattern(pattern)
    written = [None if token in banned or token in stop_ids else piece for token, piece in enumerate(pieces)]
    # A state of its own, behind the stop token.
    table = np.vstack([read.moves, np.full((1, BYTES), NOWHERE)])
    classes, moves = over_tokens(table, written, "the pattern")
    stop = np.append(np.where(read.final, len(read.moves), NOWHERE), len(read.moves))
    classes[stops] = moves.shape[1]
    living = _living(np.column_stack([moves, stop]), pattern)
    living[-1] = len(read.moves)  # nobody draws there, and what is computed for nobody is a number too
    return Automaton(classes, living)


def _living(moves: np.ndarray, pattern: str) -> np.ndarray:
    """The moves from which the last state, behind a stop token, can still be reached."""
    living = np.zeros(len(moves) + 1, bool)  # its last entry is that of −1
    living[len(moves) - 1] = True
    count = 0
    while living.sum() > count:
        count = living.sum()
        living[:-1] |= living[moves].any(1)
    if not living[0]:
        raise ValueError(f"pattern: the tokens that can be drawn write no text of {pattern!r}; give another.")
    return np.where(living[moves], moves, NOWHERE)


def bytes_of_pattern(pattern: str) -> Bytes:
    """The automaton of a regular expression over the bytes of UTF-8; ``interegular`` makes that over characters.

    Args:
        pattern: matches a whole text.

    Raises:
        ValueError: for one that cannot be read.
        ModuleNotFoundError: the package is not there.
    """
    states = _Characters(pattern)
    numbers: dict[tuple[int, bytes], int] = {(states.initial, b""): 0}
    waiting = list(numbers)
    moves: list[list[int]] = []
    for state, begun in waiting:  # which grows
        reached = [states.behind(state, begun, byte) for byte in range(BYTES)]
        for key in reached:
            if key is not None and key not in numbers:
                numbers[key] = len(numbers)
                waiting.append(key)
        moves.append([NOWHERE if key is None else numbers[key] for key in reached])
    final = [not begun and state in states.finals for state, begun in numbers]
    return Bytes(np.array(moves), np.array(final))


class _Characters:
    """The automaton of a regular expression over characters, read byte by byte: a state, and a character begun."""

    def __init__(self, pattern: str) -> None:
        try:
            library, fsm = import_module("interegular"), import_module("interegular.fsm")
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "pattern: needs the package interegular; pip install 'rlax-llm[pattern]'.", name="interegular"
            ) from None
        parsed, (least, most) = _read(pattern, lambda: _with_lengths(library.parse_pattern(pattern)))
        counts = [int(count) for pair in _COUNTS.findall(pattern) for count in pair if count]
        counted = max([least if most is None else most, *counts])
        if counted > MOST_COUNTED:
            raise ValueError(
                f"pattern: {pattern!r} counts {counted:,} characters, wanted at most {MOST_COUNTED:,}; give one that "
                "counts less far."
            )
        found = _read(pattern, parsed.to_fsm)
        self.initial, self.finals, self.moves = found.initial, found.finals, found.map
        self.living = _can_end(found.finals, found.map)
        self.classes = {x: found.alphabet[x] for own in found.alphabet.by_transition.values() for x in own}
        self.other = found.alphabet[fsm.anything_else]
        named = [x.encode() for x in self.classes if isinstance(x, str)]
        self.begun = {text[:count] for text in named for count in range(1, len(text))}

    def behind(self, state: int, begun: bytes, byte: int) -> tuple[int, bytes] | None:
        """Where a byte leads; None where it cannot come."""
        read = begun + bytes([byte])
        missing = _missing(read)
        if missing is None:
            return None
        if missing:
            # Characters that the pattern does not name are alike, and so are those of them that miss as much.
            return state, read if read in self.begun else _alike(read)
        named = self.classes.get(read.decode(errors="replace"), self.other)
        target = self.moves.get(state, {}).get(named)
        return (target, b"") if target in self.living else None


def _with_lengths(parsed: Any) -> tuple[Any, tuple[int, int | None]]:
    return parsed, parsed.lengths


def _read(pattern: str, step: Callable[[], T]) -> T:
    """What a step of the library gives, whose exceptions say nothing to who wrote the pattern."""
    try:
        return step()
    except Exception as error:  # of several classes, none of them its own for a count such as {2,1}
        reason = f" ({error})" if str(error) else ""
        raise ValueError(
            f"pattern: {pattern!r} cannot be read{reason}; give a regular expression of whole texts, without "
            "^, $ and backreferences."
        ) from None


def _can_end(finals: Collection[int], moves: Mapping[int, Mapping[Any, int]]) -> set[int]:
    """The states from which a final one can be reached."""
    behind: dict[int, set[int]] = {}
    for state, targets in moves.items():
        for target in targets.values():
            behind.setdefault(target, set()).add(state)
    living, waiting = set(finals), list(finals)
    while waiting:
        found = behind.get(waiting.pop(), set()) - living
        living |= found
        waiting += found
    return living


def _missing(begun: bytes) -> int | None:
    """Bytes that a character misses which begins so; None where none does."""
    first = begun[0]
    length = 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
    least, most = _SECOND.get(first, (0x80, 0xBF))
    second = len(begun) == 1 or least <= begun[1] <= most
    rest = all(0x80 <= byte <= 0xBF for byte in begun[2:])
    known = first < 0x80 or 0xC2 <= first <= 0xF4
    return length - len(begun) if known and second and rest else None


_SECOND = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}
"""Second bytes of UTF-8 that are not from 0x80 to 0xBF, by the first."""


def _alike(begun: bytes) -> bytes:
    """The beginning of a character that can go on as another does."""
    if len(begun) == 1 and begun[0] in _SECOND:
        return begun
    return {1: b"\xc2", 2: b"\xe1", 3: b"\xf1"}[_missing(begun) or 0]
