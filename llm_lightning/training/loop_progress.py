"""Correct the progress that Lightning stores of its loops in a checkpoint; its layout is private, read in Lightning 2.6."""

from __future__ import annotations

from typing import Any


def count_batches(loops: dict[str, Any], step: int) -> None:
    """Set the number of trained batches to `step`.

    Lightning saves while it counts the current batch as begun, not as done: a resumed run would be a batch behind.
    """
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(counts, step))


def demand_validation(loops: dict[str, Any]) -> None:
    """Have a resumed run validate before its first step.

    Lightning takes the validation at the step of the checkpoint for done, unless that was begun: then it runs all of it.
    """
    progress = loops["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update({"ready": 1, "started": 1, "processed": 0, "completed": 0})
