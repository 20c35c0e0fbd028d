"""Flips are found where a model depends on what was changed, and nowhere else; runs record what is measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import llm_lightning
from llm_lightning.config.compose import load_config
from llm_lightning.data.encode import TokenizedSplit
from llm_lightning.data.encodings import Sequences
from llm_lightning.data.examples import Example
from llm_lightning.data.scripts import find_script
from llm_lightning.errors import UserError
from llm_lightning.reporting.robustness import describe_change, describe_slice
from llm_lightning.reporting.runs import load
from llm_lightning.robustness.invariance import choose_rows, try_changes
from llm_lightning.run import prepare
from llm_lightning.run import run as evaluate

from ..conftest import QUIET, TINY_BERT, TINY_GPT, Runner

WORDS = ["the", "film", "was", "really", "good", "and", "Mary", "never", "saw", "a", "better", "story", "than", "this", "one"]


class CaseReader:
    """An objective whose prediction is whether a text has a capital letter; its tokens are the characters."""

    def __init__(self, texts: list[str], decide: Callable[[str], float]) -> None:
        self.dataset = SimpleNamespace(
            label_names=("no", "yes"),
            encoding=self.encode,
            example=lambda split, number: Example(number, texts[number], None, 0),
        )
        self.encode.__func__.next_token = False  # type: ignore[attr-defined]
        self.decide = decide

    def encode(self, examples: list[Example], bad: None) -> Sequences:
        return Sequences([[ord(c) for c in e.text] for e in examples], examples, [], [0] * len(examples))

    def predict(self, part: TokenizedSplit) -> list[float]:
        return [self.decide("".join(map(chr, part[i]))) for i in range(len(part))]

    def answer_row(self, example: Example, predictions: list[float]) -> dict[str, Any]:
        scores = {"no": 1 - predictions[0], "yes": predictions[0]}
        label = max(scores, key=scores.__getitem__)
        return {"label": label, "score": scores[label], "scores": scores}


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    drawn = [" ".join(rng.choice(WORDS, rng.integers(4, 12))) for _ in range(count)]
    return [text.lower() if i % 2 else text.capitalize() for i, text in enumerate(drawn)]


def test_a_model_that_reads_case_flips_under_case_alone() -> None:
    rows = texts(120)
    model: Any = CaseReader(rows, lambda text: 0.9 if text != text.lower() else 0.2)
    changes = ["typos", "case", "punctuation", "names"]
    entries, flips = try_changes(model, "test", np.arange(120), changes, 0, model.predict)
    by_change = {entry["change"]: entry for entry in entries}
    assert [by_change[name]["flips"] for name in ("typos", "punctuation", "names")] == [0, 0, 0]
    assert by_change["typos"]["changed"] == by_change["punctuation"]["changed"] == 120
    lower = by_change["case"]["operations"]["lower"]
    assert lower["flips"] == lower["changed"] > 0  # a text can be lower-cased if it has a capital letter
    expected = sum(flip.before == flip.before.lower() or flip.operation == "lower" for flip in flips)
    assert by_change["case"]["flips"] == len(flips) == expected > 40
    assert by_change["case"]["low"] < by_change["case"]["rate"] < by_change["case"]["high"]
    assert by_change["names"]["changed"] < 120
    assert all(flip.predicted != flip.predicted_after for flip in flips)


def test_a_negation_that_changes_nothing_is_told_as_stayed() -> None:
    rows = ["it is a good film", "it was bad", "a fine film", "it is not good"]
    model: Any = CaseReader(rows, lambda text: 0.9 if "not" in text.split() or "was" in text.split() else 0.2)
    (entry,), stayed = try_changes(model, "test", np.arange(4), ["negation"], 0, model.predict)
    assert (entry["tried"], entry["changed"], entry["flips"], entry["expected"]) == (4, 3, 2, "flip")
    assert [row.before for row in stayed] == ["it was bad"]
    assert describe_change(entry, "label").startswith("a negation added or removed: 33.3% [")
    assert "stay, though they should flip" in describe_change(entry, "label")


def test_rows_are_drawn_by_the_seed() -> None:
    numbers = np.arange(0, 5000, 3)
    assert choose_rows(numbers, 100, 0).tolist() == choose_rows(numbers, 100, 0).tolist() != choose_rows(numbers, 100, 1).tolist()
    assert (np.diff(choose_rows(numbers, 100, 0)) > 0).all()
    assert choose_rows(numbers, 10_000, 0).tolist() == numbers.tolist()


def test_scripts_are_told_apart() -> None:
    expected = {
        "Ein Äpfelchen, 3 €": "Latin",
        "привет, world и мир": "Cyrillic",
        "東京タワーに行く": "Japanese",
        "你好世界": "Han",
        "안녕하세요": "Hangul",
        "مرحبا": "Arabic",
        "नमस्ते दुनिया": "Devanagari",
        "12:30 — !?": "no letters",
        "": "no letters",
    }
    assert {text: find_script(text) for text in expected} == expected


def write_reviews(folder: Path, count: int = 260) -> list[str]:
    """Reviews with a source, a score, a language and a list; those from the web are labelled at random."""
    rng = np.random.default_rng(4)
    for split, size in (("train", count), ("validation", 60), ("test", 200)):
        rows = []
        for i in range(size):
            source = ("web", "shop", "letter")[i % 3]
            good = int(rng.integers(2)) if source == "web" else i % 2
            filler = " ".join(rng.choice(["really", "film", "plot", "and", "was", "Mary", "quite"], rng.integers(1, 15)))
            text = f"{filler} {'great' if i % 2 else 'awful'}, {filler}"
            rows.append(
                {"text": text, "label": ["bad", "good"][good], "source": source, "age": int(rng.integers(90)), "tags": ["a"]}
            )
            rows[-1]["language"] = "de" if i % 5 == 0 else "en"
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["task=finetune", "objective=classification", "data=files", f"data.dir={folder}", "data.columns.label=label", *TINY_BERT]


SLICES = "evaluate.slices=[length,language,source,age]"


def test_a_run_records_its_slices_and_flips(run: Runner, tmp_path: Path) -> None:
    data = [*write_reviews(tmp_path), "trainer.max_epochs=6", "batch.sequences=8", "optimizer.lr=3e-3"]
    measured = [SLICES, "evaluate.invariance=true", "evaluate.invariance_rows=80"]
    folder = tmp_path / "run"
    summary = run(*data, *measured, f"run_dir={folder}")

    # the slices of columns are those of pandas on the predictions that the run has stored
    table = pd.read_json(tmp_path / "test.jsonl", lines=True)
    table["correct"] = json.loads((folder / "evaluation" / "test.json").read_text())["examples"]["correct"]
    parts = {(part["by"], part["slice"]): part for part in summary["slices"]["parts"]}
    for by in ("source", "language"):
        for name, scores in table.groupby(by)["correct"]:
            assert (parts[by, name]["rows"], parts[by, name]["score"]) == (len(scores), pytest.approx(scores.mean()))
            assert parts[by, name]["rest"] == pytest.approx(table.loc[table[by] != name, "correct"].mean())
    quarters = table.groupby(np.searchsorted(table["age"].quantile([0.25, 0.5, 0.75]), table["age"]))
    for _, rows in quarters:
        part = parts["age", f"{rows['age'].min()} to {rows['age'].max()}"]
        assert (part["rows"], part["score"]) == (len(rows), pytest.approx(rows["correct"].mean()))
    assert parts["script", "Latin"]["p"] is None  # every row
    assert summary["slices"]["compared"] == sum(part["p"] is not None for part in parts.values()) > 10
    assert summary["slices"]["parts"][0]["slice"] == "web"
    assert parts["source", "web"]["p"] < 0.01
    with (folder / "evaluation" / "slices.csv").open() as file:
        assert [row["slice"] for row in csv.DictReader(file)] == [part["slice"] for part in summary["slices"]["parts"]]

    # the predictions of flipped rows are those of the export for the two texts
    entries = {entry["change"]: entry for entry in summary["invariance"]["changes"]}
    with (folder / "evaluation" / "invariance.csv").open() as file:
        flips = list(csv.DictReader(file))
    assert sum(entry["flips"] for name, entry in entries.items() if name != "negation") == sum(
        f["change"] != "negation" for f in flips
    )
    assert entries["case"]["same_tokens"] == entries["case"]["changed"] > 0  # the tokenizer lower-cases
    assert entries["case"]["flips"] == 0
    assert flips
    predict = llm_lightning.load(str(folder)).predict
    for name in ("before", "after"):
        said = predict([flip[name] for flip in flips])
        column = "predicted" if name == "before" else "predicted_after"
        assert [flip[column] for flip in flips] == [f"{row['label']} {row['score']:.0%}" for row in said]
    assert flips[0]["place"].startswith(f"{tmp_path}/test.jsonl, line ")

    # report and card
    page, card = (folder / "report.html").read_text(), (folder / "hf" / "README.md").read_text()
    assert "left out" not in page
    worst = describe_slice(summary["slices"]["parts"][0], "share")
    assert worst in page
    assert f"**Where it fails.** Of slices by length, language, source, age, the worst is {worst}" in card
    assert "typos: " in card

    # the same again, and on other data
    again = evaluate(load_config(["task=evaluate", f"run={folder}"]))
    assert again["slices"] == summary["slices"]
    assert again["invariance"] == summary["invariance"]
    others = [f"data.test={tmp_path}/validation.jsonl", "evaluate.slices=[source]", "evaluate.invariance=false"]
    evaluate(load_config(["task=evaluate", f"run={folder}", *others]))
    assert sorted(file.name for file in (folder / "evaluate").iterdir()) == ["slices.csv"]
    assert worst in (folder / "report.html").read_text()  # of the run's own data

    # a column more or less is the same run
    fingerprints = [
        prepare(load_config([*QUIET, *data, f"cache_dir={tmp_path}/cache", *more]))[0].fingerprints for more in ([SLICES], [])
    ]
    assert fingerprints[0] == fingerprints[1] == summary["data"]["fingerprints"]


@pytest.mark.parametrize("objective", ["multi_label", "regression"])
def test_other_objectives_are_measured_too(run: Runner, tmp_path: Path, objective: str) -> None:
    from ..objectives.test_supervised import write

    settings = [
        "trainer.max_steps=25",
        "optimizer.lr=3e-3",
        "trainer.max_epochs=null",
        "batch.sequences=16",
        f"run_dir={tmp_path}/run",
    ]
    data = [*write(tmp_path, objective), f"data.test=[{tmp_path}/train.jsonl,{tmp_path}/train.jsonl]", *TINY_BERT, *settings]
    summary = run(*data, "evaluate.slices=length", "evaluate.invariance=[typos,punctuation]")
    examples = {
        k: np.array(v) for k, v in json.loads((tmp_path / "run" / "evaluation" / "test.json").read_text())["examples"].items()
    }
    if objective == "multi_label":
        overall = 2 * examples["right"].sum() / (examples["found"].sum() + examples["true"].sum())
        assert summary["metrics"]["test/micro_f1"] == pytest.approx(overall)
    else:
        overall = np.abs(examples["prediction"] - examples["target"]).mean()
        rows = pd.read_csv(tmp_path / "run" / "evaluation" / "invariance.csv")
        for entry in summary["invariance"]["changes"]:
            moved = rows[rows["change"] == entry["change"]]
            assert entry["flips"] is None
            assert entry["mean_move"] == pytest.approx(moved["distance"].sum() / entry["changed"])
            assert (moved["predicted"] - moved["predicted_after"]).abs().to_numpy() == pytest.approx(moved["distance"], abs=2e-3)
        assert len(rows)
    assert summary["slices"]["overall"] == pytest.approx(overall)
    parts = [part for part in summary["slices"]["parts"] if part["score"] is not None]
    assert sum(part["rows"] for part in summary["slices"]["parts"]) == 120
    assert len(parts) > 2
    assert all(part["low"] <= part["score"] <= part["high"] for part in parts)
    assert load(tmp_path / "run").summary["slices"] == summary["slices"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate.slices=[sourse]"], "there is no column 'sourse'.*Did you mean 'source'?"),
        (["evaluate.slices=[tags]"], "test.jsonl, line 1 holds a list there"),
        (["evaluate.slices=[length,length]"], "a name is there twice"),
        (["evaluate.invariance=[typo]"], "no change of texts called 'typo'.*Did you mean 'typos'?"),
        (["evaluate.invariance_rows=0"], "evaluate.invariance_rows=0: expected"),
    ],
)
def test_mistakes_are_told_before_a_run(tmp_path: Path, cache: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(load_config([*QUIET, *write_reviews(tmp_path, 30), f"cache_dir={cache}", *arguments]))


def test_objectives_without_scores_of_rows_are_refused(corpus: Path) -> None:
    pretraining = ["task=pretrain", "data=text", f"data.train={corpus}", *TINY_GPT]
    with pytest.raises(UserError, match="objective=causal_lm has no score of each row"):
        load_config([*pretraining, "evaluate.slices=[length]"])
    with pytest.raises(UserError, match="objective=causal_lm predicts more than one label or number"):
        load_config([*pretraining, "evaluate.invariance=true"])
