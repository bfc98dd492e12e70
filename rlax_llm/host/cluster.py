"""What SLURM and Open MPI say of the devices that a process takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def own_devices(environment: Mapping[str, str]) -> Sequence[int] | None:
    """The GPUs that a process takes, counted among those that it sees: its share, where all tasks of a node see all.

    A task alone on its node, or that sees GPUs of its own, takes all. JAX would take one in every case.

    Args:
        environment: variables of the process.

    Returns:
        Numbers of GPUs; none of them for all that are seen; None where JAX decides: by ``JAX_LOCAL_DEVICE_IDS``, or
        one for each task where it is not known what they see.

    >>> node = {"SLURM_STEP_TASKS_PER_NODE": "1,2(x3)", "SLURM_NODEID": "2", "SLURM_LOCALID": "1"}
    >>> list(own_devices(node | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}))
    [4, 5, 6, 7]
    >>> own_devices(node | {"SLURM_NODEID": "0"})
    ()
    """
    if environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    tasks, index = _tasks_of_the_node(environment)
    if tasks == 1 or environment.get("SLURM_GPUS_PER_TASK"):
        return ()
    seen = [environment[name].split(",") for name in _VISIBLE if environment.get(name)]
    if not seen:
        return None
    if len(seen[0]) == 1:
        return ()
    share = len(seen[0]) // tasks
    return range(index * share, (index + 1) * share) if share else None


def _tasks_of_the_node(environment: Mapping[str, str]) -> tuple[int, int]:
    """How many tasks there are on this process's node, and which of them it is."""
    if "SLURM_STEP_TASKS_PER_NODE" in environment:
        tasks = _tasks_of_nodes(environment["SLURM_STEP_TASKS_PER_NODE"])
        node = int(environment.get("SLURM_NODEID", 0))
        return tasks[node], int(environment.get("SLURM_LOCALID", 0))
    size, rank = (environment.get(f"OMPI_COMM_WORLD_LOCAL_{name}") for name in ("SIZE", "RANK"))
    return int(size or 1), int(rank or 0)


def _tasks_of_nodes(written: str) -> list[int]:
    """The tasks of each node, of SLURM's ``2(x3),1``."""
    tasks = []
    for part in written.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        tasks += [int(count)] * int(times or 1)
    return tasks
