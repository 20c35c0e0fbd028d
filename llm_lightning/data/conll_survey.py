"""Survey a CoNLL file: count its columns and their values in one pass over its lines, before it is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llm_lightning.data.brackets import is_bracketed
from llm_lightning.data.lines import find_damage, lines
from llm_lightning.data.tag_schemes import PARTS_OF_SPEECH, recognize
from llm_lightning.errors import join_names

MOST_VALUES = 5000  # different values of a column that are counted; a column with more holds no tags
HEAD = 1000  # lines at the front, which decide whether tabs separate the columns
FEW = 20  # different values; with fewer, their number says nothing about a column
DOCSTART = "-DOCSTART-"
FILLERS = frozenset({"_", "-", "-X-", "*", ""})
"""Values that stand for an empty column."""
NUMBER = re.compile(r"\d+")
NOT_A_WORD = re.compile(r"\d+[-.]\d+")
"""Indices of CoNLL-U that count no word: 2-3 is a token that words 2 and 3 make up, 5.1 an empty node."""
SPEECH = PARTS_OF_SPEECH | frozenset(("CONJ", "INTJ", "NUM", "PART", "PRT", "SYM", "X", "."))


@dataclass
class Survey:
    """The columns and values of a file, counted in one pass over its lines."""

    has_tabs: bool
    counts: Counter[int] = field(default_factory=Counter)
    """The number of lines by number of columns."""
    values: dict[int, list[Counter[str] | None]] = field(default_factory=dict)
    """By number of columns: how often each value of each column occurs; None for a column with more than MOST_VALUES values."""
    blocks: int = 0
    """Groups of lines between blank ones."""
    longest_block: int = 0
    indexed: int = 0
    """Lines whose first column counts the words of a sentence."""
    repeats: int = 0
    """Lines whose first column equals that of the line before; the first line of a block does not count."""
    documents: int = 0
    first: tuple[int, list[str]] = (0, [])
    """Number and columns of the first line."""
    names: tuple[str, ...] = ()
    """The names of the columns in a comment `global.columns`."""
    begins_documents: bool = False
    """Whether a line begins with `#begin document`, as in CoNLL-2011 and 2012."""
    hashtags: set[tuple[str, ...]] = field(default_factory=set)
    """Columns of lines that begin with # directly before a letter, at most MOST_VALUES lines."""

    @property
    def columns(self) -> int:
        """The most common number of columns; of equally common ones the larger."""
        return max(self.counts, key=lambda size: (self.counts[size], size), default=0)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def has_index(self) -> bool:
        return self.columns > 1 and self.indexed >= 0.9 * self.total

    def of(self, column: int) -> Counter[str] | None:
        """Return how often each value of a column (from 0) occurs; None for more than MOST_VALUES values."""
        return self.values[self.columns][column] if self.columns in self.values else Counter()

    def different(self, column: int) -> int:
        values = self.of(column)
        return MOST_VALUES if values is None else len(values)

    def is_filler(self, column: int) -> bool:
        """Return whether a column is empty but for signs for emptiness."""
        values = self.of(column)
        return values is not None and values.keys() <= FILLERS

    def share(self, column: int, fits: Callable[[str], bool]) -> float:
        """Return the share of a column's values, weighted by how often they occur, for which `fits` is true."""
        values = self.of(column)
        return 0.0 if not values else sum(count for value, count in values.items() if fits(value)) / values.total()

    def sample(self, column: int) -> str:
        """Return the first values of a column for a message."""
        values = self.of(column)
        return "…" if values is None else join_names(values, 3)


def split_columns(line: str, has_tabs: bool) -> list[str]:
    """Return the columns of a line. Between tabs, blanks belong to a word; a non-breaking space always does."""
    line = line.rstrip(" \t\r\n")
    if has_tabs:
        return [part.strip(" \r") for part in line.split("\t")]
    return re.split(r"[ \t]+", line.lstrip(" \t\r"))


def is_blank(line: str) -> bool:
    return not line.strip(" \t\r\n")


