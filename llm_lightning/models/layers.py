"""Where a transformer's layers are."""

from __future__ import annotations

from torch import nn


def layers(model: nn.Module) -> list[nn.Module]:
    """The transformer's layers: the items of its lists of modules, of an encoder and a decoder both; not of lists inside of layers."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [layer for child in model.children() for layer in layers(child)]
