"""Tagging: which metric decides, what is logged of the tags, and what predictions hold in each scheme."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.run import prepare
from llm_lightning.run import run as start

from ..conftest import QUIET, TINY_BERT, Runner

BANDS = [f"New B-ORG\nBlue I-ORG\nBand{i} E-ORG\n" for i in range(3)]
IOBES = "".join(f"Paris S-LOC\nhosts O\n{BANDS[i % 3]}. O\n\n{BANDS[i % 3]}\nParis S-LOC\nhosts O\n\n" for i in range(8))
SPEECH = "".join(f"the DET\ndog{i % 5} NOUN\nruns VERB\nfast ADV\n. PUNCT\n\n" for i in range(24))
LEARNT = [
    "trainer.max_epochs=null",
    "trainer.max_steps=100",
    "batch.sequences=8",
    "optimizer.lr=1e-2",
    "trainer.precision=32-true",
    *TINY_BERT,
]


def files(path: Path) -> list[str]:
    return ["task=finetune", "objective=tagging", "data=conll", f"data.train={path}", f"data.validation={path}"]


def predict(run_folder: Path, source: Path, *more: str) -> list[dict[str, Any]]:
    out = source.with_name("out.jsonl")
    start(
        load_config(["task=predict", f"run={run_folder}", f"data.predict={source}", "trainer.progress=none", f"out={out}", *more])
    )
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_spans_of_iobes_are_scored_and_predicted_whole(run: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.txt").write_text(IOBES)
    summary = run(*files(tmp_path / "train.txt"), *LEARNT, f"run_dir={tmp_path}/run")
    assert summary["metrics"]["validation/f1"] == 1.0
    details = json.loads((tmp_path / "run" / "evaluation" / "validation.json").read_text())
    assert {kind: scores["support"] for kind, scores in details["per_class"].items()} == {"LOC": 16, "ORG": 16}

    (tmp_path / "test.txt").write_text("Paris S-LOC\nhosts O\n\nNew B-ORG\nBlue I-ORG\nBand1 E-ORG\n")
    (tmp_path / "test.tsv").write_text("Paris\nhosts\n\nNew\nBlue\nBand1\n")
    for name in ("test.txt", "test.tsv"):
        rows = predict(tmp_path / "run", tmp_path / name)
        assert [[(span["type"], span["text"]) for span in row["spans"]] for row in rows] == [
            [("LOC", "Paris")],
            [("ORG", "New Blue Band1")],
        ]
    (tmp_path / "plain.txt").write_text("Paris hosts New Blue Band1 .\n")
    (row,) = predict(tmp_path / "run", tmp_path / "plain.txt")
    assert row["tags"] == ["S-LOC", "O", "B-ORG", "I-ORG", "E-ORG", "O"]
    assert "is read as a sentence a line" in capsys.readouterr().err


def test_accuracy_decides_where_tags_have_no_scheme(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text(SPEECH)
    training = [*LEARNT, "trainer.validate_every_steps=10"]
    summary = run(*files(tmp_path / "train.conll"), *training, f"run_dir={tmp_path}/run")
    assert summary["monitor"] == {"name": "validation/accuracy", "maximize": True}
    metrics = summary["metrics"]
    assert metrics["validation/accuracy"] == metrics["validation/macro_f1"] == 1.0
    assert "validation/f1" not in metrics
    (tmp_path / "rows.conll").write_text("the\ndog1\nruns\n\n")
    (row,) = predict(tmp_path / "run", tmp_path / "rows.conll")
    assert row["tags"] == ["DET", "NOUN", "VERB"]
    assert "spans" not in row


@pytest.mark.parametrize(
    ("content", "setting", "monitor", "messages"),
    [
        (IOBES, "auto", "f1", ["tags: IOBES (BIOES), spans of LOC, ORG"]),
        (SPEECH, "auto", "accuracy", ["tags: 5 (ADV, DET, NOUN, PUNCT, VERB) mark no spans", "data.tags sets one"]),
        (IOBES, "none", "accuracy", ["mark no spans (data.tags=none)"]),
        ("a PER\nb PER\nc O\nd LOC\n", "auto", "f1", ["tags: IO, spans of LOC, PER", "neighbours of one type are one span"]),
        ("a I-X\nb B-X\n\nc I-Y\nd O\n", "auto", "f1", ["tags: IOB1, spans of X, Y"]),
        (
            "a I-X\nb B-X\n\nc I-Y\nd O\n",
            "iob2",
            "f1",
            ["tags: IOB2", "train: 2 times a tag follows one that it cannot follow in IOB2"],
        ),
        ("a X_B\nb X_I\nc O\n", "auto", "f1", ["tags: IOB2 (BIO), written PER_B, spans of X"]),
        ("a B-X\nb I-X\nc B-Y\nd I-Y\ne O\nf [PAD]\n", "auto", "f1", ["tags: [PAD] do not have the form of IOB2"]),
    ],
)
def test_the_scheme_is_named(
    content: str, setting: str, monitor: str, messages: list[str], cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.conll").write_text(content)
    with caplog.at_level(logging.INFO):
        objective = prepare(
            load_config([*QUIET, f"cache_dir={cache}", *files(tmp_path / "x.conll"), *TINY_BERT, f"data.tags={setting}"])
        )[1]
    assert objective.monitor == f"validation/{monitor}"
    for message in messages:
        assert caplog.text.count(message) == 1
    if "cannot follow" not in "".join(messages):
        assert "cannot follow" not in caplog.text


@pytest.mark.parametrize("content", [IOBES, SPEECH], ids=["IOBES", "parts of speech"])
def test_scores_are_those_of_a_loop(content: str, cache: Path, tmp_path: Path) -> None:
    import numpy as np
    import torch

    from llm_lightning.objectives.tagging import Tagging

    (tmp_path / "x.conll").write_text(content)
    objective = prepare(load_config([*QUIET, f"cache_dir={cache}", *files(tmp_path / "x.conll"), *TINY_BERT]))[1]
    assert isinstance(objective, Tagging)
    names = objective.dataset.label_names
    assert names is not None
    rng = np.random.default_rng(0)
    states = objective.build_states()
    sentences = []
    for row in range(24):
        true = rng.integers(0, len(names), 6)
        tags = np.where(rng.random(6) < 0.6, true, rng.integers(0, len(names), 6))
        sentences.append((row, true.tolist(), tags.tolist()))
    objective._count(states, sentences)
    scores = objective.compute_metrics(0.0, 1, states)
    pairs = [pair for _, true, tags in sentences for pair in zip(true, tags, strict=True)]
    assert scores["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs), abs=1e-12)
    if objective.scheme is None:
        f1s = []
        for tag in range(len(names)):
            right = sum(a == b == tag for a, b in pairs)
            f1s.append(2 * right / (sum(a == tag for a, _ in pairs) + sum(b == tag for _, b in pairs)))
        assert scores["macro_f1"] == pytest.approx(sum(f1s) / len(f1s), abs=1e-12)
        assert torch.tensor(scores["macro_f1"]) > 0.3
    else:
        spans = [[objective.scheme.spans([names[tag] for tag in tags]) for tags in pair] for _, *pair in sentences]
        right, total = sum(len(a & b) for a, b in spans), sum(len(a) + len(b) for a, b in spans)
        assert scores["f1"] == pytest.approx(2 * right / total, abs=1e-12)
