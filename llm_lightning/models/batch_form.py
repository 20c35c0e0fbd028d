"""How a model is given a batch: flat, and then with which details, or as padded rows, and then why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from llm_lightning.models import attention


@dataclass(frozen=True)
class BatchForm:
    """What `flat_check.py` decides of a kind of model."""

    padded_because: str | None = "it was not checked whether it takes flat batches"
    """Why the model is given padded rows; None where it takes flat batches."""
    transformer: str = ""
    """The name of the module inside of the base model that its head calls; '' where this is the base model itself."""
    behind_padding: bool = False
    """Whether positions begin behind the id of padding, as RoBERTa's do."""
    pooling: str = "first"
    """What a head for whole sequences reads: their `first` token, their `last`, or the `mean` of all; `late` is the mean of its logits."""
    lengths_at_hand: bool = False
    """Whether attention finds the lengths of the documents itself, as the model does not hand them on."""
    has_cache: bool = False
    """Whether the transformer has to be told to keep no keys and values."""
    plain_head: bool = False
    """Whether the logits of a language model are one matrix times the hidden states, and nothing else."""


def batch_form(model: nn.Module) -> BatchForm:
    """Return how the model is given batches: as padded rows where nothing was decided."""
    form: BatchForm = model.__dict__.get("batch_form", BatchForm())
    return form


def set_batch_form(model: PreTrainedModel, form: BatchForm) -> None:
    """Have the model take batches in a form from now on; its attention for padded rows is remembered for `published_attention`."""
    if form.padded_because is None and not is_unpadded(model):
        model.__dict__["published_attention"] = model.config._attn_implementation
        model.set_attn_implementation(attention.NAME)
        for module in _warning_modules(model):
            module.__dict__[_WARNING] = _no_warning
    elif form.padded_because is not None and is_unpadded(model):
        model.set_attn_implementation(published_attention(model))
        for module in _warning_modules(model):
            module.__dict__.pop(_WARNING, None)
    model.__dict__["batch_form"] = form


_WARNING = "warn_if_padding_and_no_attention_mask"
"""transformers' look at the ids for padding that no mask tells of: there is none in a flat batch, and a GPU is waited for (5.23)."""


def _warning_modules(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, _WARNING)]


def _no_warning(input_ids: Any, attention_mask: Any) -> None:
    pass


def is_unpadded(model: PreTrainedModel) -> bool:
    """Return whether the model takes flat batches."""
    return bool(model.config._attn_implementation == attention.NAME)


def published_attention(model: PreTrainedModel) -> str:
    """Return the attention that transformers gives this model for padded rows: `sdpa`, or `eager` where it has no other."""
    return str(model.__dict__.get("published_attention", model.config._attn_implementation))


def transformer_of(model: PreTrainedModel) -> Any:
    """Return the module that the head calls."""
    name = batch_form(model).transformer
    return model.base_model.get_submodule(name) if name else model.base_model
