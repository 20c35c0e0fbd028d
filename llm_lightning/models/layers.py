"""Find a transformer's layers; ask and undo whether one is compiled."""

from __future__ import annotations

from torch import nn


def layers(model: nn.Module) -> list[nn.Module]:
    """Return the transformer's layers, of an encoder and a decoder both: the items of its module lists, except of lists inside layers."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [layer for child in model.children() for layer in layers(child)]


def is_compiled(layer: nn.Module) -> bool:
    """Return whether `layer.compile()` was called."""
    return layer._compiled_call_impl is not None  # private; read in torch 2.13, which has no public way to ask or to undo it


def undo_compile(layer: nn.Module) -> None:
    """Run a layer without compilation again."""
    layer._compiled_call_impl = None
