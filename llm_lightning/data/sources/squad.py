"""SQuAD files (version 1.1 and 2.0): articles of paragraphs with questions, and their answers inside the paragraph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from llm_lightning.config import DataConfig
from llm_lightning.data.paths import content_hash, split_files
from llm_lightning.data.rows import PROBLEM, Rows, joined
from llm_lightning.data.sources.files import lines
from llm_lightning.data.tables import generated
from llm_lightning.errors import UserError

FOLDS = 5
TYPES = {
    "title": "string",
    "id": "string",
    "context": "string",
    "question": "string",
    "answers": datasets.Json(),
    PROBLEM: "string",
}


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """A row a question: id, title of the article, context, question, answers {text, answer_start}.

    With data.fold=k one file is all splits: articles are dealt into fifths in their order; k is test, the one behind it validation.
    """
    read = {split: joined([_read(f, cache_dir) for f in files]) for split, files in split_files(data, (".json",)).items()}
    return read if data.fold is None else _folded(read["train"], data.fold)


def _read(path: Path, cache_dir: Path) -> Rows:
    identity = content_hash([path], "squad")
    table = generated(rows, TYPES, cache_dir / "rows" / identity, identity, path=path)
    if len(table) == 0:
        raise UserError(f"{path}: there is no question in the file.")
    names = table.data.column("id")
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{path}, question {names[i].as_py()}")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        articles = json.loads("".join(lines(path)))["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = asked.get("answers", [])
                    yield {
                        "title": article.get("title") or _beginning(article),
                        "id": str(asked["id"]),
                        "context": paragraph["context"],
                        "question": asked["question"],
                        "answers": [{"text": a["text"], "answer_start": a["answer_start"]} for a in answers],
                        PROBLEM: None,
                    }
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from error
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: this is no SQuAD file: expected data, paragraphs, qas with id, question and answers ({error})."
        ) from None


def _beginning(article: dict[str, Any]) -> str:
    """A name for an article without a title: the beginning of its first paragraph."""
    return str(article["paragraphs"][0]["context"])[:80]


def _folded(rows: Rows, fold: int) -> dict[str, Rows]:
    titles = rows.table["title"][:]
    order = {title: place for place, title in enumerate(dict.fromkeys(titles))}
    if len(order) < FOLDS:
        raise UserError(f"data.fold={fold}: there are {len(order)} articles, and {FOLDS} are needed.")
    fifth = np.array([order[title] % FOLDS for title in titles])
    held = (fold + 1) % FOLDS
    chosen = {"train": (fifth != fold) & (fifth != held), "validation": fifth == held, "test": fifth == fold}
    return {split: _part(rows, np.flatnonzero(places), f"{fold}-{split}") for split, places in chosen.items()}


def _part(rows: Rows, places: np.ndarray, name: str) -> Rows:
    return Rows(rows.table.select(places), f"{rows.fingerprint}-{name}", lambda i: rows.where(int(places[i])))
