"""What a rollout leaves to the next: of partial rollouts, groups that are not whole when a step has enough, and go on.

A curriculum leaves what is known of the prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from rlax_llm.commands.drawing import Drawing
from rlax_llm.commands.rollouts import Rollout, trimmed
from rlax_llm.core.mesh import fetch
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.types import Completions
from rlax_llm.data.tasks import Row
from rlax_llm.generation.partial import generate_partly, not_begun, unfinished
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.models.functional import Params


class Carried(NamedTuple):
    """Groups that go on in a later step.

    Attributes:
        groups: ``[C]``, their numbers among all groups of a run.
        completions: of ``C · G`` rows, without their prompts: ``versions [C · G, T]`` is of each token.
    """

    groups: np.ndarray
    completions: Completions

    def metrics(self) -> dict[str, float]:
        """How many they are."""
        return {"sampling/carried": float(len(self.groups))}


class Visits(NamedTuple):
    """What a curriculum knows of the prompts of a run.

    Attributes:
        rates: of each prompt's last visits ``[N, W]``, the newest first; NaN where there is none yet.
        told: metrics, where it was just learned.
    """

    rates: np.ndarray
    told: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """Of the prompts."""
        return self.told


Left = Carried | Visits


class Asked(NamedTuple):
    """What groups are of.

    Attributes:
        indices: of each group's prompt among the task's rows, ``[P]``.
        rows: the prompts, ``[P]``.
        keys: ``[P · G]``, of each completion.
    """

    indices: np.ndarray
    rows: list[Row]
    keys: jax.Array


class PartialRollouts:
    """Draws until enough groups are whole, and hands the others on.

    Args:
        drawing: how completions are drawn.
        asked: ``numbers of groups → Asked``, a function of them alone.
        groups: of a step.
        further: groups that are in flight besides.
    """

    def __init__(self, drawing: Drawing, asked: Callable[[np.ndarray], Asked], groups: int, further: int):
        self.drawing, self.asked, self.groups, self.further = drawing, asked, groups, further

    def __call__(
        self, params: Params, number: int, carried: Carried | None, version: int
    ) -> tuple[np.ndarray, Rollout, Carried]:
        """The prompts' indices and completions of as many whole groups as a step has, and what goes on.

        Args:
            params: drawn from.
            number: of the rollout, from 0.
            carried: what the one before left; None for the first.
            version: steps that the policy has taken.
        """
        start = time.perf_counter()
        groups = self._in_flight(number, carried)
        asked = self.asked(groups)
        found, width = self._drawn(params, asked, carried, version)
        whole = ~unfinished(found, self._limit).reshape(len(groups), -1).any(1)
        taken = np.flatnonzero(whole)[: self.groups]
        left = np.delete(np.arange(len(groups)), taken)
        seconds = time.perf_counter() - start
        rollout = self._rollout([asked.rows[i] for i in taken], self._of(found, taken), width, seconds)
        rest = self._of(found, left, width)
        return asked.indices[taken], rollout, Carried(groups[left], trimmed(rest, 0, self._limit))

    def _in_flight(self, number: int, carried: Carried | None) -> np.ndarray:
        """The groups that were carried, and further ones to as many as always."""
        last = self.groups * (number + 1) + self.further
        if carried is None:
            return np.arange(self.groups * number, last)
        return np.concatenate([carried.groups, np.arange(last - self.groups, last)])

    @property
    def _limit(self) -> int:
        return self.drawing.request.max_new_tokens

    def _drawn(self, params: Params, asked: Asked, carried: Carried | None, version: int) -> tuple[Any, int]:
        """All groups, on the host, each token with the version that drew it; and the columns of prompts."""
        sampling, request = self.drawing.narrow, self.drawing.request
        tokenizer, config = sampling.tokenizer, sampling.config
        prompts = [tokenizer.encode_prompt(row["prompt"]) for row in asked.rows]
        padded = pad_prompts(prompts, tokenizer.pad_id, config.vocab_size, sampling.max_prompt_tokens, sampling.width)
        begun: Any = not_begun(padded, request)
        begun = begun._replace(versions=np.zeros(begun.tokens.shape, np.int32))
        width = padded[0].shape[1]
        if carried is not None:
            begun = _behind(begun, width, carried.completions)
        tally = self.drawing.tally
        drawn = generate_partly(config, params, begun, asked.keys, request, self.groups, sampling.slots, tally)
        found: Any = fetch(drawn)
        new = found.mask & ~begun.mask
        return found._replace(versions=np.where(new, version, begun.versions)), width

    def _of(self, completions: Completions, groups: np.ndarray, first: int = 0) -> Completions:
        """Those of some groups, from a column on."""
        size = self.drawing.request.group_size
        rows = (groups[:, None] * size + np.arange(size)).ravel()
        return jax.tree.map(lambda x: x[rows, first:] if x.ndim > 1 else x[rows], completions)

    def _rollout(self, rows: list[Row], found: Completions, width: int, seconds: float) -> Rollout:
        repeated = [row for row in rows for _ in range(self.drawing.request.group_size)]
        found = trimmed(found, width, self._limit)
        return Rollout(repeated, found, self.drawing.sampling.texts(found), width, seconds)


def _behind(begun: Completions, width: int, carried: Completions) -> Completions:
    """The first rows with the tokens that they have, in the columns behind their prompts."""
    rows, columns = carried.tokens.shape
    if begun.kept is None and carried.kept is not None:
        shape = *begun.tokens.shape, carried.kept.shape[-1]
        begun = begun._replace(kept=np.full(shape, EVERY))  # pyright: ignore[reportArgumentType]

    def put(x: np.ndarray, own: np.ndarray) -> np.ndarray:
        found = x.copy()
        if x.ndim == 1:
            found[:rows] = own
        else:
            found[:rows, width : width + columns] = own
        return found

    return jax.tree.map(put, begun, carried)
