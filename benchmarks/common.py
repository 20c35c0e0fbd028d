"""What every benchmark prints and keeps: a table, and JSON with machine, versions and command."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from settings import TINY

from llm_lightning.reporting.record import git_commit, versions
from llm_lightning.training.precision import bf16_unit

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    model = names[0] if names else platform.machine()
    return {"cpu": model, "bf16": bf16_unit("cpu"), "cores": os.cpu_count(), "system": platform.system()}


def report(name: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print the rows and write them to results/<name>.json, or <name>.fp32.json on a machine without bf16; tiny ones are not written."""
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(
            *(f"{cell:,.3g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row)
        )
    Console(width=120).print(table)
    if TINY:
        return
    kept = {
        "rows": [{name: _finite(cell) for name, cell in zip(columns, row, strict=True)} for row in rows],
        "machine": machine(),
        "versions": versions(),
        "commit": git_commit(),
        "command": shlex.join(["python", *sys.argv]),
    }
    RESULTS.mkdir(exist_ok=True)
    kind = "" if bf16_unit("cpu") else ".fp32"
    (RESULTS / f"{name}{kind}.json").write_text(json.dumps(kept, indent=2, allow_nan=False) + "\n")


def _finite(cell: Any) -> Any:
    """What JSON has no number for is null there: never reached, or nothing to compare with."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
