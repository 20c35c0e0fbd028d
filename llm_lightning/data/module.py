"""Prepare the data of a run: rows from sources, the tokenizer, encoded splits, the plan and the loaders."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import datasets
import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from llm_lightning import distributed
from llm_lightning.config.schema import Config, cache_folder
from llm_lightning.config.signatures import import_target
from llm_lightning.data import encode, encodings, examples, sentences, splits, tokenizers
from llm_lightning.data.collate import Collator, EvaluationBatches, FromStep, MicroBatch, Step, TrainingSteps
from llm_lightning.data.encode import TokenizedSplit
from llm_lightning.data.encodings import Encoding
from llm_lightning.data.examples import BadRows, Example
from llm_lightning.data.labelled import drop_unlabelled
from llm_lightning.data.labels import Labels
from llm_lightning.data.masking import Masking
from llm_lightning.data.plan import Plan, evaluation, most_rows
from llm_lightning.data.reader_state import ReaderState
from llm_lightning.data.rows import Rows, label_columns, require_columns
from llm_lightning.data.streaming import Stream, StreamedSteps, open_stream, reading_ranks
from llm_lightning.errors import UserError
from llm_lightning.machine import cores

log = logging.getLogger(__name__)

SHOWN = 600  # characters of a row in reports


@dataclass(frozen=True)
class TokenizedDataset:
    """The encoded splits of a run, with their rows and their encoding."""

    splits: dict[str, TokenizedSplit]
    rows: dict[str, Rows]
    """The rows that the splits were encoded from."""
    encoding: Encoding
    stream: Stream | None = None
    """The training text if it is streamed; `train` of the splits is then a sample from its front."""

    @property
    def tokenizer(self) -> Any:
        return self.encoding.tokenizer

    @property
    def labels(self) -> Labels | None:
        return self.encoding.labels

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The names of the classes; None if the labels are not classes."""
        return (self.labels.names or None) if self.labels is not None else None

    def examples(self, split: str) -> Iterator[Example]:
        """Read the used rows of a split again and yield them; `Example.row` is their number in `TokenizedSplit.rows`."""
        rows, data = self.rows[split], replace(self.encoding.data, on_bad_row="skip")
        yield from examples.read(rows, data, self.encoding, BadRows(rows, data))

    def example(self, split: str, number: int) -> Example:
        """Read a used row of a split again, by its number in `TokenizedSplit.rows`."""
        columns, row = self.encoding.data.columns, self.rows[split].table[number]
        text, pair = (None if column is None else row[column] for column in (columns.text, columns.text_pair))
        label = [row[column] for column in columns.label] if isinstance(columns.label, list) else row.get(columns.label)
        extra = {name: row[name] for name in self.encoding.extra_columns if row.get(name) is not None}
        return Example(number, *self.encoding.read(text, pair, label, extra))

    def shown(self, split: str, number: int) -> str:
        """Return the beginning of a row of a split, by its number in `TokenizedSplit.rows`, as text for a reader."""
        columns, row = self.encoding.data.columns, self.rows[split].table[number]
        values = (row[column] for column in (columns.text, columns.text_pair) if column is not None)
        text = " ‖ ".join(" ".join(map(str, part)) if isinstance(part, list) else str(part) for part in values)
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

    @property
    def fingerprints(self) -> dict[str, str]:
        """A hash of the content of each split, independent of its files' place; `stream` is the hash of streamed training text."""
        streamed = {} if self.stream is None else {"stream": self.stream.fingerprint}
        return {split: encoded.fingerprint for split, encoded in self.splits.items()} | streamed

    @property
    def fingerprint(self) -> str:
        """A hash of the training data's content."""
        return self.splits["train"].fingerprint


