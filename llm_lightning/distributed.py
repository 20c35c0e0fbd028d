"""Identify this process among the processes of a run, and connect them; only this module reads the variables of launchers.

torchrun, SLURM's srun and this program itself (`launch.py`) start processes that know their rank from the environment. They meet at
a store on rank 0's machine before anything else happens, so that rank 0 can decide for all: the folder, the checkpoint to resume from.

A collective is called on every rank or on none: never behind a condition that ranks evaluate separately.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from llm_lightning.errors import RunError

LOOPBACK = "127.0.0.1"
PORTS = range(15000, 25000)
"""Ports for rank 0 under srun, which names none: one is chosen by the job's number. They lie below Linux's client ports."""
CHUNK = 16 << 20  # bytes of a file that are sent at once


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
    job, restarts = _read_job(variables)
    if "RANK" in variables and int(variables.get("WORLD_SIZE", "1")) > 1:
        return replace(_read_torchrun(variables), job=job, restarts=restarts)
    if _is_srun(variables):
        return replace(_read_srun(variables), job=job, restarts=restarts)
    return Launch("none", job=job, restarts=restarts)


def _read_job(variables: Mapping[str, str]) -> tuple[str | None, int]:
    """Return the name and the restarts of the launcher's job, which may be a single process."""
    if "TORCHELASTIC_RUN_ID" in variables:  # the same in all restarts, but "none" for every job unless --rdzv-id is given
        job = f"torchrun-{variables['TORCHELASTIC_RUN_ID']}-{socket.gethostname()}-{_parent_identity()}"
        return job, int(variables.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if (number := slurm_batch_job(variables)) is not None:
        return f"slurm-{number}.{_slurm_step(variables)}", int(variables.get("SLURM_RESTART_COUNT", "0"))
    return None, 0


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


def _parent_identity() -> str:
    """Return the process id and the start time of the parent, which together are unique."""
    try:
        started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # not Linux
        started = ""
    return f"{os.getppid()}-{started}"


def _is_srun(variables: Mapping[str, str]) -> bool:
    """Return whether srun started this process as one of several. The script of sbatch itself has similar variables, but no step."""
    in_batch_script = variables.get("ENVIRONMENT") == "BATCH" and not {"SLURM_STEP_ID", "SLURM_STEPID"} & set(variables)
    several = "SLURM_PROCID" in variables and _slurm_tasks(variables) > 1
    return several and not in_batch_script and not _is_interactive(variables)


def _is_interactive(variables: Mapping[str, str]) -> bool:
    return variables.get("SLURM_JOB_NAME") in ("bash", "interactive")


def _first_value(variables: Mapping[str, str], names: tuple[str, ...], default: str) -> str:
    """Return the value of the first variable that is set: SLURM's versions name the same thing differently."""
    return next((variables[name] for name in names if variables.get(name)), default)


def _slurm_tasks(variables: Mapping[str, str]) -> int:
    return int(_first_value(variables, ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), "1"))


def _slurm_step(variables: Mapping[str, str]) -> str:
    return variables.get("SLURM_STEP_ID", variables.get("SLURM_STEPID", "0"))


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


# ---- meeting ----

_store: Any = None
"""The key-value store of the connected processes, for agreement beside collectives."""
_met = False


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

    global _store, _met, _turns
    launch = read_launch()
    _turns = 0
    try:
        _store, address, port = _open_run_store(launch, arrival)
        _wait_for_arrival(_store, launch, arrival, look_at_children)
    except (RuntimeError, TimeoutError) as error:  # torch's errors of the store are RuntimeErrors
        raise RunError(
            f"rank {launch.rank} cannot reach the other processes of the run ({str(error).splitlines()[0]}): it waited at "
            f"{launch.address}, port {launch.port}. Look at their logs, and whether that machine can be reached."
        ) from error
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=torch.distributed.PrefixStore("group", _store),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
    )
    _met = True
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
    variables = {"RANK": launch.rank, "WORLD_SIZE": launch.world_size, "MASTER_ADDR": address, "MASTER_PORT": port}
    variables |= {"LOCAL_RANK": launch.local_rank, "LOCAL_WORLD_SIZE": launch.local_world_size}
    os.environ.update({name: str(value) for name, value in variables.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    return store


def disconnect() -> None:
    """Leave the process group."""
    import torch.distributed

    global _store
    _store = None
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
            address = (
                launch.address
            )  # the machine's own name may resolve to loopback there, as on Debian, but not on other machines
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


# ---- agreement ----


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
    end = time.monotonic() + seconds
    arrived = _store.add(f"arrive/{key}", 1)
    while arrived < world_size() and time.monotonic() < end:
        time.sleep(0.02)
        arrived = _store.add(f"arrive/{key}", 0)
    return bool(arrived == world_size())


_turns = 0


@contextlib.contextmanager
def rank_zero_first(shared: bool) -> Iterator[None]:
    """Let rank 0 run the block before the others: it prepares files that they then read.

    `shared`: whether all ranks read the disk that rank 0 writes; if not, one process of each machine goes first. A collective without a
    time limit; if the first process fails, the others wait until it has ended them.
    """
    global _turns
    if world_size() == 1:
        yield
        return
    launch = read_launch()
    _turns += 1
    machine = 0 if shared else launch.node_rank
    key = f"turn/{_turns}/{machine}"
    if (launch.rank if shared else launch.local_rank) == 0:
        yield
        _store.set(key, "")
    else:
        while not _store.check([key]):
            time.sleep(0.05)
        yield


# ---- disks ----


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
