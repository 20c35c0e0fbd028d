"""Decide how the lines of a CoNLL file are read: which columns hold what, in accord with the first file, and which lines are no words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llm_lightning.config.schema import ColumnsConfig
from llm_lightning.data.brackets import is_bracketed, parse_tag
from llm_lightning.data.conll_columns import CONLL_2012, CONLLU, WORD_NAMES, ColumnRoles, find_roles, name_column
from llm_lightning.data.conll_survey import NUMBER, Survey, split_columns
from llm_lightning.data.tag_schemes import TagScheme, recognize
from llm_lightning.errors import UserError, join_names

HEADER = frozenset(
    (*CONLLU, *WORD_NAMES, "tag", "tags", "ner", "ner_tag", "ner_tags", "ner-tag", "label", "labels", "entity", "pos", "pos_tag")
) | frozenset(("chunk", "idx", "index", "sentence", "sentence_id", "sentence #", "sent_id", "ne", "bio", "iob"))
"""Names of columns in headers."""
SENTENCE_NAMES = ("sentence", "sentence #", "sentence_id", "sent_id")
OF_ENTITIES = ("ner", "ne", "name", "entity")
"""Names of entity tags in the MISC column of CoNLL-U."""


@dataclass(frozen=True)
class ConllLayout:
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

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"Layout({values})"  # cache keys hold it: it stays when the class is renamed

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


def decide_layout(
    path: Path, survey: Survey, columns: ColumnsConfig, needs_tags: bool, like: tuple[Path, ConllLayout] | None = None
) -> ConllLayout:
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
    roles: ColumnRoles | None = None
    notes: list[str] = []
    if like is not None:
        roles, notes = _take_roles(path, survey, columns, names, *like)
    if roles is None:
        roles = find_roles(path, survey, columns, names, needs_tags)
        notes = _describe(survey, roles, names)
        if like is not None:
            _require_same_tags(path, survey, roles, *like)
    if (survey.of(roles.words) or {}).keys() == {"[WORD]"}:
        raise UserError(
            f"{path}: the words are left out ([WORD]), as in OntoNotes' skeletons: fill them in by skeleton2conll first."
        )
    is_fixed = names[: len(CONLL_2012)] == CONLL_2012 and max(roles.words, roles.tags or 0) < len(CONLL_2012)
    if survey.blocks == 1 and survey.longest_block > 512 and roles.index is None:
        notes.append(f"{survey.longest_block:,} words are one sentence: no blank line separates sentences")
    places = [i for i in range(survey.columns) if i not in (roles.words, roles.tags)]
    tags = roles.tags if roles.tags is not None and survey.of(roles.tags) is not None and roles.attribute is None else None
    closed = [(i, _possible_values(survey, i)) for i in places if survey.is_filler(i)]
    if tags is not None:
        closed.append((tags, _possible_values(survey, tags) | _tags_of_hashtags(survey, tags)))
    return ConllLayout(
        columns=survey.columns,
        has_tabs=survey.has_tabs,
        **vars(roles),
        header=survey.first[0] if header else 0,
        varies=is_fixed or all(column is not None and str(column)[:1] != "-" for column in (columns.words, columns.tags)),
        misses="_" if "form" in names and roles.attribute is None else None,
        closed=tuple((i, tuple(sorted(values))) for i, values in closed),
        names=names,
        others=tuple((i, tuple(sorted(survey.of(i) or ()))) for i in places if not survey.is_filler(i) and survey.of(i)),
        notes=tuple(notes),
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


def _take_roles(
    path: Path, survey: Survey, columns: ColumnsConfig, names: tuple[str, ...], first_path: Path, first: ConllLayout
) -> tuple[ColumnRoles | None, list[str]]:
    """Return the roles of the first file's columns, and notes on them; no roles if the file has another form.

    Raises UserError if the file has as many columns with other content.
    """
    assert first.tags is not None
    index = 0 if survey.has_index else None
    first_names = [first.names[i] for i in (first.words, first.tags)] if first.names else []
    if first_names and all(names.count(name) == 1 for name in first_names):
        words, tags = map(names.index, first_names)
        roles = ColumnRoles(words, tags, index, first.attribute)
        return roles, _describe(survey, roles, names) if (words, tags) != (first.words, first.tags) else []
    if first.columns != survey.columns:
        return None, []
    roles = ColumnRoles(first.words, first.tags, index, first.attribute)
    if first.attribute is not None or survey.is_filler(first.tags):
        return roles, []
    places = [i for i in range(survey.columns) if i != index]
    others = [i for i in places if i != first.tags and survey.share(i, first.is_tag) > 0.5]
    taken = next(
        (
            i
            for i, values in first.others
            if survey.share(first.words, set(values).__contains__) > 0.5 >= survey.share(i, set(values).__contains__)
        ),
        None,
    )
    if survey.share(first.tags, first.is_tag) > 0.5 and taken is None:
        return roles, []
    if not others and taken is None:
        try:
            alone = find_roles(path, survey, columns, names, True)
        except UserError:
            alone = None
        if alone is not None and (alone.words, alone.tags) == (first.words, first.tags):
            return roles, []
    where = ""
    if others:
        where = f"; they seem to be column {join_names(str(i + 1) for i in others)} here"
    elif taken is not None:
        where = f"; column {first.words + 1} holds what column {taken + 1} does there"
    raise UserError(
        f"{path}: in {first_path} the words are column {first.words + 1} and the tags column {first.tags + 1} of {first.columns}, and "
        f"these columns hold other values here ({survey.sample(first.words)}; {survey.sample(first.tags)}){where}. Write the columns "
        f"of all files in one order, or name them in a first line of each file."
    )


def _require_same_tags(path: Path, survey: Survey, roles: ColumnRoles, first_path: Path, first: ConllLayout) -> None:
    """Raise UserError if the tags of a file with other columns do not have the scheme of the first file's tags."""
    values = next((values for column, values in first.closed if column == first.tags), ())
    if _recognize(values) is None or roles.tags is None or roles.attribute is not None or survey.is_filler(roles.tags):
        return
    if survey.share(roles.tags, first.is_tag) <= 0.5:
        raise UserError(
            f"{path}: the tags seem to be column {roles.tags + 1} of {survey.columns} ({survey.sample(roles.tags)}), and those of "
            f"{first_path} are {join_names(values, 4)}. Give all files the same columns."
        )


