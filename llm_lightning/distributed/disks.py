"""Find out whether the machines of a run share a disk, and copy files from rank 0's machine to the others if they do not."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from llm_lightning.distributed.agreement import barrier, broadcast, gather
from llm_lightning.distributed.launchers import is_rank_zero, read_launch
from llm_lightning.distributed.meeting import world_size

CHUNK = 16 << 20  # bytes of a file that are sent at once


def is_shared(folder: Path) -> bool:
    """Return whether every rank sees in its `folder` what rank 0 writes into its own. A collective."""
    if world_size() == 1:
        return True
    marker = folder / f".shared-{broadcast(secrets.token_hex(8))}"
    if is_rank_zero():
        marker.touch()
    barrier()
    shared = all(gather(marker.is_file()))
    if is_rank_zero():
        marker.unlink()
    return shared


def send_file(source: Path, target: Path) -> None:
    """Copy rank 0's file `source` to `target` on every other machine; the file appears whole. A collective."""
    import torch
    import torch.distributed

    launch = read_launch()
    size = broadcast(source.stat().st_size if launch.rank == 0 else None)
    writes = launch.local_rank == 0 and launch.rank != 0
    partial = target.with_name(f".{target.name}.{launch.rank}.partial")  # other machines may share a disk
    with contextlib.ExitStack() as files:
        if launch.rank == 0:
            reader = files.enter_context(source.open("rb"))
        if writes:
            target.parent.mkdir(parents=True, exist_ok=True)
            writer = files.enter_context(partial.open("wb"))
        for start in range(0, size, CHUNK):
            length = min(CHUNK, size - start)
            chunk = torch.empty(length, dtype=torch.uint8)
            if launch.rank == 0:
                reader.readinto(chunk.numpy().data)
            torch.distributed.broadcast(chunk, 0)
            if writes:
                writer.write(chunk.numpy().tobytes())
    if writes:
        partial.replace(target)
    barrier()


def send_folder(folder: Path) -> None:
    """Copy all files of rank 0's `folder` to the folder of that name on every other machine. A collective."""
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) if is_rank_zero() else None
    for name in broadcast(files):
        send_file(folder / name, folder / name)
