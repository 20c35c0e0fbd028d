"""What a run records for its report is true, and the report shows what there is."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_lightning.objectives.base import Objective
from llm_lightning.objectives.causal_lm import CausalLM
from llm_lightning.reporting.report import write_report
from llm_lightning.reporting.runs import load

from ..conftest import TINY_BERT, TINY_GPT, Runner
from ..end_to_end.test_runs import losses, same_weights
from ..objectives.test_supervised import TINY_MARIAN, tasks, write
from .test_comparison import figures

TRAINING = ["trainer.max_epochs=2", "batch.sequences=8", "optimizer.lr=3e-3"]


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory, reviews: Path, cache: Path) -> Path:
    """A classifier's run on reviews of which four are twice in train and three of validation are in train too."""
    from llm_lightning.config.compose import load_config as config
    from llm_lightning.run import run as start

    from ..conftest import QUIET

    place = tmp_path_factory.mktemp("reviewed")
    head, *rows = list(dict.fromkeys(reviews.read_text().splitlines()))
    rows = [row for i, row in enumerate(rows) if i % 7 or "awful" in row]  # one class is rarer
    split = {"train": [*rows[:100], *rows[:4]], "validation": [*rows[100:130], *rows[10:13]], "test": rows[130:190]}
    for name, part in split.items():
        (place / f"{name}.csv").write_text("\n".join([head, *part]) + "\n")
    data = ["data=files", f"data.dir={place}", "data.columns.text=body", "data.columns.label=stars", *TINY_BERT]
    start(config([*QUIET, f"cache_dir={cache}", "task=finetune", *data, *TRAINING, f"run_dir={place}/run"]))
    return place / "run"


def test_the_examples_of_a_classifier_add_up_to_its_metrics(reviewed: Path) -> None:
    metrics = load(reviewed).metrics
    for split in ("validation", "test"):
        tables = json.loads((reviewed / "evaluation" / f"{split}.json").read_text())
        correct = tables["examples"]["correct"]
        assert np.mean(correct) == pytest.approx(metrics[f"{split}/accuracy"])
        bins = tables["calibration"]
        assert sum(part["count"] for part in bins) == len(correct)
        gap = sum(part["count"] * abs(part["accuracy"] - part["confidence"]) for part in bins) / len(correct)
        assert gap == pytest.approx(metrics[f"{split}/ece"], abs=1e-5)
        with (reviewed.parent / f"{split}.csv").open() as file:
            rows = list(csv.DictReader(file))
        texts = [row["body"] for row in rows]
        mistakes = tables["mistakes"]
        assert mistakes  # two epochs do not make it perfect
        assert [m["probability"] for m in mistakes] == sorted((m["probability"] for m in mistakes), reverse=True)
        for mistake in mistakes:
            place = texts.index(mistake["text"])
            assert correct[place] == 0  # examples are in the order of the file
            assert rows[place]["stars"] == mistake["true"] != mistake["said"]
        curve = tables["precision_recall"]["good"]
        assert curve["recall"][-1] == 1.0
        assert curve["precision"][-1] == pytest.approx(np.mean([row["stars"] == "good" for row in rows]))


def test_the_data_card_counts_what_was_planted(reviewed: Path) -> None:
    card = load(reviewed).data()
    assert {split: part["rows"] for split, part in card.items()} == {"train": 104, "validation": 33, "test": 60}
    assert card["train"]["duplicates"] == 4
    assert card["validation"]["in_train"] == 3
    assert (card["test"]["duplicates"], card["test"]["in_train"]) == (0, 0)
    with (reviewed.parent / "train.csv").open() as file:
        stars = [row["stars"] for row in csv.DictReader(file)]
    assert card["train"]["labels"] == {"bad": stars.count("bad"), "good": stars.count("good")}
    histogram = card["train"]["lengths"]["histogram"]
    assert sum(histogram["counts"]) == 104
    assert histogram["edges"][-1] == card["train"]["lengths"]["longest"]


def test_the_report_has_every_part(reviewed: Path) -> None:
    page = (reviewed / "report.html").read_text()
    for heading in ("Results", "Learning", "Mistakes", "Data", "Speed, memory, energy", "Configuration", "How to reproduce it"):
        assert f"<h2>{heading}</h2>" in page
    drawn = {figure["title"] for figure in figures(reviewed / "report.html")}
    assert drawn >= {"Loss", "Learning rate", "Throughput", "Confusion · test", "Reliability · test", "Lengths", "Labels"}
    assert "<td>optimizer.lr</td><td>0.003</td><td>0.001</td>" in page
    assert "http://" not in page.split("<script>")[0]  # nothing is fetched
    assert "https://" not in page.split("<script>")[0]


@pytest.mark.parametrize(
    "missing", ["metrics.csv", "data.json", "evaluation", "versions", "throughput", "machine", "data", "model"]
)
def test_a_missing_piece_leaves_the_rest(reviewed: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reviewed, folder, ignore=shutil.ignore_patterns("checkpoints", "hf"))
    place = folder / missing
    if place.is_dir():
        shutil.rmtree(place)
    elif place.is_file():
        place.unlink()
    else:
        summary = json.loads((folder / "summary.json").read_text())
        del summary[missing]
        (folder / "summary.json").write_text(json.dumps(summary))
    page = write_report(folder).read_text()
    assert "left out" not in page
    assert "<h2>Configuration</h2>" in page


