"""States to which a rank reduces its evaluation batches, and their merge over all ranks.

A state is updated batch by batch, has a bounded size, and is merged over ranks once, at the end of a pass. Every merge is independent
of the order of batches and ranks, so that the figures equal those of one process to the last digit: whole numbers are added up, fractions
are rounded to whole numbers of a small unit first (`counts.Calibration`) or added up exactly (`losses.ExactSum`), and single rows are
sorted by their number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from llm_lightning import distributed

States = dict[str, Any]
"""The states of an objective's pass over a split, by their names."""


class State:
    """A part of an evaluation that is merged over ranks. Subclasses define `update`, and the values to merge."""

    def sums(self) -> list[np.ndarray]:
        """Return the int64 arrays that add up over ranks, of the same shapes on every rank; they are changed in place."""
        return []

    def payload(self) -> Any:
        """Return the part that the other ranks need beside the sums: a small value that can be pickled."""
        return None

    def merge(self, payloads: list[Any]) -> None:
        """Replace the payload of this state by the payloads of all ranks, this rank included, which come in any order."""


def merge_over_ranks(states: Iterable[State], device: torch.device) -> None:
    """Merge each state over all ranks, on every rank. A collective: arrays are added up on `device`, payloads are gathered once."""
    states = list(states)
    if distributed.world_size() == 1:
        return
    for array in (array for state in states for array in state.sums()):
        total = torch.from_numpy(array).to(device)
        torch.distributed.all_reduce(total)
        array[...] = total.cpu().numpy()
    gathered = distributed.gather([state.payload() for state in states])
    for state, *payloads in zip(states, *gathered, strict=True):
        state.merge(payloads)
