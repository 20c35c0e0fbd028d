"""Read run folders: one `Run` per folder; a `Group` holds runs that differ only by seed."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from llm_lightning.errors import UserError
from llm_lightning.runs.identity import COMPARED, configuration_hash, select

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        return {name: value for name, value in self.summary["metrics"].items() if value is not None}

    @property
    def title(self) -> str:
        return f"{self.summary['objective']} on {self.summary['data']['name']}"

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Return each metric of metrics.csv as (step, value) pairs."""
        points_by_metric: dict[str, list[tuple[float, float]]] = {}
        file = self.folder / "metrics.csv"
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as rows:
                for row in csv.DictReader(rows):
                    for name, value in row.items():
                        if value and "/" in name:
                            points_by_metric.setdefault(name, []).append((float(row["step"]), float(value)))
        return points_by_metric

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Return the tables of each split, validation before test: confusion matrix, per-class scores."""
        return self._evaluations

    @cached_property
    def _evaluations(self) -> dict[str, dict[str, Any]]:
        files = sorted((self.folder / "evaluation").glob("*.json"), reverse=True)
        return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}

    def samples(self) -> list[dict[str, Any]]:
        """Return the model's continuations of fixed prompts after each validation."""
        file = self.folder / "samples.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []

    def data(self) -> dict[str, dict[str, Any]]:
        """Return the data card of each split."""
        file = self.folder / "data.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@dataclass(frozen=True)
class Group:
    """Runs of one configuration on the same data, with different seeds; its name is unique among groups of its objective."""

    name: str
    runs: list[Run]

    @property
    def objective(self) -> str:
        return str(self.runs[0].summary["objective"])

    @property
    def data(self) -> str:
        return str(self.runs[0].summary["data"]["name"])

    def values(self, pick: Callable[[Run], float | None]) -> list[float]:
        """Return the value that `pick` returns for the run of each seed, without None."""
        return [float(value) for run in self.runs if (value := pick(run)) is not None]

    def mean(self, pick: Callable[[Run], float | None]) -> float | None:
        """Return the mean over the seeds; None if `pick` returns None for all."""
        values = self.values(pick)
        return mean(values) if values else None


def load(folder: Path) -> Run:
    """Read the run of a folder. Raises UserError if its summary cannot be read."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return Run(folder, _fill_summary(summary), config)
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{folder}: not a readable run ({error}); finish it, or leave it out.") from error


def _fill_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary with every entry that readers use, also for a summary of an older version."""
    filled: dict[str, Any] = {"task": "?", "objective": "?", "steps": 0, "tokens_seen": 0, "seed": 0, "git": None} | summary
    for section in ("metrics", "throughput", "seconds", "energy", "versions", "machine"):
        filled[section] = filled.get(section) or {}
    filled["model"] = {"name": "?", "parameters": 0} | (filled.get("model") or {})
    filled["data"] = {"name": "?", "fingerprint": "", "rows": {}, "tokens": {}} | (filled.get("data") or {})
    return filled


def find(folders: Iterable[Path]) -> list[Run]:
    """Return every finished run in or below the folders, in order of their paths. A run that cannot be read is named and left out.

    Raises UserError if no run is left.
    """
    folders = list(folders)
    run_folders = sorted(
        {
            file.parent
            for folder in folders
            for file in folder.rglob("summary.json")
            if file.relative_to(folder).parts[-3:-2] != ("folds",)  # the runs of data.folds serve the run above them
        }
    )
    if not run_folders:
        places = ", ".join(map(str, folders))
        raise UserError(
            f"{places}: no finished run in or below (a run folder holds summary.json); train one first, or give its folder."
        )
    runs, problems = [], []
    for folder in run_folders:
        try:
            runs.append(load(folder))
        except UserError as error:
            problems.append(str(error))
    if not runs:
        raise UserError(problems[0])
    for problem in problems:
        log.warning("left out: %s", problem)
    return runs


