"""Settings of the devices that a command is computed on."""

from __future__ import annotations

from dataclasses import dataclass

from rlax_llm.commands.fields import Part, at_least, option
from rlax_llm.commands.settings import Settings

_PORTS = 2**16


@dataclass(frozen=True, kw_only=True)
class MachineSettings(Part):
    """The devices."""

    mesh: str | None = option(
        None,
        "Devices by axis, as data=2,fsdp=4,tensor=2: rows over data and fsdp, parameters over fsdp and tensor.",
        "all accelerators along fsdp",
        "AXES",
    )
    coordinator: str | None = option(
        None,
        "Address of the first of several processes, the same for all; with --process-id and --processes.",
        "found on SLURM, Open MPI, GKE and TPU pods",
        "HOST:PORT",
    )
    process_id: int | None = option(None, "Which of the processes this is, from 0, which writes.", "found as that", "I")
    processes: int | None = option(None, "How many processes compute together; 1 looks for no others.", "found", "N")

    def check(self) -> None:
        """Check the axes, and that processes are given whole or not at all."""
        at_least(self, 0, "process_id")
        at_least(self, 1, "processes")
        self._check_processes()
        if self.mesh is not None:
            from rlax_llm.core.mesh import mesh_sizes  # here: it needs JAX

            mesh_sizes(self.mesh)

    def _check_processes(self) -> None:
        given = {name: getattr(self, name) for name in ("coordinator", "process_id", "processes")}
        missing = [name for name, value in given.items() if value is None]
        if self.coordinator is None and self.process_id is None:
            if (self.processes or 1) > 1:
                raise ValueError(f"processes is {self.processes} without coordinator and process_id; give all three.")
            return
        if self.coordinator is None or self.process_id is None or self.processes is None:
            raise ValueError(f"{missing[0]} is missing; several processes need coordinator, process_id and processes.")
        if self.process_id >= self.processes:
            raise ValueError(f"process_id is {self.process_id}, wanted one below processes, {self.processes}.")
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < _PORTS:
            raise ValueError(f"coordinator is {self.coordinator!r}, wanted HOST:PORT, as 10.0.0.1:1234.")


class OnMachine(Settings):
    """Settings of a command whose models are computed on a machine.

    Attributes:
        machine: its part that says which.
    """

    machine: MachineSettings

    def rows_together(self) -> tuple[int, ...]:
        """The numbers of rows, or pairs, that are learned from together, which devices take equal shares of."""
        return ()
