"""What ends a run whose input was right, and errors in a sentence."""

from __future__ import annotations

_LONGEST = 600  # characters of a message


class RunFailed(ValueError):
    """The training itself has failed: a number is not finite, or no completion had a score.

    The command line ends with 1 then, and with 2 after a mistake in what it was given.
    """


class NotFinite(RunFailed):
    """A step gave a number that is not finite; the run says which command it was, and what there is on the disk."""


def sentence(error: BaseException) -> str:
    """What an error says, on one line and not without end; its type where it says nothing.

    Args:
        error: any, also one that cannot say what it is.

    >>> sentence(ValueError("two\\nlines")), sentence(KeyError())
    ('two lines', 'KeyError')
    """
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = f"{type(error).__name__}, which cannot be printed"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} … ({len(text):,} characters)"
    return text or type(error).__name__
