"""Recomputation: a layer stores only its input, and runs its forward pass again for its gradient (Chen et al. 2016).

It uses transformers' own checkpointing of layers. Both passes give the same numbers, dropout included: gradients are identical to the
last bit.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from llm_lightning.errors import UserError
from llm_lightning.models import attention
from llm_lightning.models.batch_form import batch_form
from llm_lightning.models.dropout import drops


def can_recompute(model: PreTrainedModel) -> bool:
    """Return whether transformers can run the layers of this model again."""
    return bool(model.supports_gradient_checkpointing)


def recomputes(model: nn.Module) -> bool:
    """Return whether the model's layers are run again in the backward pass of training."""
    return bool(model.__dict__.get("recomputes", False))


def recompute_layers(model: PreTrainedModel) -> None:
    """Make the model's layers store only their inputs in training. Raises UserError if transformers does not support it."""
    if not can_recompute(model):
        raise UserError(f"trainer.recompute=layers: transformers cannot run layers of {model.config.model_type} again; use none.")
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": drops(model)}  # which a CUDA graph cannot read
    if batch_form(model).lengths_at_hand:
        settings["context_fn"] = attention.contexts_of_lengths
    # the second name is that before transformers 5.23
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(settings)
    model.disable_input_require_grads()  # which only the other kind of checkpoints needs: embeddings may be frozen
    model.__dict__["recomputes"] = True
