"""Where a transformer's layers are."""

from __future__ import annotations

from torch import nn


def layers(model: nn.Module) -> list[nn.Module]:
    """The transformer's layers: the items of the longest list of modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])