def prepare_dataset(config: Config, encoding: str, tokenizer: Any | None) -> TokenizedDataset:
    """Read, validate and encode every split. If `tokenizer` is None, a tokenizer is trained on train."""
    datasets.disable_progress_bars()  # they do not show the progress of our own work
    data, cache, encoder = config.data, cache_folder(config), encodings.get_encoder(encoding)
    if data.streaming:
        stream, rows = open_stream(data)
        return _encode_splits(config, rows, encoder, None, tokenizer, stream)
    source = import_target(data.source if "." in data.source else f"llm_lightning.data.sources.{data.source}")
    text_labels = label_columns(data.columns.label) if encoder.label_is_text else []
    loaded = source.load(data, cache, (*encoder.extra_columns, *text_labels))
    for split, part in loaded.items():
        columns = replace(data.columns, label=None) if split == "test" else data.columns  # test may have no labels
        require_columns(split, replace(data, columns=columns), part.table.column_names)
    if data.columns.sentence is not None:
        loaded = {split: sentences.group(part, data, cache) for split, part in loaded.items()}
    loaded = encoder.convert_labels(loaded, data, cache)
    for split, part in loaded.items():
        for note in part.notes:
            log.warning("%s: %s", split, note)
    labels = encoder.find_labels(data, loaded["train"])  # before the validation cut, which may take all rows of a rare label
    if labels is not None:
        loaded = drop_unlabelled(loaded, data, encoder)
    rows = splits.with_validation(loaded, data, encoder.one_label)
    return _encode_splits(config, rows, encoder, labels, tokenizer, None)


def _encode_splits(
    config: Config, rows: dict[str, Rows], encoder: type[Encoding], labels: Labels | None, tokenizer: Any, stream: Stream | None
) -> TokenizedDataset:
    data, cache = config.data, cache_folder(config)
    if tokenizer is None:
        columns = [data.columns.text, data.columns.text_pair, data.columns.label if encoder.label_is_text else None]
        columns += [name for name in encoder.extra_columns if name in rows["train"].table.column_names]
        texts = list(dict.fromkeys(column for column in columns if column is not None))
        tokenizer = tokenizers.train(config.model.tokenizer, rows["train"], texts, cache)
        if encoder.special_tokens:
            tokenizer.add_special_tokens({"additional_special_tokens": list(encoder.special_tokens)})
        if encoder.begins_documents:
            tokenizers.begin_texts(tokenizer)
    encoding = encoder(tokenizer, data, labels)
    encoded = {split: encode.encode(part, data, encoding, cache, split) for split, part in rows.items()}
    return TokenizedDataset(splits=encoded, rows=rows, encoding=encoding, stream=stream)


