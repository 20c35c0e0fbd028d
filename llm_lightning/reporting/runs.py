"""Read run folders back: one `Run` a folder, runs that differ only by seed gathered in a `Group`."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from llm_lightning.config import flat
from llm_lightning.errors import UserError

PERSONAL = {"seed", "run_dir", "resume", "command", "cache_dir", "choices", "logger", "debug", "run", "sweep"}
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
        """Tables of each split, validation before test: confusion matrix, per-class scores."""
        files = sorted((self.folder / "evaluation").glob("*.json"), reverse=True)
        return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


@dataclass(frozen=True)
class Group:
    """Runs of one configuration on the same data, with different seeds; the name tells it from others of its objective."""

    name: str
    runs: list[Run]

    @property
    def objective(self) -> str:
        return str(self.runs[0].summary["objective"])

    @property
    def data(self) -> str:
        return str(self.runs[0].summary["data"]["name"])

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
    """Runs gathered by configuration and data, named by what tells them apart."""
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        by_settings.setdefault(configuration(run.config, run.summary["data"]["fingerprint"]), []).append(run)
    groups = list(by_settings.values())
    return [Group(_name(members[0], [other[0] for other in groups]), members) for members in groups]


def configuration(config: dict[str, Any], fingerprint: str) -> str:
    """What the runs of one configuration on the same data share, whatever their seed: a hash of both (hexadecimal)."""
    identity = json.dumps([_decisive(config), fingerprint], sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def _settings(run: Run) -> dict[str, Any]:
    return _decisive(run.config)


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    return flat({key: value for key, value in config.items() if key not in PERSONAL})


ORIGIN = ("model.init_from", "model.name_or_path")


def _name(run: Run, everyone: list[Run]) -> str:
    """The data where they differ, the origin of the weights, and the settings that other runs of its objective do not have."""
    own, alike = _settings(run), [other for other in everyone if other.summary["objective"] == run.summary["objective"]]
    others = [_settings(other) for other in alike]
    origin = own.get(ORIGIN[0]) or own.get(ORIGIN[1])
    differing = [key for key in own if not key.startswith(("data.", *ORIGIN)) and any(o.get(key) != own[key] for o in others)]
    changed = [f"{key.split('.', 1)[-1]}={own[key]}" for key in differing if not key.endswith("_target_")][:3]
    data = [run.summary["data"]["name"]] if len({other.summary["data"]["name"] for other in alike}) > 1 else []
    return " · ".join([*data, f"from {Path(origin).name}" if origin else "from scratch", *changed])
