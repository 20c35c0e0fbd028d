"""bf16 with fp32 master weights: every weight is cast once a step, and the model computes in bf16 throughout."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch.nn import Module


def bf16_unit(accelerator: str) -> str | None:
    """What multiplies bf16 in hardware on an accelerator (`cpu`, `cuda`, `mps`); None where nothing does."""
    if accelerator == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "the GPU"
    if accelerator == "cpu" and torch.cpu._is_amx_tile_supported():
        return "the CPU's AMX"
    if accelerator == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "the CPU's AVX512-BF16"
    return None


class MasterWeights(Precision):
    """The precision of a step: parameters stay in fp32, and modules see bf16 copies of them that gradients flow back through.

    Autocast would cast at every use, and back at every normalisation. As in Megatron-LM and torchtitan, activations are bf16 from
    the embedding on; sums inside kernels, gradients of weights over micro-batches, the loss and the optimizer are fp32. Embeddings
    are looked up in fp32 and then cast, so that the gradients of a token's many places are not added in bf16.
    """

    precision: Any = "bf16-mixed"

    def __init__(self) -> None:
        self._objective: Any = None

    def convert_module(self, module: Module) -> Module:
        """Called by Lightning before it trains or evaluates a module; whose model may be another one each time."""
        self._objective = module
        keep_frozen_in_bf16(module.model)  # type: ignore[arg-type]
        return module

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        with in_bf16(self._objective.model):
            yield


def keep_frozen_in_bf16(model: Module) -> None:
    """Weights that are not trained are cast for good; they would be cast each step to the same."""
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            for parameter in module._parameters.values():
                if parameter is not None and not parameter.requires_grad and parameter.dtype == torch.float32:
                    parameter.data = parameter.data.to(torch.bfloat16)


@contextmanager
def in_bf16(model: Module) -> Generator[None, None, None]:
    """While it lasts, the model's modules hold bf16 copies of their parameters."""
    copies: dict[int, Tensor] = {}  # a tied weight is cast once
    masters, hooks = [], []
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            hooks.append(module.register_forward_hook(lambda module, args, output: output.to(torch.bfloat16)))
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype == torch.float32:
                masters.append((module, name, parameter))
                if id(parameter) not in copies:
                    copies[id(parameter)] = parameter.to(torch.bfloat16)
    for module, name, parameter in masters:
        module._parameters[name] = copies[id(parameter)]  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, name, parameter in masters:
            module._parameters[name] = parameter
        for hook in hooks:
            hook.remove()
