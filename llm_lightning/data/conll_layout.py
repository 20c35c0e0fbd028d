"""Decide which columns of a CoNLL file hold the words and the tags, and which of its lines are not words.

The whole file is surveyed before it is read, and the columns are recognised by their values. If the values are ambiguous, the file is
refused, and `data.columns.words` and `data.columns.tags` have to decide.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from llm_lightning.config.schema import ColumnsConfig
from llm_lightning.data.brackets import is_bracketed, list_types, parse_tag
from llm_lightning.data.lines import find_damage, lines
from llm_lightning.data.tag_schemes import PARTS_OF_SPEECH, TagScheme, recognize
from llm_lightning.errors import UserError, join_names, nearest

MOST_VALUES = 5000  # different values of a column that are counted; a column with more holds no tags
HEAD = 1000  # lines at the front, which decide whether tabs separate the columns
FEW = 20  # different values; with fewer, their number says nothing about a column
DOCSTART = "-DOCSTART-"
FILLERS = frozenset({"_", "-", "-X-", "*", ""})
"""Values that stand for an empty column."""
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
CONLL_2012 = ("document", "part", "number", "word", "pos", "parse", "lemma", "frameset", "sense", "speaker", "ner")
"""The first columns of CoNLL-2011 and 2012; behind them is one of arguments for each predicate of the sentence, then the chains."""
WORD_NAMES = ("form", "word", "words", "token", "tokens", "text")
HEADER = frozenset(
    (*CONLLU, *WORD_NAMES, "tag", "tags", "ner", "ner_tag", "ner_tags", "ner-tag", "label", "labels", "entity", "pos", "pos_tag")
) | frozenset(("chunk", "idx", "index", "sentence", "sentence_id", "sentence #", "sent_id", "ne", "bio", "iob"))
"""Names of columns in headers."""
SENTENCE_NAMES = ("sentence", "sentence #", "sentence_id", "sent_id")
PHRASES = frozenset(("NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"))
"""The types of chunks in CoNLL-2000 and CoNLL-2003."""
OF_ENTITIES = ("ner", "ne", "name", "entity")
"""Names of entity tags in the MISC column of CoNLL-U."""
NUMBER = re.compile(r"\d+")
NOT_A_WORD = re.compile(r"\d+[-.]\d+")
"""Indices of CoNLL-U that count no word: 2-3 is a token that words 2 and 3 make up, 5.1 an empty node."""


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


@dataclass(frozen=True)
class Layout:
    """The roles of a file's columns, which are counted from 0."""

    columns: int
    has_tabs: bool
    words: int
    tags: int | None
    index: int | None = None
    attribute: str | None = None
    """The key of the tags in column `tags`, if that column is CoNLL-U's MISC."""
    header: int = 0
    """The number of the line that names the columns; 0 if no line does."""
    varies: bool = False
    """Whether sentences may differ in their number of columns: the words and tags are configured, and not by numbers from the last, or
    they stand before the columns that vary."""
    misses: str | None = None
    """The sign for a missing tag."""
    closed: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Columns with few values, with these values: a line that begins with # is a word if it fits them, else a comment."""
    names: tuple[str, ...] = ()
    """The names of the columns, in lower case; empty if the file does not name them."""
    others: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Columns with few values that are neither words nor tags, with these values."""
    notes: tuple[str, ...] = ()

    def split(self, line: str) -> list[str]:
        return split_columns(line, self.has_tabs)

    def is_comment(self, fields: list[str], is_in_sentence: bool) -> bool:
        """Return whether a line that begins with # is a comment. A word has a tag of the file; inside a sentence that is enough."""
        if self.index == 0:
            return True
        closed = dict(self.closed)
        if is_in_sentence and self.tags in closed:
            return len(fields) <= self.tags or not self.is_tag(fields[self.tags])
        return len(fields) != self.columns or any(
            fields[column] not in values and not (column == self.tags and self.is_tag(fields[column]))
            for column, values in closed.items()
        )

    def is_tag(self, value: str) -> bool:
        """Return whether a value is one of the tags, or a tag of their scheme with another type."""
        values = next((values for column, values in self.closed if column == self.tags), ())
        if value in values or (_is_bracketed(values) and parse_tag(value) is not None):
            return True
        scheme = _recognize(values)
        return scheme is not None and bool(scheme.separator) and scheme.parse(value) is not None

    def read_tag(self, fields: list[str]) -> str | None:
        """Return the tag in a line's columns; None if it is missing."""
        assert self.tags is not None
        tag = fields[self.tags]
        if self.attribute is not None:
            pairs = (pair.partition("=") for pair in tag.split("|"))
            return next((value for key, _, value in pairs if key.lower() == self.attribute and value), "O")
        return None if tag in ("", self.misses) else tag


