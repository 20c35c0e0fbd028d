"""See to it that the ranks of a run end together: a failure is said once, a hung or killed rank is named, nobody waits for the dead.

Each rank has a thread that tells the run's store once a second that the rank lives and how far it is, and reads what the others tell. The
first rank that fails leaves its message there; the others then end without one. A collective that waits for a rank which hangs
cannot be left in good order: there the thread ends the process.
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
from llm_lightning.errors import OtherRankFailed, RunError, Stopped
from llm_lightning.redact import redacted

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two reports of a rank
SILENT = 5.0  # seconds without a report after which a rank that the others cannot reach is taken for dead
GRACE = 5.0  # seconds that a rank has to end by itself once another has failed


@dataclass
class Report:
    """What a rank last told of itself, and when it was read."""

    number: int
    """Counts the rank's reports: one that stays the same is of a process that does not run."""
    progress: int
    """Counts the steps, batches and stages that the rank has begun."""
    bounded: bool
    """Whether the stage is one that must not take longer than the time limit."""
    seconds: float
    """How long it has been in this stage."""
    place: str
    """The host and the process id."""
    line: str
    """Where in the program it is."""
    read: float = field(kw_only=True)


class RankLost(RunError):
    """Another rank has gone without a message; this one's names it."""


class Watchdog:
    """Watches the other ranks for this one. Stages: `mark_progress` begins one, `unhurried` is one without a time limit."""

    def __init__(self, address: str, port: int, hang_timeout: float, children: list[subprocess.Popen[bytes]]) -> None:
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.hang_timeout, self.children = hang_timeout, children
        self._store = distributed.open_store(address, port, self.world_size, False, timedelta(seconds=60))  # a thread's own client
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._ended = threading.Event()
        self._leaving = False
        self._ending: int | None = None
        """The exit code, once the thread ends the process; it has said why, or another rank has."""
        self._progress, self._bounded, self._since = 0, False, time.monotonic()
        self._number = 0
        self._reports: dict[int, Report] = {}
        self._main = threading.get_ident()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs. What ends it is said by one rank alone: the others raise OtherRankFailed."""
        global _current
        self._tell()
        distributed.barrier()
        self._thread.start()
        _current = self
        try:
            yield
            self._leaving = True
            distributed.barrier()
        except Stopped as error:
            self._leaving = True
            distributed.barrier()  # a launcher takes the first process that ends with an error for a crash, and kills the others
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
        self._bounded, self._since = bounded, time.monotonic()

    # ---- failures ----

    def _raise_once(self, error: BaseException) -> None:
        """Raise the error if no rank has failed before, else OtherRankFailed."""
        if self._ending is not None:
            raise OtherRankFailed(self._ending) from error
        if isinstance(error, RuntimeError) and _is_connection_error(error):
            error = self._explained(error)
        message = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, RunError) else 1
        first = self._publish(message, code)
        if first["rank"] != self.rank:
            raise OtherRankFailed(first["code"]) from error
        if self.rank > 0 and isinstance(error, RunError) and not isinstance(error, RankLost):
            error.args = (f"rank {self.rank} ({_place()}): {error}",)
        self._wait_for_readers()
        raise error

    def _publish(self, message: str, code: int) -> dict[str, Any]:
        """Leave word of a failure. Return that of the rank that failed first; where rank 0 is gone, which keeps it, rank 1 speaks."""
        failure = {"rank": self.rank, "message": redacted(message), "code": code}
        try:
            failure = json.loads(self._store.compare_set("failure", "", json.dumps(failure)))
        except RuntimeError:
            failure["rank"] = 1
        return failure

    def _wait_for_readers(self) -> None:
        """Rank 0 holds the store: it stays until the others know."""
        end = time.monotonic() + 3 * INTERVAL
        with contextlib.suppress(RuntimeError):
            while self.rank == 0 and time.monotonic() < end and self._store.add("readers", 0) < self.world_size - 1:
                time.sleep(0.05)

    def _explained(self, error: RuntimeError) -> BaseException:
        """Name the rank that a collective could not reach, if one is silent; else return the error itself."""
        end = time.monotonic() + 2 * SILENT
        while time.monotonic() < end:
            if (failure := self._failure()) is not None:
                return OtherRankFailed(failure["code"])
            if silent := self._silent(SILENT):
                return RankLost(
                    f"rank {silent[0]} ({self._where(silent[0])}) has ended without a message: it was killed, or its machine is gone. "
                    f"Repeat the command to continue from the last checkpoint."
                )
            time.sleep(0.1)
        return error

    def _failure(self) -> dict[str, Any] | None:
        """Return what the first rank that failed has left, if one has."""
        try:
            if self._store.check(["failure"]):
                failure: dict[str, Any] = json.loads(self._store.get("failure"))
                return failure
        except RuntimeError:
            pass
        return None

    # ---- the thread ----

    def _watch(self) -> None:
        lost = 0
        while not self._ended.wait(INTERVAL):
            try:
                self._tell()
                self._read()
                lost = 0
            except RuntimeError:  # the store is gone, and so is rank 0
                lost += 1
                if not self._leaving and lost > SILENT / INTERVAL:
                    gone = f"rank 0 ({self._where(0)}) has ended without a message: it was killed, or its machine is gone."
                    self._leave(gone if self.rank == 1 else None, 1)
                continue
            if (failure := self._failure()) is not None and failure["rank"] != self.rank:
                with contextlib.suppress(RuntimeError):
                    self._store.add("readers", 1)
                self._leave(None, failure["code"])
            elif not self._leaving:
                self._look_for_dead_children()
                self._look_for_hung_ranks()

    def _tell(self) -> None:
        """Report that this rank lives, and where it is."""
        self._number += 1
        seconds = time.monotonic() - self._since
        line = self._line() if seconds > min(5.0, self.hang_timeout / 2) else ""
        self._store.set(f"report/{self.rank}", json.dumps([self._number, self._progress, self._bounded, seconds, _place(), line]))

    def _read(self) -> None:
        """Read the reports of the other ranks."""
        names = [f"report/{rank}" for rank in range(self.world_size)]
        for rank, value in enumerate(self._store.multi_get(names)):
            report = Report(*json.loads(value), read=time.monotonic())
            if rank not in self._reports or self._reports[rank].number != report.number:
                self._reports[rank] = report

    def _silent(self, seconds: float) -> list[int]:
        """Return the other ranks that have not reported for some seconds."""
        now = time.monotonic()
        return [rank for rank, report in self._reports.items() if rank != self.rank and now - report.read > seconds]

    def _look_for_dead_children(self) -> None:
        for rank, child in enumerate(self.children, 1):
            code = child.poll()
            if code is not None and code != 0 and self._failure() is None:
                time.sleep(INTERVAL)  # its own message may be on the way
                if self._failure() is None:
                    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                    message = (
                        f"rank {rank} ended without a message ({how}). Repeat the command to continue from the last checkpoint."
                    )
                    self._publish(message, 1)
                    self._leave(message, 1)

    def _look_for_hung_ranks(self) -> None:
        """End the run where a rank has not come on for longer than the time limit, and name it."""
        if hung := self._silent(self.hang_timeout):
            what = "does not answer"
        elif any(not report.bounded for report in self._reports.values()):
            return
        else:
            last = min(report.progress for report in self._reports.values())
            behind = {rank: report for rank, report in self._reports.items() if report.progress == last}
            if any(report.seconds < self.hang_timeout for report in behind.values()):
                return
            busy = [rank for rank, report in behind.items() if not _waits(report.line)]
            hung, what = busy or sorted(behind), "has not come on"
        if not self._may_speak(hung):
            return
        names = "; ".join(f"rank {rank} ({self._where(rank)})" for rank in hung)
        message = (
            f"{names} {what} for {self.hang_timeout:g} seconds (trainer.hang_timeout), and the others wait for it. "
            f"Look at that process and its disk or device; repeat the command to continue from the last checkpoint."
        )
        if self._publish(message, 1)["rank"] == self.rank:
            self._leave(message, 1)

    def _may_speak(self, hung: list[int]) -> bool:
        """Return whether this is the first rank that does not hang; where all do, whether it is rank 0."""
        return self.rank == next((rank for rank in range(self.world_size) if rank not in hung), 0)

    def _where(self, rank: int) -> str:
        report = self._reports.get(rank)
        if report is None:
            return "unknown"
        return f"{report.place}, at {report.line}" if report.line else report.place

    def _line(self) -> str:
        """Return where the main thread is: the innermost call, and the innermost of this package."""
        stack = traceback.extract_stack(sys._current_frames()[self._main])
        ours = [frame for frame in stack if f"{os.sep}llm_lightning{os.sep}" in frame.filename]
        frames = dict.fromkeys(
            f"{os.sep.join(frame.filename.split(os.sep)[-3:])}:{frame.lineno}" for frame in (stack[-1:] + ours[-1:])
        )
        return " in ".join(frames)

    def _leave(self, message: str | None, code: int) -> None:
        """Say why, unless another rank does, and end this process: the main thread has a moment to do it itself, in good order."""
        self._ending = code
        if message is not None:
            log.error("%s", message, extra={"file_only": True})
            print(f"\nerror: {redacted(message)}", file=sys.stderr, flush=True)
        if self._ended.wait(GRACE):
            return
        for child in self.children:
            if child.poll() is None:
                child.kill()
        logging.shutdown()
        os._exit(code)


_current: Watchdog | None = None


def mark_progress(bounded: bool = True) -> None:
    """Say that this rank has come on. `bounded`: the stage that begins must end within `trainer.hang_timeout`, or the rank hangs."""
    if _current is not None:
        _current.mark_progress(bounded)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Leave a stage without a time limit: a large model may take long to write, and other ranks wait meanwhile."""
    mark_progress(bounded=False)
    try:
        yield
    finally:
        mark_progress()


def _is_connection_error(error: RuntimeError) -> bool:
    """Return whether a collective has lost a rank. gloo has no exception of its own (torch 2.13)."""
    return isinstance(error, torch.distributed.DistError) or any(name in str(error) for name in ("gloo", "NCCL", "Connection"))


def _waits(line: str) -> bool:
    """Return whether a rank is inside a collective, or inside a backward pass, which runs them."""
    return any(part in line for part in ("distributed", "graph.py", "_tensor.py"))


def _place() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"
