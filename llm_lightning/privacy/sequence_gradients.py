"""Record what each sequence's gradient is made of while a model runs forward and backward on a flat batch.

Inside `record`, the modules with trained weights compute by functions whose backward pass stores the parts of the weights' gradients
(`records.py`) instead of the gradients. A module's positions are told apart by its place and by their number: the transformer sees all
tokens, its last layer perhaps those with a target, the head those, or one position a sequence (`models/forward.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm_lightning.data.collate import MicroBatch, rounded
from llm_lightning.errors import UserError
from llm_lightning.models.batch_form import batch_form, is_unpadded, set_batch_form, transformer_of
from llm_lightning.models.embedding import Embedding
from llm_lightning.models.forward import sequence_of
from llm_lightning.privacy.records import Lookup, Matrix, Records, square_matrices


class SequenceGradients:
    """The gradients of each unit in a micro-batch: their norms, and their sum with a factor each."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the modules of the trained weights. Raises UserError if gradients of one cannot be told apart by sequence."""
        self._model = model
        self._modules = _list_modules(model)
        self._places: _Places
        self._records: dict[nn.Parameter, Records] = {}
        self.units = 0

    @contextmanager
    def record(self, batch: MicroBatch, units: Tensor | None = None) -> Iterator[None]:
        """Record the forward and the backward pass of a batch inside. `units` (sequences,): the unit of each; by default its own."""
        sequences = len(batch.indices)
        units = torch.arange(sequences, device=batch.input_ids.device) if units is None else units
        self.units, self._records = int(units.max()) + 1, {}
        self._places = _Places(self._model, batch, units, self.units)
        form = batch_form(self._model)
        set_batch_form(self._model, replace(form, plain_head=False))  # else the head's loss is computed beside the module
        for module, compute in self._modules:
            module.__dict__["forward"] = partial(compute, self, module)  # found before the class's
        try:
            yield
        finally:
            for module, _ in self._modules:
                del module.__dict__["forward"]
            set_batch_form(self._model, form)

    def norms(self) -> Tensor:
        """Return (units,) the norm of each unit's gradient, over all trained weights."""
        alone: dict[int, list[Matrix]] = {}
        """Matrices that are used once, by the tensor of their units."""
        others = []
        for records in self._records.values():
            if records.is_one_product:
                alone.setdefault(id(records.matrices[0].units), []).append(records.matrices[0])
            else:
                others.append(records.squared_norms(self.units))
        squares = [square_matrices(uses, self.units) for uses in alone.values()]
        return torch.stack(squares + others).sum(0).sqrt()

    def add_sum(self, factors: Tensor) -> None:
        """Add Σ f_u G_u to the gradients of the weights, of the last recorded batch; `factors` (units,)."""
        padded = F.pad(factors, (0, 1))
        for parameter, records in self._records.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            records.add_to(parameter.grad, padded)
        self._records = {}

    def units_of(self, module: nn.Module, shape: torch.Size) -> Tensor | None:
        """Return (positions,) the unit of each position of a module's input, given the shape of its leading dimensions.

        None if they cannot be told apart, which is a mistake only where a gradient comes back.
        """
        return self._places.find(module, shape)

    def records_of(self, module: nn.Module, name: str, units: Tensor | None) -> Records | None:
        """Return the records of a module's parameter; None if it is frozen or absent. Raises UserError without `units`."""
        if units is None:
            raise UserError(
                f"privacy: a {type(module).__name__} computes one value for several sequences, so that its gradient cannot be told apart "
                f"by sequence; freeze it (model.freeze), or choose another model."
            )
        parameter = dict(module.named_parameters(recurse=False)).get(name)  # not its bf16 copy, which hides it from `getattr`
        if parameter is None or not parameter.requires_grad:
            return None
        return self._records.setdefault(parameter, Records())

    def add_vectors(self, records: Records, values: Tensor, units: Tensor) -> None:
        """Add the gradients of a vector at each position (positions, …) to those of the units."""
        values = values if values.dtype == torch.float64 else values.float()
        if records.vectors is None:
            records.vectors = values.new_zeros(self.units + 1, values.shape[1])
        records.vectors.index_add_(0, units, values)


