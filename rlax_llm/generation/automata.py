"""Automata that read tokens, and say where a completion ends and what may come next.

An automaton over bytes becomes one over tokens by walking each token's bytes from each state. Most tokens lead to the
same states as many others, so its table has a column for each class of tokens alone, and fits beside a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, reduce
from hashlib import sha256

import numpy as np

BYTES = 256
NOWHERE = -1
LARGEST_TABLE = 2**27  # states times the classes of tokens, while it is made


class Automaton:
    """States and how tokens lead from one to the next; the first state is 0. Equal tables are equal, and hash alike.

    Args:
        classes: ``[V]``, the class of each token.
        moves: ``[states, classes]``, the state that a token of the class leads to, −1 where none of it can be drawn,
            and ``states + s`` where the completion has ended, or would be in s if it had not.

    Attributes:
        classes: as given, int32.
        moves: as given, int32.
        forbids: whether there is a token that cannot be drawn somewhere.
    """

    def __init__(self, classes: np.ndarray, moves: np.ndarray) -> None:
        self.classes, self.moves = np.asarray(classes, np.int32), np.asarray(moves, np.int32)
        self.forbids = bool((self.moves < 0).any())

    @cached_property
    def _digest(self) -> bytes:
        return sha256(b"".join(str(x.shape).encode() + x.tobytes() for x in (self.classes, self.moves))).digest()

    def __repr__(self) -> str:
        return f"Automaton of {len(self.moves)} states"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Automaton) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


def stop_automaton(texts: Sequence[str], pieces: Sequence[bytes | None]) -> Automaton:
    """Ends a completion with the token that completes one of the texts, wherever in its tokens that begins and ends.

    Args:
        texts: none of them empty.
        pieces: the bytes of each token, None of one that is no text and is passed over, as decoding does.

    Raises:
        ValueError: for no text, or an empty one.

    >>> one = stop_automaton(["ab"], [b"a", b"b", b"cab", None])
    >>> one.moves[0][one.classes].tolist(), len(one.moves)
    ([1, 0, 5, 0], 3)
    """
    if not texts or not all(texts):
        raise ValueError(f"stop_automaton: the texts are {list(texts)!r}, wanted one at least and none empty.")
    moves = _searching([text.encode() for text in texts])
    classes, found = over_tokens(moves, [piece or b"" for piece in pieces], "stop texts")
    return Automaton(classes, found[: len(moves) // 2])


def _searching(texts: Sequence[bytes]) -> np.ndarray:
    """Aho's and Corasick's automaton ``[2 n, 256]``, whose n states are the beginnings of texts; and again n of them
    where a text was found since.
    """
    prefixes = dict.fromkeys(text[:count] for text in texts for count in range(len(text) + 1))
    states = {prefix: state for state, prefix in enumerate(sorted(prefixes, key=len))}
    moves = np.zeros((len(states), BYTES), np.int64)
    final = np.array([prefix.endswith(tuple(texts)) for prefix in states])
    for prefix, state in states.items():
        for byte in range(BYTES):
            read = prefix + bytes([byte])
            longest = next(start for start in range(len(read) + 1) if read[start:] in states)
            moves[state, byte] = states[read[longest:]]
    found = moves + len(states)
    return np.vstack([np.where(final[moves], found, moves), found])


def over_tokens(moves: np.ndarray, pieces: Sequence[bytes | None], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Classes of tokens ``[V]``, and where a token of each leads ``[states, classes]``.

    Args:
        moves: ``[states, 256]``, where a byte leads; −1 is nowhere.
        pieces: the bytes of each token; None leads nowhere.
        what: is read, for a message.

    Raises:
        ValueError: where the table would be too large.
    """
    functions = _Functions(moves, what)
    of_token = [functions.nowhere if piece is None else reduce(functions.behind, piece, 0) for piece in pieces]
    used, classes = np.unique(of_token, return_inverse=True)
    found = np.stack([functions.found[number] for number in used], 1)[: len(moves)]
    return classes.reshape(-1), np.where(found == len(moves), NOWHERE, found)


class _Functions:
    """Where texts lead from each state: few of these functions are different, and each is computed once.

    Args:
        moves: ``[states, 256]``, −1 for nowhere, which becomes a state of its own.
        what: is being read, for a message.
    """

    def __init__(self, moves: np.ndarray, what: str) -> None:
        states, self.what = len(moves), what
        closed = np.vstack([np.where(moves < 0, states, moves), np.full((1, BYTES), states)])
        self.of_byte = np.ascontiguousarray(closed.T, np.int32)
        self.found: list[np.ndarray] = []
        self.numbers: dict[bytes, int] = {}
        self.longer: dict[tuple[int, int], int] = {}
        self._number(np.arange(states + 1, dtype=np.int32))  # that of the empty text, 0
        self.nowhere = self._number(np.full(states + 1, states, np.int32))

    def _number(self, function: np.ndarray) -> int:
        number = self.numbers.setdefault(function.tobytes(), len(self.found))
        if number == len(self.found):
            self.found.append(function)
            if function.size * number > LARGEST_TABLE:
                raise ValueError(f"{self.what}: its automaton is too large; give one that counts less far.")
        return number

    def behind(self, before: int, byte: int) -> int:
        """The number of the function of a text and one byte behind it."""
        key = before, byte
        if key not in self.longer:
            self.longer[key] = self._number(self.of_byte[byte][self.found[before]])
        return self.longer[key]
