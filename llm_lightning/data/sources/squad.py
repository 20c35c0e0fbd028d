"""Load questions about texts, with answers inside them: SQuAD files (1.1 and 2.0) and similar files of other programs.

A file is one JSON document, or one a line. Each of these is read in a list, under `data`, or alone:

- an article: `{"title", "paragraphs": [paragraph, …]}` (SQuAD, CUAD, CMRC 2018, KorQuAD);
- a paragraph: `{"context", "qas": [question, …]}` (simpletransformers);
- a question with its text: `{"context", "question", "answers"}` (the `datasets` library, PaddleNLP, DuReader).

The encoding `spans` defines the shapes of answers, which it reads from tables too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from llm_lightning.config.schema import DataConfig
from llm_lightning.data import json_files
from llm_lightning.data.lines import describe_damage, open_lines
from llm_lightning.data.paths import content_hash, ending, split_files
from llm_lightning.data.rows import PROBLEM, Rows, concatenate
from llm_lightning.data.sources.files import TABLES
from llm_lightning.data.tables import generate_table
from llm_lightning.errors import UserError, join_names

FOLDS = 5
ENDINGS = (".json", ".jsonl")
UNREAD = "__unread__"
"""Column with the names of a question's unread keys, joined by blanks."""
FILE_LINE = "__file_line__"
"""Column with the line of a question in its file; null if the file is one document."""
IDS, ANSWERS, STARTS = ("id", "qid", "question_id"), ("answers", "answer"), ("answer_start", "answer_starts")
TYPES = {
    "title": "string",
    "id": "string",
    "context": "string",
    "question": "string",
    "answers": datasets.Json(),
    "answer_start": datasets.Json(),
    "is_impossible": datasets.Json(),
    UNREAD: "string",
    FILE_LINE: "int64",
    PROBLEM: "string",
}
EXPECTED = "expected articles with paragraphs, paragraphs with context and qas, or rows with context, question and answers"


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Return a row for each question: id, title of the article, context, question, answers and their offsets.

    With data.fold=k one file gives all splits: articles are dealt into fifths in order; fifth k is test, the next one validation.
    """
    read = {split: concatenate([_read(f, data, cache_dir) for f in files]) for split, files in split_files(data, ENDINGS).items()}
    return read if data.fold is None else _cut_folds(read["train"], data.fold)


def _read(path: Path, data: DataConfig, cache_dir: Path) -> Rows:
    if ending(path) in TABLES and ending(path) not in (*ENDINGS, ".ndjson"):
        advice = "data=files data.columns.text=question data.columns.text_pair=context data.columns.label=answers"
        raise UserError(
            f"{path}: data=squad reads {join_names(ENDINGS)}; read a table of questions by {advice} (the names of its columns)."
        )
    identity = content_hash([path], "squad 3", data.encoding)
    table = generate_table(rows, TYPES, cache_dir / "rows" / identity, identity, path=path, data=data)
    if len(table) == 0:
        raise UserError(f"{path}: there is no question in the file.")
    names, numbers = table.data.column("id"), table.data.column(FILE_LINE)
    return Rows(
        table=table,
        fingerprint=identity,
        where=lambda i: _place(path, i, names[i].as_py(), numbers[i].as_py()),
        notes=(*_describe(path, table), *(f"{path}: {note}" for note in describe_damage(path, data))),
    )


def _place(path: Path, i: int, name: str | None, line: int | None) -> str:
    """Return the place of question i for messages: its line, and its id or its number."""
    place = str(path) if line is None else f"{path}, line {line}"
    return f"{place}, question {name if name is not None else f'number {i + 1}'}"


def rows_to_predict(path: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield the questions of a file with their place under `where`."""
    for i, row in enumerate(rows(path, data)):
        yield row | {"where": _place(path, i, row["id"], row[FILE_LINE])}


def _describe(path: Path, table: datasets.Dataset) -> Iterator[str]:
    """Yield notes on unread keys and repeated ids."""
    unread: Counter[str] = Counter()
    for item in table.data.column(UNREAD).value_counts().to_pylist():
        unread.update(dict.fromkeys((item["values"] or "").split(), item["counts"]))
    if unread:
        counts = join_names(f"{key} ({count:,})" for key, count in unread.most_common())
        yield f"{path}: keys of questions that are not read, with their number: {counts}."
    names = Counter(name for name in table.data.column("id").to_pylist() if name is not None)
    if repeated := [name for name, count in names.items() if count > 1]:
        total = sum(names[name] for name in repeated)
        yield f"{path}: {total:,} questions share their id with another ({join_names(repeated, 3)}); each is a row of its own."


