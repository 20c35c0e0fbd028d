"""Which overrides of a sweep did best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_lightning.sweep.process import Outcome
from llm_lightning.sweep.results import Job, Results


@pytest.mark.parametrize(
    ("jobs", "best"),
    [
        ({"lr=1": (0.5, 0.7), "lr=2": (0.9, 0.8)}, "best: lr=2 · validation/accuracy 0.9000"),
        (
            {"lr=1": (0.5, 0.7), "lr=2": (0.5, 0.6)},
            "best: lr=2 · validation/accuracy 0.5000; 2 have this value, chosen by validation/loss 0.6000",
        ),
        (
            {"lr=1": (0.5, 0.7), "lr=2": (0.5, 0.7)},
            "best: lr=1 · validation/accuracy 0.5000; 2 have this value, and the first is named",
        ),
        (
            {"lr=1": (0.5, None), "lr=2": (0.5, 0.7)},
            "best: lr=2 · validation/accuracy 0.5000; 2 have this value, chosen by validation/loss 0.7000",
        ),
        (
            {"lr=1 seed=1": (0.4, 0.1), "lr=1 seed=2": (0.6, 0.3), "lr=2 seed=1": (0.5, 0.3)},
            "best: lr=1 · validation/accuracy 0.5000, the mean of 2 seeds; 2 have this value, chosen by validation/loss 0.2000",
        ),
    ],
)
def test_of_equal_jobs_the_lower_loss_is_the_best(jobs: dict[str, tuple[float, float | None]], best: str, tmp_path: Path) -> None:
    results = Results(tmp_path, ["lr"])
    for name, (accuracy, loss) in jobs.items():
        folder = tmp_path / name
        folder.mkdir()
        metrics = {"validation/accuracy": accuracy} | ({} if loss is None else {"validation/loss": loss})
        summary = {"monitor": {"name": "validation/accuracy", "maximize": True}, "metrics": metrics}
        (folder / "summary.json").write_text(json.dumps(summary))
        results.add(Job(name, tuple(name.split()), name.split(), folder), Outcome("done", "", 1.0))
    assert results.best() == best
