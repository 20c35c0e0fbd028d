"""Predictions of rows: those that the run's evaluation would give, in the order of the rows, whatever was interrupted."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import pipeline

import llm_lightning
from llm_lightning.config.compose import load_config
from llm_lightning.errors import UserError
from llm_lightning.inference import predict
from llm_lightning.run import run as start

from ..conftest import TINY_BERT, Runner
from ..objectives.test_supervised import write

EXACT = ["trainer.precision=32-true"]  # scores are held to those of others, and models of some numbers learn little in bf16


def trained(objective: str, run: Runner, folder: Path) -> Path:
    training = ["trainer.max_epochs=25", "batch.sequences=8", "optimizer.lr=5e-3", "trainer.validate_every_steps=1000"]
    run(*write(folder, objective), *TINY_BERT, *EXACT, *training, f"run_dir={folder}/run")
    return folder / "run"


def predicted(folder: Path, source: Path | str, *more: str) -> list[dict[str, Any]]:
    out = folder / "predictions.jsonl"
    start(load_config(["task=predict", f"run={folder}", f"data.predict={source}", "trainer.progress=none", f"out={out}", *more]))
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llm_lightning.run import run as start

    from ..conftest import QUIET

    folder = tmp_path_factory.mktemp("classifier")
    given = [*QUIET, f"cache_dir={folder}/cache", *write(folder, "classification"), *TINY_BERT, *EXACT, "trainer.max_epochs=5"]
    start(load_config([*given, f"run_dir={folder}/run"]))
    return folder / "run"


def test_predictions_are_those_of_a_pipeline_in_the_order_of_the_rows(classifier: Path, tmp_path: Path) -> None:
    texts = ["Rome on a sunny Monday", "met", "Ann met Bob in Rome on a sunny Monday", "a"] * 3
    (tmp_path / "rows.txt").write_text("\n".join(texts))
    found = predicted(classifier, tmp_path / "rows.txt")
    assert [row["row"] for row in found] == list(range(12))
    for row, expected in zip(found, pipeline("text-classification", model=str(classifier / "hf"))(texts), strict=True):
        assert row["label"] == expected["label"]
        assert row["score"] == pytest.approx(expected["score"], abs=2e-3)
        assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("chunk", [3, 4096])
def test_a_killed_prediction_goes_on(chunk: int, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"Ann met {i}"}) for i in range(10)))
    whole = predicted(classifier, tmp_path / "rows.jsonl")
    monkeypatch.setattr(predict, "CHUNK", chunk)
    calls, seen = predict.Predictor.__call__, []

    def dies(self: predict.Predictor, rows: list[predict.Row]) -> list[predict.Row]:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(rows))
        return calls(self, rows)

    monkeypatch.setattr(predict.Predictor, "__call__", dies)
    if chunk == 3:
        with pytest.raises(KeyboardInterrupt):
            predicted(classifier, tmp_path / "rows.jsonl")
        with (classifier / "predictions.jsonl.partial").open("a") as file:
            file.write('{"row": 6, "lab')  # a line that was being written
        seen.clear()
    assert predicted(classifier, tmp_path / "rows.jsonl") == whole
    assert sum(seen) == (4 if chunk == 3 else 10)
    assert not list(classifier.glob("*.partial*"))


def test_what_was_begun_for_other_rows_is_not_gone_on_with(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("Ann\nBob\n")
    (classifier / "predictions.jsonl.partial").write_text('{"row": 0, "label": "made up"}\n')
    (classifier / "predictions.jsonl.partial.json").write_text('["another file"]')
    assert all(row["label"] != "made up" for row in predicted(classifier, tmp_path / "rows.txt"))


def test_rows_come_from_many_files_and_go_to_parquet(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,other\n"Ann, Bob",1\nRome,2\n')
    (tmp_path / "b.jsonl").write_text('{"text": "Monday"}')
    out = tmp_path / "said.parquet"
    start(
        load_config(
            ["task=predict", f"run={classifier}", f"data.predict='{tmp_path}/*.[cj]s*'", f"out={out}", "trainer.progress=none"]
        )
    )
    table = pq.read_table(out).to_pydict()
    assert table["row"] == [0, 1, 2]
    assert set(table["label"]) <= {"0", "1", "2"}


LINES = b"Ann met Bob\n\nRome\r\n   \nunbelievably\rsunny\n{NAME} met Bob\nlast"
BLANK = {"error": "the row is empty"}


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.en", "rows.log", "-", "/dev/stdin", "pipe"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_every_line_has_a_result(
    name: str, ending: str, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a file of any ending, of standard input and of a pipe: seven results for seven lines, also where a run was killed between."""
    texts = ["Ann met Bob", "", "Rome", "   ", "unbelievably\rsunny", "{NAME} met Bob", "last"]
    expected = [
        BLANK if not text.strip() else row for text, row in zip(texts, llm_lightning.load(classifier).predict(texts), strict=True)
    ]
    monkeypatch.setattr(predict, "CHUNK", 3)
    source = str(tmp_path / name) if not name.startswith(("-", "/")) else name
    if name == "pipe":
        os.mkfifo(source)
        writer = subprocess.Popen(["sh", "-c", 'cat > "$0"', source], stdin=subprocess.PIPE)
        assert writer.stdin is not None
        writer.stdin.write(LINES)
        writer.stdin.close()
    elif source == name:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LINES), encoding="ascii"))
    else:
        Path(source).write_bytes(LINES)
        (tmp_path / f"said.{ending}.partial").write_text("")
    out = tmp_path / f"said.{ending}"
    start(load_config(["task=predict", f"run={classifier}", f"data.predict={source}", "trainer.progress=none", f"out={out}"]))
    rows = [json.loads(line) for line in out.read_text().splitlines()] if ending == "jsonl" else pq.read_table(out).to_pylist()
    assert [row["row"] for row in rows] == list(range(7))
    assert [row.get("error") for row in rows] == [row.get("error") for row in expected]
    assert [row.get("label") for row in rows] == [row.get("label") for row in expected]
    shown = capfd.readouterr().err
    assert ("read as plain text" in shown) == (name in ("rows.en", "rows.log"))
    assert f"7 rows, 2 of them with an error: {out}" in shown


