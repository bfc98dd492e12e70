"""Partial rollouts in one program: completions that take several steps, each part drawn by the policy of its step."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.types import Completions, Groups, Known, Metrics, Params
from rlax_llm.generation.engine import for_sampling, generate_at_once
from rlax_llm.generation.further import begun_anew, generate_further, goes_on
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import row_keys
from rlax_llm.loops.curriculum import Choosing, uniform_choosing
from rlax_llm.loops.language import Collector, Prompts, ScoreFunction, by_group, emptied, in_rows
from rlax_llm.models.config import DecoderConfig

_FREE, _LAST = -1, jnp.iinfo(jnp.int32).max


class InFlight(NamedTuple):
    """Groups that are drawn beside one another, F of them.

    Attributes:
        rows: ``[F · G, T]``, what was drawn so far, with the log-probabilities and the versions of the policies that
            drew it.
        keys: ``[F · G]``, of each row.
        prompts: ``[F]`` int32, which prompt each group is of.
        numbers: ``[F]`` int32, of each group among all of a run; −1 where a place is free.
        begun: scalar int32, groups that were begun.
        choice: the memory of the choice of prompts.
    """

    rows: Completions
    keys: jax.Array
    prompts: jax.Array
    numbers: jax.Array
    begun: jax.Array
    choice: Any


def _where(those: jax.Array, new: Any, old: Any) -> Any:
    """Rows of two pytrees ``[N, …]`` by a condition ``[N]``."""

    def pick(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(those.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(pick, new, old)


@check_arguments
def partial_sampling(
    config: DecoderConfig,
    prompts: Prompts,
    reward: ScoreFunction,
    request: Request,
    sizes: tuple[int, int],
    budget: int | jax.Array,
    choosing: Choosing | None = None,
) -> Collector:
    """``fresh_sampling`` in which no step waits for the longest: each draws ``budget`` tokens, and groups go on.

    A step hands out the groups that are whole, the oldest first, and begins others in their places; what is unfinished
    is read again in the next step and goes on under its policy (partial rollouts, Kimi k1.5, arXiv 2501.12599). Every
    group is handed out once. Places without a group have no chosen token and NaN scores. Other collectors may wrap it.
    Limiting cases: ``fresh_sampling`` for a budget of the longest completion; the same completions at the same keys
    whatever the budget, if parameters stay.

    Args:
        config: shapes of the decoder.
        prompts: to draw from.
        reward: ``(completions, columns) → scores [B]`` or ``[K, B]``, in jnp; it reads whole completions.
        request: sampler, stop tokens, longest completion and group size.
        sizes: groups of a step, P, and those that are in flight besides, from 0 on.
        budget: ≥ 1, tokens that a step adds to each completion; may be traced.
        choosing: which prompts; None draws each as often as any other, and remembers nothing.

    Returns:
        A collector, whose completions have the version of each token. Metrics are ``sampling/filled``, the share of the
        batch, and ``sampling/carried``, groups that go on or wait.

    Raises:
        ValueError: for a number out of its range.
    """
    groups, further = sizes
    checks.at_least_one("partial_sampling", groups=groups, budget=budget, group_size=request.group_size)
    checks.not_negative("partial_sampling", further=further)
    prompts = jax.tree.map(jnp.asarray, prompts)
    choice = uniform_choosing(prompts.tokens.shape[0]) if choosing is None else choosing
    drawing = _Drawing(config, prompts, request, groups + further, choice)

    def collect(
        memory: InFlight, params: Params, key: jax.Array, version: jax.typing.ArrayLike
    ) -> tuple[InFlight, Groups, Metrics]:
        flight = drawing.advanced(drawing.filled(memory, key), params, budget, version)
        flight, given, chosen, count = _handed_out(flight, request, groups)
        rows = jnp.repeat(chosen, request.group_size)
        scores = reward(given.completions, jax.tree.map(lambda x: x[rows], prompts.columns))
        scores = scores.reshape(*scores.shape[:-1], groups, -1)
        given = in_rows(emptied(by_group(given._replace(scores=scores)), count))
        learned, told = choice.learn(flight.choice, chosen, given.scores)
        told |= {"sampling/filled": count / groups, "sampling/carried": groups + further - count}
        return flight._replace(choice=learned), given, told

    return Collector(drawing.init, collect)


class _Drawing(NamedTuple):
    """How groups are begun and go on.

    Attributes:
        config: shapes of the decoder.
        prompts: to draw from.
        request: static.
        places: groups in flight, F.
        choice: which prompts.
    """

    config: DecoderConfig
    prompts: Prompts
    request: Request
    places: int
    choice: Choosing

    def init(self, params: Params) -> InFlight:
        """Nothing in flight."""
        rows = self.places * self.request.group_size
        free = jnp.full(self.places, _FREE, jnp.int32)
        asked = self._asked(jnp.zeros(self.places, jnp.int32))
        drawn = partial(generate_at_once, self.config, request=self.request)
        shapes = jax.eval_shape(drawn, for_sampling(self.config, params), asked, key=jax.random.key(0))
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return InFlight(
            rows=empty._replace(versions=jnp.zeros(empty.mask.shape, jnp.int32)),
            keys=row_keys(jax.random.key(0), rows),
            prompts=jnp.zeros(self.places, jnp.int32),
            numbers=free,
            begun=jnp.int32(0),
            choice=self.choice.init(),
        )

    def _asked(self, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.prompts.tokens[chosen], self.prompts.valid[chosen]

    def filled(self, flight: InFlight, key: jax.Array) -> InFlight:
        """With fresh groups in the free places."""
        which, draw = jax.random.split(key)
        chosen = self.choice.choose(flight.choice, which, self.places)
        size, free = self.request.group_size, flight.numbers == _FREE
        fresh = begun_anew(self._asked(chosen), self.request, flight.rows)
        of_rows = jnp.repeat(free, size)
        return flight._replace(
            rows=_where(of_rows, fresh, flight.rows),
            keys=jnp.where(of_rows, row_keys(draw, self.places * size), flight.keys),
            prompts=jnp.where(free, chosen, flight.prompts),
            numbers=jnp.where(free, flight.begun + jnp.cumsum(free) - 1, flight.numbers),
            begun=flight.begun + free.sum(dtype=jnp.int32),
        )

    def advanced(
        self, flight: InFlight, params: Params, budget: int | jax.Array, version: jax.typing.ArrayLike
    ) -> InFlight:
        """So many tokens further, under these parameters of this version."""
        matrices = for_sampling(self.config, params)
        rows = generate_further(self.config, matrices, flight.rows, flight.keys, self.request, budget)
        before: Any = flight.rows.versions
        versions = jnp.where(flight.rows.mask, before, version)
        return flight._replace(rows=rows._replace(versions=versions.astype(jnp.int32)))


def _handed_out(flight: InFlight, request: Request, groups: int) -> tuple[InFlight, Groups, jax.Array, jax.Array]:
    """The oldest whole groups, at most so many, without their scores; their prompts, and how many there are."""
    size = request.group_size
    whole = ~goes_on(flight.rows, request.max_new_tokens).reshape(-1, size).any(-1)
    places = jnp.argsort(jnp.where(whole, flight.numbers, _LAST))[:groups]
    count = jnp.minimum(whole.sum(), groups)
    rows = (places[:, None] * size + jnp.arange(size)).reshape(-1)
    taken: Any = jax.tree.map(lambda x: x[rows], flight.rows)
    chosen = flight.prompts[places]
    given = Groups(taken, jnp.zeros((groups, size)), known=Known(prompts=chosen))
    kept = flight.numbers[places]
    numbers = flight.numbers.at[places].set(jnp.where(jnp.arange(groups) < count, _FREE, kept))
    return flight._replace(numbers=numbers), given, chosen, count
