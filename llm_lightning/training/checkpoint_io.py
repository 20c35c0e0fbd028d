"""Checkpoint files that a kill cannot spoil: written beside their place, flushed, then renamed.

Lightning stages the whole file in memory and in $TMPDIR, then moves it: across file systems that is a plain copy, which a kill
truncates.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads are Lightning's, with weights_only=True; writes replace the file in one step."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(final)
