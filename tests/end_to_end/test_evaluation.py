"""Several processes that evaluate together come to the figures and the tables of one process, to the last digit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..conftest import TINY_BERT, Runner
from ..inference.test_calibration import write_rows
from ..objectives.test_supervised import TINY_MARIAN, tasks, write
from .conftest import LaunchRanks
from .test_devices import EXACT, TWO, train

SIZES = {  # evaluation batches of 7 rows, and of translation one batch of test for two processes
    "translation": [*TINY_MARIAN, "data.test=test", "batch.sequences=40", "objective.beams=2"],
    "question_answering": [*TINY_BERT, "batch.sequences=7", "data.block_size=12", "data.overlap=2"],
    "tagging": [*TINY_BERT, "batch.sequences=7", "data.block_size=8"],
}


def arguments(objective: str, folder: Path) -> list[str]:
    if objective == "instruction":
        return [*tasks(folder), "objective.answered=20", "objective.max_answer=12", "batch.sequences=7"]
    return [*write(folder, objective), *SIZES.get(objective, [*TINY_BERT, "batch.sequences=7"])]


def results(folder: Path) -> dict[str, Any]:
    """What the last evaluation of a run came to: its metrics, and the tables of each split."""
    tables = {file.stem: json.loads(file.read_text()) for file in (folder / "evaluation").glob("*.json")}
    return {"metrics": json.loads((folder / "summary.json").read_text())["metrics"], **tables}


@pytest.mark.parametrize(
    ("objective", "strategy"),
    [
        ("translation", "fsdp"),
        ("translation", "ddp"),
        ("instruction", "fsdp"),
        ("question_answering", "ddp"),
        ("tagging", "fsdp"),
        ("multi_label", "ddp"),
        ("regression", "ddp"),
        ("classification", "fsdp"),
    ],
)
def test_two_processes_evaluate_as_one_does(
    objective: str, strategy: str, launch_ranks: LaunchRanks, cache: Path, tmp_path: Path
) -> None:
    """The last evaluation of a run, which also generates: ranks have unequal numbers of batches, and one of them none.

    The learning rate is too small to change a weight, so both runs evaluate the same model.
    """
    given = [*arguments(objective, tmp_path), f"cache_dir={cache}", *EXACT, "trainer.max_epochs=null", "trainer.max_steps=1"]
    train(launch_ranks, [*given, "optimizer.lr=1e-30"], tmp_path / "one")
    train(launch_ranks, [*given, "optimizer.lr=1e-30", f"trainer={strategy}", *TWO], tmp_path / "two")
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert one["validation"].keys() > {"rows"}
    assert two == one


def test_two_processes_find_the_temperature_of_one(launch_ranks: LaunchRanks, run: Runner, cache: Path, tmp_path: Path) -> None:
    """From the same weights, sharded over the ranks, with unequal numbers of batches; the folders are the same to the last bit."""
    common = [*write_rows(tmp_path), f"cache_dir={cache}", *EXACT, "trainer.max_epochs=null", "batch.sequences=8"]
    run(*common, "trainer.max_steps=60", "optimizer.lr=5e-3", "objective.calibrate=false", f"run_dir={tmp_path}/base")
    again = [*common, f"model.init_from={tmp_path}/base", "trainer.max_steps=1", "optimizer.lr=1e-30", "batch.sequences=7"]
    train(launch_ranks, again, tmp_path / "one")
    train(launch_ranks, [*again, "trainer=fsdp", *TWO], tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "summary.json").read_text())["calibration"] for name in ("one", "two"))
    assert one["temperature"] < 0.8
    assert two == one
    for file in ("hf/model.safetensors", "hf/config.json", "hf/conformal.json", "evaluation/test.json"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
