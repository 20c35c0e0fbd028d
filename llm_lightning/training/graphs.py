"""Run forward and backward passes as CUDA graphs: one call starts all kernels of a micro-batch; started one by one, they would keep the
GPU waiting.

A graph replays kernels on the memory they had when it was captured. So each shape of batch has its own graph, batches are padded to few
shapes (`data/buckets.py`), and gradients keep their memory from step to step. The first batch of a shape runs as usual; the second one is
captured.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from llm_lightning.data.buckets import fill
from llm_lightning.data.collate import MicroBatch
from llm_lightning.errors import first_line

log = logging.getLogger(__name__)

MAX_GRAPHS = 64
"""Graphs that are kept; the least recently used one is dropped. Each holds the addresses of its kernels' arguments; all share memory."""

Key = tuple[Any, ...]


class Graphs:
    """Forward and backward passes of one model on one GPU; batches of a shape that recurs run as graphs."""

    def __init__(
        self,
        run_forward_backward: Callable[[MicroBatch, Tensor], Tensor],
        parameters: Sequence[Tensor],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """`run_forward_backward(batch, loss_scale)` adds the gradients of the scaled loss to the parameters', and returns the loss, not
        scaled. `context` is the precision's context, entered around it."""
        self._run_forward_backward, self._parameters, self._context = run_forward_backward, parameters, context
        self._keys_run_once: set[Key] = set()
        self._graphs: OrderedDict[Key, _Graph] = OrderedDict()
        self._pool: Any = None
        self.failure: str | None = None
        """Why nothing is captured any more."""

    def __call__(self, batch: MicroBatch, loss_scale: Tensor, first: bool) -> Tensor:
        """Add a micro-batch's gradients to the parameters', or replace those if it is the `first` of its step. Return its loss."""
        batch = fill(batch)
        key = (first, *shape_of(batch))
        graph = self._graphs.get(key)
        if graph is None and key in self._keys_run_once and self.failure is None:
            graph = self._capture(key, batch, loss_scale, first)
        if graph is not None:
            self._graphs.move_to_end(key)
            return graph(batch, loss_scale)
        self._keys_run_once.add(key)
        return self._run(batch, loss_scale, first)

    def clear(self) -> None:
        """Drop all graphs, since the gradients were freed."""
        self._graphs.clear()
        self._keys_run_once.clear()
        self._pool = None

    def _run(self, batch: MicroBatch, loss_scale: Tensor, first: bool) -> Tensor:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if first and gradients:
            torch._foreach_zero_(gradients)  # private; read in torch 2.13
        with self._context():
            return self._run_forward_backward(batch, loss_scale)

    def _capture(self, key: Key, batch: MicroBatch, loss_scale: Tensor, first: bool) -> _Graph | None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        static_batch, static_scale = batch.clone(), loss_scale.clone()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(loss_scale.device)
        try:
            # other threads keep running, such as the one that pins the next batches' memory
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                loss = self._run(static_batch, static_scale, first)
        except RuntimeError as error:
            self.failure = first_line(error)
            self.clear()
            torch.cuda.empty_cache()
            log.warning("CUDA graphs: left out from now on, as a step cannot be captured (%s)", self.failure)
            return None
        self._keep(key, _Graph(graph, static_batch, static_scale, loss))
        return self._graphs[key]

    def _keep(self, key: Key, graph: _Graph) -> None:
        if len(self._graphs) >= MAX_GRAPHS:
            self._graphs.popitem(last=False)
        self._graphs[key] = graph


class _Graph:
    """A captured pass, and the tensors that it reads and writes."""

    def __init__(self, graph: torch.cuda.CUDAGraph, batch: MicroBatch, loss_scale: Tensor, loss: Tensor) -> None:
        self._graph, self._batch, self._loss_scale, self._loss = graph, batch, loss_scale, loss

    def __call__(self, batch: MicroBatch, loss_scale: Tensor) -> Tensor:
        static_tensors = [*self._batch.tensors().values(), self._loss_scale]
        tensors = [*batch.tensors().values(), loss_scale]
        for static_tensor, tensor in zip(static_tensors, tensors, strict=True):
            static_tensor.copy_(tensor)
        self._graph.replay()
        return self._loss.clone()  # the next graph may write over it


def shape_of(batch: MicroBatch) -> Key:
    """Return the key of a batch's graph: batches with the same key can use the same graph."""
    shapes = ((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.tensors().items())
    return (batch.longest, batch.blank, *shapes)
