"""Tell Lightning and its callbacks what `distributed/launchers.py` knows of the launcher."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from llm_lightning import distributed
from llm_lightning.watchdog import mark_progress


class LaunchedEnvironment(ClusterEnvironment):
    """Cluster environment of processes that exist already, whatever launcher started them: Lightning starts none."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return distributed.read_launch().address

    @property
    def main_port(self) -> int:
        return distributed.read_launch().port

    @staticmethod
    def detect() -> bool:
        return distributed.is_launched()

    def world_size(self) -> int:
        return distributed.read_launch().world_size

    def set_world_size(self, size: int) -> None:
        """Keep the launcher's number."""

    def global_rank(self) -> int:
        return distributed.rank()

    def set_global_rank(self, rank: int) -> None:
        """Keep the launcher's number."""

    def local_rank(self) -> int:
        return distributed.local_rank()

    def node_rank(self) -> int:
        return distributed.read_launch().node_rank


class Heartbeat(Callback):
    """Callback that reports this rank's progress to the watchdog. Each step has a time limit but the first, which may compile."""

    def __init__(self) -> None:
        self._trained = False

    def on_train_batch_start(self, *_: Any) -> None:
        mark_progress(bounded=self._trained)

    def on_train_batch_end(self, *_: Any) -> None:
        self._trained = True
        mark_progress()  # the next batch is read

    def on_validation_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        mark_progress(bounded=trainer.state.fn == TrainerFn.FITTING)

    def on_validation_epoch_end(self, *_: Any) -> None:
        mark_progress(bounded=False)  # scores, samples, checkpoints

    def on_train_end(self, *_: Any) -> None:
        mark_progress(bounded=False)
