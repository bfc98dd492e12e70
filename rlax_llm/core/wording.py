"""Numbers in sentences, templates, and texts of strangers on a terminal."""

from __future__ import annotations

import re

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


def check_template(what: str, template: str, *names: str) -> None:
    """Raise where a template has no place for what it is to hold.

    Args:
        what: what it is, which the message begins with.
        template: a text.
        names: of its places.

    Raises:
        ValueError: a place is not there.

    >>> check_template("teacher_prompt", "{prompt}", "prompt", "hint")
    Traceback (most recent call last):
    ValueError: teacher_prompt is '{prompt}', wanted a text in which {hint} stands; put it in.
    """
    for name in names:
        if f"{{{name}}}" not in template:
            raise ValueError(f"{what} is {template!r}, wanted a text in which {{{name}}} stands; put it in.")


def filled(template: str, **texts: str) -> str:
    """A template with its places filled; what is put in is not looked through.

    Args:
        template: a text with names in braces; a name that is not given stays as it is.
        texts: by name.

    >>> filled("{prompt} {hint} {other}", prompt="{hint}", hint="5")
    '{hint} 5 {other}'
    """
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), template)
