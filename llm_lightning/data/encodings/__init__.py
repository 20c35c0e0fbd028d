"""Encode rows as sequences: one module a kind, each with a class `Encoder`, which objectives choose by the module's name.

`stream` and `documents` encode plain text, `texts`, `label_sets` and `scores` whole texts with one target each, `words` a target a word,
`spans` an answer inside a context, `translation` a text for a text, `chat` conversations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer

from llm_lightning.config.schema import DataConfig
from llm_lightning.config.targets import import_target
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError

NO_TOKEN = "the text has no token of the tokenizer's (it may be made of invisible characters)"


@dataclass
class Sequences:
    """The sequences of a batch of examples."""

    tokens: list[list[int]]
    examples: list[Example]
    """The example of each sequence, which may hold a part of it."""
    second: list[int] = field(default_factory=list)
    """The start of the second text of each pair; empty without pairs."""
    labels: list[Any] = field(default_factory=list)
    """The target of each sequence: a number or numbers; empty if tokens have targets, or without targets."""
    token_targets: list[list[int]] = field(default_factory=list)
    """The target of each token, IGNORED for a token without one; empty if tokens have no targets of their own."""
    windows: list[list[int]] = field(default_factory=list)
    """The number of tokens of each window that a sequence is made of, one behind the other; empty unless data.long=windows."""


class Encoding:
    """Converts rows to validated examples, and examples to sequences of at most `data.block_size` input tokens."""

    next_token: ClassVar[bool] = False
    """Whether targets are the next tokens: then a sequence has one token more than the model's input."""
    one_label: ClassVar[bool] = False
    """Whether a row has one class, so that each class needs a row."""
    templated: ClassVar[bool] = False
    """Whether sequences depend on the tokenizer's chat template."""
    translates: ClassVar[bool] = False
    """Whether a sequence ends with the target text, which the encoder of the model does not read."""
    label_is_text: ClassVar[bool] = False
    """Whether a tokenizer is trained on the labels' words too."""
    special_tokens: ClassVar[tuple[str, ...]] = ()
    """Texts that are one token each in a tokenizer trained for the run."""
    begins_documents: ClassVar[bool] = False
    """Whether a tokenizer trained for the run begins a text, a prompt for example, as documents begin."""
    needs_offsets: ClassVar[bool] = False
    """Whether targets are placed by the characters of tokens, which tokenizers in Python do not report."""
    shares_contexts: ClassVar[bool] = False
    """Whether many rows have the same second text, as the questions on a paragraph do: such rows are no near copies."""
    extra_columns: ClassVar[tuple[str, ...]] = ()
    """Optional columns that `read` takes beside the configured ones, such as the `tools` of a conversation."""

    def __init__(self, tokenizer: Any, data: DataConfig, labels: Labels | None = None) -> None:
        """Without `labels`, as in prediction, rows have no targets."""
        self.tokenizer, self.data, self.labels = tokenizer, data, labels
        self.truncated = 0
        """Texts cut so far."""
        self.dropped = 0
        """Tokens that they lost, as far as they were counted."""
        self.notes: Counter[str] = Counter()
        """Clauses on parts of rows that were left out, which complete "in 3 of 20 rows", with the number of rows."""
        if not tokenizer.is_fast:
            if self.needs_offsets:
                raise UserError(
                    f"{type(tokenizer).__name__} has no fast form, which alone tells the characters of each token, as tagging, question "
                    f"answering and conversations need; choose a model with a fast tokenizer (tokenizer.json)."
                )
            return
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()  # many checkpoints set truncation, which would drop the rest of a document
        self._backend.no_padding()

    @staticmethod
    def convert_labels(splits: dict[str, Rows], data: DataConfig, cache_dir: Path) -> dict[str, Rows]:
        """Return the splits with labels in the form that is learnt, if files write them in another."""
        return splits

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        """Return the labels of the training rows; None for data without labels. Raises UserError for values that cannot be labels."""
        return None

    @staticmethod
    def is_labelled(value: Any, extra: Mapping[str, Any]) -> bool:
        """Return whether the value of a row's label is a label, and not a sign that it was held back; `extra` as for `read`."""
        return value is not None and value != ""

    def read(self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None) -> tuple[Any, Any, Any]:
        """Return (text, text_pair, label) of an example from a row's values; the last is None without `labels`.

        `extra` holds the row's values of `extra_columns` that are not null. Raises BadRow with the problem of the row.
        """
        return self._text(text), None, None

    def read_line(self, text: str) -> Any:
        """Return the value of the text column for a line of plain text."""
        return text

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        """Return the sequences of a batch of examples. An example without one goes to `bad`, if that is given."""
        raise NotImplementedError

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Return token ids without special tokens, on all cores, and without the offsets that transformers' own call computes."""
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
    """Return a value that is text. Raises BadRow if it is not text, or blank."""
    if value is not None and not isinstance(value, str):
        raise BadRow(f"column '{column}' holds {type(value).__name__}, not text")
    if value is None or not value.strip():
        raise BadRow(f"column '{column}' is empty")
    return value


def get_encoder(name: str) -> type[Encoding]:
    """Return the encoder of a module of this package, `texts`, or the class of another package, `my_package.encodings.Mine`."""
    target = name if "." in name else f"llm_lightning.data.encodings.{name}.Encoder"
    encoder: type[Encoding] = import_target(target)
    if not (isinstance(encoder, type) and issubclass(encoder, Encoding)):
        raise UserError(f"{target}: no class of Encoding, so that no objective can use it.")
    return encoder
