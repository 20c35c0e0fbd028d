"""Memory and time of the metrics of a large evaluation: `python benchmarks/metrics.py`.

The states of each objective take in rows and classes without a model, on two processes that merge them; each process measures by how
much its peak memory grows beyond that of the imports and of one batch. No process may need more than 2 GiB.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from settings import pick

from llm_lightning.metrics.correlation import correlation, ranks
from llm_lightning.metrics.counts import Calibration, ClassCounts, Confusion, Sums
from llm_lightning.metrics.losses import BatchLosses
from llm_lightning.metrics.ranking import CURVES, LabelScores
from llm_lightning.metrics.rows import SCORED, Rows, TopRows
from llm_lightning.metrics.state import States, merge_over_ranks

ROWS, CLASSES, LABELS, WORLD = pick(10_000_000, 10_000), pick(100_000, 100), 10, 2
BATCH = 2048
LIMIT = 2 << 30

Update = Callable[[States, np.ndarray, np.random.Generator], None]


def classification(rows: int, classes: int) -> tuple[States, Update, Callable[[States], Any]]:
    """The states of the last evaluation of a classifier that is right in two of three rows."""
    drawn = np.arange(CURVES)
    names = [f"class {i}" for i in range(classes)]
    states: States = {"counts": ClassCounts(classes), "calibration": Calibration(rows), "confusion": Confusion(classes, rows)}
    states |= {"scores": LabelScores(CURVES, rows), "examples": Rows(rows), "mistakes": TopRows()}

    def update(states: States, numbers: np.ndarray, rng: np.random.Generator) -> None:
        true = (classes * rng.random(len(numbers)) ** 2).astype(np.int64)
        said = np.where(rng.random(len(numbers)) < 0.67, true, rng.integers(0, classes, len(numbers)))
        confidence = rng.random(len(numbers), dtype=np.float32)
        states["counts"].update(true, said)
        states["calibration"].update(confidence, true == said)
        states["confusion"].update(numbers, true, said)
        states["scores"].update(numbers, rng.random((len(numbers), CURVES), dtype=np.float32), true[:, None] == drawn)
        states["examples"].update(numbers, correct=(true == said).astype(np.uint8))
        states["mistakes"].update(numbers, confidence, true != said, lambda i: (names[true[i]], names[said[i]]))

    def finish(states: States) -> Any:
        counts = states["counts"]
        return {
            "scores": [counts.accuracy(), counts.macro_f1(), counts.mcc(), states["calibration"].error()],
            "per_class": counts.per_class(names),
            "confusions": states["confusion"].top(names),
            "curves": states["scores"].points(names[:CURVES]),
            "examples": states["examples"].table(),
            "mistakes": states["mistakes"].rows(),
        }

    return states, update, finish


def multi_label(rows: int, classes: int) -> tuple[States, Update, Callable[[States], Any]]:
    """The states of an evaluation of LABELS labels: their scores are too many to be kept."""
    states: States = {"scores": LabelScores(LABELS, rows), "counts": Sums(true=LABELS)}

    def update(states: States, numbers: np.ndarray, rng: np.random.Generator) -> None:
        applies = rng.random((len(numbers), LABELS)) < 0.1
        scores = (0.7 * rng.random(applies.shape) + 0.3 * applies).astype(np.float32)
        states["scores"].update(numbers, scores, applies)
        states["counts"]["true"][...] += applies.sum(0)

    def finish(states: States) -> Any:
        threshold = states["scores"].best_threshold()
        return {"map": states["scores"].average_precisions().mean(), "threshold": threshold}

    return states, update, finish


def regression(rows: int, classes: int) -> tuple[States, Update, Callable[[States], Any]]:
    """The states of an evaluation of a regression."""
    states: States = {"rows": Rows(rows, SCORED)}

    def update(states: States, numbers: np.ndarray, rng: np.random.Generator) -> None:
        target = rng.normal(size=len(numbers)).astype(np.float32)
        states["rows"].update(numbers, prediction=target + rng.normal(size=len(numbers)).astype(np.float32), target=target)

    def finish(states: States) -> Any:
        columns = states["rows"].columns()
        a, b = (columns[name].astype(np.float64) for name in ("prediction", "target"))
        return {"pearson": correlation(a, b), "spearman": correlation(ranks(a), ranks(b)), "examples": states["rows"].table()}

    return states, update, finish


def question_answering(rows: int, classes: int) -> tuple[States, Update, Callable[[States], Any]]:
    """The states of an evaluation of windows, before their answers are looked up."""
    states: States = {"windows": Rows(rows, SCORED)}

    def update(states: States, numbers: np.ndarray, rng: np.random.Generator) -> None:
        score, places = rng.random(len(numbers), dtype=np.float32), rng.integers(0, 384, len(numbers)).astype(np.int32)
        columns = {"window": numbers.astype(np.int32), "score": score, "none": score, "first": places, "last": places}
        states["windows"].update(numbers // 2, **columns)

    def finish(states: States) -> Any:
        windows = states["windows"].columns()
        order = np.argsort(windows["window"], kind="stable")
        windows = {name: values[order] for name, values in windows.items()}
        return len(np.unique(windows["number"], return_index=True, return_counts=True)[0])

    return states, update, finish


KINDS = {
    "question_answering": question_answering,
    "classification": classification,
    "multi_label": multi_label,
    "regression": regression,
}


def peak() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def evaluate(rank: int, port: int, kind: str, rows: int, classes: int, results: Any) -> None:
    """Evaluate one rank's batches, merge, make the tables; put (bytes, seconds, bytes of JSON) into `results`."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo")
    make = KINDS[kind]
    states, update, _ = make(BATCH, 10)  # whatever is loaded at the first call is no state
    update(states, np.arange(BATCH), np.random.default_rng(0))
    before, started = peak(), time.perf_counter()
    states, update, finish = make(rows, classes)
    losses = BatchLosses(-(-rows // BATCH))
    for place in range(rank, -(-rows // BATCH), WORLD):
        numbers = np.arange(place * BATCH, min((place + 1) * BATCH, rows))
        update(states, numbers, np.random.default_rng(place))
        losses.update(place, torch.tensor(float(place)), len(numbers))
    merge_over_ranks([losses, *states.values()], torch.device("cpu"))
    written = json.dumps([losses.mean, losses.table(), finish(states)])
    results.put((peak() - before, time.perf_counter() - started, len(written)))
    torch.distributed.destroy_process_group()


def measure(kind: str, rows: int, classes: int) -> dict[str, Any]:
    """Return the most memory that a rank needed in bytes, the seconds it took, and the bytes of its tables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=evaluate, args=(r, port, kind, rows, classes, results)) for r in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"a rank of {kind} ended with {process.exitcode}")
    memory, seconds, size = zip(*(results.get() for _ in processes), strict=True)
    return {"memory": max(memory), "seconds": max(seconds), "tables": max(size)}


if __name__ == "__main__":
    if len(sys.argv) > 1:  # the figures of one, for a test
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
    else:
        from common import report

        rows = []
        for kind in KINDS:
            found = measure(kind, ROWS, CLASSES)
            classes = {"classification": CLASSES, "multi_label": LABELS}.get(kind, 1)
            rows.append([kind, ROWS, classes, found["memory"] / 2**20, found["tables"] / 2**20, found["seconds"]])
            assert found["memory"] < LIMIT
        report("metrics", ["objective", "rows", "classes", "MiB a rank", "MiB of tables", "seconds"], rows)
