"""Record the results of a sweep's jobs: a file that is complete after every job, a table at the end, and the best overrides."""

from __future__ import annotations

import csv
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from llm_lightning.atomic_files import write_atomically
from llm_lightning.config.redaction import redact
from llm_lightning.reporting.table import Table
from llm_lightning.sweep.process import Outcome

LOSS = "validation/loss"


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its folder's name, the overrides in which it differs from other jobs, and all its overrides."""

    name: str
    varied: tuple[str, ...]
    overrides: list[str]
    folder: Path


@dataclass(frozen=True)
class Result:
    """How a job ended, and the deciding metric with its value, if the job is done and has trained something."""

    job: Job
    outcome: Outcome
    metric: str = ""
    maximize: bool = False
    value: float | None = None
    loss: float | None = None
    """The validation loss; it chooses among jobs with equal values."""


class Results:
    """The results of a sweep, by their jobs' names."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        """`keys` are the config keys that vary."""
        self.folder, self.keys = folder, keys
        self._by_name: dict[str, Result] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def add(self, job: Job, outcome: Outcome) -> Result:
        """Record how a job ended; the value comes from its folder."""
        result, file = Result(job, outcome), job.folder / "summary.json"
        if outcome.status == "done" and file.is_file():
            summary = json.loads(file.read_text(encoding="utf-8"))
            if watched := summary.get("monitor"):
                name = watched["name"]
                value = summary["metrics"].get(name)
                defined = value if value == value else None  # a correlation of one row is NaN
                result = Result(job, outcome, name, watched["maximize"], defined, summary["metrics"].get(LOSS))
        self._by_name[job.name] = result
        return result

    def count(self, status: str) -> int:
        return sum(result.outcome.status == status for result in self._by_name.values())

    def comparable_results(self) -> list[Result]:
        """Return the results that have a value to compare."""
        return [result for result in self._by_name.values() if result.value is not None]

    def write(self) -> None:
        """Write results.csv."""
        with write_atomically(self.folder / "results.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["job", *self.keys, "status", "metric", "value", "seconds", "message"])
            for result in self._by_name.values():
                job, outcome = result.job, result.outcome
                settings = dict(override.partition("=")[::2] for override in job.varied)
                values = redact([settings.get(key, " ".join(job.varied)) for key in self.keys])
                rows.writerow(
                    [job.name, *values, outcome.status, result.metric, result.value, f"{outcome.seconds:.1f}", outcome.message]
                )

    def table(self) -> Table:
        metric = next((result.metric for result in self._by_name.values() if result.metric), "metric")
        rows = []
        for result in self._by_name.values():
            settings, outcome = " ".join(result.job.varied) or result.job.name, result.outcome
            value = "–" if result.value is None else f"{result.value:.4f}"
            why = outcome.message.splitlines()[0] if outcome.message else ""
            rows.append([settings, outcome.status, value, f"{outcome.seconds:.0f}", why])
        return Table(str(self.folder), ["job", "status", metric, "seconds", "why"], rows)

    def best(self) -> str:
        """Return a line with the best overrides, by the mean over seeds, for a command line."""
        trained = self.comparable_results()
        first, by_settings = trained[0], dict[tuple[str, ...], list[Result]]()
        for result in trained:
            settings = tuple(override for override in result.job.varied if not override.startswith("seed="))
            by_settings.setdefault(settings, []).append(result)
        scores = {settings: mean(result.value or 0.0 for result in results) for settings, results in by_settings.items()}
        top = (max if first.maximize else min)(scores.values())
        equal = {settings: by_settings[settings] for settings, score in scores.items() if score == top}
        losses = {
            settings: mean(result.loss if result.loss is not None else math.inf for result in results)
            for settings, results in equal.items()
        }
        best = min(losses, key=lambda settings: losses[settings])
        seeds = f", the mean of {len(equal[best])} seeds" if len(equal[best]) > 1 else ""
        chosen = ""
        if len(equal) > 1:
            is_first = list(losses.values()).count(losses[best]) == len(losses)
            chosen = f"; {len(equal)} have this value, " + (
                "and the first is named" if is_first else f"chosen by {LOSS} {losses[best]:.4f}"
            )
        return f"best: {shlex.join(best) or 'as it is'} · {first.metric} {top:.4f}{seeds}{chosen}"
