"""An objective with a loaded model, and the loop over sequences outside of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from llm_lightning.config.schema import BatchConfig
from llm_lightning.data import encode
from llm_lightning.data.collate import EVALUATION, Collator, MicroBatch
from llm_lightning.data.encodings import Sequences
from llm_lightning.data.plan import plan_evaluation
from llm_lightning.objectives.base import Objective


@dataclass(frozen=True)
class LoadedModel:
    """An objective with its model, the size of its batches, the precision and the device. Base of predictions and likelihoods."""

    objective: Objective
    spec: BatchConfig
    precision: Callable[[], AbstractContextManager[Any]]
    device: torch.device

    def each(self, sequences: Sequences, say: Callable[[MicroBatch], Sequence[Any]]) -> list[Any]:
        """Return the value of each sequence, in their order. `say` returns the values of a batch of similar lengths, in its order."""
        encoding = self.objective.dataset.encoding
        data = encode.in_memory(sequences, encoding.next_token)
        types = "token_type_ids" in encoding.tokenizer.model_input_names
        collate = Collator(encoding.next_token, encoding.translates, None, types)
        parts: list[Any] = [None] * len(data)
        with torch.inference_mode(), self.precision():
            for rows in plan_evaluation(data.positions, self.spec):
                batch = collate(data, rows, EVALUATION)
                moved = self.objective.transfer_batch_to_device(batch, self.device, 0)
                for index, part in zip(batch.indices.tolist(), say(moved), strict=True):
                    parts[index] = part
        return parts
