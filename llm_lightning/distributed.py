"""Which process this is, and how processes agree: the only module that reads the variables of launchers.

Collectives are called on every rank or on none: never behind a condition that ranks evaluate separately.
"""

from __future__ import annotations

import os
from typing import Any


def rank() -> int:
    """Return the number of this process over all machines, from 0."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0"))))


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def is_rank_zero() -> bool:
    """Return whether this process is rank 0, which decides, writes and speaks for all."""
    return rank() == 0


def world_size() -> int:
    """Return the number of processes of the run."""
    import torch.distributed

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def broadcast(value: Any) -> Any:
    """Return rank 0's value on every rank. A collective."""
    import torch.distributed

    if world_size() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks in their order, on every rank. A collective."""
    import torch.distributed

    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every rank is here. A collective."""
    gather(None)


def all_arrive(key: str, seconds: float) -> bool:
    """Return whether every rank calls this with the same key within some seconds. No collective: a rank may be the only one to call it."""
    return world_size() == 1
