"""Set the precision of a step: which weights the model computes with, and which weights the optimizer changes.

bf16-mixed keeps fp32 master weights, and computes with bf16 copies that hide them during a pass. `linear.weight` is first looked up in
the module's `__dict__`, and only then, by `nn.Module.__getattr__`, in its `_parameters`:

    linear._parameters["weight"]   the fp32 master: parameters(), state_dict(), zero_grad(), the optimizer and the export read it
    linear.__dict__["weight"]      the bf16 copy, only while `WorkingWeights.in_use()`: the forward pass reads it

Autograd leads from a copy back to its master, so that gradients arrive at the masters in fp32.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, Precision
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.weak import WeakIdKeyDictionary

from llm_lightning.distributed import world_size
from llm_lightning.errors import UserError
from llm_lightning.models.bf16_check import Bf16Mode, computes_after, find_bf16_mode
from llm_lightning.models.layers import layers


def plugin(precision: str, sharded: bool) -> Precision | None:
    """Return our Lightning plugin for a precision, or None if Lightning's own will do.

    `sharded`: whether FSDP2 shards the model; its policy then makes the bf16 copies (`parallel.py`).
    """
    if precision == "bf16-true":
        return HalfWeights("bf16-true")
    if precision in ("bf16-mixed", "fp8"):
        return ShardedMasterWeights() if sharded else MasterWeights()
    return None


class MasterWeights(Precision):
    """bf16-mixed: the optimizer changes fp32 master weights; the model computes with bf16 copies, which gradients flow back through.

    Autocast would cast at every use, and back at every normalisation. As in Megatron-LM and torchtitan, activations are bf16 from
    the embedding on; sums inside kernels, gradients of weights over micro-batches, the loss and the optimizer are fp32. Embeddings
    are looked up in fp32 and then cast, so that the gradients of a token's many positions are not added in bf16.

    A model that cannot compute with bf16 weights (`models/bf16_check.py`) runs under autocast.
    """

    precision: Any = "bf16-mixed"

    def __init__(self) -> None:
        self._objective: Any = None
        self._weights: WorkingWeights | None = None
        self._mode: Bf16Mode = "copies"

    def convert_module(self, module: Module) -> Module:
        """Set the objective whose model is trained or evaluated from now on. Lightning calls this before each run of a loop."""
        self._objective = module
        self._mode = choose_bf16_mode(module.model)
        if hasattr(module.model, "peft_config"):
            cast_adapter_base(module.model, torch.bfloat16 if self._mode == "copies" else torch.float32)  # type: ignore[arg-type]
        return module

    @contextmanager
    def train_step_context(self) -> Generator[None, None, None]:
        """Do nothing: the optimizer step enters `forward_context` around its passes, anew for each pass that CUDA graphs record."""
        yield

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        model = self._objective.model
        if self._mode != "copies":
            with _autocast(model, self._mode):
                yield
            return
        if self._weights is None or self._weights.model is not model:
            self._weights = WorkingWeights(model)
        with self._weights.in_use():
            yield


class ShardedMasterWeights(Precision):
    """bf16-mixed under FSDP2, whose `MixedPrecisionPolicy` gathers bf16 weights from fp32 shards and reduces gradients in fp32.

    For a model that cannot compute with bf16 weights, they are gathered in fp32, and it runs under autocast.
    """

    precision: Any = "bf16-mixed"

    def __init__(self) -> None:
        self._objective: Any = None
        self._mode: Bf16Mode = "copies"

    def convert_module(self, module: Module) -> Module:
        self._objective = module
        self._mode = choose_bf16_mode(module.model)
        return module

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        with _autocast(self._objective.model, self._mode):
            yield


class HalfWeights(HalfPrecision):
    """bf16-true: weights, gradients and the optimizer's states are bf16.

    Everything else keeps its type: targets of a regression, class weights, rotary frequencies, and sums over a step or a split.
    """

    def convert_module(self, module: Module) -> Module:
        """Cast the weights. Raises UserError if the model cannot compute with bf16 weights."""
        model: Any = module.model
        if not model.__dict__.get("is_bf16") and not computes_after(model, self._cast):
            raise UserError(
                f"trainer.precision=bf16-true: {model.config.model_type} does not compute with bf16 weights; use bf16-mixed, which runs it "
                f"under autocast."
            )
        self._cast(model)
        model.__dict__["is_bf16"] = True
        return module

    def _cast(self, model: Any) -> None:
        buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        model.to(dtype=self._desired_input_dtype)  # private; read in Lightning 2.6
        for name, buffer in buffers.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, buffer.to(model.device))

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """Keep the default dtype: a number of targets in bf16 would be rounded to 8 bits."""
        yield

    def convert_input(self, data: Any) -> Any:
        return data


def choose_bf16_mode(model: Any) -> Bf16Mode:
    """Return how a model computes in bf16. A collective at the first call for a model."""
    return find_bf16_mode(model, in_bf16)


def _autocast(model: Any, mode: Bf16Mode) -> Any:
    """Return the autocast context of a model without bf16 copies of its weights; an empty context for a model with copies."""
    return torch.autocast(model.device.type, torch.bfloat16) if mode == "autocast" else nullcontext()


def cast_adapter_base(model: Module, dtype: torch.dtype) -> None:
    """Cast the frozen weights under an adapter for good; bf16 halves their memory.

    An export never reads them: it merges the adapter into the checkpoint's own weights.
    """
    for module_name, module in model.named_modules():
        if "lora_" in module_name or "modules_to_save" in module_name:
            continue
        if isinstance(module, nn.Embedding) and dtype == torch.bfloat16:  # looked up in fp32
            continue
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad and parameter.dtype in (torch.float32, torch.bfloat16):
                parameter.data = parameter.data.to(dtype)


class WorkingWeights:
    """The bf16 copies of a model's fp32 parameters that its modules compute with.

    While they are `in_use`, each copy is an entry of its module's `__dict__`, which hides the master. Copies of trained weights are made
    anew each time, those of frozen weights once.

    On a CPU each weight is cast by itself. `buffered`, the default on CUDA, keeps the copies and fills them by one kernel; the
    gradients of a layer are then cast by one kernel, and added to those of earlier micro-batches by another.
    """

    def __init__(self, model: Module, buffered: bool | None = None) -> None:
        self.model = model
        self._buffered = buffered
        self._in_use = False
        self._places: list[tuple[Module, str, nn.Parameter]] = []
        """Each (module, attribute, fp32 parameter) that has a copy; a tied weight has several."""
        self._device = torch.device("cpu")
        self._groups: list[_Group] = []
        """Trained weights by layer, where copies are buffered."""
        self._frozen: Any = WeakIdKeyDictionary()
        """Frozen parameter -> its copy, and the (version, device, address) of the parameter when it was copied."""

    @contextmanager
    def in_use(self) -> Generator[None, None, None]:
        """Make the model compute with the copies. Entering it again inside itself changes nothing."""
        if self._in_use:
            yield
            return
        if self._is_outdated():
            self._find_places()
        copies = self._copy()
        hooks = [
            module.register_forward_hook(lambda module, args, output: output.to(torch.bfloat16))
            for module in self.model.modules()
            if isinstance(module, nn.Embedding)
        ]
        self._in_use = True
        try:
            for module, name, master in self._places:
                module.__dict__[name] = copies[id(master)]
            yield
        finally:
            self._in_use = False
            for module, name, _ in self._places:
                module.__dict__.pop(name, None)
            for hook in hooks:
                hook.remove()

    def _is_outdated(self) -> bool:
        """Return whether the places are unknown or outdated: the first time, and after the model was moved to another device."""
        if not self._places or self._places[0][2].device != self._device:
            return True
        # private; read in torch 2.13: public access would find the copies that hide the masters
        return any(module._parameters.get(name) is not master for module, name, master in self._places)

    def _find_places(self) -> None:
        self._places = [
            (module, name, parameter)
            for module in self.model.modules()
            if not isinstance(module, nn.Embedding)
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.dtype == torch.float32
        ]
        self._groups = []
        self._device = self._places[0][2].device if self._places else torch.device("cpu")
        if not (self._device.type == "cuda" if self._buffered is None else self._buffered):
            return
        layer_of = {id(module): number for number, layer in enumerate(layers(self.model)) for module in layer.modules()}
        groups: dict[int, dict[int, nn.Parameter]] = {}
        grouped: set[int] = set()
        for module, _, master in self._places:
            if master.requires_grad and id(master) not in grouped:
                grouped.add(id(master))
                groups.setdefault(layer_of.get(id(module), -1), {})[id(master)] = master
        self._groups = [_Group(list(masters.values())) for masters in groups.values()]

    def _copy(self) -> dict[int, Tensor]:
        """Return the copy of each fp32 parameter, by the parameter's id."""
        copies: dict[int, Tensor] = {}
        if self._groups:
            with torch.no_grad():
                masters = [master for group in self._groups for master in group.masters]
                # private, as is `_foreach_add_`; read in torch 2.13
                torch._foreach_copy_([buffer for group in self._groups for buffer in group.buffers], masters)
            for group in self._groups:
                copies.update(zip(map(id, group.masters), _Cast.apply(group, *group.masters), strict=True))
        for _, _, master in self._places:
            if id(master) not in copies:
                copies[id(master)] = master.to(torch.bfloat16) if master.requires_grad else self._frozen_copy(master)
        return copies

    def _frozen_copy(self, master: nn.Parameter) -> Tensor:
        # the version is private; read in torch 2.13: every change in place raises it
        state = master._version, master.device, master.data_ptr()
        copy, copied = self._frozen.get(master, (None, None))
        if copied != state:
            with torch.inference_mode(False):  # copies made in an evaluation must serve a training step
                copy = master.detach().to(torch.bfloat16)
            self._frozen[master] = copy, state
        return copy


