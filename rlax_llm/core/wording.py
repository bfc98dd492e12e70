"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, several: str | None = None) -> str:
    """A number with its noun, which has an *s* unless it is one.

    Args:
        number: of them.
        noun: of one.
        several: the plural, where it is another.

    >>> counted(1, "row"), counted(1200, "row"), counted(0, "entry", "entries")
    ('1 row', '1,200 rows', '0 entries')
    """
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
