"""Whether a step of reinforcement learning, and a whole run of it, had anything to learn from."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlax_llm.host.failures import RunFailed

_DRIFT = "sampler/kl_k3"
_FAR = 0.05  # nats per token; float32 and bfloat16 differ by a twentieth of it


class LearningWatch:
    """Says once of a step that taught nothing, or whose completions were another policy's; raises after a run that
    taught nothing.

    Args:
        command: its name.
        overlong_filter: completions that were cut are left out.
    """

    def __init__(self, command: str, overlong_filter: bool = False):
        self.command, self.overlong_filter = command, overlong_filter
        self._warned = self._warned_of_another = False

    def nothing(self, metrics: Mapping[str, Any], number: int) -> str | None:
        """Why no completion of a step teaches; None where one does.

        Args:
            metrics: of the step.
            number: of the step.
        """
        if _unscored(metrics):
            return f"no completion of step {number} has a score"
        if self.overlong_filter and metrics["completions/clipped_ratio"] == 1:
            return f"every completion of step {number} was cut, which overlong_filter leaves out"
        return None

    def step(self, metrics: Mapping[str, Any], number: int) -> None:
        """Warn of the first step that taught nothing."""
        reason = self.nothing(metrics, number)
        if reason is not None and not self._warned:
            warning = f"{self.command}: {reason}, and none is learned from."
            print(f"warning: {warning} Further such steps are not reported.", file=sys.stderr)
            self._warned = True
        if not self._warned_of_another and _anothers(metrics):
            print(
                f"warning: {self.command}: the completions of step {number} are {metrics[_DRIFT]:.2g} nats per token "
                "from the policy that they should be drawn from (sampler/kl_k3); look whether the server reads the "
                "weights that it is given. Further such steps are not reported.",
                file=sys.stderr,
            )
            self._warned_of_another = True

    def check(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Raise where no completion of a whole run taught anything.

        Args:
            metrics: the run's lines.

        Raises:
            RunFailed: none had a score, or all were left out.
        """
        rows = [row for row in metrics if row["step"] > 0]
        if all(map(_unscored, rows)):
            raise RunFailed(
                f"{self.command}: no completion had a score in any of the {len(rows)} steps, so none was "
                "learned from; look at what the reward needs of the data (an answer that it cannot read is no score)."
            )
        if all(self.nothing(row, row["step"]) for row in rows):
            raise RunFailed(
                f"{self.command}: every completion of all {len(rows)} steps was cut or had no score, and "
                "overlong_filter leaves cut ones out, so none was learned from; give more max_new_tokens, or leave "
                "overlong_filter out."
            )


def _anothers(metrics: Mapping[str, Any]) -> bool:
    """Whether a server that has the policy's weights draws from others: more than number formats differ by."""
    return metrics.get("sampler/staleness") == 0 and metrics.get(_DRIFT, 0.0) > _FAR


def _unscored(metrics: Mapping[str, Any]) -> bool:
    return metrics.get("reward") is None or math.isnan(metrics["reward"])
