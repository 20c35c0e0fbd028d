"""Training processes of their own, started quickly."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import ROOT


class Launched:
    """A training process, started by the launcher."""

    def __init__(
        self, launcher: subprocess.Popen[str], arguments: list[str], log: Path, environment: dict[str, str], folder: Path
    ) -> None:
        self.launcher, self.log = launcher, log
        request = {"arguments": arguments, "log": str(log), "environment": environment, "folder": str(folder)}
        self.process = int(self._ask(request))

    def _ask(self, request: dict[str, object]) -> str:
        assert self.launcher.stdin is not None
        assert self.launcher.stdout is not None
        self.launcher.stdin.write(json.dumps(request) + "\n")
        self.launcher.stdin.flush()
        return self.launcher.stdout.readline()

    def kill(self, number: int) -> None:
        os.killpg(self.process, number)

    def running(self) -> bool:
        try:
            return Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def wait(self) -> int:
        """The exit code; the negative signal where one killed it."""
        return int(self._ask({"wait": self.process}))


Launch = Callable[[list[str], Path], Launched]
LaunchRanks = Callable[..., list[Launched]]


@pytest.fixture(scope="session")
def launcher() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("launcher.py"))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture(scope="session")
def launch(launcher: subprocess.Popen[str]) -> Launch:
    """Starts a run in its folder."""

    def start(arguments: list[str], folder: Path) -> Launched:
        place = [] if "task=evaluate" in arguments else [f"run_dir={folder}"]
        return Launched(launcher, [*arguments, *place], folder.with_suffix(".log"), {}, ROOT)

    return start


@pytest.fixture(scope="session")
def launch_ranks(launcher: subprocess.Popen[str]) -> LaunchRanks:
    """Starts a process for each rank, as torchrun does or with `variables(rank)`; `own(rank)` are arguments of one rank alone."""

    def start(
        arguments: list[str],
        folder: Path,
        count: int = 2,
        variables: Callable[[int], dict[str, str]] | None = None,
        own: Callable[[int], list[str]] = lambda rank: [],
    ) -> list[Launched]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def torchrun(rank: int) -> dict[str, str]:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            return {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

        folder.parent.mkdir(parents=True, exist_ok=True)
        return [
            Launched(
                launcher, [*arguments, *own(rank)], folder.with_suffix(f".{rank}.log"), (variables or torchrun)(rank), folder.parent
            )
            for rank in range(count)
        ]

    return start