class DataModule(lightning.LightningDataModule):
    """Data loaders over the plan: a training item is one optimizer step, an evaluation item one batch."""

    def __init__(self, config: Config, text: TokenizedDataset, masking: Masking | None) -> None:
        super().__init__()
        self.config, self.text = config, text
        packed = text.encoding.next_token and config.data.packing == "best_fit"
        self.row_size = config.data.block_size if packed else None
        types = "token_type_ids" in text.tokenizer.model_input_names
        self.collator = Collator(text.encoding.next_token, text.encoding.translates, masking, types)
        self.spec = replace(config.batch, micro_tokens=None) if config.batch.micro_tokens == "auto" else config.batch
        """How steps are cut; `limit` sets `micro_tokens` if it is auto."""
        self.plan = Plan(text.splits["train"].inputs, self.spec, config.seed, self.row_size)
        self._readers: dict[int, ReaderState] = {}
        """Of streamed data: the state of each reader after the last trained step; up to date on the rank of the reader."""
        self._reader_count: int | None = None
        self.total_steps = self._total_steps()
        """Optimizer steps of the run, computed before it starts and not by Lightning, which would drop the position on resume."""
        epoch = self.plan.steps(1) if text.stream is None else self.total_steps
        self.validate_every = min(config.trainer.validate_every_steps or epoch, self.total_steps)
        """Steps between validations."""

    def _total_steps(self) -> int:
        trainer = self.config.trainer
        if self.text.stream is not None:
            assert trainer.max_steps is not None
            return trainer.max_steps
        limits = [trainer.max_steps, None if trainer.max_epochs is None else self.plan.steps(trainer.max_epochs)]
        return min(limit for limit in limits if limit is not None)

    def setup(self, stage: str) -> None:
        """Limit `micro_tokens` to the least that fits on any rank's device, as all ranks cut one plan."""
        assert self.trainer is not None
        if self.config.batch.micro_tokens == "auto" and self.trainer.world_size > 1 and self.spec.micro_tokens is not None:
            micro_tokens = torch.tensor(self.spec.micro_tokens, device=self.trainer.strategy.root_device)
            self.limit(int(self.trainer.strategy.reduce(micro_tokens, reduce_op="min")))

    @property
    def longest_input(self) -> int:
        """Tokens of the longest input text of any split."""
        splits = self.text.splits.values()
        if self.text.encoding.translates:
            return max(int(max(split.second.max(), (split.inputs - split.second).max())) for split in splits)  # type: ignore[union-attr]
        return max(int(split.inputs.max()) for split in splits)

    def train_dataloader(self) -> DataLoader[Step]:
        assert self.trainer is not None
        start, rank, world = self.trainer.global_step, self.trainer.global_rank, self.trainer.world_size
        if self.text.stream is not None:
            return self._loader(self._build_streamed_steps(self.text.stream, start, rank, world))
        return self._loader(self.training_steps(rank, world), sampler=FromStep(start, self.total_steps))

    def training_steps(self, rank: int, world: int) -> TrainingSteps:
        """Return a rank's parts of all steps of training text that is not streamed."""
        return TrainingSteps(self.text.splits["train"], self.plan, self.spec, self.collator, self.total_steps, rank, world)

    def _build_streamed_steps(self, stream: Stream, start: int, rank: int, world: int) -> StreamedSteps:
        block, spec, seed = self.config.data.block_size, self.spec, self.config.seed
        count = reading_ranks(spec, block, world) * max(self.workers, 1)
        if self._reader_count not in (None, count):
            raise UserError(
                f"data.streaming: the state was saved by {self._reader_count} readers (devices × data.workers), and there are "
                f"{count} now; use as many again."
            )
        self._reader_count = count
        encoder = type(self.text.encoding)(self.text.tokenizer, self.config.data)
        return StreamedSteps(stream, encoder, self.collator, block, spec, seed, start, self.total_steps, rank, world, self._readers)

    # ---- the state of streamed data; the plan needs none ----

    def consumed(self, step: Step) -> None:
        """Apply a trained step's change to the state of its reader."""
        if step.change is not None:
            self._readers.setdefault(step.change.reader, ReaderState()).apply(step.change)

    def gather(self) -> None:
        """Gather the states of the readers of all ranks, before a checkpoint is saved. A collective."""
        assert self.trainer is not None
        if self.text.stream is not None:
            rank, workers = self.trainer.global_rank, max(self.workers, 1)
            local_states = {index: state for index, state in self._readers.items() if index // workers == rank}
            self._readers = {index: state for states in distributed.gather(local_states) for index, state in states.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"readers": {index: state.state_dict() for index, state in self._readers.items()}, "count": self._reader_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._readers = {index: ReaderState.from_state_dict(reader) for index, reader in state["readers"].items()}
        self._reader_count = state["count"]

    def evaluation_loader(self, split: str, rank: int = 0, world: int = 1) -> DataLoader[MicroBatch]:
        return self._loader(self.evaluation_batches(split, rank, world))

    def evaluation_batches(self, split: str, rank: int = 0, world: int = 1) -> EvaluationBatches:
        part = self.text.splits[split]
        return EvaluationBatches(part, evaluation(part.inputs, self.plan.spec, self.row_size), self.collator, rank, world)

    def val_dataloader(self) -> DataLoader[MicroBatch]:
        assert self.trainer is not None
        return self.evaluation_loader("validation", self.trainer.global_rank, self.trainer.world_size)

    def limit(self, micro_tokens: int) -> None:
        """Set `micro_tokens`, the tokens on a device at once. Steps and evaluation batches do not change."""
        self.spec = replace(self.spec, micro_tokens=micro_tokens)

    def longest(self, world: int) -> MicroBatch:
        """Build the micro-batch that takes the most memory: as many of the longest rows as may be on a device at once."""
        return self.longest_rows(most_rows(self.spec, self.row_size or int(self.plan.lengths.max()), world))

    def longest_rows(self, count: int) -> MicroBatch:
        """Build a micro-batch of the `count` longest rows."""
        if self.row_size is None:
            rows = list(np.argsort(-self.plan.lengths, kind="stable")[:count, None])
        else:
            rows = self.plan.epoch(0)[0][:count]  # packed rows are nearly full, one like the other
        return self.collator(self.text.splits["train"], rows, 0)

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
