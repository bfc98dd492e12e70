"""Whether a learner leaves the padding of completions out: where that saves more than the programs for it cost."""

from __future__ import annotations

from typing import Any

from rlax_llm.core.platform import platform
from rlax_llm.generation.ladders import weights_of
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import SHARES

LEAST = 3e10  # weights times columns of completions: a CPU takes seconds for them, and some twenty to compile shares
ACCELERATED = 100  # times as much, where as much is computed in a second


def shares_of(config: DecoderConfig, settings: Any) -> tuple[float, ...]:
    """The shares of ``by_tokens``; none where a step is little work.

    Args:
        config: shapes.
        settings: of a command, with ``rollout`` and ``sampling``.

    >>> from rlax_llm.commands.grpo.settings import GrpoSettings
    >>> small = GrpoSettings.of(task="arithmetic", batch_size=4, group_size=8, max_new_tokens=64)
    >>> shares_of(DecoderConfig(5, 2, 3, 1, 1, 1, 2), small)
    ()
    >>> shares_of(DecoderConfig(50_000, 576, 1536, 30, 9, 3, 64), small)
    (0.25, 0.375, 0.625)
    """
    columns = settings.rollout.rows * settings.sampling.max_new_tokens
    least = LEAST if platform() == "cpu" else ACCELERATED * LEAST
    return SHARES if columns * weights_of(config) >= least else ()
