"""CUDA graphs of forward and backward passes: the kernels of a micro-batch started by one call, where a program that starts them one by
one would keep the GPU waiting.

A graph replays kernels on the memory that they had when it was captured. So there is one for each shape of batch, batches are filled up
to few shapes (`data/buckets.py`), and gradients stay where they are from step to step. A shape is run as usual when it is met first, and
captured when it is met again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llm_lightning.data.buckets import fill
from llm_lightning.data.collate import MicroBatch

log = logging.getLogger(__name__)

MOST = 64
"""Graphs that are kept, the least used one goes: each holds the addresses of its kernels' arguments, and their memory is shared."""

Key = tuple[Any, ...]


class Graphs:
    """Forward and backward passes of one model on one GPU, by graphs where its batches' shapes come again."""

    def __init__(
        self,
        passes: Callable[[MicroBatch, Tensor], Tensor],
        parameters: Sequence[Tensor],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """`passes` goes forward and backward, given a batch and the factor of its loss, and returns the loss; `context` is that of the
        precision, to be entered around it."""
        self._passes, self._parameters, self._context = passes, parameters, context
        self._seen: set[Key] = set()
        self._graphs: OrderedDict[Key, _Graph] = OrderedDict()
        self._pool: Any = None
        self.failed: str | None = None
        """Why nothing is captured any more."""

    def __call__(self, batch: MicroBatch, factor: Tensor, first: bool) -> Tensor:
        """Add a micro-batch's gradients to the parameters', or replace them where it is the `first` of its step. Returns its loss."""
        batch = fill(batch)
        key = (first, *shape_of(batch))
        graph = self._graphs.get(key)
        if graph is None and key in self._seen and self.failed is None:
            graph = self._capture(key, batch, factor, first)
        if graph is not None:
            self._graphs.move_to_end(key)
            return graph(batch, factor)
        self._seen.add(key)
        return self._run(batch, factor, first)

    def clear(self) -> None:
        """Forget all graphs, as gradients were thrown away."""
        self._graphs.clear()
        self._seen.clear()
        self._pool = None

    def _run(self, batch: MicroBatch, factor: Tensor, first: bool) -> Tensor:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if first and gradients:
            torch._foreach_zero_(gradients)
        with self._context():
            return self._passes(batch, factor)

    def _capture(self, key: Key, batch: MicroBatch, factor: Tensor, first: bool) -> _Graph | None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        static_batch, static_factor, graph = _copy(batch), factor.clone(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize(factor.device)
        try:
            # other threads go on meanwhile, as that which pins the next batches' memory
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                loss = self._run(static_batch, static_factor, first)
        except RuntimeError as error:
            self.failed = str(error).splitlines()[0]
            self.clear()
            torch.cuda.empty_cache()
            log.warning("CUDA graphs: left out from now on, as a step cannot be captured (%s)", self.failed)
            return None
        self._keep(key, _Graph(graph, static_batch, static_factor, loss))
        return self._graphs[key]

    def _keep(self, key: Key, graph: _Graph) -> None:
        if len(self._graphs) >= MOST:
            self._graphs.popitem(last=False)
        self._graphs[key] = graph


class _Graph:
    """A captured pass, and the tensors that it reads and writes."""

    def __init__(self, graph: torch.cuda.CUDAGraph, batch: MicroBatch, factor: Tensor, loss: Tensor) -> None:
        self._graph, self._batch, self._factor, self._loss = graph, batch, factor, loss

    def __call__(self, batch: MicroBatch, factor: Tensor) -> Tensor:
        static_tensors = [*self._batch.tensors().values(), self._factor]
        for into, value in zip(static_tensors, [*batch.tensors().values(), factor], strict=True):
            into.copy_(value)
        self._graph.replay()
        return self._loss.clone()  # the next graph may write over it


def _copy(batch: MicroBatch) -> MicroBatch:
    return replace(batch, **{name: value.clone() for name, value in batch.tensors().items()})  # type: ignore[arg-type]


def shape_of(batch: MicroBatch) -> Key:
    """Return what a graph of a batch can be used for: batches of the same."""
    return (batch.longest, batch.blank, *((name, value.dtype, tuple(value.shape)) for name, value in batch.tensors().items()))
