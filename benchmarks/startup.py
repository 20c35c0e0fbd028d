"""Seconds until something happens: `python benchmarks/startup.py [rounds, 3 by default]`. The best of the rounds, as a cache is warm.

The first step is that of a tiny run on the built-in corpus whose encoding is cached, with default settings; what goes before it is
given apart, from the times in its log.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import report

TRAIN = str(Path(__file__).parents[1] / "train.py")
TINY = ["model=gpt_tiny", "logger=csv", "trainer.progress=none", "trainer.max_steps=1", "trainer.log_every_steps=1"]


def seconds(*arguments: str, until: str | None = None) -> float:
    """Of a command, to its end or to the first line that has `until` in it."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", TRAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if until is not None and until in line:
            break
    else:
        process.wait()
    taken = time.perf_counter() - started
    process.kill()
    process.wait()
    return taken


rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
rows = []
for name, arguments, until in (
    ("--help", ["--help"], None),
    ("a wrong value refused", ["optimizer.lr=-1"], None),
    ("a wrong key refused", ["optimiser.lr=1"], None),
    ("data read, model built", TINY, "plan:"),
    ("preflight passed", TINY, "preflight:"),
):
    with tempfile.TemporaryDirectory() as folder:
        given = [*arguments, *([f"run_dir={folder}/run", "resume=never"] if until else [])]
        rows.append([name, min(seconds(*(a.replace("/run", f"/{i}") for a in given), until=until) for i in range(rounds))])
report("startup", ["until", "seconds"], rows)
