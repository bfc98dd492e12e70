"""Help with names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str:
    """End of a sentence about an unknown name: the most similar known one as a question, or a full stop.

    Args:
        name: that was given, or is missing.
        known: those that there are.

    >>> closest("max", ["min", "maximum"]), closest("x", ["min"])
    ("; did you mean 'maximum'?", '.')
    """
    match = difflib.get_close_matches(name, [str(one) for one in known], n=1)
    return f"; did you mean {match[0]!r}?" if match else "."
