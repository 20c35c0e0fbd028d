"""Match the output layer of a classification checkpoint to the data: its rows belong to classes by name, not by place.

The rows are reused if the checkpoint has the same classes as the data; else the layer is initialised, as its rows would predict one
class and mean another.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llm_lightning.data.label_values import fold
from llm_lightning.errors import join_names

log = logging.getLogger(__name__)


def fit_rows(model: PreTrainedModel, before: dict[int, str] | None, names: Sequence[str], new: Collection[str]) -> list[str]:
    """Give each class its row of the checkpoint's output layer, or initialise the layer; log which.

    `before` are the checkpoint's names of classes, `new` the weights that it lacks. Returns the parameters initialised here.
    """
    output_layer = find_output_layer(model, len(names))
    if output_layer is None or not before:
        return []
    prefix, layer = output_layer
    parameters = [f"{prefix}.{name}" for name, _ in layer.named_parameters()]
    trained = [before[i] for i in sorted(before)]
    if f"{prefix}.weight" in new:
        if is_named(trained) and len(trained) != len(names):
            log.info("model: the checkpoint tells apart %s and the data %s: the head is new", _classes(trained), _classes(names))
        return []
    order = match_rows(trained, names)
    if order is None:
        _initialize(model, layer)
        hint = ""
        if not is_named(trained):
            hint = (
                f"; to keep it, give its names in order: data.labels=[{', '.join(trained[:3])}{', …' if len(trained) > 3 else ''}]"
            )
        log.warning(
            "model: the checkpoint's head tells apart %s and the data has %s: the head is new%s",
            _classes(trained),
            _classes(names),
            hint,
        )
        return parameters
    if order != list(range(len(order))):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(parameter[order].clone())
    log.info("model: the head is the checkpoint's, row by row as the classes are named: %s", join_names(names))
    return []


def match_rows(trained: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Return the row of the checkpoint for each class; None if the two sets of names differ.

    Case and blanks do not count. LABEL_0, LABEL_1, …, the names in checkpoints without names, match the numbers 0, 1, ….
    """
    if not is_named(trained) and list(names) == [str(i) for i in range(len(trained))]:
        return list(range(len(names)))
    rows = {fold(name): i for i, name in enumerate(trained)}
    order = [rows.get(fold(name)) for name in names]
    if len(rows) != len(trained) or len(set(order)) != len(trained) or None in order:
        return None
    return [row for row in order if row is not None]


def is_named(names: Sequence[str]) -> bool:
    """Return whether names of classes differ from the library's defaults."""
    return list(names) != [f"LABEL_{i}" for i in range(len(names))]


def find_output_layer(model: PreTrainedModel, classes: int) -> tuple[str, nn.Linear] | None:
    """Return the name and the module of the last linear layer outside the transformer with an output for each class."""
    body = set() if model.base_model is model else {id(module) for module in model.base_model.modules()}
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes and id(module) not in body
    ]
    return linear[-1] if linear else None


def _initialize(model: PreTrainedModel, layer: nn.Linear) -> None:
    """Initialise a layer by the architecture's own rule."""
    before = layer.weight.detach().clone()
    loaded: list[Any] = [layer, *layer.parameters()]
    for item in loaded:
        # else transformers leaves loaded weights unchanged (private, as is `_init_weights`; read in transformers 5.23)
        item._is_hf_initialized = False
    with torch.no_grad():
        initialize: Any = model._init_weights
        initialize(layer)
        if torch.equal(before, layer.weight):
            layer.reset_parameters()


def _classes(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({join_names(names, 8)})"
