"""Read run folders back: one `Run` a folder, runs that differ only by seed gathered in a `Group`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from llm_lightning.config import flat
from llm_lightning.errors import UserError

PERSONAL = {"seed", "run_dir", "resume", "command", "cache_dir", "choices", "logger", "debug", "run"}
"""Settings that do not make two runs different things."""


@dataclass(frozen=True)
class Run:
    """What one run left."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        return {name: value for name, value in self.summary["metrics"].items() if value is not None}

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Each metric of metrics.csv as (step, value) pairs."""
        found: dict[str, list[tuple[float, float]]] = {}
        file = self.folder / "metrics.csv"
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as rows:
                for row in csv.DictReader(rows):
                    for name, value in row.items():
                        if value and "/" in name:
                            found.setdefault(name, []).append((float(row["step"]), float(value)))
        return found

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Tables of each split: confusion matrix, per-class scores."""
        return {
            file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted((self.folder / "evaluation").glob("*.json"))
        }


@dataclass(frozen=True)
class Group:
    """Runs of one configuration with different seeds."""

    name: str
    runs: list[Run]

    def value(self, pick: Any) -> tuple[float | None, float | None]:
        """(mean, standard deviation) over the seeds of what `pick` takes from a run; None where there is nothing to take."""
        values = [float(value) for run in self.runs if (value := pick(run)) is not None]
        return (mean(values) if values else None, stdev(values) if len(values) > 1 else None)


def load(folder: Path) -> Run:
    """Raises UserError where the folder's summary cannot be read."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return Run(folder, {"metrics": {}, "throughput": {}, "seconds": {}, "energy": {}, **summary}, config)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder}: not a readable run ({error}); finish it, or leave it out.") from error


def find(folders: Iterable[Path]) -> list[Run]:
    """Every finished run in or below the folders, in order of their paths. Raises UserError where there is none."""
    folders = list(folders)
    found = sorted({file.parent for folder in folders for file in folder.rglob("summary.json")})
    if not found:
        places = ", ".join(map(str, folders))
        raise UserError(
            f"{places}: no finished run in or below (a run folder holds summary.json); train one first, or give its folder."
        )
    return [load(folder) for folder in found]


def grouped(runs: list[Run]) -> list[Group]:
    """Runs gathered by configuration, named by what tells them apart."""
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        settings = {key: value for key, value in run.config.items() if key not in PERSONAL}
        by_settings.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    groups = list(by_settings.values())
    own = [flat({k: v for k, v in members[0].config.items() if k not in PERSONAL}) for members in groups]
    return [Group(_name(members[0], settings, own), members) for members, settings in zip(groups, own, strict=True)]


def _name(run: Run, settings: dict[str, Any], everyone: list[dict[str, Any]]) -> str:
    """Objective and data, the origin of the weights, and the settings in which this group differs from others of its kind."""
    alike = [other for other in everyone if other["objective._target_"] == settings["objective._target_"]]
    keys = ("model.init_from", "model.name_or_path")
    differing = [key for key in settings if key not in keys and any(other.get(key) != settings[key] for other in alike)]
    origin = settings.get(keys[0]) or settings.get(keys[1])
    start = f"from {Path(origin).name if len(origin) > 30 else origin}" if origin else "from scratch"
    changed = [f"{key.split('.', 1)[-1]}={settings[key]}" for key in differing if not key.endswith("_target_")][:3]
    return " · ".join([run.summary["objective"], run.summary["data"]["name"], start, *changed])