@lru_cache(maxsize=16)
def _recognize(values: tuple[str, ...]) -> TagScheme | None:
    return recognize(values)


@lru_cache(maxsize=16)
def _is_bracketed(values: tuple[str, ...]) -> bool:
    return is_bracketed(values)


def decide(path: Path, survey: Survey, columns: ColumnsConfig, needs_tags: bool, like: tuple[Path, Layout] | None = None) -> Layout:
    """Return the layout of a file.

    The columns are those of `like`, the first training file and its layout: they match by name if both files have names, and otherwise,
    in a file with as many columns, by place. Raises UserError if neither the values nor the config decide on the columns, or if the
    values do not fit the columns of `like`.
    """
    if survey.total == 0:
        raise UserError(f"{path}: there is no sentence in the file.")
    _require_a_word_a_line(path, survey)
    header = _take_header(survey)
    if survey.blocks == 1 and (names_of_sentences := [name for name in header if name in SENTENCE_NAMES]):
        raise UserError(
            f"{path}: column '{names_of_sentences[0]}' tells sentences apart, not blank lines: this is a table, data=files with "
            f"data.columns.sentence, data.columns.text and data.columns.label."
        )
    names = header or survey.names or _conllu_names(path, survey) or _conll_2012_names(survey)
    names = names if len(names) == survey.columns else ()
    layout: Layout | None = None
    notes: list[str] = []
    if like is not None:
        layout, notes = _take_columns(path, survey, columns, names, *like)
    if layout is None:
        layout = _find_columns(path, survey, columns, names, needs_tags)
        notes = _describe(survey, layout.index, layout.words, layout.tags, layout.attribute, names)
        if like is not None:
            _require_same_tags(path, survey, layout, *like)
    if (survey.of(layout.words) or {}).keys() == {"[WORD]"}:
        raise UserError(
            f"{path}: the words are left out ([WORD]), as in OntoNotes' skeletons: fill them in by skeleton2conll first."
        )
    is_fixed = names[: len(CONLL_2012)] == CONLL_2012 and max(layout.words, layout.tags or 0) < len(CONLL_2012)
    if survey.blocks == 1 and survey.longest_block > 512 and layout.index is None:
        notes.append(f"{survey.longest_block:,} words are one sentence: no blank line separates sentences")
    places = [i for i in range(survey.columns) if i not in (layout.words, layout.tags)]
    tags = layout.tags if layout.tags is not None and survey.of(layout.tags) is not None and layout.attribute is None else None
    closed = [(i, _possible_values(survey, i)) for i in places if _is_filler(survey, i)]
    if tags is not None:
        closed.append((tags, _possible_values(survey, tags) | _tags_of_hashtags(survey, tags)))
    return replace(
        layout,
        header=survey.first[0] if header else 0,
        varies=is_fixed or all(column is not None and str(column)[:1] != "-" for column in (columns.words, columns.tags)),
        misses="_" if "form" in names and layout.attribute is None else None,
        closed=tuple((i, tuple(sorted(values))) for i, values in closed),
        names=names,
        others=tuple((i, tuple(sorted(survey.of(i) or ()))) for i in places if not _is_filler(survey, i) and survey.of(i)),
        notes=tuple(notes),
    )


def _find_columns(path: Path, survey: Survey, columns: ColumnsConfig, names: tuple[str, ...], needs_tags: bool) -> Layout:
    """Return the layout that follows from the config, the names and the values."""
    count, index = survey.columns, 0 if survey.has_index else None
    if count == 1 and not needs_tags:
        return Layout(count, survey.has_tabs, 0, None, index)
    tags, attribute = _named_column(path, survey, "tags", columns.tags, names, needs_tags)
    words = _named_column(path, survey, "words", columns.words, names)[0]
    if words is None:
        words = _find_words(path, survey, index, names, tags)
    elif not needs_tags:
        _require_words(path, survey, columns, words)
    if tags is None:
        tags = _find_tags(path, survey, index, words, names, needs_tags)
    if words == tags:
        tags = None
        if needs_tags:
            raise UserError(f"{path}: column {words + 1} cannot be both: set data.columns.words and data.columns.tags.")
    return Layout(count, survey.has_tabs, words, tags, index, attribute)


