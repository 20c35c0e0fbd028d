"""Reads what W&B keeps of an offline run: a log of protocol buffers in LevelDB's format."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbFile:
    run: Any = None
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    """What define_metric said, by name."""
    artifacts: dict[str, Any] = field(default_factory=dict)
    """By their type."""
    exit_code: int | None = None


def read(folder: Path) -> WandbFile:
    """The newest run in a run folder, which has ended: W&B's process may still be writing its last lines."""
    for _ in range(300):
        if (found := _read(folder)).exit_code is not None:
            break
        time.sleep(0.1)
    return found


def _read(folder: Path) -> WandbFile:
    from wandb.proto import wandb_internal_pb2 as proto

    file = sorted(folder.glob("wandb/*run-*/run-*.wandb"))[-1]
    found = WandbFile()
    for data in _records(file.read_bytes()):
        record = proto.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found.history.append(
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
        elif kind == "summary":
            for item in record.summary.update:
                _set(found.summary, [item.key] if item.key else list(item.nested_key), json.loads(item.value_json))
        elif kind == "config":
            found.config |= {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.config.update}
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            found.artifacts[record.artifact.type] = record.artifact
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _set(target: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        target = target.setdefault(key, {})
    target[keys[-1]] = value


def _records(data: bytes) -> Iterator[bytes]:
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block is too short for another record
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0:
            return
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
