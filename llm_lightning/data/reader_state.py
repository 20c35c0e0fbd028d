"""Keep the state of a reader of streamed text, and carry it from a loader process into a checkpoint.

A reader's pool holds some 64 rows of text. With each step a reader sends the change of its state: the pieces added to the pool and the
places of the pieces taken from it, about four bytes for each token of the step. The training process applies the changes to a copy of the
state, in the order of the trained steps, so a state can be saved after any step. Changes are NumPy arrays: a tensor that one process
sends to another takes an open file in both.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Piece = np.ndarray
"""(n + 1,) int32: tokens with n targets."""


@dataclass(frozen=True)
class ReaderChange:
    """The change that the rows of one step make in the state of their reader."""

    reader: int
    tokens: np.ndarray
    """(tokens,) int32: the pieces added to the pool, concatenated."""
    lengths: np.ndarray
    """(pieces,) int32: tokens of each added piece."""
    added: np.ndarray
    """(rows,) int32: the number of pieces added before each row was taken."""
    taken: np.ndarray
    """(pieces,) int32: the places in the pool of the pieces of each row, row after row."""
    row_sizes: np.ndarray
    """(rows,) int32: pieces of each row."""
    documents: dict[str, Any] | None
    """The position in the documents after the step."""
    epoch: int

    @staticmethod
    def of_rows(reader: int, rows: list[tuple[list[Piece], list[int]]], state: ReaderState) -> ReaderChange:
        """Build the change of a step from each of its rows' (pieces added before it, places of its own), and the state after it."""
        pieces = [piece for added, _ in rows for piece in added]
        return ReaderChange(
            reader,
            np.concatenate([np.zeros(0, np.int32), *pieces]),
            np.array([len(piece) for piece in pieces], np.int32),
            np.array([len(added) for added, _ in rows], np.int32),
            np.array([place for _, places in rows for place in places], np.int32),
            np.array([len(places) for _, places in rows], np.int32),
            state.documents,
            state.epoch,
        )


@dataclass
class ReaderState:
    """The state that determines the next rows of a reader."""

    pool: list[Piece] = field(default_factory=list)
    documents: dict[str, Any] | None = None
    """The position in the documents, in the form of `datasets`; None at their start."""
    epoch: int = 0
    """How often the documents were read to their end."""
    rows: int = 0
    """Rows taken so far."""

    def take(self, places: Sequence[int]) -> list[Piece]:
        """Remove a row's pieces from the pool and return them. The last pieces of the pool move to the places that become free."""
        row = [self.pool[place] for place in places]
        for place in sorted(places, reverse=True):
            self.pool[place] = self.pool[-1]
            self.pool.pop()
        self.rows += 1
        return row

    def apply(self, change: ReaderChange) -> None:
        """Apply the change that a step made to the reader's own state. Changes have to be applied in the order of the steps."""
        pieces = iter(np.split(change.tokens, np.cumsum(change.lengths)[:-1]))
        places = iter(np.split(change.taken, np.cumsum(change.row_sizes)[:-1]))
        for added in change.added.tolist():
            self.pool.extend(next(pieces).copy() for _ in range(added))  # a view would keep all tokens of the step in memory
            self.take(next(places).tolist())
        self.documents, self.epoch = change.documents, change.epoch

    def copy(self) -> ReaderState:
        """Return an independent copy of the state. Pieces are shared, as no code writes to them."""
        return ReaderState(list(self.pool), copy.deepcopy(self.documents), self.epoch, self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors: a checkpoint is read with weights_only=True."""
        lengths = torch.tensor([len(piece) for piece in self.pool], dtype=torch.int32)
        tokens = torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *self.pool]))
        return {"tokens": tokens, "lengths": lengths, "documents": self.documents, "epoch": self.epoch, "rows": self.rows}

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> ReaderState:
        """Build the state that `state_dict` returned, in this version or in one that kept each piece by itself."""
        if "pool" in state:
            return ReaderState([piece.numpy() for piece in state["pool"]], state["documents"], state["epoch"], state["drawn"])
        pieces = [piece.numpy() for piece in state["tokens"].split(state["lengths"].tolist())] if len(state["lengths"]) else []
        return ReaderState(pieces, state["documents"], state["epoch"], state["rows"])