def _require_words(path: Path, survey: Survey, columns: ColumnsConfig, words: int) -> None:
    """Raise UserError if a file without tags does not have the columns of the config, which was made for the training files."""
    place = f"{path}: data.columns.words={columns.words}, as the run was trained,"
    advice = "Give the columns of the training files, or override data.columns.words and data.columns.tags with this file's."
    tags = int(columns.tags) if re.fullmatch(r"\d+", str(columns.tags)) else 0
    if words + 1 < tags and survey.columns < tags - 1:
        raise UserError(f"{place} and data.columns.tags={tags}: the file has {survey.columns} columns. {advice}")
    values, others = survey.of(words), [i for i in range(survey.columns) if i != words and not _is_filler(survey, i)]
    if values is None or not others:
        return
    are_tags = _is_marked(values) or "O" in values or values.keys() <= _SPEECH
    if are_tags and not any((o := survey.of(i)) is not None and (_is_marked(o) or o.keys() <= _SPEECH) for i in others):
        raise UserError(f"{place} is a column of tags here ({_sample(survey, words)}). {advice}")
    is_of_sentences = len(values) <= survey.blocks and survey.total - survey.blocks > 1  # no more values than sentences
    if words > 0 and is_of_sentences and len(others) > 1:
        raise UserError(
            f"{place} has {len(values):,} different values in {survey.total:,} lines here ({_sample(survey, words)}). {advice}"
        )


def _take_columns(
    path: Path, survey: Survey, columns: ColumnsConfig, names: tuple[str, ...], first_path: Path, first: Layout
) -> tuple[Layout | None, list[str]]:
    """Return the layout with the columns of the first file, and notes on them; no layout if the file has another form.

    Raises UserError if the file has as many columns with other content.
    """
    assert first.tags is not None
    index = 0 if survey.has_index else None
    first_names = [first.names[i] for i in (first.words, first.tags)] if first.names else []
    if first_names and all(names.count(name) == 1 for name in first_names):
        words, tags = map(names.index, first_names)
        is_moved = (words, tags) != (first.words, first.tags)
        notes = _describe(survey, index, words, tags, first.attribute, names) if is_moved else []
        return Layout(survey.columns, survey.has_tabs, words, tags, index, first.attribute), notes
    if first.columns != survey.columns:
        return None, []
    layout = Layout(survey.columns, survey.has_tabs, first.words, first.tags, index, first.attribute)
    if first.attribute is not None or _is_filler(survey, first.tags):
        return layout, []
    places = [i for i in range(survey.columns) if i != index]
    others = [i for i in places if i != first.tags and _share(survey, i, first.is_tag) > 0.5]
    taken = next(
        (
            i
            for i, values in first.others
            if _share(survey, first.words, set(values).__contains__) > 0.5 >= _share(survey, i, set(values).__contains__)
        ),
        None,
    )
    if _share(survey, first.tags, first.is_tag) > 0.5 and taken is None:
        return layout, []
    if not others and taken is None:
        try:
            alone = _find_columns(path, survey, columns, names, True)
        except UserError:
            alone = None
        if alone is not None and (alone.words, alone.tags) == (first.words, first.tags):
            return layout, []
    where = ""
    if others:
        where = f"; they seem to be column {join_names(str(i + 1) for i in others)} here"
    elif taken is not None:
        where = f"; column {first.words + 1} holds what column {taken + 1} does there"
    raise UserError(
        f"{path}: in {first_path} the words are column {first.words + 1} and the tags column {first.tags + 1} of {first.columns}, and "
        f"these columns hold other values here ({_sample(survey, first.words)}; {_sample(survey, first.tags)}){where}. Write the columns "
        f"of all files in one order, or name them in a first line of each file."
    )


def _require_same_tags(path: Path, survey: Survey, layout: Layout, first_path: Path, first: Layout) -> None:
    """Raise UserError if the tags of a file with other columns do not have the scheme of the first file's tags."""
    values = next((values for column, values in first.closed if column == first.tags), ())
    if _recognize(values) is None or layout.tags is None or layout.attribute is not None or _is_filler(survey, layout.tags):
        return
    if _share(survey, layout.tags, first.is_tag) <= 0.5:
        raise UserError(
            f"{path}: the tags seem to be column {layout.tags + 1} of {survey.columns} ({_sample(survey, layout.tags)}), and those of "
            f"{first_path} are {join_names(values, 4)}. Give all files the same columns."
        )


