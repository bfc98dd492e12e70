"""Settings of the devices that a command is computed on."""

from __future__ import annotations

from dataclasses import dataclass

from rlax_llm.commands.fields import Part, option
from rlax_llm.commands.settings import Settings


@dataclass(frozen=True, kw_only=True)
class MachineSettings(Part):
    """The devices."""

    mesh: str | None = option(
        None,
        "Devices by axis, as data=2,fsdp=4,tensor=2: rows over data and fsdp, parameters over fsdp and tensor.",
        "all accelerators along fsdp",
        "AXES",
    )

    def check(self) -> None:
        """Check the axes."""
        if self.mesh is not None:
            from rlax_llm.core.mesh import mesh_sizes  # here: it needs JAX

            mesh_sizes(self.mesh)


class OnMachine(Settings):
    """Settings of a command whose models are computed on a machine.

    Attributes:
        machine: its part that says which.
    """

    machine: MachineSettings

    def rows_together(self) -> tuple[int, ...]:
        """The numbers of rows, or pairs, that are learned from together, which devices take equal shares of."""
        return ()
