"""Find the columns of a CoNLL file that hold the words and the tags: by the config, by their names, or by their values.

If the values are ambiguous, the file is refused, and `data.columns.words` and `data.columns.tags` have to decide.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lightning.config.schema import ColumnsConfig
from llm_lightning.data.brackets import is_bracketed, list_types
from llm_lightning.data.conll_survey import FEW, FILLERS, NUMBER, SPEECH, Survey, is_marked
from llm_lightning.data.tag_schemes import recognize
from llm_lightning.errors import UserError, join_names, nearest

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
CONLL_2012 = ("document", "part", "number", "word", "pos", "parse", "lemma", "frameset", "sense", "speaker", "ner")
"""The first columns of CoNLL-2011 and 2012; behind them is one of arguments for each predicate of the sentence, then the chains."""
WORD_NAMES = ("form", "word", "words", "token", "tokens", "text")
PHRASES = frozenset(("NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"))
"""The types of chunks in CoNLL-2000 and CoNLL-2003."""


@dataclass(frozen=True)
class ColumnRoles:
    """The roles of a file's columns, which are counted from 0."""

    words: int
    tags: int | None
    index: int | None = None
    """The column that counts the words of a sentence."""
    attribute: str | None = None
    """The key of the tags in column `tags`, if that column is CoNLL-U's MISC."""


def find_roles(path: Path, survey: Survey, columns: ColumnsConfig, names: tuple[str, ...], needs_tags: bool) -> ColumnRoles:
    """Return the roles that follow from the config, the names and the values. Raises UserError if they are ambiguous."""
    index = 0 if survey.has_index else None
    if survey.columns == 1 and not needs_tags:
        return ColumnRoles(0, None, index)
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
    return ColumnRoles(words, tags, index, attribute)


def _require_words(path: Path, survey: Survey, columns: ColumnsConfig, words: int) -> None:
    """Raise UserError if a file without tags does not have the columns of the config, which was made for the training files."""
    place = f"{path}: data.columns.words={columns.words}, as the run was trained,"
    advice = "Give the columns of the training files, or override data.columns.words and data.columns.tags with this file's."
    tags = int(columns.tags) if re.fullmatch(r"\d+", str(columns.tags)) else 0
    if words + 1 < tags and survey.columns < tags - 1:
        raise UserError(f"{place} and data.columns.tags={tags}: the file has {survey.columns} columns. {advice}")
    values, others = survey.of(words), [i for i in range(survey.columns) if i != words and not survey.is_filler(i)]
    if values is None or not others:
        return
    are_tags = is_marked(values) or "O" in values or values.keys() <= SPEECH
    if are_tags and not any((o := survey.of(i)) is not None and (is_marked(o) or o.keys() <= SPEECH) for i in others):
        raise UserError(f"{place} is a column of tags here ({survey.sample(words)}). {advice}")
    is_of_sentences = len(values) <= survey.blocks and survey.total - survey.blocks > 1  # no more values than sentences
    if words > 0 and is_of_sentences and len(others) > 1:
        raise UserError(
            f"{place} has {len(values):,} different values in {survey.total:,} lines here ({survey.sample(words)}). {advice}"
        )


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


def _find_words(path: Path, survey: Survey, index: int | None, names: tuple[str, ...], tags: int | None) -> int:
    for name in WORD_NAMES:
        if name in names:
            return names.index(name)
    free = [i for i in range(survey.columns) if i not in (index, tags) and not survey.is_filler(i)]
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
    if behind is not None and is_marked(behind) and not is_marked(before):
        return False
    has_outside = "O" in before and (behind is None or "O" not in behind) and len(before) < survey.different(last)
    is_speech = before.keys() <= SPEECH and not (behind is not None and behind.keys() <= SPEECH)
    if is_marked(before) or has_outside or is_speech:
        return True
    if survey.different(last) > max(FEW, 2 * len(before)):
        raise UserError(
            f"{path}: column {first + 1} has {len(before):,} different values and column {last + 1} more, so the tags seem to stand "
            f"before the words; say which columns hold what: data.columns.words={last + 1} data.columns.tags={first + 1}, for example."
        )
    return False


def _find_tags(path: Path, survey: Survey, index: int | None, words: int, names: tuple[str, ...], needs_tags: bool) -> int | None:
    """Return the column of the tags; None if no column has tags, or if several may and tags are not needed."""
    if "upos" in names:
        for name in ("upos", "xpos"):
            if name in names and not survey.is_filler(names.index(name)) and "ner" not in names:
                return names.index(name)
    if names[: len(CONLL_2012)] == CONLL_2012:
        return names.index("ner")
    candidates = {}
    for i in range(survey.columns):
        values = survey.of(i)
        if i in (index, words) or values is None or survey.is_filler(i) or _has_attributes(values):
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
    options = " and ".join(f"{name_column(i, names)} ({join_names(sorted(candidates[i]), 4)})" for i in chosen[:3])
    table = ""
    if len(chosen) > 3:
        options += f" and {len(chosen) - 3} more"
        table = " If a line is a sentence or a row of a table, and not a word with its tag, data=files reads it."
    raise UserError(
        f"{path}: the columns {options} may all hold the tags; choose one: data.columns.tags={chosen[0] + 1}, for example.{table}"
    )


def _has_attributes(values: Counter[str]) -> bool:
    """Return whether values are attributes as in CoNLL-U's FEATS or MISC: SpaceAfter=No."""
    return any("=" in value for value in values) and all("=" in value or value in FILLERS for value in values)


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


def name_column(column: int, names: tuple[str, ...]) -> str:
    return f"{column + 1} '{names[column]}'" if names else str(column + 1)