def _share(survey: Survey, column: int, fits: Any) -> float:
    """Return the share of a column's values, weighted by how often they occur, for which `fits` is true."""
    values = survey.of(column)
    return 0.0 if not values else sum(count for value, count in values.items() if fits(value)) / values.total()


def _sample(survey: Survey, column: int) -> str:
    values = survey.of(column)
    return "…" if values is None else join_names(values, 3)


def _tags_of_hashtags(survey: Survey, tags: int) -> set[str]:
    """Return the tags of words that begin with #; other words may lack them. Without tabs, only tags of two different words count."""
    words: dict[str, set[str]] = {}
    for fields in survey.hashtags:
        if len(fields) == survey.columns:
            words.setdefault(fields[tags], set()).add(fields[0])
    return {tag for tag, hashtags in words.items() if survey.has_tabs or len(hashtags) > 1}


def _require_a_word_a_line(path: Path, survey: Survey) -> None:
    """Raise UserError for JSON, and for lines that hold a sentence with the tags in its words: The/DT dog/NN."""
    first = survey.first[1]
    if re.match(r"\[?\{\"\w", first[0]):
        raise UserError(f"{path}: this is JSON, not a word a line: choose data=files.")
    for sign in "/_|":
        joined = [
            [f"{sign}" in value.strip(sign) for value in values] for values in map(survey.of, range(survey.columns)) if values
        ]
        if (
            len(first) > 1
            and all(sign in word.strip(sign) for word in first)
            and all(sum(part) > 0.9 * len(part) for part in joined)
        ):
            raise UserError(
                f"{path}: a line holds a sentence whose words carry their tags ({' '.join(first[:3])}); write a word and its tag a line, "
                f"and a blank line between sentences."
            )


def _take_header(survey: Survey) -> tuple[str, ...]:
    """Return the names of the columns if the first line holds them, and remove that line from the counts."""
    _, fields = survey.first
    names = tuple(field.lower() for field in fields)
    is_header = len(fields) == survey.columns > 1 and survey.total > 1 and sum(name in HEADER for name in names) >= 2
    repeated = (
        any((values := survey.of(i)) is not None and values[fields[i]] > 1 for i in range(len(fields))) if is_header else True
    )
    if repeated:
        return ()
    survey.counts[len(fields)] -= 1
    for i, name in enumerate(fields):
        if (values := survey.of(i)) is not None:
            del values[name]
    return names


def _conllu_names(path: Path, survey: Survey) -> tuple[str, ...]:
    if survey.columns != len(CONLLU) or not survey.has_index:
        return ()
    heads = survey.of(CONLLU.index("head"))
    is_tree = heads is not None and all(NUMBER.fullmatch(value) or value == "_" for value in heads)
    return CONLLU if is_tree or ".conllu" in path.name else ()


def _conll_2012_names(survey: Survey) -> tuple[str, ...]:
    predicates = survey.columns - len(CONLL_2012) - 1
    if not survey.begins_documents or predicates < 0:
        return ()
    return (*CONLL_2012, *(f"arguments{number}" for number in range(1, predicates + 1)), "coref")


def _named_column(
    path: Path, survey: Survey, key: str, setting: Any, names: tuple[str, ...], is_needed: bool = True
) -> tuple[int | None, str | None]:
    """Return the column (from 0) that the config names, and the key if it names one in MISC."""
    if setting is None:
        return None, None
    try:
        return _resolve_column(path, survey, key, setting, names)
    except UserError:
        if is_needed:
            raise
        return None, None


