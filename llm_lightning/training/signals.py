"""Stop cleanly: on SIGINT, SIGTERM or SIGUSR1 (SLURM's warning) finish the step, save, and tell the user how to resume.

A signal may reach only one rank, so ranks agree after every step, between their CPUs: none waits for a device. A second SIGINT stops at
once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from llm_lightning import distributed
from llm_lightning.errors import Stopped
from llm_lightning.training.averaging import averages_weights

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def raise_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt if Lightning has turned it into SystemExit, which shows no message and ends a calling program."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise


class StopOnSignal(Checkpoint):  # Lightning calls those of this class last
    """Callback that stops training on a signal. It comes last, so that the saved state includes all other callbacks' work of the step."""

    def __init__(self, save: Callable[[lightning.Trainer], Path], how_to_resume: str) -> None:
        self.save, self.how_to_resume = save, how_to_resume
        self.received: int | None = None
        self._process = os.getpid()
        self._ranks: Any = None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Install the signal handlers. Lightning has installed its own before, and restores the earlier ones at the end."""
        if trainer.world_size > 1:
            self._ranks = torch.distributed.new_group(backend="gloo")
            # Lightning's own exchange after each batch waits for the device (private; read in Lightning 2.6)
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if threading.current_thread() is threading.main_thread():
            for number in HEEDED:
                signal.signal(number, self._handle_signal)

    def _handle_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a loader process, which ends with this one
            return
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if distributed.is_rank_zero():
            print(f"\n{signal.Signals(number).name}: finishing the step, then saving", file=sys.stderr, flush=True)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._stop_if_signaled(trainer)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not averages_weights(trainer):  # whose average is in the model
            self._stop_if_signaled(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_signaled(trainer)

    def _stop_if_signaled(self, trainer: lightning.Trainer) -> None:
        should_stop = self.received is not None
        if self._ranks is not None:
            anyone = torch.tensor(int(should_stop))
            torch.distributed.all_reduce(anyone, torch.distributed.ReduceOp.MAX, self._ranks)
            should_stop = bool(anyone)
        if should_stop:
            path = self.save(trainer)
            name = signal.Signals(self.received).name if self.received else "a signal to another rank"
            how = _requeue() if signal.SIGUSR1 in distributed.gather(self.received) else None
            raise Stopped(f"\nstopped by {name} after step {trainer.global_step}, saved in {path}\n{how or self.how_to_resume}")


def _requeue() -> str | None:
    """Ask SLURM, which warned of the job's time limit, to requeue the job. Return a message for the user; None outside of SLURM."""
    job = distributed.slurm_batch_job()
    if job is None or not distributed.is_rank_zero():
        return None
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        return f"job {job} could not be queued again ({reason}); submit it again with the same run_dir to continue"
    return f"job {job} is queued again, and continues from there"
