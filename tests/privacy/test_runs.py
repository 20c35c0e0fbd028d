"""Runs with differential privacy: what they record, show and refuse."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.errors import UserError

from ..conftest import QUIET, TINY_BERT, Runner

pytest.importorskip("dp_accounting")
PRIVATE = [
    *("task=finetune", "data=files", "data.columns.text=body", "data.columns.label=stars", *TINY_BERT, "privacy=dp"),
    *("privacy.public_tokenizer=true", "privacy.delta=1e-3", "batch.sequences=16", "trainer.max_epochs=null"),
]


@pytest.fixture
def rows(reviews: Path, tmp_path: Path) -> str:
    """The reviews, each once."""
    head, *lines = dict.fromkeys(reviews.read_text().splitlines())
    (tmp_path / "reviews.csv").write_text("\n".join([head, *lines]) + "\n")
    return f"data.train={tmp_path}/reviews.csv"


def test_a_run_records_what_it_spent(rows: str, run: Runner, tmp_path: Path) -> None:
    """Epsilon is used up at the end, where the noise was solved for it; a run that goes on has the same noise, and may not be longer."""
    given = [*PRIVATE, rows, "privacy.epsilon=4", "trainer.log_every_steps=2", f"run_dir={tmp_path}/run"]
    summary = run(*given, "trainer.max_steps=6")
    spent = summary["privacy"]
    assert 3.9 < spent["epsilon"] <= 4.0
    assert {name: spent[name] for name in ("delta", "unit", "steps")} == {"delta": 1e-3, "unit": "row", "steps": 6}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        bounds = [float(line["privacy/epsilon"]) for line in csv.DictReader(file) if line["privacy/epsilon"]]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(spent["epsilon"])
    card = (tmp_path / "run" / "hf" / "README.md").read_text()
    assert "differentially private for each training row" in card
    assert "seed 0" not in card
    with pytest.raises(UserError, match="the number of steps, for which the noise was solved, was 6 and is 8"):
        run(*given, "trainer.max_steps=8")


def test_training_ends_with_the_budget(rows: str, run: Runner, tmp_path: Path) -> None:
    summary = run(
        *PRIVATE, rows, "privacy.epsilon=3", "privacy.noise_multiplier=1", "trainer.max_steps=400", f"run_dir={tmp_path}/run"
    )
    assert summary["steps"] < 400
    assert summary["privacy"]["epsilon"] <= 3.0


def test_seeded_noise_repeats_a_run(rows: str, run: Runner, tmp_path: Path) -> None:
    given = [*PRIVATE, rows, "privacy.secure_noise=false", "trainer.max_steps=4"]
    first, second = (run(*given, f"run_dir={tmp_path}/{name}")["metrics"] for name in ("a", "b"))
    assert first == second
    assert (
        run(*given, "privacy.secure_noise=true", f"run_dir={tmp_path}/c")["metrics"]["validation/loss"] != first["validation/loss"]
    )


def test_rows_that_repeat_others_are_refused(rows: str, run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    head, first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, *[first] * 3, *rest]) + "\n")
    with pytest.raises(UserError, match=r"training rows repeat others"):
        run(*PRIVATE, rows, "trainer.max_steps=2", "data.validation_fraction=0.02", f"run_dir={tmp_path}/run")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("privacy.public_tokenizer=false", "a tokenizer trained on the training text tells of it"),
        ("data.packing=best_fit", "a gradient would belong to several documents"),
        ("batch.tokens=500", "which samples rows"),
        ("trainer=fsdp", "use trainer=ddp"),
        ("trainer.compile=true", "records the gradients of each module"),
        ("objective.class_weights=balanced", "how many rows each class has"),
        ("privacy.epsilon=0", "privacy.epsilon=0"),
    ],
)
def test_what_voids_the_guarantee_is_refused(argument: str, message: str, rows: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config([*QUIET, *PRIVATE, rows, argument])


def test_ordinary_runs_say_nothing_of_privacy(rows: str, run: Runner, tmp_path: Path) -> None:
    ordinary = [argument for argument in PRIVATE if not argument.startswith("privacy")]
    assert "privacy" not in run(*ordinary, rows, "trainer.max_steps=2", f"run_dir={tmp_path}/run")
    assert "privacy" not in json.loads((tmp_path / "run" / "summary.json").read_text())
