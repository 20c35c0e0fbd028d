"""Identify this process among the processes of a run, connect them, and let them agree.

torchrun, SLURM's srun and this program itself (`launch.py`) start processes that know their rank from the environment (`launchers`).
They meet at a store on rank 0's machine (`meeting`), so that rank 0 can decide for all (`agreement`): the folder, the checkpoint to
resume from. Machines may share a disk or not (`disks`).
"""

from llm_lightning.distributed.agreement import all_arrive, barrier, broadcast, gather, rank_zero_first
from llm_lightning.distributed.disks import is_shared, send_file, send_folder
from llm_lightning.distributed.launchers import (
    LOOPBACK,
    Launch,
    is_launched,
    is_rank_zero,
    local_rank,
    rank,
    read_launch,
    slurm_batch_job,
    write_variables,
)
from llm_lightning.distributed.meeting import (
    choose_interface,
    connect,
    connect_jobs,
    disconnect,
    has_met,
    open_store,
    world_size,
)

__all__ = [
    "LOOPBACK",
    "Launch",
    "all_arrive",
    "barrier",
    "broadcast",
    "choose_interface",
    "connect",
    "connect_jobs",
    "disconnect",
    "gather",
    "has_met",
    "is_launched",
    "is_rank_zero",
    "is_shared",
    "local_rank",
    "open_store",
    "rank",
    "rank_zero_first",
    "read_launch",
    "send_file",
    "send_folder",
    "slurm_batch_job",
    "world_size",
    "write_variables",
]
