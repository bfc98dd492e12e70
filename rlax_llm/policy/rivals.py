"""Learning from completions that are compared with a rival's: an objective, a comparison, and who the rival is."""

from __future__ import annotations

from typing import NamedTuple

from rlax_llm.credit.rivals import Comparison, as_scored
from rlax_llm.policy.objectives import Objective


class OnlineGroups(NamedTuple):
    """``_replace`` states how one way differs from another.

    Attributes:
        objective: what a prompt's own completions are paid, in groups.
        comparison: ``(scores [G], others [H]) → [G]``, the scores that the objective sees.
        rivals: share of the reference in the geometric mixture that rivals are drawn from, ``π^(1 − m) · π_ref^m``
            token by token: 0 is the policy itself, 1 the reference. None where there are no rivals.
    """

    objective: Objective
    comparison: Comparison = as_scored
    rivals: float | None = None
