"""Seconds and memory that planning an epoch takes, and milliseconds to deal one of its steps: `python benchmarks/plan.py`.

Each size is planned in a process of its own, whose peak memory is that of the plan and the interpreter with numpy. A step of
64 x 2,048 rows is dealt to one of 64 ranks, which also counts the micro-batches of the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
from common import report
from settings import pick

from llm_lightning.config.schema import BatchConfig
from llm_lightning.data.plan import Plan

CODE = """
import json, resource, sys, time
import numpy as np
from llm_lightning.config.schema import BatchConfig
from llm_lightning.data.plan import Plan

count, kind = int(sys.argv[1]), sys.argv[2]
lengths = np.minimum(np.random.default_rng(0).lognormal(4.5, 1.0, count).astype(np.int32) + 1, 1024)
spec = BatchConfig(tokens=65_536) if kind == "tokens" else BatchConfig()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
plan = Plan(lengths, spec, 0, 1024 if kind == "packed" else None)
prepared = time.perf_counter()
epoch = plan.epoch_plan(0)
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([prepared - started, done - prepared, len(epoch), peak / 1024, (peak - before) / 1024]))
"""

rows = []
for kind in ("sequences", "tokens", "packed"):
    for count in pick((10**5, 10**6, 10**7), (10**3,)):
        said = subprocess.run([sys.executable, "-c", CODE, str(count), kind], capture_output=True, text=True, check=True).stdout
        once, epoch, steps, peak, more = json.loads(said)
        rows.append([kind, count, once, epoch, steps, round(peak), round(more)])
report("plan", ["batch", "sequences", "seconds once", "seconds an epoch", "steps", "peak MiB", "of which the plan"], rows)

WORLD, ROWS = pick((64, 2048), (16, 4))
lengths = np.minimum(np.random.default_rng(0).lognormal(4.5, 1.0, pick(4_000_000, 1000)).astype(np.int32) + 1, 1024)
rows = []
for row_size in (None, 1024):
    for bounds in ({"micro_sequences": 1}, {"micro_sequences": 8}, {"micro_tokens": 8192}):
        spec = BatchConfig(sequences=WORLD * ROWS, **bounds)
        epoch, times = (plan := Plan(lengths, spec, 0, row_size)).epoch_plan(0), []
        for step in list(range(len(epoch) - 1)) * 5:  # the last step is smaller
            started = time.perf_counter()
            micro_batches, _ = epoch.micro_batches(step, plan.lengths, spec, 13, WORLD)
            times.append(time.perf_counter() - started)
        kind = "packed" if row_size else "single sequences"
        rows.append([kind, str(bounds), len(micro_batches), float(1000 * np.median(times)), 1000 * max(times)])
report("deal", ["rows", "bound", "micro-batches of the rank", "median ms", "most ms"], rows)
