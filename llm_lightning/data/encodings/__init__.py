"""How rows become sequences: one module a kind, each with a class `Encoder`, named by the objectives that learn from it.

`stream` and `documents` are plain text, `texts`, `label_sets` and `scores` whole texts with one target each, `words` has a target a
word, `spans` an answer inside a context, `translation` a text for a text, `chat` conversations.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError

NO_TOKEN = "the text has no token of the tokenizer's (it may be made of invisible characters)"


@dataclass
class Sequences:
    """What a batch of examples became."""

    tokens: list[list[int]]
    examples: list[Example]
    """The example that each sequence is made of, or a part of."""
    second: list[int] = field(default_factory=list)
    """Where the second text of each pair begins; empty where there are no pairs."""
    labels: list[Any] = field(default_factory=list)
    """The target of each sequence: a number or numbers; empty where tokens have targets, or nothing has."""
    token_targets: list[list[int]] = field(default_factory=list)
    """The target of each token, IGNORED where it has none; empty where tokens have none of their own."""


class Encoding:
    """Rows to validated examples, and examples to sequences of at most `data.block_size` tokens that the model is given."""

    next_token: ClassVar[bool] = False
    """Whether targets are the next tokens: then a sequence has one token more than the model is given."""
    one_label: ClassVar[bool] = False
    """Whether a row has one class, so that each class needs a row."""
    templated: ClassVar[bool] = False
    """Whether the tokenizer's chat template has a say in what rows become."""
    translates: ClassVar[bool] = False
    """Whether a sequence ends with what the model is to write, and is given it only as such."""
    label_is_text: ClassVar[bool] = False
    """Whether a tokenizer has to know the labels' words too."""
    special_tokens: ClassVar[tuple[str, ...]] = ()
    """Texts that a tokenizer which is trained for the run knows as one token each."""
    needs_offsets: ClassVar[bool] = False
    """Whether targets are placed by the characters that tokens stand for, which tokenizers in Python do not tell."""
    extra_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that `read` takes where a row has them, beside those of the config: the `tools` of a conversation."""

    def __init__(self, tokenizer: Any, data: DataConfig, labels: Labels | None = None) -> None:
        """Without `labels`, in data that is to be labelled, rows have no targets."""
        self.tokenizer, self.data, self.labels = tokenizer, data, labels
        self.truncated = 0
        """Texts cut so far."""
        self.notes: Counter[str] = Counter()
        """What was left out of rows, each a clause that goes on from "in 3 of 20 rows", with the number of rows."""
        if not tokenizer.is_fast:
            if self.needs_offsets:
                raise UserError(
                    f"{type(tokenizer).__name__} has no fast form, which alone tells the characters of each token, as tagging, question "
                    f"answering and conversations need; choose a model with a fast tokenizer (tokenizer.json)."
                )
            return
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()  # which many checkpoints bring along, and which would drop the rest of a document
        self._backend.no_padding()

    @staticmethod
    def convert_labels(splits: dict[str, Rows], data: DataConfig, cache_dir: Path) -> dict[str, Rows]:
        """Return the splits with labels as they are learnt, where files write them in another way."""
        return splits

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        """The labels that the training rows have. Raises UserError where they cannot be labels."""
        return None

    @staticmethod
    def is_labelled(value: Any, extra: Mapping[str, Any]) -> bool:
        """Return whether the value of a row's label is one, and not a sign that the label was held back; `extra` as for `read`."""
        return value is not None and value != ""

    def read(self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None) -> tuple[Any, Any, Any]:
        """Return (text, text_pair, label) of an example from a row's values; the last is None without `labels`.

        `extra` holds the row's values of `extra_columns`, without those that are null. Raises BadRow that says what is wrong with the row.
        """
        return self._text(text), None, None

    def read_line(self, text: str) -> Any:
        """Return the value of the text's column that a line of plain text stands for."""
        return text

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        """The sequences of a batch of examples; an example that makes none goes to `bad`, where that is given."""
        raise NotImplementedError

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids without special tokens, on all cores; without the offsets that transformers' own call computes."""
        if not self.tokenizer.is_fast:
            ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
            return ids
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _text(self, value: Any) -> str:
        return text_of(self.data.columns.text, value)

    def _pair(self, value: Any) -> str | None:
        column = self.data.columns.text_pair
        return None if column is None else text_of(column, value)


def text_of(column: str | None, value: Any) -> str:
    """A value that is text. Raises BadRow where it is none, or blank."""
    if value is not None and not isinstance(value, str):
        raise BadRow(f"column '{column}' holds {type(value).__name__}, not text")
    if value is None or not value.strip():
        raise BadRow(f"column '{column}' is empty")
    return value


def get_encoder(name: str) -> type[Encoding]:
    encoder: type[Encoding] = importlib.import_module(f"llm_lightning.data.encodings.{name}").Encoder
    return encoder
