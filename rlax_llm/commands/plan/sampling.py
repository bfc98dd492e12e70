"""The programs that draw completions and score them: the sampler's copy of weights, prefill, decode, a reward model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rlax_llm.commands.drawing import Drawing
from rlax_llm.commands.learner import Learner, completion_scores
from rlax_llm.commands.plan.models import array, key
from rlax_llm.commands.plan.programs import Machine, Program, lying
from rlax_llm.commands.plan.work import Grid, Rows, Work, bytes_of, decoding, forward, grouped
from rlax_llm.commands.sampling_settings import LimitSettings
from rlax_llm.commands.shared_settings import RolloutSettings
from rlax_llm.generation.cache import columns_of
from rlax_llm.generation.engine import decode, prefill, shared_out, unstack
from rlax_llm.generation.ladders import FEWEST, entering_prompts, is_work, rooms
from rlax_llm.generation.request import Request
from rlax_llm.generation.speculation import by_number, guesser
from rlax_llm.generation.state import completions
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.narrow import narrow_matrices
from rlax_llm.models.sharding import sampling_rules

_LAYERS = "sampler's layers"


class Prompts(NamedTuple):
    """What is completed.

    Attributes:
        number: prompts of a step.
        width: tokens of the longest.
        slots: completions that are drawn at a time, each with its prompt to itself; None draws those of a step.
        entering: prompts that begin at a time.
    """

    number: int
    width: int
    slots: int | None
    entering: int

    def arrays(self, count: int) -> tuple[Any, Any]:
        """``tokens`` and ``valid`` of so many prompts, abstract."""
        return array((count, self.width), jnp.int32), array((count, self.width), jnp.bool_)


def prompts_of(rollout: RolloutSettings, limits: LimitSettings, rivals: int = 0) -> Prompts:
    """The prompts of a step's rollout.

    Args:
        rollout: completions of a step, and how many are drawn at a time.
        limits: of their lengths.
        rivals: completions of a prompt that a rival draws of the same prompts; 0 is the policy's own rollout.
    """
    size = rivals or rollout.drawn_size
    whole = rollout.batch_size * size
    most = whole if rivals else rollout.rows_in_flight
    slots = min(rollout.slots or most, most)
    slots = None if slots == most == whole else slots
    entering = rollout.batch_size if slots is None else entering_prompts(slots, size)
    return Prompts(rollout.batch_size, limits.max_prompt_tokens, slots, entering)


class Sampler(NamedTuple):
    """How completions are drawn on a machine.

    Attributes:
        machine: the devices.
        learner: what is sampled from, abstract.
        drawing: of the command.
        prompts: of a step.
        whose: that the names of its programs begin with; nothing for the policy's own.
    """

    machine: Machine
    learner: Learner
    drawing: Drawing
    prompts: Prompts
    whose: str = ""

    def drawn(self) -> Any:
        """The completions of a step, abstract, as the host gives them to the learner."""
        tokens, valid, request = *self.prompts.arrays(self.prompts.number), self.drawing.request
        state = self._prefilled((tokens, valid), request, request.max_new_tokens)[1]
        return completions.eval_shape(tokens, valid, state, request)

    def held(self) -> dict[str, Any]:
        """What is drawn from beside the learner's own arrays, by what it is."""
        return {} if self.shared else {f"{self.whose}sampler": self.sampled()}

    def sampled(self) -> Any:
        """Parameters that completions are drawn from, abstract."""
        learner = self.learner
        read = jax.eval_shape(
            lambda own, frozen: learner._replace(frozen=frozen).sampled(own, self.shape), *self._trained()
        )
        return self.machine.put(read, None if self.shared else sampling_rules())

    def _trained(self) -> tuple[Any, Any]:
        return self.learner.params, self.learner.frozen

    @property
    def shape(self) -> DecoderConfig:
        """Of what completions to learn from are drawn from."""
        return self.drawing.narrow.config

    @property
    def shared(self) -> bool:
        """Whether the sampler reads the learner's own arrays: on one device, where no adapter is merged and no matrix
        narrow.
        """
        return self.machine.mesh.size == 1 and replace(self.shape, cache_dtype=None) == self.learner.config

    def _prefilled(self, prompts: tuple[Any, Any], request: Request, room: int) -> Any:
        sampled, config = self.sampled(), self.shape
        return prefill.eval_shape(config, sampled, *prompts, key(), request, room)

    def _shared_out(self) -> tuple[tuple[Any, Any], Request]:
        """Prompts and request as the devices take them."""
        requests = []

        def repeated(prompts: tuple[Any, Any]) -> tuple[Any, Any]:
            repeated, request = shared_out(prompts, self.drawing.request)
            requests.append(request)
            return repeated

        return jax.eval_shape(repeated, self.prompts.arrays(self.prompts.entering)), requests[-1]

    def programs(self, resident: Mapping[str, Any]) -> list[Program]:
        """The programs of a step's completions.

        Args:
            resident: what a run keeps on the devices, by what it is.
        """
        with self.machine.entered():
            sampled = self.sampled()
            prompts, request = self._shared_out()
            found = [] if self.shared else [self._copy(resident)]
            beside = dict(resident) | self.held()
            meanwhile = beside
            if self.prompts.slots is not None:  # others are decoded while further prompts come
                meanwhile = beside | {_LAYERS: _unrolled(self.machine, self.shape, sampled)}
            return [*found, self._prefill(sampled, prompts, request, meanwhile), self._decode(prompts, request, beside)]

    def _copy(self, resident: Mapping[str, Any]) -> Program:
        """Weights as the sampler reads them: merged, narrow, over ``tensor`` alone."""
        learner = self.learner

        def lower(earlier: Any) -> Any:
            del earlier
            copied = jax.jit(lambda own, frozen: learner._replace(frozen=frozen).sampled(own, self.shape))
            return copied.lower(*map(self.machine.put, self._trained()))

        named = ("parameters", "base")
        parts = {name: tree for name, tree in resident.items() if name in named}
        beside = {name: tree for name, tree in resident.items() if name not in named}
        whose = self.whose or "sampler's "
        return Program(f"{whose}copy", lower, parts, beside, Work(0.0, 2 * bytes_of(self.sampled())))

    def _prefill(self, sampled: Any, prompts: tuple[Any, Any], request: Request, beside: Mapping[str, Any]) -> Program:
        config, room = self.shape, rooms(request.max_new_tokens)[0]

        def lower(earlier: Any) -> Any:
            del earlier
            return prefill.lower(config, sampled, *self.machine.whole(prompts), key(), request, room)

        count, width = prompts[0].shape
        rows = Rows(count * width, count * width * (width + 1) / 2, count * request.group_size)
        work = forward(config, rows, self.machine.grid)
        own = ("parameters", "base") if self.shared else tuple(self.held())
        parts = {name: tree for name, tree in beside.items() if name in own}
        beside = {name: tree for name, tree in beside.items() if name not in own}
        return Program(
            f"{self.whose}prefill", lower, parts, beside, work, times=-(-self.prompts.number // self.prompts.entering)
        )

    def _decode(self, prompts: tuple[Any, Any], request: Request, beside: Mapping[str, Any]) -> Program:
        config, limit, slots, times = self.shape, request.max_new_tokens, self.prompts.slots, 1
        if slots is not None:  # each row has its prompt to itself
            times = -(-self.prompts.number * self.drawing.request.group_size // slots)
            prompts, request = self.prompts.arrays(slots), request._replace(group_size=1)
        shapes = self._prefilled(prompts, request, limit)
        unrolled = _unrolled(self.machine, config, self.sampled())

        def lower(earlier: Any) -> Any:
            first = f"{self.whose}prefill"
            if first not in earlier:
                raise MissingProgram(first)
            laid = jax.tree.map(lying, shapes, earlier[first].output_shardings)
            return decode.lower(config, unrolled, laid[0], laid[1], array((), jnp.int32), request)

        count, width = prompts[0].shape
        lanes = self.machine.grid.lanes
        grid = self.machine.grid if count % lanes == 0 else Grid(1, self.machine.grid.tensor)
        work = decoding(config, count, request.group_size, width, limit, grid, request.keeps)
        caches = (shapes[0].cache, shapes[1].cache)
        half = self._old_cache(prompts, request, shapes[1]) / (grid.lanes * grid.tensor)
        half = max(half, self._guessed_cache(prompts, request, shapes[1]))
        parts = {_LAYERS: unrolled, "caches": _shared_by(caches, grid)}
        return Program(f"{self.whose}decode", lower, parts, beside, work, limit - 1, half, times)

    def _old_cache(self, prompts: tuple[Any, Any], request: Request, state: Any) -> float:
        """Bytes of what lies beside a cache while it grows to its last size: the one before."""
        room = (0, *rooms(request.max_new_tokens))[-2]
        before = self._prefilled(prompts, request, room)[1].cache
        return 0.0 if columns_of(before) == columns_of(state.cache) else bytes_of(before)

    def _guessed_cache(self, prompts: tuple[Any, Any], request: Request, state: Any) -> float:
        """Bytes of what lies beside a cache while tokens are guessed: one of all layers' columns, and those of guesses.

        Of fewer rows, which leave a larger cache behind them, it is not counted.
        """
        limit, rows = request.max_new_tokens, len(state.rows)
        guesses = guesser(prompts, request, is_work(self.shape, max(rows, FEWEST), limit))
        if guesses is None or not guesses.may(rows):
            return 0.0
        return bytes_of(jax.eval_shape(lambda state: by_number(state, limit + guesses.speculation.drafts), state))


class MissingProgram(Exception):
    """A program is not there whose results another takes."""


def _unrolled(machine: Machine, config: DecoderConfig, sampled: Params) -> Params:
    """The layers apart, each where the stacked ones are."""
    shapes = jax.eval_shape(lambda params: unstack(narrow_matrices(config, params)), sampled)

    def laid(leaf: Any, stacked: Any) -> Any:
        return lying(leaf, NamedSharding(machine.mesh, PartitionSpec(*stacked.sharding.spec[1:])))

    layers = tuple(jax.tree.map(laid, layer, sampled["layers"]) for layer in shapes["layers"])
    rest = {name: leaf for name, leaf in shapes.items() if name != "layers"}
    there = {name: sampled[name] for name in rest}
    return jax.tree.map(lambda leaf, whole: lying(leaf, whole.sharding), rest, there) | {"layers": layers}


def _shared_by(caches: Any, grid: Grid) -> Any:
    """A number of bytes as an abstract array, of a device's part."""
    own = int(bytes_of(caches) / (grid.lanes * grid.tensor))
    return array((own,), jnp.int8)


def scoring(
    machine: Machine, judges: Mapping[str, LanguageModel], layout: tuple[int, int], rows: Any, beside: Mapping[str, Any]
) -> list[Program]:
    """The programs of reward models over the completions of a step; of steps it is the same pass over about as many.

    Args:
        machine: the devices.
        judges: the reward models by what they are, abstract.
        layout: ``(group_size, prompt_width)``.
        rows: completions, abstract.
        beside: what lies on the devices meanwhile, besides the reward models.
    """
    held = {name: machine.put(judge.params) for name, judge in judges.items()}
    return [_scoring(machine, (name, judge), layout, rows, (held, beside)) for name, judge in judges.items()]


def _scoring(
    machine: Machine,
    named: tuple[str, LanguageModel],
    layout: tuple[int, int],
    rows: Any,
    lying: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> Program:
    (name, judge), (held, beside) = named, lying
    count, tokens = rows.tokens.shape
    through = grouped(count, layout[0], layout[1], tokens - layout[1], scored=False)

    def lower(earlier: Any) -> Any:
        del earlier
        program = jax.jit(completion_scores(judge.tokenizer, judge.config, layout, False))
        return program.lower(held[name], machine.whole(rows))

    others = {other: params for other, params in held.items() if other != name}
    work = forward(judge.config, through, machine.grid)
    return Program(name, lower, {name: held[name]}, {**beside, **others}, work)
