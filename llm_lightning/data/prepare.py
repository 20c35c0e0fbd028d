"""Prepare the data of a run: read rows from their sources, train a tokenizer if there is none, and encode every split."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from llm_lightning.config.schema import Config, DataConfig, cache_folder
from llm_lightning.data import (
    encode,
    encodings,
    examples,
    folds,
    label_edits,
    sentences,
    slice_columns,
    splits,
    tokenizers,
)
from llm_lightning.data.clean import CleanedRow, clean
from llm_lightning.data.encode import TokenizedSplit
from llm_lightning.data.encodings import Encoding
from llm_lightning.data.examples import BadRows, Example
from llm_lightning.data.label_edits import NO_EDITS, LabelEdits
from llm_lightning.data.labelled import drop_unlabelled
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows, label_columns, require_columns
from llm_lightning.data.streaming import Stream, open_stream

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
    edits: LabelEdits = NO_EDITS
    """The changes of train by `data.drop` and `data.relabel`."""
    cleaned: tuple[CleanedRow, ...] = ()
    """The rows that `data.clean` has left out of train."""

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenizedDataset:
        """Return the same dataset, which does not change: a callback that copies an objective would copy the mapped files too."""
        return self

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
        return examples.read_row(self.rows[split], self.encoding.data, self.encoding, number)

    def show_row(self, split: str, number: int) -> str:
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


def load_rows(data: DataConfig, encoder: type[Encoding], cache: Path, slices: list[str] | None = None) -> dict[str, Rows]:
    """Return the rows of every split that the files have, as the encoder reads them, and log how they were read.

    `slices` are the names whose columns are read too, as far as files have them.
    """
    text_labels = label_columns(data.columns.label) if encoder.label_is_text else []
    loaded = slice_columns.load_rows(data, cache, (*encoder.extra_columns, *text_labels), slices or [])
    for split, part in loaded.items():
        columns = replace(data.columns, label=None) if split == "test" else data.columns  # test may have no labels
        require_columns(split, replace(data, columns=columns), part.table.column_names)
    if data.columns.sentence is not None:
        loaded = {split: sentences.group(part, data, cache) for split, part in loaded.items()}
    loaded = encoder.convert_labels(loaded, data, cache)
    for split, part in loaded.items():
        for note in part.notes:
            log.warning("%s: %s", split, note)
    return loaded


def prepare_dataset(config: Config, encoding: str, tokenizer: Any | None) -> TokenizedDataset:
    """Read, validate and encode every split. If `tokenizer` is None, a tokenizer is trained on train."""
    datasets.disable_progress_bars()  # they do not show the progress of our own work
    data, cache, encoder = config.data, cache_folder(config), encodings.get_encoder(encoding)
    if data.streaming:
        stream, rows = open_stream(data)
        return _encode_splits(config, rows, encoder, None, tokenizer, stream)
    loaded = load_rows(data, encoder, cache, config.evaluate.slice_names)
    columns_of_files = slice_columns.list_columns(loaded)
    labels = encoder.find_labels(data, loaded["train"])  # before the validation cut, which may take all rows of a rare label
    if labels is not None:
        loaded = drop_unlabelled(loaded, data, encoder)
    loaded, cleaned = clean(loaded, data, encoder, cache)
    rows = splits.with_validation(loaded, data, encoder.one_label)
    edits = label_edits.read_edits(rows, data)
    if batches := config.trainer.flags.get("overfit_batches"):
        rows = splits.keep_batches(rows, data, batches, config.batch.sequences)
        log.warning("overfit_batches: trains on %d rows of train, and validates on the same", len(rows["train"]))
    slice_columns.require_slice_columns(rows, config.evaluate.slice_names, columns_of_files)
    return replace(_encode_splits(config, rows, encoder, labels, tokenizer, None, edits), cleaned=cleaned)


def _encode_splits(
    config: Config,
    rows: dict[str, Rows],
    encoder: type[Encoding],
    labels: Labels | None,
    tokenizer: Any,
    stream: Stream | None,
    edits: LabelEdits = NO_EDITS,
) -> TokenizedDataset:
    data, cache, whole_train = config.data, cache_folder(config), rows["train"]
    rows = {**rows, "train": edits.drop(whole_train)}
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
    encoded["train"] = edits.relabel(encoded["train"], whole_train, encoding)
    if data.left_out is not None:
        assert labels is not None
        rows, encoded = folds.leave_out(rows, encoded, data.left_out, labels.names, config.seed)
    return TokenizedDataset(splits=encoded, rows=rows, encoding=encoding, stream=stream, edits=edits)
