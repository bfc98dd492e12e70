"""Numbers in sentences, and texts of strangers on a terminal."""

from __future__ import annotations

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_LATIN = {code: f"⟨{code:02x}⟩" for code in range(0x7F, 0xA0)}
_DIRECTIONS = {code: f"⟨{code:x}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_SEEN = _PICTURES | _LATIN | _DIRECTIONS


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


def visible(text: str) -> str:
    """A text whose control characters, which a terminal would obey, and marks that turn the line around are seen.

    Args:
        text: of a data set or a model; line ends and tabs stay.

    >>> visible("\\x1b[2J\\r\\u202eabc\\n")
    '␛[2J␍⟨202e⟩abc\\n'
    """
    return text.translate(_SEEN)
