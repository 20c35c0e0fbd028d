"""Tell where a callback of Lightning's holds averaged weights, which are in the model for validations and from the end of training on."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import WeightAveraging


def averages_weights(trainer: Any) -> bool:
    """Return whether a callback averages weights; the same on every rank."""
    return any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)


def remove_averaging(trainer: Any) -> None:
    """Remove the callbacks that average weights: in later evaluations they would put the last average into any model."""
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, WeightAveraging)]
