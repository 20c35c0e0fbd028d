"""What every benchmark prints and keeps: a table, and JSON with machine, versions and command."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from settings import TINY

from llm_lightning.machine import bf16_unit
from llm_lightning.runs.versions import git_commit, package_versions

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    model = names[0] if names else platform.machine()
    described: dict[str, Any] = {"cpu": model, "bf16": bf16_unit("cpu"), "cores": os.cpu_count(), "system": platform.system()}
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        described |= {"gpu": torch.cuda.get_device_name(), "gpu_gib": memory, "driver": driver(), "cuda": torch.version.cuda}
    return described


@functools.cache
def driver() -> str | None:
    """Return the version of NVIDIA's driver, None where it cannot be asked."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def report(
    name: str, columns: list[str], rows: list[list[Any]], facts: dict[str, Any] | None = None, accelerator: str = "cpu"
) -> None:
    """Print the rows, and write them as `write_results` does."""
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(
            *(
                f"{cell:,.3g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else escape(str(cell))
                for cell in row
            )
        )
    Console(width=120).print(table)
    write_results(name, columns, rows, facts, accelerator)


def write_results(
    name: str, columns: list[str], rows: list[list[Any]], facts: dict[str, Any] | None = None, accelerator: str = "cpu"
) -> None:
    """Write the rows to results/<name>.json, or <name>.fp32.json where `accelerator` has no bf16; tiny ones are not written.

    `facts` are written beside the rows.
    """
    if TINY:
        return
    kept = {
        "rows": [{name: _finite(cell) for name, cell in zip(columns, row, strict=True)} for row in rows],
        **(facts or {}),
        "machine": machine(),
        "versions": package_versions(),
        "commit": git_commit(),
        "command": shlex.join(["python", *sys.argv]),
    }
    RESULTS.mkdir(exist_ok=True)
    kind = "" if bf16_unit(accelerator) else ".fp32"
    (RESULTS / f"{name}{kind}.json").write_text(json.dumps(kept, indent=2, allow_nan=False) + "\n")


def _finite(cell: Any) -> Any:
    """What JSON has no number for is null there: never reached, or nothing to compare with."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
