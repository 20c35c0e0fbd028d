"""List the labels of train that are probably wrong, from the scores of the runs of `data.folds`.

Each of these runs writes the probabilities of the rows that it left out to evaluation/left_out.npz. Together they score every row by
weights that never saw it, which confident learning needs (metrics/confident_learning.py). The list is evaluation/label_issues.csv, which
`data.drop` and `data.relabel` read; label_issues.json holds the figures and examples of the report.
"""

from __future__ import annotations

import csv
import json
import logging
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llm_lightning.atomic_files import write_atomically
from llm_lightning.config.redaction import redact
from llm_lightning.config.schema import Config
from llm_lightning.data.encodings import words
from llm_lightning.data.folds import LEFT_OUT, fingerprint_parts
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.data.rows import split_place
from llm_lightning.errors import UserError
from llm_lightning.metrics.confident_learning import LabelErrors, find_label_errors, noise_matrix
from llm_lightning.metrics.rows import WORST
from llm_lightning.runs.folder import resume_command, write_json

SCORES = "evaluation/left_out.npz"
ISSUES = "evaluation/label_issues.csv"
RECORD = "label_issues.json"
DENSE = 100
"""Labels up to which the record holds the whole matrix of given and true labels."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Issues:
    """Labels that are probably wrong, the most suspicious first. All arrays are (issues,)."""

    rows: np.ndarray
    """The number of the row in train."""
    labels: list[str]
    suggested: list[str]
    scores: np.ndarray
    """The probability of the label that the row has."""
    probabilities: np.ndarray
    """The probability of the suggested label."""
    word: np.ndarray | None = None
    """The number of the word in its sentence, from 0."""


def split_into_runs(config: Config, folder: Path) -> list[Config]:
    """Return the configs of the runs that each leave one part of train out, in `folds/` of the run's folder.

    They log to csv files alone, and keep one full state. A killed one continues with the command of the run itself.
    """
    count = config.data.folds
    return [
        replace(
            config,
            run_dir=str(folder / "folds" / str(number)),
            resume="auto",
            command=resume_command(config, folder),
            data=replace(config.data, folds=None, left_out=f"{number}/{count}"),
            checkpoint=replace(config.checkpoint, keep=1),
            logger=replace(config.logger, name="csv", custom={}),
        )
        for number in range(1, int(count or 0) + 1)
    ]


def write_scores(folder: Path, columns: dict[str, np.ndarray]) -> None:
    """Write the probabilities of the rows that a run left out."""
    (folder / SCORES).parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / SCORES) as partial, partial.open("wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]


def is_listed(folder: Path, fingerprints: list[str]) -> bool:
    """Return whether the run's list is of the parts with these fingerprints: then it stays, as somebody may have edited it."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return bool(record["parts"] == fingerprints) and (folder / ISSUES).is_file()
    except (OSError, ValueError, KeyError):
        return False


def list_label_errors(folder: Path, config: Config, dataset: TokenizedDataset, summaries: list[dict[str, Any]]) -> None:
    """Write label_issues.csv and label_issues.json of a run from its runs of parts, whose `summaries` are given in order."""
    fingerprints = [str(summary["data"]["fingerprints"][LEFT_OUT]) for summary in summaries]
    for number, fingerprint in enumerate(fingerprints, 1):
        expected = fingerprint_parts(dataset.fingerprint, f"{number}/{len(summaries)}", config.seed)[1]
        if fingerprint != expected:
            raise UserError(
                f"{folder / 'folds' / str(number)}: this run scored other rows, as train or the tokenizer has changed since; remove "
                f"{folder / 'folds'}, or give another run_dir."
            )
    columns = _read_scores(folder, len(summaries))
    issues, figures = _find_issues(columns, dataset)
    _write_issues(folder / ISSUES, issues, dataset)
    rows = len(np.unique(columns["number"]))
    record = {
        "parts": fingerprints,
        "rows": rows,
        "issues": len(issues.rows),
        "rows_with_issues": len(np.unique(issues.rows)),
        "seconds": sum(summary["seconds"]["total"] or 0 for summary in summaries),
        **figures,
        "first": _show_first(issues, dataset),
    }
    write_json(folder / RECORD, record)
    (folder / "report.html").unlink(missing_ok=True)  # of a run that was finished before: it is written anew, with the list
    _announce(folder, config, record)


def _read_scores(folder: Path, count: int) -> dict[str, np.ndarray]:
    """Return the columns of all parts, in the order of the rows and, in a row, of the words."""
    parts = []
    for number in range(1, count + 1):
        with np.load(folder / "folds" / str(number) / SCORES) as file:
            parts.append({name: file[name] for name in file.files})
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((columns.get("sequence", columns["number"]), columns["number"]))
    return {name: values[order] for name, values in columns.items()}


def _find_issues(columns: dict[str, np.ndarray], dataset: TokenizedDataset) -> tuple[Issues, dict[str, Any]]:
    """Return the issues, and the entries of the record on how often each label is estimated to be wrong."""
    names = dataset.label_names
    assert names is not None
    rows, labels, probabilities = (columns[name] for name in ("number", "label", "probabilities"))
    if labels.ndim == 2:
        return _find_issues_of_sets(rows, labels, probabilities, names)
    errors = find_label_errors(labels, probabilities)
    issues = Issues(
        rows=rows[errors.rows],
        labels=[names[i] for i in labels[errors.rows]],
        suggested=[names[i] for i in errors.suggested],
        scores=errors.scores,
        probabilities=probabilities[errors.rows, errors.suggested],
        word=_find_words(rows, errors.rows, dataset) if "sequence" in columns else None,
    )
    figures: dict[str, Any] = {"unit": "words" if "sequence" in columns else "rows", "scored": len(labels)}
    return issues, figures | _count_pairs(errors, names)


