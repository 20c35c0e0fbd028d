"""Self-Instruct's files: an instruction a line, with one instance of input and output or several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_lightning.config import DataConfig
from llm_lightning.data.json_files import parse
from llm_lightning.data.lines import lines
from llm_lightning.data.paths import content_hash, split_files
from llm_lightning.data.rows import LINE, PROBLEM, Rows, joined
from llm_lightning.data.tables import generated

TYPES = {"instruction": "string", "input": "string", "output": "string", LINE: "int64", PROBLEM: "string"}


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """A row an instance: instruction, input, output."""
    return {split: joined([_read(f, data, cache_dir) for f in files]) for split, files in split_files(data, (".jsonl",)).items()}


def _read(path: Path, data: DataConfig, cache_dir: Path) -> Rows:
    identity = content_hash([path], "self_instruct", data.encoding)
    table = generated(_instances, TYPES, cache_dir / "rows" / identity, identity, path=path, data=data)
    numbers = table.data.column(LINE)
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{path}, line {numbers[i].as_py()}")


def _instances(path: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines(path, data.encoding), 1):
        if not line.strip():
            continue
        row = {"instruction": None, "input": None, "output": None, LINE: number, PROBLEM: None}
        task, problem = parse(line)
        if problem is not None:
            yield row | {PROBLEM: problem}
            continue
        try:
            for instance in task["instances"]:
                yield row | {"instruction": task["instruction"], "input": instance["input"], "output": instance["output"]}
        except (KeyError, TypeError) as error:
            yield row | {PROBLEM: f"expected instruction and instances of input and output ({error} is missing)"}
