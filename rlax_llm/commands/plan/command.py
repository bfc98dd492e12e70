"""What the command line says of ``plan``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.plan.settings import (
    PlannedDistill,
    PlannedDpo,
    PlannedGrpo,
    PlannedKto,
    PlannedOnline,
    PlannedPpo,
    PlannedReward,
    PlannedSft,
)
from rlax_llm.commands.table import Command

SUMMARY = "memory and seconds that another command will take of a machine, without running it"
_RUN = "rlax_llm.commands.plan.run:run_plan"
_DESCRIPTION = """Compile the programs of {name} for a machine from shapes alone, without weights and without running
them, and print for each device: memory, what is sent, and the seconds that a step takes at the least. All flags of
{name} are taken as they are there; --model may also be a directory that holds a config.json alone, or a published shape
as qwen3-8b or llama-3-70b.

Examples:
  rlax-llm plan {name} --model qwen3-0.6b --on v5e:2x4 --mesh fsdp=8 --dtype bfloat16
  rlax-llm plan {name} --config runs/mine/config.yaml --on v5p:2x2x1
  rlax-llm plan {name} --model ./my-model           on the devices that are here"""

_KINDS = (
    PlannedGrpo,
    PlannedSft,
    PlannedReward,
    PlannedDpo,
    PlannedKto,
    PlannedOnline,
    PlannedDistill,
    PlannedPpo,
)

PLANS = {
    kind.command: Command(kind, _RUN, f"what {kind.command} takes of a machine", _DESCRIPTION.format(name=kind.command))
    for kind in _KINDS
}
"""For each command that can be planned, the plan of it."""
