"""Let the connected processes of a run agree: send values between them, and wait for each other.

A collective is called on every rank or on none: never behind a condition that ranks evaluate separately.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from llm_lightning.distributed.launchers import read_launch
from llm_lightning.distributed.meeting import connection, world_size


def broadcast(value: Any) -> Any:
    """Send rank 0's value to every rank, and return it. A collective."""
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
    """Wait until every rank has called this. A collective."""
    gather(None)


def all_arrive(key: str, seconds: float) -> bool:
    """Return whether every rank calls this with the same key within `seconds`. Not a collective: a rank may be the only one to call it."""
    if world_size() == 1:
        return True
    store, end = connection().store, time.monotonic() + seconds
    arrived = store.add(f"arrive/{key}", 1)
    while arrived < world_size() and time.monotonic() < end:
        time.sleep(0.02)
        arrived = store.add(f"arrive/{key}", 0)
    return bool(arrived == world_size())


@contextlib.contextmanager
def rank_zero_first(shared: bool) -> Iterator[None]:
    """Let rank 0 run the block before the others: it prepares files that they then read.

    `shared`: whether all ranks read the disk that rank 0 writes; if not, one process of each machine goes first. A collective without a
    time limit; if the first process fails, the others wait until it has ended them.
    """
    if world_size() == 1:
        yield
        return
    launch, group = read_launch(), connection()
    group.turns += 1
    machine = 0 if shared else launch.node_rank
    key = f"turn/{group.turns}/{machine}"
    if (launch.rank if shared else launch.local_rank) == 0:
        yield
        group.store.set(key, "")
    else:
        while not group.store.check([key]):
            time.sleep(0.05)
        yield
