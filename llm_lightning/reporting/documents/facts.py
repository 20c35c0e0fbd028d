"""Gather what a run recorded of its model, its data and its training, for the documents about it."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_lightning.config.schema import DataConfig, expand_home
from llm_lightning.data.paths import SPLITS, match, split_of
from llm_lightning.reporting.card import CLASSES, PIPELINES
from llm_lightning.reporting.runs import Run, load

HASHED_AT_ONCE = 1 << 20
WRITTEN = ("causal_lm", "instruction", "translation")
"""Objectives whose models write text; masked_lm fills in words, the others return labels, scores or spans."""


@dataclass(frozen=True)
class DataFile:
    """A file of the data, as it is on the disk when the documents are written."""

    split: str
    name: str
    """The name without its folders, which are no one's business outside."""
    size: int
    sha256: str | None
    """None if the file was changed after the run ended: it may not be what the run read."""


@dataclass(frozen=True)
class Facts:
    """The record of a finished run, with the values that several documents need."""

    run: Run
    data_config: DataConfig

    @property
    def summary(self) -> dict[str, Any]:
        return self.run.summary

    @property
    def objective(self) -> str:
        return str(self.summary["objective"])

    @property
    def name(self) -> str:
        """The name of the model: its preset or the name of its architecture, and the name of the run's folder."""
        preset = (self.run.config.get("choices") or {}).get("model")
        return f"{preset or hide_folders(str(self.summary['model']['name']))}, run {self.run.folder.resolve().name}"

    @property
    def origin(self) -> str | None:
        """The pretrained model that the run started from, without the folders of a local one; None for a model from scratch."""
        model = self.run.config.get("model") or {}
        origin = model.get("name_or_path") or model.get("init_from")
        return None if origin is None else hide_folders(str(origin))

    @property
    def task(self) -> str:
        """What the model does, as the hub names it."""
        tasks = PIPELINES | CLASSES
        return tasks[self.objective][0] if self.objective in tasks else self.objective.replace("_", "-")

    @property
    def output(self) -> str:
        return {"regression": "number", "masked_lm": "text"}.get(self.objective, "text" if self.objective in WRITTEN else "labels")

    @cached_property
    def architecture(self) -> dict[str, Any]:
        """The config of the exported model."""
        try:
            stored: dict[str, Any] = json.loads((self.run.folder / "hf" / "config.json").read_text(encoding="utf-8"))
            return stored
        except (OSError, ValueError):
            return {}

    @property
    def shape(self) -> str | None:
        """The class, layers and widths of the model."""
        config = self.architecture
        if not config:
            return None
        parts = [str((config.get("architectures") or [config.get("model_type", "")])[0])]
        for title, names in {
            "layers": ("num_hidden_layers", "n_layer", "encoder_layers", "num_layers"),
            "hidden size": ("hidden_size", "n_embd", "d_model"),
            "attention heads": ("num_attention_heads", "n_head", "encoder_attention_heads", "num_heads"),
            "vocabulary": ("vocab_size",),
        }.items():
            if (value := next((config[name] for name in names if config.get(name) is not None), None)) is not None:
                parts.append(f"{value:,} {title}" if title == "layers" else f"{title} {value:,}")
        return ", ".join(parts)

    @property
    def train_tokens(self) -> int | None:
        tokens: int | None = self.summary["data"]["tokens"].get("train")
        return tokens

    @property
    def training_flops(self) -> float | None:
        """The operations of training in matrix products (Chowdhery et al. 2022, appendix B): the rate times the time of the steps."""
        throughput = self.summary["throughput"]
        rate, speed = throughput.get("model_flops_per_second"), throughput.get("tokens_per_second")
        return rate * self.summary["tokens_seen"] / speed if rate and speed else None

    @property
    def hub_data(self) -> str | None:
        """The name of the data set on the Hugging Face hub; None for data from elsewhere."""
        data = self.run.config.get("data") or {}
        if data.get("source") != "hub" or data.get("dir") is not None:
            return None
        return data.get("name")

    @cached_property
    def files(self) -> list[DataFile]:
        """The files of every split that are still there."""
        ended = (self.run.folder / "summary.json").stat().st_mtime
        return [
            DataFile(split, path.name, path.stat().st_size, hash_file(path) if path.stat().st_mtime <= ended else None)
            for split in SPLITS
            for path in self._list_files(split)
        ]

    def _list_files(self, split: str) -> list[Path]:
        data, setting = self.data_config, getattr(self.data_config, split)
        if self.hub_data is not None:
            return []
        if setting is not None:
            matches = [
                path for name in (setting if isinstance(setting, list) else [setting]) for path in match(str(name), data.dir)
            ]
        elif data.dir is not None and expand_home(data.dir).is_dir():
            matches = [path for path in sorted(expand_home(data.dir).iterdir()) if split_of(Path(path.name)) == split]
        else:
            matches = []
        return [
            file for path in matches for file in ([path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()))
        ]

    @cached_property
    def weights(self) -> dict[str, str]:
        """The files of the exported weights, with the SHA-256 of each."""
        return {path.name: hash_file(path) for path in sorted((self.run.folder / "hf").glob("*.safetensors"))}

    @property
    def rows_left_out(self) -> int | None:
        """The rows that data.clean left out of train, by data_cleaned.csv; None if the run has no such file."""
        file = self.run.folder / "data_cleaned.csv"
        if not file.is_file():
            return None
        with file.open(newline="", encoding="utf-8") as lines:
            return sum(1 for _ in csv.DictReader(lines))


def read_facts(folder: Path, data_config: DataConfig) -> Facts:
    """Read the facts of a finished run. Raises UserError if its summary cannot be read."""
    return Facts(load(folder), data_config)


def hide_folders(name: str) -> str:
    """Return the name of a model on the hub as it is, and of a local folder its own name alone."""
    is_local = name.startswith(("/", ".", "~")) or name.count("/") > 1 or expand_home(name).is_dir()
    return f"{Path(name).name} (a local folder)" if is_local else name


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()
