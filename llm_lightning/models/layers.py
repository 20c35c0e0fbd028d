"""Find a transformer's layers."""

from __future__ import annotations

from torch import nn


def layers(model: nn.Module) -> list[nn.Module]:
    """Return the transformer's layers, of an encoder and a decoder both: the items of its module lists, except of lists inside layers."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [layer for child in model.children() for layer in layers(child)]
