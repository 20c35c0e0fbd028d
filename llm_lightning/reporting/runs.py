"""Read run folders back: one `Run` a folder, runs that differ only by seed gathered in a `Group`."""

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
from llm_lightning.runs.identity import COMPARED, configuration, select

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What one run left."""

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
        """Each metric of metrics.csv as (step, value) pairs."""
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
        """Tables of each split, validation before test: confusion matrix, per-class scores."""
        return self._evaluations

    @cached_property
    def _evaluations(self) -> dict[str, dict[str, Any]]:
        files = sorted((self.folder / "evaluation").glob("*.json"), reverse=True)
        return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}

    def samples(self) -> list[dict[str, Any]]:
        """What the model wrote behind fixed prompts after each validation."""
        file = self.folder / "samples.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []

    def data(self) -> dict[str, dict[str, Any]]:
        """What is known of each split's text."""
        file = self.folder / "data.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


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

    def values(self, pick: Callable[[Run], float | None]) -> list[float]:
        """What `pick` takes from the run of each seed, where there is something to take."""
        return [float(value) for run in self.runs if (value := pick(run)) is not None]

    def mean(self, pick: Callable[[Run], float | None]) -> float | None:
        """The mean over the seeds; None where there is nothing to take."""
        values = self.values(pick)
        return mean(values) if values else None


def load(folder: Path) -> Run:
    """Raises UserError where the folder's summary cannot be read."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return Run(folder, _fill_summary(summary), config)
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{folder}: not a readable run ({error}); finish it, or leave it out.") from error


def _fill_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary with all that is read of it, also one that is older than some of its parts."""
    filled: dict[str, Any] = {"task": "?", "objective": "?", "steps": 0, "tokens_seen": 0, "seed": 0, "git": None} | summary
    for section in ("metrics", "throughput", "seconds", "energy", "versions", "machine"):
        filled[section] = filled.get(section) or {}
    filled["model"] = {"name": "?", "parameters": 0} | (filled.get("model") or {})
    filled["data"] = {"name": "?", "fingerprint": "", "rows": {}, "tokens": {}} | (filled.get("data") or {})
    return filled


def find(folders: Iterable[Path]) -> list[Run]:
    """Every finished run in or below the folders, in order of their paths; one that cannot be read is named and left out.

    Raises UserError where there is none.
    """
    folders = list(folders)
    run_folders = sorted({file.parent for folder in folders for file in folder.rglob("summary.json")})
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
    """Runs gathered by configuration and data, named by what tells them apart; of the same seed twice, the later run."""
    by_settings: dict[str, dict[Any, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.folder / "summary.json").stat().st_mtime):
        data = run.summary["data"]
        configuration_hash = configuration(run.config, data.get("fingerprints") or data["fingerprint"])
        by_settings.setdefault(configuration_hash, {})[run.summary["seed"]] = run
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
    """Return what of a config tells its runs from those of other configurations, as `a.b.c` -> value."""
    return select(config, COMPARED)


ORIGIN = ("model.init_from", "model.name_or_path")
PLACES = ("data.train", "data.validation", "data.test", "data.dir", "data.name", "data.config", "data.predict")
"""Settings that say which data it is: it has a name."""
FEW = 3  # settings in a name, unless it takes more to tell two apart


def _name(run: Run, everyone: list[Run], most: int | None) -> str:
    """The data and the origin of the weights where they differ, and some of the settings that other runs like it do not have."""
    run_settings = settings(run.config)
    alike = [other for other in everyone if other.summary["objective"] == run.summary["objective"]]
    preset = _preset(run) if len({_preset(other) for other in alike}) > 1 else None
    peers = [other for other in alike if preset is None or _preset(other) == preset]  # a preset has settings of its own
    others = [settings(other.config) for other in peers]
    near = [
        settings(other.config) for other in peers if other.summary["data"]["name"] == run.summary["data"]["name"]
    ]  # so have data
    origin, origins = _origin(run_settings), {_origin(settings(other.config)) for other in alike}

    def differs(key: str) -> bool:
        return any(other.get(key) != run_settings[key] for other in (near if key.startswith("data.") else others))

    differing = [key for key in run_settings if key not in (*PLACES, *ORIGIN) and differs(key)]
    changed = [_format_setting(key, run_settings[key]) for key in differing][:most]
    data = [run.summary["data"]["name"]] if len({other.summary["data"]["name"] for other in alike}) > 1 else []
    source = f"from {Path(origin).name}" if origin else "from scratch"
    if preset is not None:
        source = f"{preset} · {source}" if run_settings.get(ORIGIN[0]) else preset
    source_parts = [source] if preset is not None or len(origins) > 1 or not changed else []
    return " · ".join([*data, *source_parts, *changed])


def _origin(run_settings: dict[str, Any]) -> str | None:
    """Where the weights were had from; None from scratch."""
    return run_settings.get(ORIGIN[0]) or run_settings.get(ORIGIN[1])


def _format_setting(key: str, value: Any) -> str:
    """A setting in a name; a target by the group that it is chosen in: optimizer=muon."""
    if key.endswith("._target_"):
        return f"{key.removesuffix('._target_')}={str(value).rpartition('.')[2]}"
    return f"{key.split('.', 1)[-1]}={f'{value:.3g}' if isinstance(value, float) else value}"


def _preset(run: Run) -> str | None:
    return (run.config.get("choices") or {}).get("model")
