"""Training processes of their own, started quickly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import ROOT


class Launched:
    """A training process, started by the launcher."""

    def __init__(self, launcher: subprocess.Popen[str], arguments: list[str], log: Path) -> None:
        self.launcher, self.log = launcher, log
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        launcher.stdin.write(json.dumps({"arguments": arguments, "log": str(log)}) + "\n")
        launcher.stdin.flush()
        self.process = int(launcher.stdout.readline())

    def kill(self, number: int) -> None:
        os.killpg(self.process, number)

    def running(self) -> bool:
        try:
            return Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def wait(self) -> int:
        """The exit code; the negative signal where one killed it."""
        assert self.launcher.stdout is not None
        return int(self.launcher.stdout.readline())


Launch = Callable[[list[str], Path], Launched]


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    command = [sys.executable, str(Path(__file__).with_name("launcher.py"))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:

        def start(arguments: list[str], folder: Path) -> Launched:
            place = [] if "task=evaluate" in arguments else [f"run_dir={folder}"]
            return Launched(launcher, [*arguments, *place], folder.with_suffix(".log"))

        yield start
        launcher.kill()
