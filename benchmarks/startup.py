"""Seconds until something happens: `python benchmarks/startup.py [rounds, 3 by default]`. The best of the rounds, as a cache is warm.

The first step is that of a tiny run on the built-in corpus whose encoding is cached, with default settings; where the time before it goes
is told by what the run's files say by then.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import report
from settings import CORPUS, pick

TRAIN = str(Path(__file__).parents[1] / "train.py")
RUN = [*CORPUS, "model=gpt_tiny", "logger=csv", "trainer.progress=none", "trainer.max_steps=1", "trainer.log_every_steps=1"]


def seconds(arguments: list[str], file: str | None, text: str) -> float:
    """Of a command, to its end or until a file of its run folder has the text in it."""
    with tempfile.TemporaryDirectory() as folder:
        watched = Path(folder) / "run" / file if file else None
        given = [*arguments, f"run_dir={folder}/run"] if watched else arguments
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, TRAIN, *given], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (watched and watched.is_file() and text in watched.read_text(encoding="utf-8")):
            time.sleep(0.01)
        taken = time.perf_counter() - started
        if watched and process.poll() is not None and not (watched.is_file() and text in watched.read_text(encoding="utf-8")):
            raise SystemExit(f"{' '.join(given)} ended with {process.returncode} before '{text}' was in {file}")
        process.kill()
        process.wait()
        return taken


rounds = int(sys.argv[1]) if len(sys.argv) > 1 else pick(3, 1)
rows = []
events: list[tuple[str, list[str], str | None, str]] = [
    ("--help", ["--help"], None, ""),
    ("a wrong value refused", ["optimizer.lr=-1"], None, ""),
    ("a wrong key refused", ["optimiser.lr=1"], None, ""),
    ("data read, model built", RUN, "train.log", "plan:"),
    ("preflight passed", RUN, "train.log", "preflight:"),
    ("first step taken", RUN, "metrics.csv", "train/loss"),
]
for name, arguments, file, text in pick(events, events[1:4:2]):
    rows.append([name, min(seconds(arguments, file, text) for _ in range(rounds))])
report("startup", ["until", "seconds"], rows)
