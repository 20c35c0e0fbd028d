"""Read from the environment which process of a run this is; only this module reads the variables of torchrun and SLURM's srun."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

LOOPBACK = "127.0.0.1"
PORTS = range(15000, 25000)
"""Ports for rank 0 under srun, which names none: one is chosen by the job's number. They lie below Linux's client ports."""


@dataclass(frozen=True)
class Launch:
    """How this process was started."""

    launcher: str
    """`torchrun` (or any other launcher that sets RANK), `srun`, or `none`."""
    rank: int = 0
    local_rank: int = 0
    """The number of the process on its machine."""
    world_size: int = 1
    local_world_size: int = 1
    """Processes on this machine; 0 if machines have unequal numbers, which `launch.py` refuses."""
    node_rank: int = 0
    """The number of the machine, from 0."""
    address: str = LOOPBACK
    """Address of rank 0's machine."""
    port: int = 0
    has_store: bool = False
    """Whether the launcher itself listens at this address and port, as torchrun does."""
    job: str | None = None
    """A name that the job keeps when its launcher restarts it; None if a restart cannot be told from a new start."""
    restarts: int = 0
    """How often the launcher has restarted the job."""


def read_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Return how this process was started, by the variables of its launcher."""
    variables = os.environ if environment is None else environment
    if "RANK" in variables and int(variables.get("WORLD_SIZE", "1")) > 1:
        launch = _read_torchrun(variables)
    elif _is_srun(variables):
        launch = _read_srun(variables)
    else:
        launch = Launch("none")
    job, restarts = _read_job(variables)
    return replace(launch, job=job, restarts=restarts)


def write_variables(launch: Launch) -> dict[str, str]:
    """Return the variables by which a process reads a launch, as torchrun sets them."""
    numbers = {"RANK": launch.rank, "LOCAL_RANK": launch.local_rank, "MASTER_PORT": launch.port}
    numbers |= {"WORLD_SIZE": launch.world_size, "LOCAL_WORLD_SIZE": launch.local_world_size}
    texts = {"MASTER_ADDR": launch.address, "TORCHELASTIC_USE_AGENT_STORE": str(launch.has_store)}
    return {name: str(number) for name, number in numbers.items()} | texts


def _read_job(variables: Mapping[str, str]) -> tuple[str | None, int]:
    """Return the name and the restarts of the launcher's job, which may be a single process."""
    if "TORCHELASTIC_RUN_ID" in variables:  # the same in all restarts, but "none" for every job unless --rdzv-id is given
        job = f"torchrun-{variables['TORCHELASTIC_RUN_ID']}-{socket.gethostname()}-{_parent_identity()}"
        return job, int(variables.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if (number := slurm_batch_job(variables)) is not None:
        return f"slurm-{number}.{_slurm_step(variables)}", int(variables.get("SLURM_RESTART_COUNT", "0"))
    return None, 0


def _parent_identity() -> str:
    """Return the process id and the start time of the parent, which together are unique."""
    try:
        started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # not Linux
        started = ""
    return f"{os.getppid()}-{started}"


def _read_torchrun(variables: Mapping[str, str]) -> Launch:
    world_size = int(variables["WORLD_SIZE"])
    default = world_size if "LOCAL_RANK" in variables else 1  # without it, one process a machine
    rank, local_world_size = int(variables["RANK"]), int(variables.get("LOCAL_WORLD_SIZE", default))
    return Launch(
        launcher="torchrun",
        rank=rank,
        local_rank=int(variables.get("LOCAL_RANK", "0")),
        world_size=world_size,
        local_world_size=local_world_size,
        node_rank=int(variables.get("GROUP_RANK", rank // local_world_size)),
        address=variables.get("MASTER_ADDR", LOOPBACK),
        port=int(variables.get("MASTER_PORT", "29500")),
        has_store=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _is_srun(variables: Mapping[str, str]) -> bool:
    """Return whether srun started this process as one of several. The script of sbatch itself has similar variables, but no step."""
    in_batch_script = variables.get("ENVIRONMENT") == "BATCH" and not {"SLURM_STEP_ID", "SLURM_STEPID"} & set(variables)
    several = "SLURM_PROCID" in variables and _slurm_tasks(variables) > 1
    return several and not in_batch_script and not _is_interactive(variables)


def _is_interactive(variables: Mapping[str, str]) -> bool:
    return variables.get("SLURM_JOB_NAME") in ("bash", "interactive")


def _read_srun(variables: Mapping[str, str]) -> Launch:
    tasks, rank = _slurm_tasks(variables), int(variables["SLURM_PROCID"])
    nodes = int(_first_value(variables, ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"), "1"))
    local_world_size = 0 if tasks % nodes else tasks // nodes
    seed = f"{variables.get('SLURM_JOB_ID', '0')}.{_slurm_step(variables)}"
    spread = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") % len(PORTS)
    return Launch(
        launcher="srun",
        rank=rank,
        local_rank=int(variables.get("SLURM_LOCALID", "0")),
        world_size=tasks,
        local_world_size=local_world_size,
        node_rank=int(variables.get("SLURM_NODEID", rank // max(1, local_world_size))),
        address=variables.get("MASTER_ADDR") or (_first_node(variables) if nodes > 1 else LOOPBACK),
        port=int(variables.get("MASTER_PORT", PORTS[spread])),
    )


def _first_node(variables: Mapping[str, str]) -> str:
    """Return the first machine of SLURM's list, `node[03-07,11],other` for example."""
    nodes = _first_value(variables, ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"), LOOPBACK)
    return re.sub(r"\[(\d+).*", r"\1", nodes.split(",")[0])


def _first_value(variables: Mapping[str, str], names: tuple[str, ...], default: str) -> str:
    """Return the value of the first variable that is set: SLURM's versions name the same thing differently."""
    return next((variables[name] for name in names if variables.get(name)), default)


def _slurm_tasks(variables: Mapping[str, str]) -> int:
    return int(_first_value(variables, ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), "1"))


def _slurm_step(variables: Mapping[str, str]) -> str:
    return variables.get("SLURM_STEP_ID", variables.get("SLURM_STEPID", "0"))


def slurm_batch_job(variables: Mapping[str, str] | None = None) -> str | None:
    """Return the number of the SLURM job that this process belongs to, for `scontrol requeue`; None outside of a batch job."""
    variables = os.environ if variables is None else variables
    return None if _is_interactive(variables) else variables.get("SLURM_JOB_ID")


def is_launched() -> bool:
    """Return whether a launcher started this process as one of several."""
    return read_launch().world_size > 1


def rank() -> int:
    """Return the number of this process over all machines, from 0."""
    return read_launch().rank


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return read_launch().local_rank


def is_rank_zero() -> bool:
    """Return whether this process is rank 0, which decides, writes and prints for all."""
    return rank() == 0