def _find_issues_of_sets(
    rows: np.ndarray, applies: np.ndarray, probabilities: np.ndarray, names: tuple[str, ...]
) -> tuple[Issues, dict[str, Any]]:
    """Return the issues of rows with several labels: each label is a question of its own, whether it applies."""
    errors = [
        find_label_errors(applies[:, i].astype(np.int64), np.stack([1 - probabilities[:, i], probabilities[:, i]], axis=1))
        for i in range(len(names))
    ]
    label = np.repeat(np.arange(len(names)), [len(each.rows) for each in errors])
    places, scores = (np.concatenate(part) for part in ([e.rows for e in errors], [e.scores for e in errors]))
    order = np.lexsort((label, places, scores))
    label, places, scores = label[order], places[order], scores[order]
    is_applied = applies[places, label] == 1
    issues = Issues(
        rows=rows[places],
        labels=[names[i] if applied else "" for i, applied in zip(label, is_applied, strict=True)],
        suggested=["" if applied else names[i] for i, applied in zip(label, is_applied, strict=True)],
        scores=scores,
        probabilities=1 - scores,
    )
    per_label: list[dict[str, Any]] = [
        {"label": name, "rows": int(each.joint[1].sum()), "wrong": int(each.joint[1, 0]), "missing": int(each.joint[0, 1])}
        for name, each in zip(names, errors, strict=True)
    ]
    wrong = sum(entry["wrong"] + entry["missing"] for entry in per_label)
    return issues, {"unit": "labels", "scored": applies.size, "estimated": wrong, "labels": list(names), "per_label": per_label}


def _count_pairs(errors: LabelErrors, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the estimated number of wrong labels, and how often which label stands for which class."""
    wrong = errors.joint.copy()
    np.fill_diagonal(wrong, 0)
    largest = np.argsort(-wrong, axis=None, kind="stable")[:WORST]
    pairs = [divmod(int(place), len(names)) for place in largest]
    figures: dict[str, Any] = {
        "estimated": int(wrong.sum()),
        "labels": list(names),
        "pairs": [{"label": names[i], "true": names[j], "count": int(wrong[i, j])} for i, j in pairs if wrong[i, j]],
    }
    if len(names) > DENSE:
        return figures
    return figures | {"joint": errors.joint.tolist(), "noise": noise_matrix(errors.joint).tolist()}


def _find_words(rows: np.ndarray, chosen: np.ndarray, dataset: TokenizedDataset) -> np.ndarray:
    """Return (chosen,) the number of the word in its sentence, of words chosen by their places among all scored words."""
    encoding = dataset.encoding
    assert isinstance(encoding, words.Encoder)
    order = chosen - np.searchsorted(rows, rows[chosen])  # among the words of its sentence that have a token
    learnt = {row: encoding.list_learnt_words(dataset.example("train", row).text) for row in set(rows[chosen].tolist())}
    return np.array([learnt[row][i] for row, i in zip(rows[chosen].tolist(), order.tolist(), strict=True)], dtype=np.int64)


def _write_issues(file: Path, issues: Issues, dataset: TokenizedDataset) -> None:
    """Write the csv file, with the places of the rows as error messages name them."""
    has_words = issues.word is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(file) as partial, partial.open("w", newline="", encoding="utf-8") as target:
        writer = csv.writer(target)
        writer.writerow(["file", "row", *(["word"] if has_words else []), "label", "suggested_label", "score"])
        for i, row in enumerate(issues.rows.tolist()):
            word = [int(issues.word[i]) + 1] if issues.word is not None else []
            place = split_place(dataset.rows["train"].where(row))
            writer.writerow([*place, *word, issues.labels[i], issues.suggested[i], f"{issues.scores[i]:.6f}"])


def _show_first(issues: Issues, dataset: TokenizedDataset) -> list[dict[str, Any]]:
    """Return the most suspicious labels with their texts, as the report shows mistakes; of a sentence the word stands in «»."""
    shown = []
    for i, row in enumerate(issues.rows[:WORST].tolist()):
        text = dataset.show_row("train", row)
        if issues.word is not None:
            sentence = list(dataset.example("train", row).text)
            sentence[issues.word[i]] = f"«{sentence[issues.word[i]]}»"
            text = " ".join(sentence)
        label, suggested = issues.labels[i], issues.suggested[i]
        verdict = {"true": label or f"not {suggested}", "said": suggested or f"not {label}"}
        shown.append({"text": text, **verdict, "probability": float(issues.probabilities[i])})
    return shown


def _announce(folder: Path, config: Config, record: dict[str, Any]) -> None:
    """Log how many labels are probably wrong, where they are listed, and the command that trains with the list."""
    file = folder / ISSUES
    if not record["issues"]:
        log.info("labels: none of the %s scored %s looks wrong", f"{record['scored']:,}", record["unit"])
        return
    started = shlex.split(config.command or "the same command")
    repeated = [word for word in started if not word.startswith(("run_dir=", "data.folds="))]
    log.info(
        "labels: %s of %s %s are probably wrong, in %s of %s rows of train: %s\n  delete the lines whose label is right, then: %s",
        f"{record['issues']:,}",
        f"{record['scored']:,}",
        record["unit"] if record["unit"] != "rows" else "labels",
        f"{record['rows_with_issues']:,}",
        f"{record['rows']:,}",
        file,
        redact(shlex.join([*repeated, f"data.relabel={file}"])),
    )
