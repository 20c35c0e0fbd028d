"""Two processes come to the slices and the flips of one."""

from __future__ import annotations

import json
from pathlib import Path

from ..robustness.test_invariance import SLICES, write_reviews
from .conftest import LaunchRanks
from .test_devices import EXACT, TWO, train


def test_two_processes_measure_as_one_does(launch_ranks: LaunchRanks, cache: Path, tmp_path: Path) -> None:
    """Batches of 7 rows, so that the ranks have unequal numbers of them; the learning rate changes no weight."""
    given = [*write_reviews(tmp_path, 40), f"cache_dir={cache}", *EXACT, "batch.sequences=7", "optimizer.lr=1e-30"]
    given += ["trainer.max_epochs=null", "trainer.max_steps=1", SLICES, "evaluate.invariance=true", "evaluate.invariance_rows=50"]
    train(launch_ranks, given, tmp_path / "one")
    train(launch_ranks, [*given, "trainer=fsdp", *TWO], tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert one["slices"]["compared"] > 5
    assert two["slices"] == one["slices"]
    assert two["invariance"] == one["invariance"]
    for name in ("slices.csv", "invariance.csv"):
        tables = [(tmp_path / run / "evaluation" / name).read_text() for run in ("one", "two")]
        assert tables[0] == tables[1]
