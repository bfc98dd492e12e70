"""Which GPUs a process of SLURM or Open MPI takes, and that JAX is told."""

from __future__ import annotations

import os

import jax
import pytest

from rlax_llm.commands import processes
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.host.cluster import own_devices

EIGHT = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}


def slurm(tasks: str, node: int, local: int) -> dict[str, str]:
    return {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local)}


def mpi(size: int, rank: int) -> dict[str, str]:
    return {"OMPI_COMM_WORLD_LOCAL_SIZE": str(size), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        (EIGHT, []),  # no cluster: all
        (slurm("1(x4)", 3, 0) | EIGHT, []),  # a task for each node: all of it
        (slurm("1", 0, 0), []),
        (slurm("8(x4)", 2, 5) | EIGHT, [5]),  # one for each GPU, all in sight
        (slurm("8(x4)", 2, 5) | {"CUDA_VISIBLE_DEVICES": "5"}, []),  # … or its own alone
        (slurm("2(x2),1", 1, 1) | EIGHT, [4, 5, 6, 7]),
        (slurm("2(x2),1", 2, 0) | EIGHT, []),
        (slurm("2", 0, 1) | {"CUDA_VISIBLE_DEVICES": "4,5", "SLURM_GPUS_PER_TASK": "2"}, []),
        (slurm("4", 0, 1) | {"ROCR_VISIBLE_DEVICES": "0,1,2,3"}, [1]),
        (mpi(2, 1) | EIGHT, [4, 5, 6, 7]),
        (mpi(1, 0), []),
        (slurm("8", 0, 5), None),  # not known what is seen
        (slurm("8", 0, 5) | {"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        (slurm("1", 0, 0) | {"JAX_LOCAL_DEVICE_IDS": "2,3"}, None),
    ],
)
def test_a_process_takes_its_share_of_what_it_sees(environment, wanted):
    own = own_devices(environment)
    assert wanted == (own if own is None else list(own))


def test_jax_is_told_so_and_hides_no_device_from_a_task_alone_on_its_node(monkeypatch):
    cluster = slurm("1(x4)", 1, 0) | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "1"}
    for name, value in (cluster | {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-4]"} | EIGHT).items():
        monkeypatch.setitem(os.environ, name, value)
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **named: given.extend(args))
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    processes._initialize("grpo", GrpoSettings.of().machine)
    assert given == [None, None, None, ()]