def test_a_killed_prediction_of_lines_stays_aligned(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.txt").write_bytes(LINES)
    whole = predicted(classifier, tmp_path / "rows.txt")
    monkeypatch.setattr(predict, "CHUNK", 2)
    calls = predict.Predictor.__call__

    def dies(self: predict.Predictor, rows: list[predict.Row]) -> list[predict.Row]:
        if any(row["text"] == "last" for row in rows):
            raise KeyboardInterrupt
        return calls(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(predict.Predictor, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            predicted(classifier, tmp_path / "rows.txt")
    assert len((classifier / "predictions.jsonl.partial").read_text().splitlines()) == 6
    assert predicted(classifier, tmp_path / "rows.txt") == whole


def test_standard_input_is_never_resumed(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of another input would stand before those of this one."""
    for content, rows in ((b"Ann\n\xe9\n", None), (b"Rome\nAnn\n", 2)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        monkeypatch.setattr(predict, "CHUNK", 1)
        if rows is None:
            with pytest.raises(UserError, match="standard input, line 2: byte 0xe9 is not UTF-8"):
                predicted(classifier, "-")
        else:
            assert [row["row"] for row in predicted(classifier, "-")] == [0, 1]


def test_a_bad_row_stops_or_is_told_of(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "Ann"}\n{"text": " "}\n{"text": 3}\nnot json\n{"text": "Bob"}')
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: column 'text' is empty"):
        predicted(classifier, tmp_path / "rows.jsonl")
    found = predicted(classifier, tmp_path / "rows.jsonl", "data.on_bad_row=skip")
    assert ["label" in row for row in found] == [True, False, False, False, True]
    assert [row.get("error", "") for row in found][2] == "column 'text' holds int, not text"
    assert "not valid JSON" in found[3]["error"]


def test_tags_spans_answers_and_numbers(run: Runner, tmp_path: Path) -> None:
    for objective in ("tagging", "question_answering", "multi_label", "regression"):
        (tmp_path / objective).mkdir()
    tagger = trained("tagging", run, tmp_path / "tagging")
    (tmp_path / "rows.txt").write_text("Ann met Bob in Rome\nunbelievably sunny\n")
    first, second = predicted(tagger, tmp_path / "rows.txt", "data.columns.text=words")
    assert first["tags"] == ["B-person", "O", "B-person", "O", "B-place"]
    assert [(span["type"], span["text"]) for span in first["spans"]] == [("person", "Ann"), ("person", "Bob"), ("place", "Rome")]
    assert (second["tags"], second["spans"]) == (["O", "O"], [])

    answerer = trained("question_answering", run, tmp_path / "question_answering")
    rows = [
        {"question": "Where was it?", "context": "Ann met Bob in Rome"},
        {"question": "Who was Napoleon?", "context": "Ann met Bob"},
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = predicted(answerer, tmp_path / "asked.jsonl")
    assert (first["answer"], first["start"], first["end"]) == ("Rome", 15, 19)
    assert second["answer"] == ""

    labeller = trained("multi_label", run, tmp_path / "multi_label")
    (tmp_path / "texts.txt").write_text("Ann in Rome\na sunny Monday\n")
    assert [row["labels"] for row in predicted(labeller, tmp_path / "texts.txt")] == [["Ann", "Rome"], []]

    scorer = trained("regression", run, tmp_path / "regression")
    (tmp_path / "texts.txt").write_text("in\nin on a met in on a met in on a met\n")
    low, high = predicted(scorer, tmp_path / "texts.txt")
    assert (low["score"], high["score"]) == (pytest.approx(0.25, abs=0.5), pytest.approx(3, abs=0.5))


def test_an_export_alone_says_the_same(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("Ann met Bob\nRome\n")
    whole = predicted(classifier, tmp_path / "rows.txt")
    with pytest.raises(UserError, match="out is not set"):
        load_config(["task=predict", f"run={classifier}/hf", f"data.predict={tmp_path}/rows.txt"])
    out = tmp_path / "out.jsonl"
    start(
        load_config(
            ["task=predict", f"run={classifier}/hf", f"data.predict={tmp_path}/rows.txt", f"out={out}", "trainer.progress=none"]
        )
    )
    assert [json.loads(line)["label"] for line in out.read_text().splitlines()] == [row["label"] for row in whole]
