"""What of a completion's text stands before the stop text that ended it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile


def without_stop(decode: Callable[[Sequence[int]], str], ids: Sequence[int], stops: Sequence[str], begin: int) -> str:
    """The text of tokens, up to the stop text that the last of them completes; all of it where it completes none.

    Args:
        decode: tokens to text.
        ids: of a completion.
        stops: texts that end one.
        begin: tokens before the last turn, in which the stop text lies.

    >>> letters = lambda ids: "".join("ab.\\n"[i] for i in ids)
    >>> without_stop(letters, [0, 2, 1, 2, 3], (".\\n", "x"), 0), without_stop(letters, [2, 3, 0], (".\\n",), 0)
    ('a.b', '.\\na')
    """
    whole = decode(ids)
    if not any(stop in whole for stop in stops):
        return whole
    # Half of a character at the end of what was there before is another text than it becomes.
    same = zip(whole, decode(ids[:-1]), strict=False)
    known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], same))
    place = first_stop(whole, stops, known, len(decode(ids[:begin])))
    return whole if place is None else whole[:place]


def first_stop(text: str, stops: Sequence[str], known: int, start: int = 0) -> int | None:
    """Where the first stop text begins that ends behind the known part of a text; None without one.

    Args:
        text: of a completion.
        stops: texts that end one.
        known: characters that were there before.
        start: it begins there at the earliest.

    >>> first_stop("a..b.", ["."], 3), first_stop("a..b.", ["."], 5)
    (4, None)
    """
    places = [text.find(stop, max(known - len(stop) + 1, start, 0)) for stop in stops]
    return min((place for place in places if place >= 0), default=None)


class StopFilter:
    """Pieces of a growing text without the stop text that ends it: what may become one is held back.

    Args:
        stops: texts that end a completion.

    >>> kept = StopFilter(["END"])
    >>> [kept.push(piece) for piece in ("one E", "igh", "t EN", "D.")] + [kept.flush("")]
    ['one ', 'Eigh', 't ', '', '']
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.ended = tuple(stops), "", False

    def push(self, piece: str) -> str:
        """The next piece; what of the text is certain to stay.

        Args:
            piece: what came.
        """
        text, known = self.held + piece, len(self.held)
        place = first_stop(text, self.stops, known)
        self.ended = place is not None
        if place is None:
            place = len(text) - max((_begun(text, stop) for stop in self.stops), default=0)
        self.held = text[place:]
        return text[:place]

    def flush(self, rest: str) -> str:
        """What stays of the end.

        Args:
            rest: the last piece.
        """
        found = self.push(rest) if rest else ""
        return found if self.ended else found + self.held


def _begun(text: str, stop: str) -> int:
    """Characters of a stop text that a text ends with."""
    return next((count for count in range(len(stop) - 1, 0, -1) if text.endswith(stop[:count])), 0)
