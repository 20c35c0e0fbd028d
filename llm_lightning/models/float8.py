"""The matrix products of a transformer's layers in fp8, by torchao: one scale a tensor, found anew at each use (Micikevicius et al. 2022).

Embeddings, head and normalisation stay in bf16, as in torchtitan. Weights, their names and the export are those of the plain model.
"""

from __future__ import annotations

import logging

from torch import nn
from transformers import PreTrainedModel

from llm_lightning.errors import UserError
from llm_lightning.models.layers import layers

log = logging.getLogger(__name__)

MULTIPLE = 16
"""What the sizes of a matrix have to be a multiple of."""
LARGE = 500_000_000
"""Parameters below which products are too small to win back the casts."""


def convert(model: PreTrainedModel, emulate: bool = False) -> None:
    """Have the layers' linear modules multiply in fp8; `emulate` computes the same without the hardware.

    Raises UserError where torchao is not installed, and where there is nothing to convert.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise UserError("trainer.precision=fp8 needs torchao: pip install 'llm_lightning[fp8]'.") from error

    def fits(module: nn.Module, name: str) -> bool:
        return type(module) is nn.Linear and all(size % MULTIPLE == 0 for size in module.weight.shape)

    found = sum(fits(module, "") for layer in layers(model) for module in layer.modules())
    if found == 0:
        raise UserError(
            f"trainer.precision=fp8: the layers of a {model.config.model_type} model have no linear modules with sizes that are multiples "
            f"of {MULTIPLE}; use trainer.precision=bf16-mixed."
        )
    for layer in layers(model):
        convert_to_float8_training(layer, module_filter_fn=fits, config=Float8LinearConfig(emulate=emulate, pad_inner_dim=True))
    size = model.num_parameters()
    log.info("fp8: %s linear modules", found)
    if size < LARGE:
        log.warning("fp8: a model of %.0fM parameters is likely to be slower so than in bf16", size / 1e6)
