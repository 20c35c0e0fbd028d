"""Write samples.jsonl of a run: the model's continuations of fixed prompts after each validation.

Rank 0 writes while the other ranks continue to the next collective. Random numbers come from a separate state, so that a run is the same
to the last bit with and without samples. Compiled layers are not called: they would be compiled anew for texts that grow.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.fsdp import FSDPModule

from llm_lightning.atomic_files import write_atomically
from llm_lightning.objectives.base import Objective
from llm_lightning.training.meter import Meter

log = logging.getLogger(__name__)


class Samples(Callback):
    """Callback that writes lines of `step`, `tokens`, `prompt`, `text`, and `reference` if the prompt has one."""

    def __init__(self, folder: Path, meter: Meter) -> None:
        self.file, self.meter = folder / "samples.jsonl", meter
        self._failed = False

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        assert isinstance(module, Objective)
        module.finish_evaluation()
        if not trainer.is_global_zero or self._failed:
            return
        if not math.isfinite(module.latest.get("validation/loss", 0.0)):
            return  # training ends here, and a GPU that draws from such numbers could not say why
        if isinstance(module.model, FSDPModule):
            return  # sharded over ranks: one rank alone cannot write
        device = module.model.device
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.inference_mode(False),  # otherwise tensors that the model keeps would stay inference tensors
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            module.precision_context(),
        ):
            torch.manual_seed(0)
            samples = self._write_samples(module)
        if samples:
            self._append([{"step": trainer.global_step, "tokens": self.meter.tokens, **sample} for sample in samples])

    def _write_samples(self, module: Objective) -> list[dict[str, str]]:
        """Return the samples of a model; on an error, log it with the place in the code and write no more samples in this run."""
        try:
            return module.samples()
        except Exception as error:  # an illustration must not stop a training
            self._failed = True
            log.warning("samples: the run goes on without, as writing them failed (%s: %s)", type(error).__name__, error)
            log.warning("samples: this is where", exc_info=True, extra={"file_only": True})
            return []

    def _append(self, lines: list[dict[str, object]]) -> None:
        """Append to the lines of earlier steps; drop lines that a resumed run writes again."""
        earlier_lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True) if self.file.is_file() else []
        earlier_lines = [line for line in earlier_lines if json.loads(line)["step"] < lines[0]["step"]]
        new_lines = [f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines]
        with write_atomically(self.file) as file:
            file.write_text("".join([*earlier_lines, *new_lines]), encoding="utf-8")
