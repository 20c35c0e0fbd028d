"""Load Self-Instruct's files: an instruction a line, with one or several instances of input and output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.json_files import parse
from llm_lightning.data.lines import open_lines
from llm_lightning.data.paths import content_hash, split_files
from llm_lightning.data.rows import LINE, PROBLEM, Rows, concatenate
from llm_lightning.data.tables import generate_table

TYPES = {"instruction": "string", "input": "string", "output": "string", LINE: "int64", PROBLEM: "string"}


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Return a row for each instance: instruction, input, output."""
    return {
        split: concatenate([_read(f, data, cache_dir) for f in files]) for split, files in split_files(data, (".jsonl",)).items()
    }


def _read(path: Path, data: DataConfig, cache_dir: Path) -> Rows:
    identity = content_hash([path], "self_instruct 2", data.encoding)
    table = generate_table(_instances, TYPES, cache_dir / "rows" / identity, identity, path=path, data=data)
    numbers = table.data.column(LINE)
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{path}, line {numbers[i].as_py()}")


def _instances(path: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield a row for each instance of each line; an invalid line or instance has a problem."""
    for number, line in enumerate(open_lines(path, data), 1):
        if not line.strip():
            continue
        row = {"instruction": None, "input": None, "output": None, LINE: number, PROBLEM: None}
        task, problem = parse(line.lstrip("\ufeff"))
        if problem is not None:
            yield row | {PROBLEM: problem}
            continue
        instances = task.get("instances") if isinstance(task, dict) else None
        if not isinstance(instances, list):
            yield row | {PROBLEM: "expected an object with an instruction and a list of instances"}
            continue
        for number_of_instance, instance in enumerate(instances, 1):
            if not isinstance(instance, dict):
                yield row | {PROBLEM: f"instance {number_of_instance} is no object of input and output"}
                continue
            values = {"instruction": task.get("instruction"), "input": instance.get("input"), "output": instance.get("output")}
            yield row | (values if (problem := _find_problem(values, number_of_instance)) is None else {PROBLEM: problem})


def _find_problem(values: dict[str, Any], number: int) -> str | None:
    """Return the problem with the values of an instance; None if all are text."""
    for name, value in values.items():
        if not isinstance(value, str):
            place = name if name == "instruction" else f"{name} of instance {number}"
            return f"the {place} is missing" if value is None else f"the {place} is {type(value).__name__}, not text"
    return None
