"""Say what to do about a single row that does not fit into memory."""

from __future__ import annotations

from llm_lightning.data.collate import MicroBatch


def advise_on_row(batch: MicroBatch) -> tuple[str, str]:
    """Return (what a batch of one row is, what to do if memory does not hold it), for a message."""
    if batch.window_rows is None:
        return "a single sequence", "lower data.block_size, or choose a smaller model"
    return (
        f"the {len(batch.window_rows)} windows of a row",
        "set trainer.recompute=layers, which takes a quarter of the memory, lower data.overlap, or choose a smaller model",
    )