class _Places:
    """The units of the positions that the modules of a model see for a batch."""

    def __init__(self, model: PreTrainedModel, batch: MicroBatch, units: Tensor, count: int) -> None:
        self._sequences, self._unpadded = units, is_unpadded(model)
        self._transformer = {id(module) for module in transformer_of(model).modules()} if self._unpadded else set()
        tokens = units[sequence_of(batch)]
        targets = tokens if batch.target_places is None else tokens[batch.target_places]
        if batch.cu_targets is not None:
            targets = torch.repeat_interleave(units, batch.cu_targets.diff(), output_size=len(batch.targets))

        def fill(values: Tensor) -> Tensor:
            return F.pad(values, (0, rounded(len(values)) - len(values)), value=count)

        first = units if batch.target_places is None else targets  # what the last layer may be restricted to
        in_transformer = [units, first, fill(first), fill(tokens)]
        in_head = [tokens, units, fill(targets), targets]
        self._by_length = [{len(values): values for values in options} for options in (in_transformer, in_head)]

    def find(self, module: nn.Module, shape: torch.Size) -> Tensor | None:
        """Return (positions,) the unit of each position; None if they cannot be told apart, as with those of a value for all rows."""
        if not self._unpadded and len(shape) > 1 and shape[0] == len(self._sequences):
            return self._sequences.repeat_interleave(shape[1:].numel())
        options = self._by_length[0 if id(module) in self._transformer else 1]
        if shape.numel() in options:
            return options[shape.numel()]
        axes = [axis for axis, length in enumerate(shape) if length in options and axis]
        if len(axes) != 1 or shape[0] != 1:
            return None
        axis = axes[0]  # norms inside of attention see each position once a head, before or behind it
        each = options[shape[axis]].repeat_interleave(shape[axis + 1 :].numel())
        return each.repeat(shape[1:axis].numel())


def _list_modules(model: PreTrainedModel) -> list[tuple[nn.Module, Any]]:
    """Return the modules with trained weights, each with the function that computes it. LoRA's parts are computed one by one."""
    chosen: list[tuple[nn.Module, Any]] = []
    covered: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            chosen.append((module, lambda _, module, *args, **kwargs: peft.tuners.lora.Linear.forward(module, *args, **kwargs)))
        trained = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
        if trained and (compute := _choose(module)) is not None:
            chosen.append((module, compute))
            covered.update(trained)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter not in covered:
            raise UserError(
                f"privacy: the gradient of {name} cannot be told apart by sequence; freeze it (model.freeze=['{name}']), or choose another "
                f"model."
            )
    return chosen


def _choose(module: nn.Module) -> Any:
    """Return the function that computes a module and records its gradients; None if there is none for its kind."""
    if isinstance(module, nn.Linear):
        return _linear
    if isinstance(module, Conv1D):
        return _conv1d
    if isinstance(module, nn.Embedding):
        return _embedding
    if isinstance(module, nn.LayerNorm):
        return _layer_norm
    parameters = dict(module.named_parameters(recurse=False))
    if list(parameters) == ["weight"] and parameters["weight"].dim() == 1:
        return _scale_by_weight
    return None


def _linear(gradients: SequenceGradients, module: Any, x: Tensor) -> Tensor:
    return _Product.apply(x, module.weight, module.bias, gradients, module, False)


def _conv1d(gradients: SequenceGradients, module: Any, x: Tensor) -> Tensor:
    return _Product.apply(x, module.weight, module.bias, gradients, module, True)


