"""Every benchmark runs to its end, in its tiny size; figures of that size are neither shown to anyone nor kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import DATA, ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if "import report" in path.read_text(encoding="utf-8"))
NEEDS = {
    "finetune_vs_hf.py": ["sst2"],
    "label_errors.py": ["sst2", "ag_news"],
    "inspect_data.py": ["ag_news"],
    "packing_vs_hf.py": ["sst2", "ag_news"],
    "time_to_quality.py": ["sst2", "wikitext2"],
    "windows.py": ["ag_news"],
}


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A home folder in which the cache is that of the other tests."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "llm_lightning").symlink_to(cache)
    return folder


def start(script: str, home: Path, data: Path = DATA) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": path}
    environment |= {"LLM_LIGHTNING_BENCHMARK": "tiny", "LLM_LIGHTNING_DATA": str(data)}
    command = [sys.executable, str(ROOT / "benchmarks" / script)]
    return subprocess.run(command, capture_output=True, text=True, cwd=home, env=environment, timeout=600)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_runs_to_its_end(script: str, home: Path, request: pytest.FixtureRequest) -> None:
    if script in ("finetune_vs_hf.py", "time_to_quality.py", "windows.py"):
        request.getfixturevalue("minilm")
    if missing := [name for name in NEEDS.get(script, []) if not (DATA / name).is_dir()]:
        pytest.skip(f"{DATA} has no {', no '.join(missing)}")
    results = {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    outcome = start(script, home)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert "┃" in outcome.stdout, outcome.stdout  # its table
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks" / "results").glob("*.json")} == results


@pytest.mark.parametrize("script", sorted(NEEDS))
def test_a_benchmark_without_its_data_is_skipped_and_says_so(script: str, tmp_path: Path) -> None:
    outcome = start(script, tmp_path, tmp_path)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    for name in NEEDS[script]:
        assert f"has no {name}" in outcome.stdout or f"no {name} " in outcome.stdout