def _possible_values(survey: Survey, column: int) -> set[str]:
    """Return the values of a column, with the other tags of their scheme."""
    values = set(survey.of(column) or ())
    scheme = recognize(values)
    return values if scheme is None else scheme.complete(values) | {scheme.outside}


def _tags_of_hashtags(survey: Survey, tags: int) -> set[str]:
    """Return the tags of words that begin with #; other words may lack them. Without tabs, only tags of two different words count."""
    words: dict[str, set[str]] = {}
    for fields in survey.hashtags:
        if len(fields) == survey.columns:
            words.setdefault(fields[tags], set()).add(fields[0])
    return {tag for tag, hashtags in words.items() if survey.has_tabs or len(hashtags) > 1}


def _describe(survey: Survey, roles: ColumnRoles, names: tuple[str, ...]) -> list[str]:
    """Return notes on the columns that are used, if the file has more than a word and a tag."""
    words, tags, index, attribute = roles.words, roles.tags, roles.index, roles.attribute
    unused = [i for i in range(survey.columns) if i not in (index, words, tags) and not survey.is_filler(i)]
    is_plain = not unused and index is None and attribute is None and words == 0
    if is_plain or (tags is None and not unused and index is None):
        return []
    what = [f"the words are column {name_column(words, names)}"]
    if tags is not None:
        what.append(f"the tags {f'{attribute} of ' if attribute else ''}column {name_column(tags, names)}")
    if index is not None:
        what.append(f"column {index + 1} counts the words")
    rest = "; ".join(
        f"{name_column(i, names)} ({'…' if (values := survey.of(i)) is None else join_names(values, 3)})" for i in unused
    )
    settings = " (data.columns.words and data.columns.tags choose others)" if unused else ""
    notes = [", ".join(what) + (f"; not used: {rest}" if unused else "") + settings]
    if "misc" in names and attribute is None and (misc := survey.of(names.index("misc"))):
        keys = {pair.partition("=")[0].lower() for value in misc for pair in value.split("|")} & set(OF_ENTITIES)
        notes += [f"the column misc holds entities too: data.columns.tags={key}" for key in sorted(keys)]
    return notes
