"""``plan`` as a function of another command's settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlax_llm.commands.plan.distillation import distill_programs
from rlax_llm.commands.plan.given import preference_programs, supervised_programs
from rlax_llm.commands.plan.groups import group_programs
from rlax_llm.commands.plan.machines import compiling_for, machine_of
from rlax_llm.commands.plan.online import online_programs
from rlax_llm.commands.plan.programs import UPDATE, Machine, Measured, Program, measure
from rlax_llm.commands.plan.report import Plan, written
from rlax_llm.commands.plan.rlhf import ppo_programs
from rlax_llm.commands.plan.sampling import MissingProgram
from rlax_llm.commands.plan.search import largest_that_fits, micro_batches_below
from rlax_llm.commands.plan.settings import Planned, PlannedOnline, WithRollout
from rlax_llm.core.chips import GIB
from rlax_llm.host.progress import say

Build = Callable[[Any, Machine], Sequence[Program]]

BUILD: dict[str, Build] = {
    "grpo": group_programs,
    "ppo": ppo_programs,
    "sft": supervised_programs,
    "reward": preference_programs,
    "dpo": preference_programs,
    "kto": preference_programs,
    "online": online_programs,
    "distill": distill_programs,
}
"""The programs of a step of each command."""


def run_plan(settings: Planned) -> Plan:
    """Compile the programs of a command for the devices of its plan, and say what they take.

    Args:
        settings: of the command, and the devices.

    Raises:
        ValueError: for settings that the command refuses, an unknown chip, or a model that is not known.
    """
    plan = make_plan(settings)
    say(written(plan))
    return plan


def make_plan(settings: Planned, search: bool = True) -> Plan:
    """The plan of ``run_plan``, unsaid.

    Args:
        settings: of the command, and the devices.
        search: for a micro-batch that fits, where the update does not: a few compilations more.
    """
    with compiling_for(settings.plan.on):
        machine = machine_of(settings.plan.on, settings.machine.mesh, settings.rows_together())
        measured = _measured(BUILD[settings.command](settings, machine), machine)
        advice = _advice(settings, machine, measured) if search else []
    return Plan(_heading(settings), machine, measured, _tokens(settings), advice)


def _measured(programs: Sequence[Program], machine: Machine) -> list[Measured]:
    """What is known of each; of one whose forerunner has not been compiled nothing."""
    earlier: dict[str, Any] = {}
    found = []
    for program in programs:
        try:
            found.append(measure(program, machine, earlier))
        except MissingProgram:
            continue
    return found


def _tokens(settings: Planned) -> int:
    """Tokens of completions in a step."""
    if isinstance(settings, WithRollout):
        return settings.rollout.rows * settings.sampling.max_new_tokens
    return settings.batch.batch_size * settings.batch.max_new_tokens


def _heading(settings: Planned) -> str:
    model = settings.model
    adapters = f" with adapters of rank {model.lora_rank}" if model.lora_rank else ""
    if isinstance(settings, WithRollout):
        rollout, limits = settings.rollout, settings.sampling
        count = settings.rollout.rivals if isinstance(settings, PlannedOnline) else 0
        rivals = f" and {count} of a rival" if count else ""
        rows = f"{rollout.batch_size} × {rollout.group_size} completions{rivals}"
    else:
        limits, rows = settings.batch, f"{settings.batch.batch_size} examples"
    lengths = f"of {limits.max_prompt_tokens:,} + {limits.max_new_tokens:,} tokens"
    return f"{settings.command}: {model.model}{adapters} in {model.dtype}, {rows} {lengths},"


def _advice(settings: Planned, machine: Machine, measured: Sequence[Measured]) -> list[str]:
    """What to change, for each program that does not fit."""
    found = []
    for program in measured:
        if program.fits:
            continue
        short = f"{program.name} takes {program.total / GIB:,.2f} GiB of {program.room / GIB:,.2f}"
        found.append(f"{short}: {_remedy(settings, machine, program)}")
    return found


def _remedy(settings: Planned, machine: Machine, program: Measured) -> str:
    if not program.name.startswith(UPDATE):
        return (
            "give more devices along tensor, over which the sampler's weights and caches lie, or along fsdp for the "
            "rest; --slots below the completions of a step; or --dtype bfloat16."
        )
    smaller = _smaller_micro_batch(settings, machine)
    if smaller is not None:
        return f"--micro-batch-size {smaller} fits, and no larger one."
    return (
        "no micro-batch fits; give more devices along fsdp or tensor, --remat, --dtype bfloat16, or adapters "
        "(--lora-rank)."
    )


def _smaller_micro_batch(settings: Planned, machine: Machine) -> int | None:
    """The largest micro-batch below the present one that fits."""
    now = settings.rows_together()[0]

    def fits(size: int) -> bool:
        programs = BUILD[settings.command](settings.changed(micro_batch_size=size), machine)
        return all(measure(program, machine, {}).fits for program in programs if program.name.startswith(UPDATE))

    sizes = micro_batches_below(now, _learned_rows(settings), machine.grid.lanes)
    return largest_that_fits([size for size in sizes if _can_be(settings, size)], fits)


def _learned_rows(settings: Planned) -> int:
    """Rows of an optimizer step."""
    if not isinstance(settings, WithRollout):
        return settings.batch.batch_size
    rows = settings.learned_rows if isinstance(settings, PlannedOnline) else settings.rollout.rows
    return rows // settings.learning.minibatches


def _can_be(settings: Planned, size: int) -> bool:
    """Whether the command takes a micro-batch of so many rows: one of pairs takes whole pairs."""
    try:
        settings.changed(micro_batch_size=size)
    except ValueError:
        return False
    return True
