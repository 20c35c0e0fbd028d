"""Connect the processes of a run: they meet at a store on rank 0's machine before anything else happens."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from llm_lightning.distributed.launchers import LOOPBACK, Launch, read_launch, write_variables
from llm_lightning.errors import RunError, first_line


@dataclass
class Connection:
    """The connection between the processes of a run, beside torch's process group."""

    store: Any
    """A key-value store, for agreement without collectives."""
    turns: int = 0
    """How often ranks have taken turns through the store."""


_connection: Connection | None = None
_met = False


def connection() -> Connection:
    """Return the connection of this process. Raises AssertionError before `connect`."""
    assert _connection is not None
    return _connection


def has_met() -> bool:
    """Return whether this process has ever been connected with others."""
    return _met


def world_size() -> int:
    """Return the number of connected processes, 1 before `connect`."""
    import torch.distributed

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def connect(timeout: timedelta, arrival: timedelta, cuda: bool, look_at_children: Callable[[], None]) -> tuple[str, int]:
    """Create the process group of the run, over NCCL for tensors on GPUs and over gloo for others. Return its store's address and port.

    `timeout` is that of a collective. `look_at_children` is called while this process waits for the others, and may raise. A collective.
    Raises RunError if a rank does not arrive in time.
    """
    import torch.distributed

    global _connection, _met
    launch = read_launch()
    try:
        store, address, port = _open_run_store(launch, arrival)
        _wait_for_arrival(store, launch, arrival, look_at_children)
    except (RuntimeError, TimeoutError) as error:  # torch's errors of the store are RuntimeErrors
        raise RunError(
            f"rank {launch.rank} cannot reach the other processes of the run ({first_line(error)}): it waited at "
            f"{launch.address}, port {launch.port}. Look at their logs, and whether that machine can be reached."
        ) from error
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=torch.distributed.PrefixStore("group", store),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
    )
    _connection, _met = Connection(store), True
    return address, port


def _wait_for_arrival(store: Any, launch: Launch, arrival: timedelta, look_at_children: Callable[[], None]) -> None:
    """Wait until every rank has opened the store."""
    store.set(f"ready/{launch.rank}", "")
    missing, end = list(range(launch.world_size)), time.monotonic() + arrival.total_seconds()
    while missing := [rank for rank in missing if not store.check([f"ready/{rank}"])]:
        look_at_children()
        if time.monotonic() > end:
            raise TimeoutError(f"rank {', '.join(map(str, missing))} did not arrive within {arrival.total_seconds():g} seconds")
        time.sleep(0.05)


def connect_jobs(timeout: timedelta) -> Any:
    """Return a store of all ranks, through which the processes of each sweep job will connect. A collective."""
    launch = read_launch()
    store, address, port = _open_run_store(launch, timeout)
    os.environ.update(write_variables(replace(launch, address=address, port=port, has_store=True)))
    return store


def disconnect() -> None:
    """Leave the process group."""
    import torch.distributed

    global _connection
    _connection = None
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _open_run_store(launch: Launch, timeout: timedelta) -> tuple[Any, str, int]:
    """Return a store that no other run uses, with its address and port."""
    if launch.has_store:
        return _meet(launch, timeout)
    return open_store(launch.address, launch.port, launch.world_size, launch.rank == 0, timeout), launch.address, launch.port


def open_store(address: str, port: int, world_size: int, listens: bool, timeout: timedelta) -> Any:
    """Return a key-value store: the server at the address (on a free port for port 0) if `listens`, else a client of it."""
    import torch.distributed

    return torch.distributed.TCPStore(address, port, world_size, listens, timeout, wait_for_workers=False)


def _meet(launch: Launch, timeout: timedelta) -> tuple[Any, str, int]:
    """Agree on a store of this run's own, through the launcher's. Return it with its address and port.

    torchrun's store outlives a restart, a process group and a job of a sweep, and machines may count restarts differently. So every process
    stores a random word there, and accepts an invitation of rank 0 only if it holds that word.
    """
    meeting = open_store(launch.address, launch.port, launch.world_size, False, timeout)
    word, end = secrets.token_hex(8), time.monotonic() + timeout.total_seconds()
    names = [f"llm_lightning/word/{number}" for number in range(launch.world_size)]
    meeting.set(names[launch.rank], word)
    if launch.rank == 0:
        address = _own_address(launch.address, launch.port)
        if address.startswith("127.") and launch.local_world_size < launch.world_size:
            # the machine's own name may resolve to loopback there, as on Debian, but not on other machines
            address = launch.address
        store = open_store(address, 0, launch.world_size, True, timeout)
        invited: list[str] = []
        while time.monotonic() < end:
            words = [meeting.get(name).decode() if meeting.check([name]) else "" for name in names]
            if all(words) and words != invited:
                meeting.set("llm_lightning/invitation", json.dumps([address, store.port, words]))
                invited = words
            if invited and store.check([f"arrived/{other}" for other in invited[1:]]):
                return store, address, int(store.port)
            time.sleep(0.02)
    while time.monotonic() < end:
        if meeting.check(["llm_lightning/invitation"]):
            address, port, words = json.loads(meeting.get("llm_lightning/invitation"))
            if words[launch.rank] == word:
                store = open_store(address, port, launch.world_size, False, timeout)
                store.set(f"arrived/{word}", "")
                return store, address, port
        time.sleep(0.02)
    raise TimeoutError("they did not arrive")


def _own_address(address: str, port: int) -> str:
    """Return this machine's address on the route to `address`, by which other machines reach it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((socket.gethostbyname(address), port))
            return str(probe.getsockname()[0])
    except OSError:
        return address


def choose_interface() -> None:
    """Set the network interface for gloo, which otherwise uses the one that the host's name resolves to, if any."""
    import psutil

    launch = read_launch()
    one_machine = launch.local_world_size == launch.world_size
    address = LOOPBACK if one_machine else _own_address(launch.address, launch.port)
    if one_machine or not address.startswith("127."):
        for name, addresses in psutil.net_if_addrs().items():
            if any(entry.address == address for entry in addresses):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
