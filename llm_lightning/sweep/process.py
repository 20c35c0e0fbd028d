"""Run each job of a sweep in its own process: no state of a run (seeds, loggers, memory, signal handlers) reaches the next, and no job
can end the sweep.

Jobs are forked from a server that has imported torch and Lightning already, so that each starts at once. Each job has its own command
line: Lightning starts the processes of other devices with it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from llm_lightning.config.redaction import redact
from llm_lightning.machine import cores

log = logging.getLogger(__name__)

ShouldContinue = Callable[[int, float], bool]
"""Called after a validation with the progress in thousandths of the steps and the deciding metric; returns whether the run continues."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended (done, failed, pruned or stopped), why it is not done, and after how many seconds."""

    status: str
    message: str
    seconds: float


@dataclass(frozen=True)
class Share:
    """A job's share of the machine when several run at once: a GPU or none, and a number of threads."""

    threads: int
    gpu: str | None = None


def run_job(
    overrides: list[str],
    sweep: str,
    should_continue: ShouldContinue | None,
    share: Share | None,
    output: Path | None,
    started: Callable[[BaseProcess], None],
    ended: Callable[[BaseProcess], None],
) -> Outcome:
    """Run a job and wait for its end. Its output goes to a file, or to the terminal; `started` and `ended` are called with its process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llm_lightning.run"])
    connection, child_connection = context.Pipe()
    process = context.Process(
        target=_job, args=(child_connection, sys.argv[0], overrides, sweep, should_continue is not None, share, output)
    )
    before = time.perf_counter()
    try:
        process.start()
    except (EOFError, OSError) as error:  # the server that forks jobs has ended: Ctrl-C while it was starting
        return Outcome("failed", f"could not be started: {error or type(error).__name__}", 0.0)
    started(process)
    child_connection.close()
    status, message = "failed", ""
    while True:
        try:
            report = connection.recv()
            if isinstance(report[0], int):
                connection.send(should_continue is None or _ask_safely(should_continue, *report))
            else:
                status, message = report
        except (EOFError, OSError):
            break
    process.join()
    if not message and status == "failed":
        code = process.exitcode or 0
        message = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    connection.close()
    ended(process)
    process.close()
    return Outcome(status, redact(message), time.perf_counter() - before)


def _ask_safely(should_continue: ShouldContinue, done: int, value: float) -> bool:
    """Call `should_continue`; on an error, continue: a journal that cannot be written must not end a run that trains well."""
    try:
        return should_continue(done, value)
    except Exception as error:
        log.warning("sweep: pruning is left out (%s: %s)", type(error).__name__, error)
        return True


def _job(
    parent: Connection, program: str, overrides: list[str], sweep: str, is_asked: bool, share: Share | None, output: Path | None
) -> None:
    """Run the job, in its own process, and report to the sweep how it ended."""
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    sys.argv = [program, *overrides]
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
    if share is not None:
        if share.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = share.gpu
        os.environ["OMP_NUM_THREADS"] = str(share.threads)
    import torch

    from llm_lightning import cli
    from llm_lightning.config import compose
    from llm_lightning.config.messages import explain
    from llm_lightning.errors import Pruned, Stopped
    from llm_lightning.run import run

    if share is not None:
        torch.set_num_threads(share.threads)

    def tell(*message: Any) -> None:
        with contextlib.suppress(OSError):  # the sweep has ended
            parent.send(message)

    def should_continue(done: int, value: float) -> bool:
        tell(done, value)
        try:
            return bool(parent.recv())
        except (EOFError, OSError):
            return True

    try:
        with cli.report_errors():
            run(compose.load_config(overrides), sweep, should_continue if is_asked else None)
        tell("done", "")
    except SystemExit as exit:
        error = exit.__context__
        status = "pruned" if isinstance(error, Pruned) else "stopped" if isinstance(error, Stopped) else "failed"
        tell(status, explain(error).removeprefix(f"{status} ") if isinstance(error, Exception) else "")
        raise
    except BaseException as error:
        tell("failed", f"{type(error).__name__}: {error}")
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr)
        sys.exit(1)


def _end_with_the_sweep() -> None:
    """Make the run save its state and end if the sweep is killed; the server that forked it would live as long as the run."""
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    sweep.join()
    os.kill(os.getpid(), signal.SIGTERM)


def shares(jobs: int | str) -> list[Share | None]:
    """Return the share of each concurrent job; `auto` is one job a GPU, or one a core without GPUs. A single job gets the whole machine."""
    if jobs == 1:
        return [None]
    import torch

    visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (visible_devices.split(",") if visible_devices else [str(i) for i in range(torch.cuda.device_count())])[
        : torch.cuda.device_count()
    ]
    most = len(gpus) or cores()
    count = most if jobs == "auto" else min(int(jobs), most)
    if count == 1:
        return [None]
    return [Share(max(1, cores() // count), gpus[slot] if gpus else None) for slot in range(count)]
