"""Deal tokenized splits to the trainer: the plan of the optimizer steps, the loaders, and the state of streamed data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from llm_lightning import distributed
from llm_lightning.config.schema import Config
from llm_lightning.data.collate import Collator, EvaluationBatches, FromStep, MicroBatch, StepBatch, TrainingSteps
from llm_lightning.data.encode import TokenizedSplit
from llm_lightning.data.masking import Masking
from llm_lightning.data.plan import Plan, PoissonPlan, max_rows_at_once, plan_evaluation
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.data.reader_state import ReaderState
from llm_lightning.data.streaming import Stream, StreamedSteps, reading_ranks
from llm_lightning.errors import UserError
from llm_lightning.machine import cores


class DataModule(lightning.LightningDataModule):
    """Data loaders over the plan: a training item is one optimizer step, an evaluation item one batch."""

    def __init__(self, config: Config, dataset: TokenizedDataset, masking: Masking | None) -> None:
        super().__init__()
        self.config, self.dataset = config, dataset
        packed = dataset.encoding.next_token and config.data.packing == "best_fit"
        self.row_size = config.data.block_size if packed else None
        types = "token_type_ids" in dataset.tokenizer.model_input_names
        self.collator = Collator(dataset.encoding.next_token, dataset.encoding.translates, masking, types)
        self.spec = replace(config.batch, micro_tokens=None) if config.batch.micro_tokens == "auto" else config.batch
        """How steps are cut; `limit` sets `micro_tokens` if it is auto."""
        train = dataset.splits["train"]
        window = None if train.windows is None else int(train.texts.max())
        plan = Plan if config.privacy.kind == "none" else PoissonPlan
        self.plan = plan(train.positions, self.spec, config.seed, self.row_size, window)
        self._readers: dict[int, ReaderState] = {}
        """Of streamed data: the state of each reader after the last trained step; up to date on the rank of the reader."""
        self._reader_count: int | None = None
        self.total_steps = self._total_steps()
        """Optimizer steps of the run, computed before it starts and not by Lightning, which would drop the position on resume."""
        epoch = self.plan.steps(1) if dataset.stream is None else self.total_steps
        self.validate_every = min(config.trainer.validate_every_steps or epoch, self.total_steps)
        """Steps between validations."""

    def _total_steps(self) -> int:
        trainer = self.config.trainer
        if self.dataset.stream is not None:
            assert trainer.max_steps is not None
            return trainer.max_steps
        limits = [trainer.max_steps, None if trainer.max_epochs is None else self.plan.steps(trainer.max_epochs)]
        return min(limit for limit in limits if limit is not None)

    def stop_at(self, steps: int) -> None:
        """End the run after this many steps, if it would take more."""
        self.total_steps = min(self.total_steps, steps)
        self.validate_every = min(self.validate_every, self.total_steps)

    def setup(self, stage: str) -> None:
        """Limit `micro_tokens` to the least that fits on any rank's device, as all ranks cut one plan."""
        assert self.trainer is not None
        if self.config.batch.micro_tokens == "auto" and self.trainer.world_size > 1 and self.spec.micro_tokens is not None:
            micro_tokens = torch.tensor(self.spec.micro_tokens, device=self.trainer.strategy.root_device)
            self.limit(int(self.trainer.strategy.reduce(micro_tokens, reduce_op="min")))

    @property
    def longest_input(self) -> int:
        """Tokens of the longest input text of any split."""
        splits = self.dataset.splits.values()
        if self.dataset.encoding.translates:
            return max(int(max(split.second.max(), (split.inputs - split.second).max())) for split in splits)  # type: ignore[union-attr]
        return max(int(split.texts.max()) for split in splits)

    def train_dataloader(self) -> DataLoader[StepBatch]:
        assert self.trainer is not None
        start, rank, world = self.trainer.global_step, self.trainer.global_rank, self.trainer.world_size
        if self.dataset.stream is not None:
            return self._loader(self._build_streamed_steps(self.dataset.stream, start, rank, world))
        return self._loader(self.training_steps(rank, world), sampler=FromStep(start, self.total_steps))

    def training_steps(self, rank: int, world: int) -> TrainingSteps:
        """Return a rank's parts of all steps of training text that is not streamed."""
        return TrainingSteps(self.dataset.splits["train"], self.plan, self.spec, self.collator, self.total_steps, rank, world)

    def _build_streamed_steps(self, stream: Stream, start: int, rank: int, world: int) -> StreamedSteps:
        block, spec, seed = self.config.data.block_size, self.spec, self.config.seed
        count = reading_ranks(spec, block, world) * max(self.workers, 1)
        if self._reader_count not in (None, count):
            raise UserError(
                f"data.streaming: the state was saved by {self._reader_count} readers (devices × data.workers), and there are "
                f"{count} now; use as many again."
            )
        self._reader_count = count
        encoder = type(self.dataset.encoding)(self.dataset.tokenizer, self.config.data)
        return StreamedSteps(stream, encoder, self.collator, block, spec, seed, start, self.total_steps, rank, world, self._readers)

    # ---- the state of streamed data; the plan needs none ----

    def count_trained(self, step: StepBatch) -> None:
        """Apply a trained step's change to the state of its reader."""
        if step.change is not None:
            self._readers.setdefault(step.change.reader, ReaderState()).apply(step.change)

    def gather(self) -> None:
        """Gather the states of the readers of all ranks, before a checkpoint is saved. A collective."""
        assert self.trainer is not None
        if self.dataset.stream is not None:
            rank, workers = self.trainer.global_rank, max(self.workers, 1)
            local_states = {index: state for index, state in self._readers.items() if index // workers == rank}
            self._readers = {index: state for states in distributed.gather(local_states) for index, state in states.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"readers": {index: state.state_dict() for index, state in self._readers.items()}, "count": self._reader_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._readers = {index: ReaderState.from_state_dict(reader) for index, reader in state["readers"].items()}
        self._reader_count = state["count"]

    def evaluation_loader(self, split: str, rank: int = 0, world: int = 1, every: int = 1) -> DataLoader[MicroBatch]:
        return self._loader(self.evaluation_batches(split, rank, world, every))

    def evaluation_batches(self, split: str, rank: int = 0, world: int = 1, every: int = 1) -> EvaluationBatches:
        """Return a rank's batches of a split; of every so many only the first, a sample that has all lengths."""
        return self._cut_batches(self.dataset.splits[split], rank, world, every)

    def loader_of(self, part: TokenizedSplit, rank: int = 0, world: int = 1) -> DataLoader[MicroBatch]:
        """Return the evaluation batches of sequences that belong to no split."""
        return self._loader(self._cut_batches(part, rank, world))

    def _cut_batches(self, part: TokenizedSplit, rank: int, world: int, every: int = 1) -> EvaluationBatches:
        batches = plan_evaluation(part.positions, self.plan.spec, self.row_size)[::every]
        return EvaluationBatches(part, batches, self.collator, rank, world)

    def val_dataloader(self) -> DataLoader[MicroBatch]:
        assert self.trainer is not None
        return self.evaluation_loader("validation", self.trainer.global_rank, self.trainer.world_size)

    def limit(self, micro_tokens: int) -> None:
        """Set `micro_tokens`, the tokens on a device at once. Steps and evaluation batches do not change."""
        self.spec = replace(self.spec, micro_tokens=micro_tokens)

    def longest(self, world: int) -> MicroBatch:
        """Build the micro-batch that takes the most memory: as many of the longest rows as may be on a device at once."""
        return self.longest_rows(max_rows_at_once(self.spec, self.row_size or int(self.plan.lengths.max()), world))

    def longest_rows(self, count: int) -> MicroBatch:
        """Build a micro-batch of the `count` longest rows."""
        if self.row_size is None:
            rows = list(np.argsort(-self.plan.lengths, kind="stable")[:count, None])
        else:
            rows = self.plan.epoch_plan(0)[0][:count]  # packed rows are nearly full, one like the other
        return self.collator(self.dataset.splits["train"], rows, 0)

    def _loader(self, items: Any, **options: Any) -> DataLoader[Any]:
        workers = self.workers
        options |= {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": self._for_gpu}
        return DataLoader(items, batch_size=None, **options)

    @property
    def workers(self) -> int:
        """Loader processes of this rank."""
        if self.config.data.workers != "auto":
            return int(self.config.data.workers)
        if not self._for_gpu:
            return 0  # they would take cores from the training itself
        assert self.trainer is not None
        return min(2, max(cores() // self.trainer.num_devices - 1, 0))

    @property
    def _for_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
