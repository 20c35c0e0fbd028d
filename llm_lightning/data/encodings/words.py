"""Encode sentences of words with a tag each. The first token of a word carries its tag.

Words are joined by blanks and tokenised as text, so that every tokenizer reads the kind of text that it was trained on. A token belongs
to the word that its last character lies in.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from llm_lightning.config.schema import DataConfig
from llm_lightning.data import labels
from llm_lightning.data.brackets import convert_brackets
from llm_lightning.data.encodings import NO_TOKEN, Sequences, documents, texts
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.label_values import is_unlabelled
from llm_lightning.data.labels import Labels
from llm_lightning.data.literals import parse_structure
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.rows import Rows
from llm_lightning.data.sentences import likely_column
from llm_lightning.data.tag_schemes import recognize
from llm_lightning.data.word_lists import read_tags, read_words
from llm_lightning.errors import UserError

NO_WORD_TOKEN = "a word has no token (it is blank, or the tokenizer drops its characters), and its tag is not learnt"


class Encoder(documents.Encoder):
    """Encodes a sentence as one sequence, or, if it is longer than a block, as several that are cut between words.

    Without labels the target of a word is its number, which assigns a prediction to its word.
    """

    needs_offsets = True

    @staticmethod
    def convert_labels(splits: dict[str, Rows], data: DataConfig, cache_dir: Path) -> dict[str, Rows]:
        return convert_brackets(splits, data, cache_dir)

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        _require_sentences(data, train)
        return labels.find(data, train, read_tags, complete=lambda tags: _complete(tags, data))

    @staticmethod
    def is_labelled(value: Any, extra: Mapping[str, Any]) -> bool:
        return not is_unlabelled(parse_structure(value))

    def read(
        self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None
    ) -> tuple[list[str], None, list[int] | None]:
        columns, words = self.data.columns, read_words(text)
        if others := [word for word in words if not isinstance(word, str)]:
            raise BadRow(f"column '{columns.text}' holds {type(others[0]).__name__} among its words, not text")
        if not any(word.strip() for word in words):
            raise BadRow(f"column '{columns.text}' is empty")
        if self.labels is None:
            return words, None, None
        tags = read_tags(value)
        if len(tags) != len(words):
            raise BadRow(f"{len(words)} words (column '{columns.text}') and {len(tags)} tags (column '{columns.label}')")
        return words, None, [texts.index(self.labels, columns.label, tag) for tag in tags]

    def read_line(self, text: str) -> list[str]:
        return text.split()  # ["a", "b"] is a sentence of brackets and quotes

    def list_learnt_words(self, words: list[str]) -> list[int]:
        """Return the numbers of the words of a sentence that have a token, in the order of their targets."""
        return sorted(first_tokens(words, self._backend.encode(" ".join(words), add_special_tokens=False).offsets))

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        sequences, room = Sequences([], []), self.data.block_size - len(self.before) - len(self.after)
        encoded = self._backend.encode_batch([" ".join(example.text) for example in batch], add_special_tokens=False)
        for example, encoding in zip(batch, encoded, strict=True):
            first = first_tokens(example.text, encoding.offsets)
            if not first and bad is not None:
                bad.add(example.row, NO_TOKEN)
            self.notes[NO_WORD_TOKEN] += 0 < len(first) < len(example.text)
            for start, stop in _cuts(sorted(first.values()), len(encoding.ids), room):
                self.truncated += stop - start > room
                ids = encoding.ids[start : min(stop, start + room)]
                targets = [IGNORED] * (len(self.before) + len(ids) + len(self.after))
                for word, token in first.items():
                    if start <= token < start + len(ids):
                        targets[len(self.before) + token - start] = word if example.label is None else example.label[word]
                sequences.tokens.append([*self.before, *ids, *self.after])
                sequences.token_targets.append(targets)
                sequences.examples.append(example)
        return sequences


def first_tokens(words: list[str], offsets: list[tuple[int, int]]) -> dict[int, int]:
    """Return {word: its first token} for words joined by blanks. A word that no token ends in is missing."""
    bounds = np.array(list(accumulate((len(word) + 1 for word in words), initial=0)))
    first: dict[int, int] = {}
    for token, (start, end) in enumerate(offsets):
        word = int(np.searchsorted(bounds, end - 1, side="right")) - 1
        if end > start and end - 1 < bounds[word + 1] - 1:  # else it ends in the blank behind the word
            first.setdefault(word, token)
    return first


def _cuts(firsts: list[int], length: int, room: int) -> list[tuple[int, int]]:
    """Return the bounds of the fewest pieces of at most `room` tokens that begin with a word. A longer word is a piece of its own."""
    cuts, start = [], 0
    ends = [*firsts[1:], length] if firsts else []
    for begin, end in zip(firsts, ends, strict=True):
        if end - start > room and begin > start:
            cuts.append((start, begin))
            start = begin
    return [*cuts, (start, length)] if firsts else []


def _complete(tags: set[str], data: DataConfig) -> set[str]:
    """Return the tags with the other tags of their scheme. Names in data.labels are complete already."""
    scheme = recognize(tags, data.tags) if data.labels is None else None
    return tags if scheme is None else scheme.complete(tags)


def _require_sentences(data: DataConfig, train: Rows) -> None:
    """Raise UserError if rows are not sentences with a tag for each word: spans of characters, or a word a row."""
    column = str(data.columns.label)
    is_one_tag = len(train) > 1
    for row, raw in enumerate(train.table[column]):
        if raw is None:
            continue
        value = parse_structure(raw)
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(value, dict) or isinstance(first, dict | list):
            raise UserError(
                f"{train.where(row)}: column '{column}' holds spans of the text ({str(raw)[:60]}), and objective=tagging learns a tag for "
                f"each word: a list of words and a list of as many tags, such as ['Ann', 'left'] and ['B-PER', 'O']. spaCy's "
                f"offsets_to_biluo_tags makes tags of such spans."
            )
        words = value if isinstance(value, list) else str(value).split()
        is_one_tag = is_one_tag and isinstance(raw, str | int) and len(words) == 1
        if not is_one_tag and value:
            return
    if is_one_tag:
        candidate = likely_column(data, [*train.table.column_names, *train.columns])
        name = (
            f"data.columns.sentence='{candidate}'"
            if candidate
            else "data.columns.sentence=<that column>, or data=conll for a CoNLL file"
        )
        raise UserError(
            f"{train.where(0)}: each row of train has one tag. If a row is a word, name the column that tells sentences apart: {name}. If "
            f"it is a text, its label is learnt by objective=classification."
        )
