"""Penalties of tokens that were there before: repetition, presence and frequency; without JAX, for settings."""

from __future__ import annotations

from typing import NamedTuple


class Penalties(NamedTuple):
    """How much less likely what was there before becomes.

    Attributes:
        repetition: > 0: a logit of a token of the prompt or the completion is divided by it where it is positive and
            multiplied by it elsewhere, as in transformers (arXiv 1909.05858). Logits are defined up to a constant, and
            this depends on it. 1 is none.
        presence: nats, subtracted from the logit of a token of the completion, as in OpenAI's interface. 0 is none.
        frequency: nats, subtracted for each time that the token is in the completion. 0 is none.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0


NONE = Penalties()
"""No penalty."""
_LARGEST = 1000


def check_penalties(where: str, penalties: Penalties) -> None:
    """Raise for a penalty that is none.

    Args:
        where: what the message begins with.
        penalties: of some sampler.

    Raises:
        ValueError: naming the penalty.

    >>> check_penalties("Request", Penalties(repetition=0.0))
    Traceback (most recent call last):
    ValueError: Request: repetition penalty is 0.0, wanted a number above 0 and at most 1000; 1 is none.
    """
    if not 0 < penalties.repetition <= _LARGEST:
        raise ValueError(
            f"{where}: repetition penalty is {penalties.repetition}, wanted a number above 0 and at most "
            f"{_LARGEST}; 1 is none."
        )
    for name in ("presence", "frequency"):
        value = getattr(penalties, name)
        if not abs(value) <= _LARGEST:
            raise ValueError(
                f"{where}: {name} penalty is {value}, wanted a number from -{_LARGEST} to {_LARGEST}; 0 is none."
            )
