"""Find the parameters by which a model's logits can be divided by a temperature: the last layer's weight and bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llm_lightning.models.head import find_output_layer

ENTRY = "calibration"
"""Entry of an export's config whose last layer is divided: the `temperature`, and the number of validation `rows` that it was fitted on."""


def find_scale_parameters(model: PreTrainedModel, compute_logits: Callable[[], Tensor]) -> list[str] | None:
    """Return the names of the parameters that, divided by a number, divide the logits by it; None if the model has none.

    They are those of the last linear layer, if nothing but a scaling, a mean or dropout comes behind it. That is tried out: division by two
    is exact, so the layer is halved for a moment, and the logits have to be halved as well.
    """
    output_layer = find_output_layer(model, model.config.num_labels or 0)
    if output_layer is None:
        return None
    prefix, layer = output_layer
    parameters = dict(layer.named_parameters(prefix=prefix))
    with torch.no_grad():
        before = compute_logits().float()
        for parameter in parameters.values():
            parameter.div_(2)
        try:
            halved = compute_logits().float()
        finally:
            for parameter in parameters.values():
                parameter.mul_(2)
    is_halved = torch.allclose(2 * halved, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    return list(parameters) if is_halved else None


def read_calibration(config: Any) -> dict[str, Any] | None:
    """Return the entry of a model's config; None if its logits are as trained."""
    entry = getattr(config, ENTRY, None)
    return entry if isinstance(entry, dict) and "temperature" in entry else None


def temperature_of(config: Any) -> float:
    """Return the temperature that a model's logits are divided by; 1 if they are as trained."""
    entry = read_calibration(config)
    return 1.0 if entry is None else float(entry["temperature"])
