"""Where the seconds of a step go."""

from __future__ import annotations

import time

from rlax_llm.commands.grpo.gathering import Ahead, Taken


class Clock:
    """Runs from the beginning of a step."""

    def __init__(self) -> None:
        self.start = self.begun = time.perf_counter()
        self.rollout = self.scoring = 0.0

    def gathered(self, taken: Taken) -> None:
        """Groups to learn from were drawn, and scored before anything is learned."""
        self.scoring += time.perf_counter() - self.start - taken.rollout.seconds
        self.rollout += taken.rollout.seconds

    def learning(self) -> None:
        """The update begins."""
        self.begun = time.perf_counter()

    def ahead(self, following: Ahead | None) -> None:
        """Groups were drawn for the next step, if that did not fail."""
        self.rollout += 0.0 if following is None else following.taken.rollout.seconds

    @property
    def update(self) -> float:
        """Seconds from the beginning of the update until now, at its end."""
        return time.perf_counter() - self.begun

    def seconds(self) -> dict[str, float]:
        """Of rollout and scoring, and what the update takes beside them."""
        left = time.perf_counter() - self.start - self.rollout - self.scoring
        return {"rollout": self.rollout, "scoring": self.scoring, "update": left}
