"""Run a sweep that a launcher has started on several ranks: rank 0 leads it, the others run the jobs that it names, one at a time."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

from hydra.plugins.launcher import Launcher

from llm_lightning import distributed
from llm_lightning.config.schema import SweepConfig
from llm_lightning.errors import RunError, UserError
from llm_lightning.sweep.process import run_job

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ENDING = 300.0  # seconds between the first and the last rank's end of a job, at most
ARRIVAL = timedelta(minutes=30)  # for the launcher to start every rank


class Ranks:
    """The ranks that share a sweep; this process alone if no launcher has started others."""

    def __init__(self, settings: SweepConfig, launcher: Launcher | None) -> None:
        """Connect the ranks. Raises UserError if they cannot share their devices."""
        self._store: Any = None
        self._job = 0
        if distributed.is_launched():
            if settings.jobs != 1 or launcher is not None:
                raise UserError(
                    "sweep.jobs: a sweep that torchrun or srun has started on several ranks runs one job at a time, on all of them; "
                    "leave out launcher= and sweep.jobs."
                )
            self._store = distributed.connect_jobs(ARRIVAL)

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Run the block on rank 0; after it the other ranks end, and rank 0 last: it may hold the store."""
        try:
            yield
        finally:
            self._announce(None)
            self._wait_for_others()

    @contextlib.contextmanager
    def together(self, overrides: list[str], sweep: str) -> Iterator[None]:
        """Make the other ranks run the job that the block runs on rank 0, and wait for all."""
        self._announce([overrides, sweep])
        yield
        self._wait_for_others()

    def _wait_for_others(self) -> None:
        """Wait until every other rank has run the announced job. Raises RunError if one does not end with rank 0's."""
        end = time.monotonic() + ENDING
        while self._store is not None and self._store.add(f"ended/{self._job}", 0) < distributed.read_launch().world_size - 1:
            if time.monotonic() > end:
                raise RunError("sweep: a rank has not ended its part of the job; look at its log, and repeat the command.")
            time.sleep(0.05)

    def _announce(self, job: list[Any] | None) -> None:
        self._job += 1
        if self._store is not None:
            self._store.set(f"job/{self._job}", json.dumps(job))

    def follow(self) -> int:
        """Run the jobs that rank 0 names until it names no more. Return an exit code. Rank 0 reports how the jobs ended."""
        running: list[BaseProcess] = []

        def pass_on(number: int, frame: Any) -> None:
            for process in running:
                with contextlib.suppress(ValueError):  # it has just ended
                    process.terminate()

        for number in STOPPING:
            signal.signal(number, pass_on)
        while True:
            self._job += 1
            while not self._store.check([f"job/{self._job}"]):
                time.sleep(0.05)
            job = json.loads(self._store.get(f"job/{self._job}"))
            if job is not None:
                overrides, sweep = job
                run_job(overrides, sweep, None, None, None, running.append, running.remove)
            self._store.add(f"ended/{self._job}", 1)
            if job is None:
                return 0