def _resolve_column(path: Path, survey: Survey, key: str, setting: Any, names: tuple[str, ...]) -> tuple[int, str | None]:
    place = f"{path}: data.columns.{key}={setting}"
    if isinstance(setting, int) or re.fullmatch(r"-?\d+", str(setting)):
        number = int(setting)
        if number == 0 or abs(number) > survey.columns:
            raise UserError(f"{place}: the file has {survey.columns} columns; give a number from 1, or from -1 (the last) down.")
        return (number - 1 if number > 0 else survey.columns + number), None
    name = str(setting).lower()
    if name in names:
        return names.index(name), None
    if name in WORD_NAMES and "form" in names:
        return names.index("form"), None
    if "misc" in names:
        misc = names.index("misc")
        keys = {pair.partition("=")[0].lower() for value in survey.of(misc) or () for pair in value.split("|") if "=" in pair}
        if name in keys:
            return misc, name
        names = (*names, *sorted(keys))
    if not names:
        raise UserError(f"{place}: the {survey.columns} columns have no names; give a number from 1, or from -1 (the last) down.")
    raise UserError(f"{place}: there is no such column; there are {join_names(names, 20)}.{nearest(name, names)}")


def _possible_values(survey: Survey, column: int) -> set[str]:
    """Return the values of a column, with the other tags of their scheme."""
    values = set(survey.of(column) or ())
    scheme = recognize(values)
    return values if scheme is None else scheme.complete(values) | {scheme.outside}


def _find_words(path: Path, survey: Survey, index: int | None, names: tuple[str, ...], tags: int | None) -> int:
    for name in WORD_NAMES:
        if name in names:
            return names.index(name)
    free = [i for i in range(survey.columns) if i not in (index, tags) and not _is_filler(survey, i)]
    if not free:
        free = [i for i in range(survey.columns) if i not in (index, tags)] or [0]
    first = free[0]
    if len(free) > 1 and index is None and tags is None:
        values = survey.of(first)
        inner = survey.total - survey.blocks
        if values is not None and survey.total > 1 and all(NUMBER.fullmatch(value) for value in values):
            raise UserError(
                f"{path}: column {first + 1} holds numbers ({join_names(values, 4)}) that do not count the words of a sentence; say which "
                f"columns hold what: data.columns.words=2 data.columns.tags=-1, for example."
            )
        if first == 0 and inner > 0 and survey.repeats == inner and survey.blocks > 1 and len(free) > 2:
            raise UserError(
                f"{path}: column 1 is the same in all lines of a sentence ({join_names(values or (), 3)}), so it holds no words; say which "
                f"columns hold what: data.columns.words=2 data.columns.tags=-1, for example."
            )
    if len(free) == 2 and tags is None and _are_swapped(path, survey, *free):
        return free[1]
    return first


def _are_swapped(path: Path, survey: Survey, first: int, last: int) -> bool:
    """Return whether the first of two columns holds the tags. Raises UserError if that is ambiguous."""
    before, behind = survey.of(first), survey.of(last)
    if before is None:
        return False
    if behind is not None and _is_marked(behind) and not _is_marked(before):
        return False
    is_marked = _is_marked(before)
    has_outside = "O" in before and (behind is None or "O" not in behind) and len(before) < survey.different(last)
    is_speech = before.keys() <= _SPEECH and not (behind is not None and behind.keys() <= _SPEECH)
    if is_marked or has_outside or is_speech:
        return True
    if survey.different(last) > max(FEW, 2 * len(before)):
        raise UserError(
            f"{path}: column {first + 1} has {len(before):,} different values and column {last + 1} more, so the tags seem to stand "
            f"before the words; say which columns hold what: data.columns.words={last + 1} data.columns.tags={first + 1}, for example."
        )
    return False


_SPEECH = PARTS_OF_SPEECH | frozenset(("CONJ", "INTJ", "NUM", "PART", "PRT", "SYM", "X", "."))


def _is_marked(values: Counter[str]) -> bool:
    """Return whether values are tags with letters and types, or brackets."""
    scheme = recognize(values.keys())
    return (scheme is not None and scheme.name != "io") or is_bracketed(values)


def _is_filler(survey: Survey, column: int) -> bool:
    values = survey.of(column)
    return values is not None and values.keys() <= FILLERS


def _has_attributes(values: Counter[str]) -> bool:
    """Return whether values are attributes as in CoNLL-U's FEATS or MISC: SpaceAfter=No."""
    return any("=" in value for value in values) and all("=" in value or value in FILLERS for value in values)


