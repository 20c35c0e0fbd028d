"""End all ranks of a run together: print a failure once, name a hung or killed rank, and let no rank wait for it.

A thread of each rank reports to the run's store once a second how far the rank is, and reads the reports of the others. The first rank
that fails stores its message; the others then end without one. A collective that waits for a hung rank cannot be left in good
order: there a thread ends the process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch

from llm_lightning import distributed
from llm_lightning.config.redaction import redact
from llm_lightning.errors import OtherRankFailed, RunError, Stopped, escape_controls

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two reports of a rank
SILENT = 5.0  # seconds without a report after which a rank that the others cannot reach counts as dead
GRACE = 5.0  # seconds that a rank has to end by itself once another has failed


@dataclass
class Report:
    """The last report of a rank, and when it was read."""

    number: int
    """Counts the rank's reports: if it stays the same, the process does not run."""
    progress: int
    """Counts the steps, batches and stages that the rank has begun."""
    bounded: bool
    """Whether the stage has a time limit."""
    seconds: float
    """Time since the stage began."""
    place: str
    """Host and process id of the rank."""
    line: str
    """Source line of the main thread."""
    read: float = field(kw_only=True)


class RankLost(RunError):
    """A message about another rank, which has ended without one."""


class Watchdog:
    """Watches the other ranks for this one, and reports this one to them."""

    def __init__(self, address: str, port: int, hang_timeout: float, children: list[subprocess.Popen[bytes]]) -> None:
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        launch = distributed.read_launch()
        self._speaks_for_rank_zero = self.rank == 1 if launch.node_rank == 0 else launch.local_rank == 0
        """Whether this rank prints that rank 0 is gone. One rank of each machine does, as rank 0's machine may be gone."""
        self.hang_timeout, self.children = hang_timeout, children
        self._store = distributed.open_store(address, port, self.world_size, False, timedelta(seconds=60))  # a thread's own client
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._watch, self._watch_store)]
        self._ended = threading.Event()
        self._leaving = False
        self._ending: int | None = None
        """The exit code once a thread ends the process. The thread or another rank has printed the reason."""
        self._last_read = time.monotonic()
        self._progress, self.bounded, self._since = 0, False, time.monotonic()
        self._number = 0
        self._reports: dict[int, Report] = {}
        self._main = threading.get_ident()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs. One rank alone raises the error that ends it, the others raise OtherRankFailed."""
        global _current
        self._report()
        distributed.barrier()
        self._read_reports()  # to know the others' machines, even if the first message is that one is gone
        for thread in self._threads:
            thread.start()
        _current = self
        try:
            yield
            self._leaving = True
            distributed.barrier()
        except Stopped as error:
            self._leaving = True
            distributed.barrier()  # a launcher treats the first process that ends with an error as a crash, and kills the others
            if self.rank > 0:
                raise OtherRankFailed(error.exit_code) from error
            raise
        except OtherRankFailed:
            raise
        except BaseException as error:
            self._raise_once(error)
        finally:
            _current = None
            self._ended.set()

    # ---- stages ----

    def mark_progress(self, bounded: bool = True) -> None:
        self._progress += 1
        self.bounded, self._since = bounded, time.monotonic()

    # ---- failures ----

    def _raise_once(self, error: BaseException) -> None:
        """Raise the error if no rank has failed before, else OtherRankFailed."""
        if self._ending is not None:
            raise OtherRankFailed(self._ending) from error
        if isinstance(error, RuntimeError) and _is_connection_error(error):
            error = self._name_lost_rank(error)
        message = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, RunError) else 1
        first = self._publish(message, code)
        if first["rank"] != self.rank:
            raise OtherRankFailed(first["code"], first["message"]) from error
        if self.rank > 0 and isinstance(error, RunError) and not isinstance(error, RankLost):
            error.args = (f"rank {self.rank} ({_describe_process()}): {error}",)
        self._wait_for_readers()
        raise error

    def _publish(self, message: str, code: int) -> dict[str, Any]:
        """Store a failure unless one is stored. Return the stored one, or this rank's if the store has gone with rank 0."""
        failure = {"rank": self.rank, "message": redact(message), "code": code}
        try:
            failure = json.loads(self._store.compare_set("failure", "", json.dumps(failure)))
        except RuntimeError:
            failure["rank"] = self.rank if self._speaks_for_rank_zero else 0
        return failure

    def _wait_for_readers(self) -> None:
        """Keep the store open on rank 0 until the others have read the failure."""
        end = time.monotonic() + 3 * INTERVAL
        with contextlib.suppress(RuntimeError):
            while self.rank == 0 and time.monotonic() < end and self._store.add("readers", 0) < self.world_size - 1:
                time.sleep(0.05)

    def _name_lost_rank(self, error: RuntimeError) -> BaseException:
        """Return an error that names the rank which a collective could not reach, or the error itself if every rank reports."""
        end = time.monotonic() + 2 * SILENT
        while time.monotonic() < end:
            if (failure := self._read_failure()) is not None:
                return OtherRankFailed(failure["code"], failure["message"])
            if silent := self._find_silent_ranks(SILENT):
                return RankLost(self._describe_lost(silent[0]))
            time.sleep(0.1)
        return error

    def _read_failure(self) -> dict[str, Any] | None:
        """Return the stored failure of the first rank that failed, if any."""
        try:
            if self._store.check(["failure"]):
                failure: dict[str, Any] = json.loads(self._store.get("failure"))
                return failure
        except RuntimeError:
            pass
        return None

    # ---- threads ----

    def _watch(self) -> None:
        """Report and read reports; end the process if another rank has failed, ended or hangs."""
        while not self._ended.wait(INTERVAL):
            try:
                self._report()
                self._read_reports()
            except RuntimeError:  # the store has ended with rank 0
                if not self._leaving and time.monotonic() - self._last_read > SILENT:
                    self._end_process(self._describe_lost(0) if self._speaks_for_rank_zero else None, 1)
                continue
            self._last_read = time.monotonic()
            if (failure := self._read_failure()) is not None and failure["rank"] != self.rank:
                with contextlib.suppress(RuntimeError):
                    self._store.add("readers", 1)
                self._end_process(None, failure["code"])
            elif not self._leaving:
                self._look_for_dead_children()
                self._look_for_hung_ranks()

    def _watch_store(self) -> None:
        """End the process if rank 0, which holds the store, hangs: the other thread then waits for an answer forever."""
        while not self._ended.wait(INTERVAL):
            if self.rank > 0 and not self._leaving and time.monotonic() - self._last_read > self.hang_timeout + SILENT:
                message = self._describe_hang([0], "does not answer")
                self._end_process(message if self._speaks_for_rank_zero else None, 1)

    def _report(self) -> None:
        """Store this rank's progress."""
        self._number += 1
        seconds = time.monotonic() - self._since
        line = self._find_line() if seconds > min(5.0, self.hang_timeout / 2) else ""
        report = [self._number, self._progress, self.bounded, seconds, _describe_process(), line]
        self._store.set(f"report/{self.rank}", json.dumps(report))

    def _read_reports(self) -> None:
        """Read the reports of the other ranks."""
        names = [f"report/{rank}" for rank in range(self.world_size)]
        for rank, value in enumerate(self._store.multi_get(names)):
            report = Report(*json.loads(value), read=time.monotonic())
            if rank not in self._reports or self._reports[rank].number != report.number:
                self._reports[rank] = report

    def _find_silent_ranks(self, seconds: float) -> list[int]:
        """Return the other ranks that have not reported for some seconds."""
        now = time.monotonic()
        return [rank for rank, report in self._reports.items() if rank != self.rank and now - report.read > seconds]

    def _look_for_dead_children(self) -> None:
        for rank, child in enumerate(self.children, 1):
            code = child.poll()
            if code is not None and code != 0 and self._read_failure() is None:
                time.sleep(INTERVAL)  # its message may arrive soon
                if self._read_failure() is None:
                    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                    message = (
                        f"rank {rank} ended without a message ({how}). Repeat the command to continue from the last checkpoint."
                    )
                    self._publish(message, 1)
                    self._end_process(message, 1)

    def _look_for_hung_ranks(self) -> None:
        """End the run if a rank has made no progress within the time limit, and name the rank."""
        if hung := self._find_silent_ranks(self.hang_timeout):
            what = "does not answer"
        elif any(not report.bounded for report in self._reports.values()):
            return
        else:
            last = min(report.progress for report in self._reports.values())
            behind = {rank: report for rank, report in self._reports.items() if report.progress == last}
            if any(report.seconds < self.hang_timeout for report in behind.values()):
                return
            busy = [rank for rank, report in behind.items() if not _is_in_collective(report.line)]
            hung, what = busy or sorted(behind), "makes no progress"
        if not self._speaks_for_others(hung):
            return
        message = self._describe_hang(hung, what)
        if self._publish(message, 1)["rank"] == self.rank:
            self._end_process(message, 1)

    def _describe_lost(self, rank: int) -> str:
        return (
            f"rank {rank} ({self._describe_rank(rank)}) has ended without a message: it was killed, or its machine is gone. "
            f"Repeat the command to continue from the last checkpoint."
        )

    def _describe_hang(self, ranks: list[int], what: str) -> str:
        names = "; ".join(f"rank {rank} ({self._describe_rank(rank)})" for rank in ranks)
        return (
            f"{names} {what} for {self.hang_timeout:g} seconds (trainer.hang_timeout), and the others wait for it. "
            f"Look at that process and its disk or device; repeat the command to continue from the last checkpoint."
        )

    def _speaks_for_others(self, hung: list[int]) -> bool:
        """Return whether this is the first rank that does not hang, or rank 0 if all hang."""
        return self.rank == next((rank for rank in range(self.world_size) if rank not in hung), 0)

    def _describe_rank(self, rank: int) -> str:
        report = self._reports.get(rank)
        if report is None:
            return "unknown"
        return f"{report.place}, at {report.line}" if report.line else report.place

    def _find_line(self) -> str:
        """Return the source lines of the main thread's innermost call, and of the innermost one in this package."""
        stack = traceback.extract_stack(sys._current_frames()[self._main])
        package_frames = [frame for frame in stack if f"{os.sep}llm_lightning{os.sep}" in frame.filename]
        frames = dict.fromkeys(
            f"{os.sep.join(frame.filename.split(os.sep)[-3:])}:{frame.lineno}" for frame in (stack[-1:] + package_frames[-1:])
        )
        return " in ".join(frames)

    def _end_process(self, message: str | None, code: int) -> None:
        """Print the message, unless another rank does, and end this process if the main thread does not end it in a few seconds."""
        self._ending = code
        if message is not None:
            log.error("%s", message, extra={"file_only": True})
            print(f"\nerror: {escape_controls(redact(message))}", file=sys.stderr, flush=True)
        if self._ended.wait(GRACE):
            return
        for child in self.children:
            if child.poll() is None:
                child.kill()
        logging.shutdown()
        os._exit(code)


_current: Watchdog | None = None


def mark_progress(bounded: bool = True) -> None:
    """Begin a stage of this rank. `bounded`: the rank counts as hung if the stage takes longer than `trainer.hang_timeout`."""
    if _current is not None:
        _current.mark_progress(bounded)


@contextlib.contextmanager
def no_time_limit() -> Iterator[None]:
    """Run the block as a stage without a time limit: rank 0 may take long to write a large model while others wait."""
    bounded = _current is not None and _current.bounded
    mark_progress(bounded=False)
    try:
        yield
    finally:
        mark_progress(bounded)


def _is_connection_error(error: RuntimeError) -> bool:
    """Return whether the error means that a collective has lost a rank. gloo has no exception of its own (torch 2.13)."""
    return isinstance(error, torch.distributed.DistError) or any(name in str(error) for name in ("gloo", "NCCL", "Connection"))


def _is_in_collective(line: str) -> bool:
    """Return whether a rank is inside a collective, or inside a backward pass, which runs them."""
    return any(part in line for part in ("distributed", "graph.py", "_tensor.py"))


def _describe_process() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"
