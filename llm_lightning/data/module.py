"""The data of a run: sources to rows, tokenizer, encoded splits, plan, loaders."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import Any

import datasets
import lightning
import numpy as np
from torch.utils.data import DataLoader

from llm_lightning.config import Config, cache_folder
from llm_lightning.data import encode, labels, splits, tokenizers
from llm_lightning.data.collate import Collator, EvaluationBatches, FromStep, MicroBatch, Step, TrainingSteps
from llm_lightning.data.encode import Encoded
from llm_lightning.data.labels import Labels
from llm_lightning.data.masking import Masking
from llm_lightning.data.plan import Plan
from llm_lightning.data.rows import Rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """Everything the rest of a run needs to know of its text."""

    splits: dict[str, Encoded]
    tokenizer: Any
    labels: Labels | None
    encoding: str

    @property
    def label_names(self) -> tuple[str, ...] | None:
        return None if self.labels is None else self.labels.names

    @property
    def fingerprint(self) -> str:
        return self.splits["train"].fingerprint


def prepare(config: Config, encoding: str, labelled: bool, tokenizer: Any | None) -> Text:
    """Read, validate and encode every split; where `tokenizer` is None one is trained on train."""
    data, cache = config.data, cache_folder(config)
    source = importlib.import_module(f"llm_lightning.data.sources.{data.source}")
    rows = splits.with_validation(source.load(data, cache), data)
    found = labels.find(data, rows["train"]) if labelled else None
    if found is not None:
        rows = {split: part for split, part in rows.items() if split == "train" or _is_labelled(part, data.columns.label, split)}
    if tokenizer is None:
        longest = int(config.model.config.get("n_positions", config.model.config.get("max_position_embeddings", data.block_size)))
        tokenizer = tokenizers.train(config.model.tokenizer, rows["train"], data.columns.text, longest, cache)
    encoded = {split: encode.encode(part, data, tokenizer, encoding, found, cache, split) for split, part in rows.items()}
    return Text(splits=encoded, tokenizer=tokenizer, labels=found, encoding=encoding)


def _is_labelled(rows: Rows, column: str | None, split: str) -> bool:
    """Hub data sets hide the labels of their test split behind -1: such a split cannot be evaluated."""
    assert column is not None
    hidden = isinstance(rows.table.features[column], datasets.ClassLabel) and set(rows.table.unique(column)) == {-1}
    if hidden:
        log.warning("%s has no labels (they are all -1, as hub benchmarks hide them): it is not evaluated", split)
    return not hidden


class DataModule(lightning.LightningDataModule):
    """Loaders over the plan: a training item is one optimizer step, an evaluation item one batch."""

    def __init__(self, config: Config, text: Text, masking: Masking | None) -> None:
        super().__init__()
        self.config, self.text = config, text
        self.collator = Collator(text.encoding, text.tokenizer.pad_token_id or 0, masking)
        self.plan = Plan(text.splits["train"].lengths, config.batch, config.seed)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run, known before it starts: Lightning is never asked (it would drop the position on resume)."""
        trainer = self.config.trainer
        limits = [trainer.max_steps, None if trainer.max_epochs is None else self.plan.steps(trainer.max_epochs)]
        return min(limit for limit in limits if limit is not None)

    @property
    def validate_every(self) -> int:
        """Steps between validations."""
        return min(self.config.trainer.validate_every_steps or len(self.plan.epoch(0)), self.total_steps)

    @property
    def longest_input(self) -> int:
        """Tokens of the longest input of any split; of a stream's n+1 tokens the model sees n."""
        longest = max(int(split.lengths.max()) for split in self.text.splits.values())
        return longest - 1 if self.text.encoding == "stream" else longest

    def train_dataloader(self) -> DataLoader[Step]:
        assert self.trainer is not None
        steps = TrainingSteps(
            self.text.splits["train"],
            self.plan,
            self.config.batch,
            self.collator,
            self.total_steps,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return self._loader(steps, sampler=FromStep(self.trainer.global_step, self.total_steps))

    def evaluation_loader(self, split: str, rank: int = 0, world: int = 1) -> DataLoader[MicroBatch]:
        return self._loader(self.evaluation_batches(split, rank, world))

    def evaluation_batches(self, split: str, rank: int = 0, world: int = 1) -> EvaluationBatches:
        return EvaluationBatches(self.text.splits[split], self.config.batch, self.collator, rank, world)

    def val_dataloader(self) -> DataLoader[MicroBatch]:
        assert self.trainer is not None
        return self.evaluation_loader("validation", self.trainer.global_rank, self.trainer.world_size)

    def longest(self) -> MicroBatch:
        """The micro-batch that takes the most memory: as many of the longest sequences as may be on a device at once."""
        lengths, spec = self.text.splits["train"].lengths, self.config.batch
        order = np.argsort(-lengths, kind="stable")
        size = min(spec.micro_sequences or spec.sequences, len(order))
        if spec.micro_tokens is not None:
            size = min(size, max(1, spec.micro_tokens // int(lengths[order[0]])))
        return self.collator(self.text.splits["train"], order[:size], 0)

    def _loader(self, items: Any, **options: Any) -> DataLoader[Any]:
        workers = self.config.data.workers
        return DataLoader(items, batch_size=None, num_workers=workers, persistent_workers=workers > 0, **options)
