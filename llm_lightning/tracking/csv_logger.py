"""Write metrics.csv of a run: one row a report, columns added as metrics appear, kept across resumes.

Lightning's CSVLogger deletes an existing file in its folder, and with it the history of a resumed run.
"""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from llm_lightning.atomic_files import write_atomically

AXES = ["step", "tokens", "epoch", "seconds"]


class CSVLogger(Logger):
    """Logger that appends to metrics.csv. A resumed run drops rows beyond the step it resumes from: it writes them again."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.file = folder / "metrics.csv"
        self.columns = list(AXES)
        if self.file.is_file():
            with self.file.open(newline="", encoding="utf-8") as file:
                self.columns = next(csv.reader(file), self.columns)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        return self.file

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        new = [name for name in metrics if name not in self.columns]
        if new or not self.file.is_file():
            self.columns += new
            self._rewrite(self._rows())
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow({"step": step, **metrics})

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        self._rewrite([row for row in self._rows() if int(row["step"]) <= step])

    def _rows(self) -> list[dict[str, str]]:
        if not self.file.is_file():
            return []
        with self.file.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with write_atomically(self.file) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
