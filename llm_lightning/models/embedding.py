"""Embeddings whose gradient is written only in the rows of a batch's tokens: on a CPU, torch clears and reads a matrix as large as the
vocabulary for the few hundred rows that a step of fine-tuning touches.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


class Embedding(nn.Embedding):
    """`nn.Embedding` whose gradient is one tensor for the whole run; after each step only the rows that it wrote are cleared."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gradient: Tensor | None = None
        self.written: list[Tensor] = []
        """The rows of the gradient that may not be zero."""

    def forward(self, ids: Tensor) -> Tensor:
        is_on_cpu = self.weight.device.type == "cpu"
        is_alone = not torch.distributed.is_initialized()  # ranks exchange torch's own gradients
        if is_on_cpu and is_alone and torch.is_grad_enabled() and self.weight.requires_grad:
            rows: Tensor = _Rows.apply(self.weight, ids, self)
            return rows
        return super().forward(ids)

    def add_gradient(self, ids: Tensor, slopes: Tensor) -> None:
        """Add slopes (…, width) to the gradient's rows for ids (…)."""
        if self.padding_idx is not None:
            slopes = slopes.masked_fill((ids == self.padding_idx)[..., None], 0.0)
        if self.weight.grad is None:  # a new step
            if self.gradient is None:
                self.gradient = torch.zeros_like(self.weight)
            for old in self.written:
                self.gradient.index_fill_(0, old, 0.0)
            self.weight.grad, self.written = self.gradient, []
        self.written.append(ids.flatten())
        self.weight.grad.index_add_(0, self.written[-1], slopes.flatten(0, -2))


def count_rows(model: PreTrainedModel) -> int | None:
    """Return the number of token ids with an embedding; None for a model that hashes ids (CANINE)."""
    table = _table(model)
    return None if table is None else int(table.weight.shape[0])


def _table(model: PreTrainedModel) -> Any:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, embedding: Embedding) -> Tensor:
        ctx.embedding = embedding
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ctx.embedding.add_gradient(ids, slopes)
        return None, None, None


@contextmanager
def written_only(model: PreTrainedModel, parameters: list[Tensor]) -> Generator[list[Tensor], None, None]:
    """Yield the parameters, with our embedding replaced by its written rows; changes of their gradients are copied back."""
    table = _table(model)
    if not isinstance(table, Embedding) or table.gradient is None or table.weight.grad is not table.gradient:
        yield parameters
        return
    rows = torch.cat(table.written).unique()
    part = table.gradient[rows].requires_grad_()
    part.grad = part.detach()
    yield [part if parameter is table.weight else parameter for parameter in parameters]
    table.gradient.index_copy_(0, rows, part.grad)


def replace(model: PreTrainedModel) -> None:
    """Replace the model's token embeddings by `Embedding`, unless they are tied to its head, whose gradient fills all rows anyway."""
    plain, head = _table(model), model.get_output_embeddings()
    if type(plain) is nn.Embedding and (head is None or head.weight is not plain.weight):
        table = Embedding(plain.num_embeddings, plain.embedding_dim, plain.padding_idx, device="meta")
        table.weight = plain.weight
        model.set_input_embeddings(table)