def _embedding(gradients: SequenceGradients, module: Any, *args: Any, **kwargs: Any) -> Tensor:
    if type(module) in (nn.Embedding, Embedding):
        return _Rows.apply(module.weight, args[0], gradients, module)
    with _RecordedLookup(gradients, module):  # a subclass may scale the rows, or compute the positions
        return type(module).forward(module, *args, **kwargs)


class _RecordedLookup(TorchFunctionMode):
    """Records the lookup inside of an embedding's own forward pass."""

    def __init__(self, gradients: SequenceGradients, module: Any) -> None:
        super().__init__()
        self._gradients, self._module = gradients, module

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.embedding:
            return _Rows.apply(args[1], args[0], self._gradients, self._module)
        return function(*args, **(kwargs or {}))


def _layer_norm(gradients: SequenceGradients, module: Any, x: Tensor) -> Tensor:
    normal = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    return _Affine.apply(normal, module.weight, module.bias, gradients, module)


def _scale_by_weight(gradients: SequenceGradients, module: Any, x: Tensor) -> Tensor:
    """Compute a module whose only parameter multiplies its input element by element (RMSNorm), with a copy of it for each position."""
    weight = module.weight
    hidden = "weight" in module.__dict__
    module.__dict__["weight"] = _Copies.apply(weight, x.shape[:-1], gradients, module)
    try:
        return type(module).forward(module, x)
    finally:
        if hidden:
            module.__dict__["weight"] = weight
        else:
            del module.__dict__["weight"]


class _Product(torch.autograd.Function):
    """x Wᵀ + b, or x W + b for W as Conv1D has it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gradients: SequenceGradients, module: nn.Module, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.given = gradients, module, transposed, gradients.units_of(module, x.shape[:-1])
        return F.linear(x, weight.T if transposed else weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradients, module, transposed, units = ctx.given
        rows, columns = grad.flatten(0, -2), x.flatten(0, -2)
        if (records := gradients.records_of(module, "weight", units)) is not None:
            records.matrices.append(Matrix(columns, rows, units) if transposed else Matrix(rows, columns, units))
        if (records := gradients.records_of(module, "bias", units)) is not None:
            gradients.add_vectors(records, rows, units)
        of_x = (grad @ (weight.T if transposed else weight)) if ctx.needs_input_grad[0] else None
        return of_x, None, None, None, None, None


class _Rows(torch.autograd.Function):
    """The rows of a table at ids."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, gradients: SequenceGradients, module: Any) -> Tensor:
        ctx.given = ids, gradients, module, gradients.units_of(module, ids.shape)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        ids, gradients, module, units = ctx.given
        if (records := gradients.records_of(module, "weight", units)) is not None:
            columns, flat = grad.flatten(0, -2), ids.flatten()
            if module.padding_idx is not None:
                columns = columns.masked_fill((flat == module.padding_idx)[:, None], 0.0)
            records.lookups.append(Lookup(flat, columns, units))
        return None, None, None, None


class _Affine(torch.autograd.Function):
    """x w + b, element by element."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, gradients: SequenceGradients, module: nn.Module
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.given = gradients, module, gradients.units_of(module, x.shape[:-1])
        y = x if weight is None else x * weight
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradients, module, units = ctx.given
        if (records := gradients.records_of(module, "weight", units)) is not None:
            gradients.add_vectors(records, (grad * x).flatten(0, -2), units)
        if (records := gradients.records_of(module, "bias", units)) is not None:
            gradients.add_vectors(records, grad.flatten(0, -2), units)
        return grad if weight is None else grad * weight, None, None, None, None


class _Copies(torch.autograd.Function):
    """A vector, repeated for each position."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, shape: torch.Size, gradients: SequenceGradients, module: nn.Module) -> Tensor:
        ctx.given = gradients, module, gradients.units_of(module, shape)
        return weight.expand(*shape, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        gradients, module, units = ctx.given
        if (records := gradients.records_of(module, "weight", units)) is not None:
            gradients.add_vectors(records, grad.flatten(0, -2), units)
        return None, None, None, None
