"""What a plan says: memory of each program, what a step takes at the least, what to change where one does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlax_llm.commands.plan.programs import Machine, Measured
from rlax_llm.core.chips import GIB, Chip


class Plan(NamedTuple):
    """What was found.

    Attributes:
        heading: what was planned.
        machine: the devices.
        programs: of a step, in their order.
        tokens: that a step teaches, or none where it is not counted.
        advice: sentences on what does not fit.
    """

    heading: str
    machine: Machine
    programs: Sequence[Measured]
    tokens: int
    advice: Sequence[str] = ()

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return all(program.fits for program in self.programs)

    @property
    def seconds(self) -> float | None:
        """Of a step, at the least: each program's longest of products, memory and links; None where one is unknown."""
        chip = self.machine.chip
        if chip is None:
            return None
        found = [program.seconds(chip) for program in self.programs]
        return sum(max(one) for one in found if one is not None) if None not in found else None


def written(plan: Plan) -> str:
    """The plan as text."""
    machine = plan.machine
    axes = ", ".join(f"{name}={size}" for name, size in machine.mesh.shape.items() if size > 1) or "one device"
    parts = [f"{plan.heading} on {machine.name} ({axes})", _memory(plan), _speed(plan), *plan.advice]
    return "\n\n".join(part for part in parts if part)


def _memory(plan: Plan) -> str:
    names = list(dict.fromkeys(name for program in plan.programs for name in program.held))
    held = [name for name in names if any(program.held.get(name) for program in plan.programs)]
    rows = [["GiB per device", *(program.name for program in plan.programs)]]
    rows += [[name, *(_gib(program.held.get(name, 0.0)) for program in plan.programs)] for name in held]
    rows += [["temporaries", *(_gib(program.taken) for program in plan.programs)]]
    rows += [["together", *(_gib(program.total) for program in plan.programs)]]
    rows += [[f"of {_gib(plan.machine.room)}", *("fits" if one.fits else "DOES NOT FIT" for one in plan.programs)]]
    return _table(rows)


def _gib(size: float | None) -> str:
    return _number(None if size is None else size / GIB)


def _number(value: float | None) -> str:
    """Three digits, or more before the point; nothing of nothing.

    >>> _number(0.012345), _number(12345.6), _number(0.0)
    ('0.0123', '12,346', '')
    """
    if not value:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _speed(plan: Plan) -> str:
    """Work, what is sent, and seconds where the chip is known."""
    rows = [["per step and device", *(program.name for program in plan.programs)]]
    works = [program.work for program in plan.programs]
    rows += [["TFLOP", *(_number(work.flops / 1e12) if work else "" for work in works)]]
    rows += [["GB of memory", *(_number(work.bytes / 1e9) if work else "" for work in works)]]
    kinds = list(dict.fromkeys(kind for program in plan.programs for kind in program.sends))
    for kind in kinds:
        sent = [program.sends.get(kind) for program in plan.programs]
        rows += [[f"GB by {kind}", *(f"{_number(one.bytes / 1e9)} in {one.number:,}" if one else "" for one in sent)]]
    chip = plan.machine.chip
    if chip is None:
        return _table(rows) + "\n\nThe rates of these devices are not known, so there are no seconds."
    return _table(rows + _seconds(plan, chip)) + _rate(plan)


def _seconds(plan: Plan, chip: Chip) -> list[list[str]]:
    found = [program.seconds(chip) for program in plan.programs]
    named = zip(("products", "memory", "links"), range(3), strict=True)
    rows = [[f"s of {name}", *(_number(one[place]) if one else "" for one in found)] for name, place in named]
    return [*rows, ["s at the least", *(_number(max(one)) if one else "" for one in found)]]


def _rate(plan: Plan) -> str:
    seconds = plan.seconds
    if not seconds:
        return ""
    rate = plan.tokens / seconds
    return (
        f"\n\nA step takes at least {_number(seconds)} s at the chip's full rates: {rate:,.0f} tokens of completions "
        f"per second, {rate / plan.machine.mesh.size:,.0f} per device."
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, the first on the left."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        right = [other.rjust(width) for other, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)