def survey_file(path: Path, encoding: str | None = None, keeps_damage: bool = False) -> Survey:
    """Survey a file. With `keeps_damage`, lines that are not text are skipped."""
    survey = Survey(_has_tabs(path, encoding, keeps_damage))
    size, before = 0, ""
    for number, line in enumerate(lines(path, encoding, keeps_damage=keeps_damage), 1):
        if keeps_damage and find_damage(line) is not None:
            continue
        fields = [] if is_blank(line) else split_columns(line, survey.has_tabs)
        if not fields or DOCSTART in fields[:2]:
            survey.documents += bool(fields)
            size, before = 0, ""
            continue
        if line.startswith("#"):
            if match := re.match(r"#\s*global\.columns\s*=(.*)", line):
                survey.names = tuple(match[1].lower().split())
            survey.begins_documents |= line.startswith("#begin document")
            if len(fields) > 1 and fields[0] != "#" and len(survey.hashtags) < MOST_VALUES:
                survey.hashtags.add(tuple(fields))
            continue  # it may be a comment or a word, which shows only when the columns are decided
        survey.blocks += size == 0
        is_range = NOT_A_WORD.fullmatch(fields[0]) is not None and len(fields) > 1
        survey.repeats += size > 0 and fields[0] == before
        survey.indexed += is_range or _is_next_index(fields[0], before)
        size, before = size + 1, before if is_range else fields[0]
        survey.longest_block = max(survey.longest_block, size)
        survey.first = survey.first if survey.first[0] else (number, fields)
        survey.counts[len(fields)] += 1
        if not is_range or len(fields) == 2:
            _count_values(survey, fields)
    return survey


def _has_tabs(path: Path, encoding: str | None, keeps_damage: bool) -> bool:
    line_count = with_tab = 0
    for line in lines(path, encoding, keeps_damage=keeps_damage):
        if not is_blank(line) and not line.startswith("#"):
            line_count += 1
            with_tab += "\t" in line.rstrip(" \t\r\n")
        if line_count == HEAD:
            break
    return 2 * with_tab > line_count


def _is_next_index(value: str, before: str) -> bool:
    """Return whether a first column continues a count: 2 after 1, or 0 or 1 at the start of a sentence."""
    if not NUMBER.fullmatch(value):
        return False
    return (value in ("0", "1") and value != before) or (NUMBER.fullmatch(before) is not None and int(value) == int(before) + 1)


def _count_values(survey: Survey, fields: list[str]) -> None:
    columns = survey.values.setdefault(len(fields), [Counter() for _ in fields])
    for i, value in enumerate(fields):
        counter = columns[i]
        if counter is not None:
            counter[value] += 1
            if len(counter) > MOST_VALUES:
                columns[i] = None


def looks_like_conll(survey: Survey) -> bool:
    """Return whether a plain-text file holds a word a line, and not a sentence: nine tenths of its lines have as many columns, and

    - they have one column, and blank lines separate groups of them, or
    - they have several, separated by tabs, or with an index or -DOCSTART- lines, or
    - there are at least two lines, and a column of tags: a scheme, an O, parts of speech, capitals beside words of another form, or
      at most one different value in four lines.
    """
    count = survey.columns
    if survey.total == 0 or survey.counts[count] < 0.9 * survey.total:
        return False
    if count == 1:
        return survey.blocks > 1 and survey.total > survey.blocks
    if survey.has_tabs or survey.has_index or survey.documents:
        return True
    words, *others = (survey.of(i) for i in range(count) if not survey.is_filler(i))
    return survey.total > 1 and any(values is not None and _are_tags(values, words, survey.total) for values in others)


def _are_tags(values: Counter[str], words: Counter[str] | None, total: int) -> bool:
    is_capitals = _are_capitals(values) and words is not None and not _are_capitals(words)
    has_few = total >= FEW and len(values) * 4 <= total
    return is_marked(values) or "O" in values or bool(PARTS_OF_SPEECH & values.keys()) or is_capitals or has_few


def is_marked(values: Counter[str]) -> bool:
    """Return whether values are tags with letters and types, or brackets."""
    scheme = recognize(values.keys())
    return (scheme is not None and scheme.name != "io") or is_bracketed(values)


def _are_capitals(values: Counter[str]) -> bool:
    return all(value == value.upper() for value in values) and any(character.isalpha() for value in values for character in value)