def test_a_broken_piece_is_named_and_leaves_the_rest(reviewed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reviewed, folder, ignore=shutil.ignore_patterns("checkpoints", "hf"))
    (folder / "data.json").write_text('{"train": {"lengths": 3}}')
    page = write_report(folder).read_text()
    assert "<h2>Data</h2>" in page
    assert "<summary>left out</summary>" in page
    assert "<h2>Results</h2>" in page


def test_samples_come_with_each_validation_and_change_nothing(
    corpus: Path, run: Runner, killed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["task=pretrain", "data=text", "data.document=line", "data.block_size=32", "batch.sequences=4", *TINY_GPT]
    given += [f"data.train={corpus}", "trainer.max_steps=12", "trainer.validate_every_steps=4", "trainer.log_every_steps=2"]
    given += ["++model.config={n_layer: 2, n_embd: 32, n_head: 2, resid_pdrop: 0.1}"]
    run(*given, f"run_dir={tmp_path / 'with'}")
    with monkeypatch.context() as patch:
        patch.setattr(CausalLM, "samples", Objective.samples)
        run(*given, f"run_dir={tmp_path / 'without'}")
    assert not (tmp_path / "without" / "samples.jsonl").exists()
    assert same_weights(tmp_path / "with", tmp_path / "without")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    lines = load(tmp_path / "with").samples()
    assert [line["step"] for line in lines] == [step for step in (4, 8, 12) for _ in range(len(lines) // 3)]
    assert len({line["prompt"] for line in lines}) == len(lines) // 3 > 1
    assert all(line["text"] for line in lines)
    assert all(line["prompt"].strip() in corpus.read_text() for line in lines)
    assert "<h2>Samples</h2>" in (tmp_path / "with" / "report.html").read_text()
    killed(*given, f"run_dir={tmp_path / 'killed'}", after=8)
    run(*given, f"run_dir={tmp_path / 'killed'}")
    assert load(tmp_path / "killed").samples() == lines


@pytest.mark.parametrize("objective", ["multi_label", "regression", "tagging", "question_answering", "translation", "instruction"])
def test_every_objective_tells_of_its_examples(run: Runner, tmp_path: Path, objective: str) -> None:
    if objective == "instruction":
        given = tasks(tmp_path)
    else:
        given = [*write(tmp_path, objective), *(TINY_MARIAN if objective == "translation" else TINY_BERT)]
    given.append("evaluate.slices=[length,language]")
    summary = run(*given, *TRAINING, f"run_dir={tmp_path}/run")
    metrics, slices, split = summary["metrics"], summary["slices"], "validation"
    tables = json.loads((tmp_path / "run" / "evaluation" / f"{split}.json").read_text())
    examples = {name: np.array(values) for name, values in tables["examples"].items()}
    if objective in ("multi_label", "tagging"):
        score = 2 * examples["right"].sum() / max((examples["found"] + examples["true"]).sum(), 1)
        assert score == pytest.approx(metrics[f"{split}/{'f1' if objective == 'tagging' else 'micro_f1'}"])
    elif objective == "regression":
        mae = np.abs(examples["prediction"] - examples["target"]).mean()
        assert mae == pytest.approx(metrics[f"{split}/mae"])
    elif objective == "translation":
        assert len(examples["chrf"]) == 80
    else:
        for name, values in examples.items():
            assert values.mean() == pytest.approx(metrics[f"{split}/{name}"])
    if objective != "translation":  # whose chrF of the corpus is not the mean of its sentences
        assert slices["overall"] == pytest.approx(metrics[f"{slices['split']}/{slices['score']}"])
    for by in ("length", "script"):
        assert sum(part["rows"] for part in slices["parts"] if part["by"] == by) == slices["rows"] > 0
    if objective in ("translation", "instruction"):
        assert all({"prompt", "reference", "text"} <= line.keys() for line in load(tmp_path / "run").samples())
        assert load(tmp_path / "run").samples()
    else:
        assert all(mistake["true"] != mistake["said"] for mistake in tables["mistakes"])
    assert "is left out" not in (tmp_path / "run" / "train.log").read_text()


def test_the_report_of_many_classes_is_short(reviewed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reviewed, folder, ignore=shutil.ignore_patterns("checkpoints", "hf"))
    names = [f"class {i}" for i in range(100_000)]
    score = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 4}
    tables = {
        "classes": len(names),
        "per_class": dict.fromkeys(names[:100], score),
        "confusions": [{"true": names[i], "said": names[i + 1], "count": 100 - i} for i in range(100)],
        "examples": {"correct": [0, 1] * 100},
        "sampled": {"of": 10_000_000},
    }
    (folder / "evaluation" / "test.json").write_text(json.dumps(tables))
    card = json.loads((folder / "data.json").read_text())
    card["test"]["labels"] = {name: i % 7 for i, name in enumerate(names)}
    (folder / "data.json").write_text(json.dumps({"test": card["test"]}))
    small, page = (reviewed / "report.html").stat().st_size, write_report(folder).read_text()
    assert "left out" not in page
    assert "Classes · test, the 100 worst of 100,000" in page
    assert "Confused most often · test" in page
    titles = {figure["title"]: figure for figure in figures(folder / "report.html")}
    assert "Confusion · test" not in titles
    assert len(titles["Labels"]["traces"][0]["x"]) == 100
    assert len(page) < small + 200_000
