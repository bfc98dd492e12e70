"""Four ways from one start: each draws its completions and makes one update of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from experiments.distillation.sums import LONGEST, STOP, WIDTH, right
from rlax_llm.core.types import Params
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.distillation import Views, distillation_loop
from rlax_llm.loops.group import group_loop
from rlax_llm.loops.language import Prompts, fresh_sampling
from rlax_llm.loops.policy import Loop, supervised_loop
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.distilling import distilled_log_probs, teacher_log_probs
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.recipes import distillation as teaching
from rlax_llm.recipes import group as recipes

SFT, OPD, WHOLE, GRPO = "SFT on the teacher's answers", "OPD", "OPD over the vocabulary", "GRPO"


class Arm(NamedTuple):
    """What is chosen for an arm: ``group_size`` completions of a prompt share its computation."""

    name: str
    group_size: int


class Pair(NamedTuple):
    """The shapes of both models."""

    student: DecoderConfig
    teacher: DecoderConfig


def optimizer(rate: Any) -> optax.GradientTransformation:
    """The same for every arm; ``rate`` may be traced."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), optax.scale(-rate))


def learning(pair: Pair, arm: Arm, rate: Any) -> Loop[Any, Any]:
    """What an arm does with its batch."""
    layout = (arm.group_size, WIDTH)
    student = group_log_probs(pair.student, layout)
    if arm.name == SFT:
        return supervised_loop(student, optimizer(rate))
    if arm.name == GRPO:
        return group_loop(student, recipes.grpo(0), optimizer(rate))
    if arm.name == OPD:
        views = Views(student, teacher_log_probs(pair.teacher, layout))
        return distillation_loop(views, teaching.opd(), optimizer(rate))
    whole = teaching.gkd(beta=1.0, on_policy=1.0)
    assert whole.divergence is not None
    views = Views(student, compared=distilled_log_probs(pair, layout, whole.divergence))
    return distillation_loop(views, whole, optimizer(rate))


def window(pair: Pair, arm: Arm, completions: int) -> tuple[Callable[[Params], Any], Callable[..., Any]]:
    """``init(params)`` and ``(state, prompts, teacher, rate, keys) → (state, tokens)``, a step for each key.

    SFT learns from what the teacher draws, the others from what the student draws; both are drawn in the step, and no
    distillation reads a reward.
    """
    request = Request(Categorical(), (STOP,), LONGEST, arm.group_size)
    imitates, asks = arm.name == SFT, arm.name in (OPD, WHOLE)
    drawn_from = pair.teacher if imitates else pair.student

    @jax.jit
    def steps(state: Any, prompts: Prompts, teacher: Params, rate: jax.Array, keys: jax.Array) -> tuple[Any, Any]:
        collector = fresh_sampling(drawn_from, prompts, right, request, completions // arm.group_size)
        update = learning(pair, arm, rate)[1]

        def one(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            draw, order = jax.random.split(key)
            groups = collector.collect((), teacher if imitates else state.params, draw, 0)[1]
            batch = groups.completions if imitates else groups
            state, _ = update(state, batch, key=order, reference=teacher if asks else None)
            return state, groups.completions.mask.sum()

        state, tokens = jax.lax.scan(one, state, keys)
        return state, tokens.sum()

    return learning(pair, arm, 0.0)[0], steps
