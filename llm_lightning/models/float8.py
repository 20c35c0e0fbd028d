"""Compute a transformer's layers in fp8, by torchao: one scale a tensor, computed at each use (Micikevicius et al. 2022).

Embeddings, head and normalisation stay in bf16, as in torchtitan. Weights, their names and the export do not change.
"""

from __future__ import annotations

import logging

from torch import nn
from transformers import PreTrainedModel

from llm_lightning.errors import UserError
from llm_lightning.models.layers import layers

log = logging.getLogger(__name__)

MULTIPLE = 16
"""The sizes of a matrix must be multiples of it."""
LARGE = 500_000_000
"""Parameters below which products are too small to make up for the casts."""


def convert(model: PreTrainedModel, emulate: bool = False) -> None:
    """Convert the layers' linear modules to fp8; `emulate` computes the same without the hardware.

    Raises UserError if torchao is not installed, or if no module can be converted.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise UserError("trainer.precision=fp8 needs torchao: pip install 'llm_lightning[fp8]'.") from error

    def fits(module: nn.Module, name: str) -> bool:
        return type(module) is nn.Linear and all(size % MULTIPLE == 0 for size in module.weight.shape)

    count = sum(fits(module, "") for layer in layers(model) for module in layer.modules())
    if count == 0:
        raise UserError(
            f"trainer.precision=fp8: the layers of a {model.config.model_type} model have no linear modules with sizes that are multiples "
            f"of {MULTIPLE}; use trainer.precision=bf16-mixed."
        )
    for layer in layers(model):
        convert_to_float8_training(layer, module_filter_fn=fits, config=Float8LinearConfig(emulate=emulate, pad_inner_dim=True))
    size = model.num_parameters()
    log.info("fp8: %s linear modules", count)
    if size < LARGE:
        log.warning("fp8: a model of %.0fM parameters is likely to be slower so than in bf16", size / 1e6)
