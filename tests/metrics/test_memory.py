"""The metrics of many rows and classes need a bounded memory: a tenth of what `benchmarks/metrics.py` measures in full."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ..conftest import ROOT


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_million_rows_and_a_hundred_thousand_classes_fit(kind: str) -> None:
    """Two ranks. All probabilities alone would take 400 GB, a dense confusion matrix 80 GB, and pickled rows several hundred MB."""
    command = [sys.executable, str(ROOT / "benchmarks" / "metrics.py"), kind, "1000000", "100000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.index("{") :])  # behind lines of gloo in torch 2.8
    assert found["memory"] < 600 << 20
    assert found["tables"] < 50 << 20
