"""Measure how long a trained model takes for one example."""

from __future__ import annotations

import time
from statistics import median

import lightning
import numpy as np

from llm_lightning.data.collate import EVALUATION
from llm_lightning.data.datamodule import DataModule
from llm_lightning.objectives.base import Objective
from llm_lightning.training import parallel

EXAMPLES = 20
LONGEST = 2.0  # seconds after which no other example is measured


def latency_ms(trainer: lightning.Trainer, objective: Objective, data: DataModule) -> float | None:
    """Return the median milliseconds from a validation example to its prediction (language models: to its loss); None on several ranks."""
    if trainer.world_size > 1:
        return None
    part, device = data.dataset.splits["validation"], trainer.strategy.root_device
    predicts = type(objective).predict is not Objective.predict
    objective.to(device).eval()
    trainer.precision_plugin.convert_module(objective)
    places = np.linspace(0, len(part) - 1, min(EXAMPLES, len(part))).astype(int)
    seconds: list[float] = []
    with parallel.without_gradients(objective.model), trainer.precision_plugin.val_step_context():
        for place in (places[0], *places):  # the first call warms up
            batch = data.collator(part, [np.array([place])], EVALUATION)
            started = time.perf_counter()
            moved = objective.transfer_batch_to_device(batch, device, 0)
            _ = objective.predict(moved) if predicts else float(objective.loss_and_outputs(moved)[0])
            seconds.append(time.perf_counter() - started)
            if sum(seconds) > LONGEST and len(seconds) > 1:
                break
    return 1000 * median(seconds[1:])