def rows(path: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield the questions of a file, in order. An invalid question has a problem in place of its values.

    Raises UserError if the file is not JSON, or if an entry is not of SQuAD's kind.
    """
    for line, document, problem in _documents(path, data):
        if problem is not None:
            yield _problem("", None, problem) | {FILE_LINE: line}
            continue
        items = document.get("data", document) if isinstance(document, dict) else document
        for number, item in enumerate(items if isinstance(items, list) else [items], 1):
            place = f"entry {number}" if line is None else f"line {line}"
            if not isinstance(item, dict) or not {"paragraphs", "qas", "question"} & item.keys():
                keys = f"an object with {join_names(item) or 'no keys'}" if isinstance(item, dict) else type(item).__name__
                raise UserError(f"{path}, {place}: this is no question of SQuAD's kind: {EXPECTED}, and there is {keys}.")
            for paragraph in _list(item.get("paragraphs", [item])):
                yield from (row | {FILE_LINE: line} for row in _questions(paragraph, _title(item)))


def _documents(path: Path, data: DataConfig) -> Iterator[tuple[int | None, Any, str | None]]:
    """Yield (line, value, problem) of each JSON document of a file; the line is None if the file is one document.

    Raises UserError if such a file is not JSON. A line that is not JSON is one bad row.
    """
    if ending(path) not in (".jsonl", ".ndjson") and not _has_a_document_a_line(path, data):
        yield None, json_files.parse_document(path, "".join(open_lines(path, data)).lstrip("\ufeff")), None
        return
    for number, text in enumerate(open_lines(path, data), 1):
        if not text.strip():
            continue
        value, problem = json_files.parse(text.lstrip("\ufeff"))
        if isinstance(value, dict) and value.keys() == {"header"}:
            raise UserError(f"{path}, line {number}: this is a file of MRQA, which is not read; {EXPECTED}.")
        yield number, value, problem


def _has_a_document_a_line(path: Path, data: DataConfig) -> bool:
    """Return whether a file has several lines, and the first is a whole JSON object."""
    front = list(islice((line for line in open_lines(path, data) if line.strip()), 2))
    return len(front) > 1 and isinstance(json_files.parse(front[0].lstrip("\ufeff"))[0], dict)


def _questions(paragraph: Any, title: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a paragraph, or the row of a question with its own context."""
    if not isinstance(paragraph, dict):
        yield _problem(title, None, f"a paragraph is {type(paragraph).__name__}; {EXPECTED}")
        return
    context = paragraph.get("context")
    for qa in _list(paragraph.get("qas", [paragraph])):
        if not isinstance(qa, dict):
            yield _problem(title, None, f"a question is {type(qa).__name__}, and expected is an object")
            continue
        keys = {kind: _first(qa, kind) for kind in (IDS, ANSWERS, STARTS)}
        name = None if keys[IDS] is None else _mend(str(qa[keys[IDS]]))
        question = qa.get("question")
        if problem := json_files.find_half_character([context, qa]):
            yield _problem(title, name, problem)
            continue
        for key, value in (("context", context), ("question", question)):
            if not isinstance(value, str):
                missing = "is missing" if value is None else f"is {type(value).__name__}, not text"
                yield _problem(title, name, f"its {key} {missing}")
                break
        else:
            read = {"title", "context", "question", "is_impossible", *keys.values()}
            yield {
                "title": title,
                "id": name,
                "context": context,
                "question": question,
                "answers": qa.get(keys[ANSWERS]),
                "answer_start": qa.get(keys[STARTS]),
                "is_impossible": qa.get("is_impossible"),
                UNREAD: " ".join(sorted(qa.keys() - read)),
                PROBLEM: None,
            }


def _first(qa: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first of `names` under which a question has a value; None without a value."""
    return next((name for name in names if qa.get(name) is not None), None)


def _problem(title: str, name: str | None, problem: str) -> dict[str, Any]:
    return dict.fromkeys(TYPES) | {"title": title, "id": name, PROBLEM: problem}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _title(item: dict[str, Any]) -> str:
    """Return a name for an article: its title, else the beginning of its first context."""
    first = _list(item.get("paragraphs", [item]))[:1]
    context = first[0].get("context") if first and isinstance(first[0], dict) else None
    return _mend(str(item.get("title") or str(context)[:80]))


def _mend(name: str) -> str:
    """Return a name that can be stored: half a character becomes a question mark."""
    return name.encode(errors="replace").decode()


def _cut_folds(rows: Rows, fold: int) -> dict[str, Rows]:
    titles = rows.table["title"][:]
    order = {title: place for place, title in enumerate(dict.fromkeys(titles))}
    if len(order) < FOLDS:
        raise UserError(f"data.fold={fold}: there are {len(order)} articles, and {FOLDS} are needed.")
    fifth = np.array([order[title] % FOLDS for title in titles])
    held = (fold + 1) % FOLDS
    chosen = {"train": (fifth != fold) & (fifth != held), "validation": fifth == held, "test": fifth == fold}
    return {split: _part(rows, np.flatnonzero(places), f"{fold}-{split}") for split, places in chosen.items()}


def _part(rows: Rows, places: np.ndarray, name: str) -> Rows:
    notes = rows.notes if name.endswith("train") else ()
    return Rows(rows.table.select(places), f"{rows.fingerprint}-{name}", lambda i: rows.where(int(places[i])), notes)
