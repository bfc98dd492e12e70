"""What a compiled program sends between devices: read from its text, each loop's body as often as it runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.-]+) = (.+)$")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|branch_computations|called_computations|true_computation|false_computation)=")
_NAME = re.compile(r"%([\w.-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclass(frozen=True)
class Sent:
    """One kind of collective in a program.

    Attributes:
        number: how many are done, those of a loop once for each turn.
        bytes: that a device sends in all of them, by the shortest way around a ring.
    """

    number: int = 0
    bytes: float = 0.0

    def __add__(self, other: Sent) -> Sent:
        """Both together."""
        return Sent(self.number + other.number, self.bytes + other.bytes)

    def times(self, turns: int) -> Sent:
        """As often as a loop turns."""
        return Sent(self.number * turns, self.bytes * turns)


Sends = dict[str, Sent]


def collectives(text: str, devices: int, turns: int = 1) -> Sends:
    """What a device sends while a program runs, by kind of collective.

    A loop whose number of turns the text does not hold, as that of a sampler, which ends with its rows, turns ``turns``
    times; of a condition's branches that which sends most is taken. What the compiler splits into steps of one channel
    counts once.

    Args:
        text: of the compiled program, ``compiled.as_text()``.
        devices: that it runs on.
        turns: of loops that end by their data.

    >>> gathered = "%gathered = f32[8,4]{1,0} all-gather(%own), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}"
    >>> collectives("ENTRY %main (own: f32[2,4]) -> f32[8,4] {\\n  " + gathered + "\\n}", devices=4)
    {'all-gather': Sent(number=1, bytes=96.0)}
    """
    bodies, entry = _computations(text)
    found = _Reader(bodies, devices, turns).of(entry)
    return {kind: found[kind] for kind in KINDS if kind in found}


def _computations(text: str) -> tuple[dict[str, dict[str, str]], str]:
    """The instructions of each computation by name, and the name of the first that runs."""
    bodies: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    entry = ""
    for line in text.splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            current = bodies.setdefault(begins[1], {})
            entry = begins[1] if line.startswith("ENTRY") else entry
            continue
        instruction = _INSTRUCTION.match(line)
        if instruction:
            current[instruction[1]] = instruction[2]
    return bodies, entry


class _Reader:
    """Reads computations, each once."""

    def __init__(self, bodies: Mapping[str, Mapping[str, str]], devices: int, turns: int):
        self.bodies, self.devices, self.turns = bodies, devices, turns
        self.known: dict[str, Sends] = {}

    def of(self, name: str) -> Sends:
        """What a computation sends, with all that it calls and loops over."""
        if name not in self.known:
            self.known[name] = self._sum(name)
        return self.known[name]

    def _sum(self, name: str) -> Sends:
        own: dict[tuple[str, str], float] = {}
        parts: list[Sends] = []
        self._gather(name, own, parts)
        found: Sends = {}
        for (kind, _), size in own.items():
            found[kind] = found.get(kind, Sent()) + Sent(1, size)
        for part in parts:
            for kind, sent in part.items():
                found[kind] = found.get(kind, Sent()) + sent
        return found

    def _gather(self, name: str, own: dict[tuple[str, str], float], parts: list[Sends]) -> None:
        """The collectives of a computation and of what it calls, by channel; its loops and branches apart."""
        scattered = name.startswith("all-reduce-scatter")
        for label, text in self.bodies.get(name, {}).items():
            collective = _COLLECTIVE.search(text)
            if " while(" in text:
                parts.append(self._loop(text))
            elif " conditional(" in text:
                branches = [self.of(branch) for branch in _after(text, _CALLED)]
                parts.append(max(branches, key=lambda sends: sum(sent.bytes for sent in sends.values()), default={}))
            elif collective:
                # What follows the reduction keeps a part of it: such a pair is sent as a reduce-scatter.
                kind = "reduce-scatter" if scattered and collective[1] == "all-reduce" else collective[1]
                channel = _CHANNEL.search(text)
                size = self._sent(kind, text, collective, scattered)
                own[kind, channel[1] if channel else f"{name}/{label}"] = size
            else:
                for called in _after(text, _CALLED):
                    self._gather(called, own, parts)

    def _loop(self, text: str) -> Sends:
        """What a loop sends in all its turns."""
        (body,) = _after(text, re.compile("body="))[:1]
        (condition,) = _after(text, re.compile("condition="))[:1]
        turns = _turns(text, self.bodies.get(condition, {}))
        return {kind: sent.times(self.turns if turns is None else turns) for kind, sent in self.of(body).items()}

    def _sent(self, kind: str, text: str, collective: re.Match[str], scattered: bool) -> float:
        """Bytes that a device sends in one collective."""
        sizes = _sizes(text[: collective.start()])
        if collective[2] and len(sizes) > 1:  # what begins one gives its operands back too
            sizes = sizes[len(sizes) // 2 :] if kind == "all-gather" else sizes[: len(sizes) // 2]
        size, members = sum(sizes), _members(text, self.devices)
        share = (members - 1) / members
        if kind == "all-reduce":
            return 2 * size * share
        if kind == "reduce-scatter" and not scattered:
            return size * (members - 1)  # its result is a part
        return size if kind == "collective-permute" else size * share


def _after(text: str, mark: re.Pattern[str]) -> list[str]:
    """The names that follow a mark: one, or several in braces."""
    found = []
    for match in mark.finditer(text):
        rest = text[match.end() :]
        names = rest[: rest.index("}")] if rest.startswith("{") else rest.split(",")[0]
        found += _NAME.findall(names if "%" in names else f"%{names}")
    return found


def _sizes(text: str) -> list[float]:
    """Bytes of each array of a type."""
    return [
        _bits(kind) / 8 * math.prod(int(size) for size in shape.split(",") if size)
        for kind, shape in _ARRAY.findall(text)
    ]


def _bits(kind: str) -> int:
    digits = re.search(r"\d+", kind)
    return _BITS.get(kind) or int(digits[0] if digits else 0)


def _members(text: str, devices: int) -> int:
    """Devices that take part in one collective together."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", text)
    if counted:
        return int(counted[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        return math.prod(sizes[axis] for axis in re.findall(r"'([^']+)'", named[2]))
    return devices


def _turns(text: str, condition: Mapping[str, str]) -> int | None:
    """How often a loop turns; None where its data say when it ends."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', text)
    if known:
        return int(known[1])
    compared = [value for value in condition.values() if " compare(" in value]
    ends = any(re.search(r" (and|or)\(", value) for value in condition.values())
    bounds = [int(value) for each in condition.values() for value in re.findall(r"s32\[\]\S* constant\((\d+)\)", each)]
    if len(compared) == 1 and "direction=LT" in compared[0] and len(bounds) == 1 and not ends:
        return bounds[0]
    return None
