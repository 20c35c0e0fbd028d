"""Files of Prodigy: annotations that were rejected or ignored are not learnt, and how many there are is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.data.sources import files
from llm_lightning.errors import UserError
from llm_lightning.inference.predict import rows_of, without_label

ANSWERS = ["accept", "reject", "accept", "ignore", "accept", "reject", "accept", "accept"]
ROWS: list[dict[str, Any]] = [
    {
        "text": f"text {i}",
        "_input_hash": i,
        "_task_hash": -i,
        "label": "SPORT" if i % 4 else "NEWS",
        "answer": answer,
        "_session_id": None,
    }
    for i, answer in enumerate(ANSWERS)
]
ACCEPTED = [row["text"] for row in ROWS if row["answer"] == "accept"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pd.DataFrame(rows)
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            table.to_csv(path, index=False)
        case _:
            table.to_parquet(path)
    return path


def prepare(folder: Path, file: Path, *arguments: str) -> TokenizedDataset:
    arguments = ("data.columns.label=label", *arguments)
    config = load_config(
        [
            *("task=finetune", "data=files", f"data.train={file}", f"data.validation={file}", *arguments),
            *(f"cache_dir={folder / 'cache'}", "model.tokenizer.vocab_size=300", f"run_dir={folder / 'run'}"),
        ]
    )
    return prepare_dataset(config, "words" if config.choices["objective"] == "tagging" else "texts", None)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_what_was_not_accepted_is_left_out(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / f"t.{kind}", ROWS)
    for start in ("cold", "warm cache"):
        caplog.clear()
        dataset = prepare(tmp_path, file)
        assert [example.text for example in dataset.examples("train")] == ACCEPTED, start
        assert (
            f"t.{kind}: this is a file of Prodigy, and 2 rejected and 1 ignored annotations (column 'answer') are left out"
            in caplog.text
        )
    assert dataset.rows["train"].where(2).endswith("row 5" if kind == "parquet" else "line 6" if kind == "csv" else "line 5")


def test_words_with_tags(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"tokens": [f"Ann{i}", "left"], "tags": ["B-PER", "O"], "spans": [], "answer": answer} for i, answer in enumerate(ANSWERS)
    ]
    file = write(tmp_path / "t.jsonl", rows)
    dataset = prepare(tmp_path, file, "objective=tagging", "data.columns.text=tokens", "data.columns.label=tags")
    assert [example.text[0] for example in dataset.examples("train")] == ["Ann0", "Ann2", "Ann4", "Ann6", "Ann7"]
    assert "2 rejected and 1 ignored" in caplog.text


OTHERS: list[tuple[str, list[dict[str, Any]], str]] = [
    ("all accepted", [row | {"answer": "accept"} for row in ROWS], "label"),
    ("another column", [{"text": row["text"], "verdict": row["label"], "answer": row["answer"]} for row in ROWS], "verdict"),
    ("other answers", [row | {"answer": "reject" if i else "yes"} for i, row in enumerate(ROWS)], "label"),
    ("the answer is learnt", ROWS, "answer"),
]


@pytest.mark.parametrize(("name", "rows", "label"), OTHERS, ids=[case[0] for case in OTHERS])
def test_other_rows_stay(
    name: str, rows: list[dict[str, Any]], label: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = prepare(tmp_path, write(tmp_path / "t.jsonl", rows), f"data.columns.label={label}")
    assert dataset.splits["train"].facts.rows == len(rows)
    assert "Prodigy" not in caplog.text


def test_nothing_accepted_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", [row | {"answer": "reject"} for row in ROWS])
    with pytest.raises(UserError, match=r"t\.jsonl: no annotation was accepted: .*8 rejected"):
        prepare(tmp_path, file)


def test_each_row_to_predict_stays(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", ROWS)
    data = without_label(DataConfig(source="files", columns=ColumnsConfig(label="label")))
    assert [row["text"] for row in rows_of(file, data)] == [row["text"] for row in ROWS]


def test_a_cache_of_an_earlier_version_is_not_used(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", ROWS)
    data = DataConfig(source="files", train=str(file), columns=ColumnsConfig(label="label"))
    files.load(data, tmp_path / "cache")
    (survey,) = (tmp_path / "cache").rglob("survey.json")
    content = json.loads(survey.read_text())
    del content["answers"]
    survey.write_text(json.dumps(content))
    assert files.load(data, tmp_path / "cache")["train"].table["text"][:] == ACCEPTED


def test_streamed_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row | {"text": f"{row['text']} round {n}"} for n in range(300) for row in ROWS]
    config = load_config(
        [
            *("task=pretrain", "data=files", f"data.train={write(tmp_path / 't.jsonl', rows)}", "data.columns.text=text"),
            *("data.streaming=true", "trainer.max_steps=2", "model.tokenizer.vocab_size=300", f"cache_dir={tmp_path / 'cache'}"),
            f"run_dir={tmp_path / 'run'}",
        ]
    )
    dataset = prepare_dataset(config, "documents", None)
    assert {row["text"].partition(" round")[0] for row in dataset.rows["validation"].table} == set(ACCEPTED)
    assert (
        "rejected and 125 ignored annotations (column 'answer') are left out (of its first 1,000 rows; later ones too)"
        in caplog.text
    )