def _find_tags(path: Path, survey: Survey, index: int | None, words: int, names: tuple[str, ...], needs_tags: bool) -> int | None:
    """Return the column of the tags; None if no column has tags, or if several may and tags are not needed."""
    if "upos" in names:
        for name in ("upos", "xpos"):
            if name in names and not _is_filler(survey, names.index(name)) and "ner" not in names:
                return names.index(name)
    if names[: len(CONLL_2012)] == CONLL_2012:
        return names.index("ner")
    candidates = {}
    for i in range(survey.columns):
        values = survey.of(i)
        if i in (index, words) or values is None or _is_filler(survey, i) or _has_attributes(values):
            continue
        candidates[i] = set(values)
    spans = {
        i: values for i, values in candidates.items() if values == {"O"} or recognize(values) is not None or is_bracketed(values)
    }
    chosen = _choose_spans(spans) if spans else list(candidates)
    if len(chosen) == 1:
        return chosen[0]
    if not needs_tags:
        return None
    if not chosen:
        raise UserError(f"{path}: {_why_no_tags(survey)}")
    options = " and ".join(f"{_name_column(i, names)} ({join_names(sorted(candidates[i]), 4)})" for i in chosen[:3])
    table = ""
    if len(chosen) > 3:
        options += f" and {len(chosen) - 3} more"
        table = " If a line is a sentence or a row of a table, and not a word with its tag, data=files reads it."
    raise UserError(
        f"{path}: the columns {options} may all hold the tags; choose one: data.columns.tags={chosen[0] + 1}, for example.{table}"
    )


def _choose_spans(spans: dict[int, set[str]]) -> list[int]:
    """Return the likely columns: entities before chunks, and of these the columns that are not all O."""
    types = {i: set(scheme.types(values)) if (scheme := recognize(values)) else list_types(values) for i, values in spans.items()}
    entities = [i for i in spans if not types[i] or not types[i] <= PHRASES]
    if not entities:
        return [max(spans)]
    return [i for i in entities if types[i] or len(spans[i]) > 1] or [max(entities)]


def _why_no_tags(survey: Survey) -> str:
    if survey.columns == 1 and any(sign in survey.first[1][0] for sign in ",;|"):
        return (
            "its lines have one column, with commas or the like inside; tables with a word a row are read by data=files, with "
            "data.columns.text, data.columns.label and data.columns.sentence=<the column that tells sentences apart>."
        )
    return "there are words and no column of tags to learn; a line holds a word and its tag, with a tab or blanks between them."


def _name_column(column: int, names: tuple[str, ...]) -> str:
    return f"{column + 1} '{names[column]}'" if names else str(column + 1)


def _describe(
    survey: Survey, index: int | None, words: int, tags: int | None, attribute: str | None, names: tuple[str, ...]
) -> list[str]:
    """Return notes on the columns that are used, if the file has more than a word and a tag."""
    unused = [i for i in range(survey.columns) if i not in (index, words, tags) and not _is_filler(survey, i)]
    is_plain = not unused and index is None and attribute is None and words == 0
    if is_plain or (tags is None and not unused and index is None):
        return []
    what = [f"the words are column {_name_column(words, names)}"]
    if tags is not None:
        what.append(f"the tags {f'{attribute} of ' if attribute else ''}column {_name_column(tags, names)}")
    if index is not None:
        what.append(f"column {index + 1} counts the words")
    rest = "; ".join(
        f"{_name_column(i, names)} ({'…' if (values := survey.of(i)) is None else join_names(values, 3)})" for i in unused
    )
    settings = " (data.columns.words and data.columns.tags choose others)" if unused else ""
    notes = [", ".join(what) + (f"; not used: {rest}" if unused else "") + settings]
    if "misc" in names and attribute is None and (misc := survey.of(names.index("misc"))):
        keys = {pair.partition("=")[0].lower() for value in misc for pair in value.split("|")} & set(OF_ENTITIES)
        notes += [f"the column misc holds entities too: data.columns.tags={key}" for key in sorted(keys)]
    return notes


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
    words, *others = (survey.of(i) for i in range(count) if not _is_filler(survey, i))
    return survey.total > 1 and any(values is not None and _are_tags(values, words, survey.total) for values in others)


def _are_tags(values: Counter[str], words: Counter[str] | None, total: int) -> bool:
    is_capitals = _are_capitals(values) and words is not None and not _are_capitals(words)
    has_few = total >= FEW and len(values) * 4 <= total
    return _is_marked(values) or "O" in values or bool(PARTS_OF_SPEECH & values.keys()) or is_capitals or has_few


def _are_capitals(values: Counter[str]) -> bool:
    return all(value == value.upper() for value in values) and any(character.isalpha() for value in values for character in value)
