"""What is asked of speculation; it imports nothing, as settings read it before any array is there."""

from __future__ import annotations

from typing import NamedTuple


class Speculation(NamedTuple):
    """How tokens are guessed before they are drawn, so that several are drawn by one forward pass.

    Attributes:
        drafts: tokens that are guessed at a time.
        always: guess wherever no row waits for a slot, and not only where it is expected to be faster.
    """

    drafts: int = 4
    always: bool = False
