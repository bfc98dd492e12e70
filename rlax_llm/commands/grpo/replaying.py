"""Replay on the host: earlier groups that differed in score stand in for fresh ones that do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.grpo.gathering import Taken, selected, together
from rlax_llm.commands.rollouts import Rollout, trimmed
from rlax_llm.loops.group import informative_groups
from rlax_llm.loops.replay import given_places, remembered_places


class Replay:
    """The memory's rules; the memory itself is handed on from step to step.

    Args:
        size: groups that are remembered.
        share: of a step's groups, at most.
        key: of the run; a step's draws follow from its number.
        telling: ``Taken → [P, N]`` or ``[K, P, N]``, what must differ within a group.
        narrowed: a rollout in the columns that its rows need.
    """

    def __init__(
        self,
        size: int,
        share: float,
        key: jax.Array,
        telling: Callable[[Taken], np.ndarray],
        narrowed: Callable[[Rollout], Rollout],
    ):
        self.size, self.share, self.key, self.telling, self.narrowed = size, share, key, telling, narrowed
        self.programs = jax.jit(given_places), jax.jit(remembered_places)

    def __call__(self, taken: Taken, remembered: Taken | None, index: int) -> tuple[Taken, Taken | None, Any]:
        """The groups of step ``index`` (from 0), what is remembered after it, and metrics.

        Args:
            taken: fresh groups.
            remembered: earlier ones, the newest first, or None.
            index: from 0.
        """
        held = 0 if remembered is None else len(remembered.indices)
        both = taken if remembered is None else together([remembered, taken])
        given, kept = self._places(taken, held, index)
        again = given < held
        after = selected(both, kept) if len(kept) else None
        told = {"replay/share": float(again.mean())}
        return self._mixed(taken, both, given) if again.any() else taken, after, told

    def _places(self, taken: Taken, held: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """What is given and what is kept of the ``held`` groups of the memory and those behind them."""
        informative = np.asarray(informative_groups(jnp.asarray(self.telling(taken))))
        there, most = np.arange(self.size) < held, round(self.share * len(informative))
        give, keep = self.programs
        places = np.asarray(give(informative, there, most, jax.random.fold_in(self.key, index)))
        newest, holds = (np.asarray(x) for x in keep(informative, there))
        # Places count a full memory.
        behind = self.size - held
        given, kept = (np.where(x < self.size, x, x - behind) for x in (places, newest[holds]))
        return given, kept

    def _mixed(self, taken: Taken, both: Taken, places: np.ndarray) -> Taken:
        """Groups by their places, in the seconds that the fresh ones took."""
        mixed = selected(both, places)
        rollout, steps = self.narrowed(mixed.rollout), mixed.scores.steps
        columns = rollout.completions.tokens.shape[1] - rollout.prompt_width
        scores = mixed.scores._replace(steps=None if steps is None else steps[:, :columns])
        return mixed._replace(rollout=rollout._replace(seconds=taken.rollout.seconds), scores=scores)


def narrowed(width: Callable[[int], int], limit: int, rollout: Rollout) -> Rollout:
    """A rollout in the columns that its rows need, whatever they stood beside before.

    Args:
        width: columns for prompts of which the longest has so many tokens.
        limit: the longest completion, tokens.
        rollout: as wide, or wider.
    """
    completions = jax.tree.map(np.asarray, rollout.completions)
    longest = int(completions.valid[:, : rollout.prompt_width].sum(-1).max())
    columns = min(rollout.prompt_width, width(longest))
    first = rollout.prompt_width - columns
    completions = jax.tree.map(lambda x: x[:, first:] if x.ndim > 1 else x, completions)
    return rollout._replace(completions=trimmed(completions, columns, limit), prompt_width=columns)


def build_replay(
    size: int,
    share: float,
    key: jax.Array,
    telling: Callable[[Taken], np.ndarray],
    columns: tuple[Callable[[int], int], int],
) -> Replay | None:
    """The replay of the settings, if any.

    Args:
        size: groups that are remembered; 0 is none.
        share: of a step's groups.
        key: of the run.
        telling: what must differ within a group.
        columns: ``width`` and ``limit`` of ``narrowed``.
    """
    return Replay(size, share, key, telling, partial(narrowed, *columns)) if size else None