class _Group:
    """Trained weights whose gradients are cast together: those of a layer, or all outside of layers."""

    def __init__(self, masters: list[nn.Parameter]) -> None:
        self.masters: list[Tensor] = list(masters)
        with torch.inference_mode(False):
            self.buffers = [torch.empty_like(master, dtype=torch.bfloat16, requires_grad=False) for master in masters]


class _Cast(torch.autograd.Function):
    """Map fp32 masters to their filled bf16 buffers; backward adds the gradients of the buffers to those of the masters."""

    @staticmethod
    def forward(ctx: Any, group: _Group, *masters: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.set_materialize_grads(False)  # a weight that the loss does not use has no gradient
        return tuple(buffer.detach() for buffer in group.buffers)

    @staticmethod
    def backward(ctx: Any, *copy_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        masters: list[Tensor] = ctx.group.masters
        pairs = zip(masters, copy_gradients, strict=True)
        # in the memory layout of the masters, which the optimizer wants
        gradients = [None if copy_gradient is None else torch.empty_like(master) for master, copy_gradient in pairs]
        present = [gradient for gradient in gradients if gradient is not None]
        torch._foreach_copy_(present, [copy_gradient for copy_gradient in copy_gradients if copy_gradient is not None])
        if world_size() > 1:
            return None, *gradients  # DDP learns of gradients where autograd adds them to the masters
        earlier: list[Tensor] = []  # of micro-batches before
        added: list[Tensor] = []
        for master, gradient in zip(masters, gradients, strict=True):
            if gradient is None:
                continue
            if master.grad is None:
                master.grad = gradient
            else:
                earlier.append(master.grad)
                added.append(gradient)
        if earlier:
            torch._foreach_add_(earlier, added)
        return (None,) * (len(masters) + 1)


@contextmanager
def in_bf16(model: Module) -> Generator[None, None, None]:
    """Make a model compute with bf16 copies of its parameters, as `trainer.precision=bf16-mixed` does."""
    with WorkingWeights(model).in_use():
        yield