def group_runs(runs: list[Run]) -> list[Group]:
    """Return runs grouped by configuration and data, named by their differences; of two runs with the same seed, the later."""
    by_settings: dict[str, dict[Any, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.folder / "summary.json").stat().st_mtime):
        data = run.summary["data"]
        settings = configuration_hash(run.config, data.get("fingerprints") or data["fingerprint"])
        by_settings.setdefault(settings, {})[run.summary["seed"]] = run
    kept_ids = {id(run) for members in by_settings.values() for run in members.values()}
    order = {id(run): place for place, run in enumerate(runs)}
    groups = [sorted(members.values(), key=lambda run: order[id(run)]) for members in by_settings.values()]
    groups.sort(key=lambda members: order[id(members[0])])
    if len(kept_ids) < len(runs):
        log.info("%s runs of a seed that a later run repeats are left out", len(runs) - len(kept_ids))
    firsts = [members[0] for members in groups]
    names = [_name(first, firsts, FEW) for first in firsts]
    alike = {name for name, count in Counter(names).items() if count > 1}
    names = [_name(first, firsts, None) if name in alike else name for name, first in zip(names, firsts, strict=True)]
    return [Group(name, members) for name, members in zip(names, groups, strict=True)]


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a config that distinguish its runs from those of other configurations, as `a.b.c` -> value."""
    return select(config, COMPARED)


ORIGIN = ("model.init_from", "model.name_or_path")
PLACES = ("data.train", "data.validation", "data.test", "data.dir", "data.name", "data.config", "data.predict")
"""Settings that choose the data; names of groups use the data's name instead."""
FEW = 3  # settings in a name, unless two names need more to differ


def _name(run: Run, everyone: list[Run], most: int | None) -> str:
    """Return a run's name: the data and the origin of the weights if they differ between runs, and some settings that other runs lack."""
    run_settings = settings(run.config)
    alike = [other for other in everyone if other.summary["objective"] == run.summary["objective"]]
    preset = _preset(run) if len({_preset(other) for other in alike}) > 1 else None
    peers = [other for other in alike if preset is None or _preset(other) == preset]  # a preset has settings of its own
    others = [settings(other.config) for other in peers]
    # so have data
    near = [settings(other.config) for other in peers if other.summary["data"]["name"] == run.summary["data"]["name"]]
    origin, origins = _origin(run_settings), {_origin(settings(other.config)) for other in alike}

    from_scratch = [other for other in others if _origin(other) is None]  # a checkpoint has the settings of its own config

    def differs(key: str) -> bool:
        compared = near if key.startswith("data.") else from_scratch if key.startswith("model.config.") else others
        return any(other.get(key) != run_settings[key] for other in compared)

    differing = [key for key in run_settings if key not in (*PLACES, *ORIGIN) and differs(key)]
    changed = [_format_setting(key, run_settings[key]) for key in differing][:most]
    data = [run.summary["data"]["name"]] if len({other.summary["data"]["name"] for other in alike}) > 1 else []
    source = f"from {Path(origin).name}" if origin else "from scratch"
    if preset is not None:
        source = f"{preset} · {source}" if run_settings.get(ORIGIN[0]) else preset
    source_parts = [source] if preset is not None or len(origins) > 1 or not changed else []
    return " · ".join([*data, *source_parts, *changed])


def _origin(run_settings: dict[str, Any]) -> str | None:
    """Return the origin of the weights; None for a model from scratch."""
    return run_settings.get(ORIGIN[0]) or run_settings.get(ORIGIN[1])


def _format_setting(key: str, value: Any) -> str:
    """Format a setting for a name; a target by the group that it is chosen in: optimizer=muon."""
    if key.endswith("._target_"):
        return f"{key.removesuffix('._target_')}={str(value).rpartition('.')[2]}"
    return f"{key.split('.', 1)[-1]}={f'{value:.3g}' if isinstance(value, float) else value}"


def _preset(run: Run) -> str | None:
    return (run.config.get("choices") or {}).get("model")
