"""Start the processes of a run if no launcher has, connect them, and end them together.

Under torchrun or srun every rank exists from the start. Otherwise this process becomes rank 0 and starts one process for each further
device; each receives the config and runs the same program. From then on, no part of the program depends on the launcher.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import torch

from llm_lightning import distributed
from llm_lightning.config.schema import Config, TrainerConfig
from llm_lightning.errors import RunError, UserError
from llm_lightning.machine import cores
from llm_lightning.watchdog import Watchdog

ARRIVAL = 600.0
"""Seconds that ranks wait for each other at the start, or `trainer.hang_timeout` if that is longer."""
TIMEOUT_FACTOR = 6
"""A collective may take this many times `trainer.hang_timeout`, and at least an hour: rank 0 may have much to prepare or to write, and
the watchdog finds a hung rank long before."""


@contextlib.contextmanager
def processes(config: Config, sweep: str | None = None) -> Iterator[None]:
    """Connect the ranks of the run while the block runs. A run on one device is this process alone.

    Raises UserError if the config contradicts the launcher, and OtherRankFailed if another rank has printed why the run ends.
    """
    count = device_count(config.trainer)
    launch = distributed.read_launch()
    if launch.world_size == 1 and count == 1:
        with _without_traces():
            yield
        return
    if launch.world_size > 1:
        _require_agreement(config.trainer, launch)
    with contextlib.ExitStack() as stack:
        children = [] if launch.world_size > 1 else stack.enter_context(_start_children(config, sweep, count))
        watchdog = stack.enter_context(_connect(config.trainer, children))
        with watchdog.watching():
            yield


@contextlib.contextmanager
def _without_traces() -> Iterator[None]:
    """Remove the process group that FSDP2 creates on one device, and its variables, after the block: another run may follow."""
    has_group = torch.distributed.is_initialized()
    before = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
    try:
        yield
    finally:
        if not has_group:
            distributed.disconnect()
            _set_variables(before)


def _set_variables(values: dict[str, str | None]) -> None:
    """Set environment variables; remove those whose value is None."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def device_count(config: TrainerConfig) -> int:
    """Return the number of devices of this machine that the config asks for."""
    if config.devices != "auto":
        return int(config.devices)
    return torch.cuda.device_count() if _uses_gpus(config) else 1


def _uses_gpus(config: TrainerConfig) -> bool:
    return config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _require_agreement(config: TrainerConfig, launch: distributed.Launch) -> None:
    """Raise UserError if the config names another number of processes than the launcher has started; 1 is every preset's default."""
    if launch.local_world_size == 0:
        raise UserError(f"srun started {launch.world_size} tasks, not as many on each machine; give --ntasks-per-node.")
    machines = launch.world_size // launch.local_world_size
    if config.devices not in ("auto", 1) and config.devices != launch.local_world_size:
        raise UserError(
            f"trainer.devices={config.devices}: {launch.launcher} started {launch.local_world_size} processes on this machine; leave "
            f"trainer.devices out, or start as many."
        )
    if config.num_nodes not in (1, machines):
        raise UserError(
            f"trainer.num_nodes={config.num_nodes}: {launch.launcher} started the run on {machines} machines; leave trainer.num_nodes out."
        )


def _require_gpus(launch: distributed.Launch) -> None:
    """Raise UserError if this process does not see a GPU for each process of its machine."""
    if (visible := torch.cuda.device_count()) < launch.local_world_size:
        raise UserError(
            f"{launch.launcher} started {launch.local_world_size} processes on this machine, and each sees {visible} GPUs: "
            f"start one a GPU, and let each see all GPUs of the machine (SLURM: --gpus-per-node, not --gpus-per-task)."
        )


@contextlib.contextmanager
def _connect(config: TrainerConfig, children: list[subprocess.Popen[bytes]]) -> Iterator[Watchdog]:
    launch = distributed.read_launch()
    timeout = timedelta(seconds=max(3600.0, TIMEOUT_FACTOR * config.hang_timeout))
    arrival = timedelta(seconds=max(ARRIVAL, config.hang_timeout))
    uses_gpus = _uses_gpus(config)
    threads, interface = torch.get_num_threads(), os.environ.get("GLOO_SOCKET_IFNAME")

    def look_at_children() -> None:
        for rank, child in enumerate(children, 1):
            if child.poll() is not None:
                raise RunError(
                    f"rank {rank} has ended before the run began, with exit code {child.returncode}; its message is above."
                )

    if uses_gpus:
        _require_gpus(launch)
        torch.cuda.set_device(launch.local_rank)
    try:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, cores() // launch.local_world_size))
        distributed.choose_interface()
        address, port = distributed.connect(timeout, arrival, uses_gpus, look_at_children)
        yield Watchdog(address, port, config.hang_timeout, children)
    finally:
        distributed.disconnect()
        torch.set_num_threads(threads)
        _set_variables({"GLOO_SOCKET_IFNAME": interface})


@contextlib.contextmanager
def _start_children(config: Config, sweep: str | None, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Become rank 0 and start the other ranks of this machine; wait for them to end after the block."""
    with socket.socket() as probe:
        probe.bind((distributed.LOOPBACK, 0))
        port = probe.getsockname()[1]
    level = {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}  # as in cli.main
    launches = [distributed.Launch("torchrun", rank, rank, count, count, port=port) for rank in range(count)]
    variables = [distributed.write_variables(launch) | level for launch in launches]
    before = {name: os.environ.get(name) for name in variables[0]}
    children: list[subprocess.Popen[bytes]] = []
    task = pickle.dumps((sys.path, sys.argv, config, sweep))
    command = [sys.executable, "-c", "from llm_lightning.cli import work; work()"]
    try:
        for rank in range(1, count):
            environment = os.environ | variables[rank] | {"PYTHONPATH": os.pathsep.join(sys.path)}
            child = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
            children.append(child)
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended already: the wait for it will notice
                child.stdin.write(task)
                child.stdin.close()
        os.environ.update(variables[0])
        yield children
    finally:
        _set_variables(before)
        end_children(children, seconds=30.0)


def end_children(children: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait for processes to end by themselves; kill the others after some seconds."""
    for child in children:
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def read_task() -> tuple[Config, str | None]:
    """Return (config, name of the sweep) that rank 0, the parent of this process, has sent over a pipe."""
    path, arguments, config, sweep = pickle.load(sys.stdin.buffer)
    sys.path[:], sys.argv[:] = path, arguments
    return config, sweep
