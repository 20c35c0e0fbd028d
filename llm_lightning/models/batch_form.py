"""The form in which a model takes a batch: flat, and with which details, or as padded rows, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from llm_lightning.models import attention


@dataclass(frozen=True)
class BatchForm:
    """The form of batches for a kind of model, as `flat_check.py` decides it."""

    padded_because: str | None = "it was not checked whether it takes flat batches"
    """The reason for padded rows; None if the model takes flat batches."""
    transformer: str = ""
    """The name of the module in the base model that the head calls; '' for the base model itself."""
    behind_padding: bool = False
    """Whether positions begin behind the id of padding, as in RoBERTa."""
    pooling: str = "first"
    """Input of a head for whole sequences: their `first` token, `last` token or `mean`; `late` is the mean of the tokens' logits."""
    lengths_at_hand: bool = False
    """Whether attention reads the documents' lengths from `attention.lengths_at_hand`, as the model does not pass them on."""
    has_cache: bool = False
    """Whether the transformer needs `use_cache=False` to store no keys and values."""
    plain_head: bool = False
    """Whether the logits of a language model are the product of one matrix and the hidden states, and nothing else."""


def batch_form(model: nn.Module) -> BatchForm:
    """Return the form of the model's batches; padded rows if none was set."""
    form: BatchForm = model.__dict__.get("batch_form", BatchForm())
    return form


def set_batch_form(model: PreTrainedModel, form: BatchForm) -> None:
    """Set the form of the model's batches. Its attention for padded rows is stored for `published_attention`."""
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
"""transformers' search for padding ids without a mask (5.23): a flat batch has none, and the search waits for the GPU."""


def _warning_modules(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, _WARNING)]


def _no_warning(input_ids: Any, attention_mask: Any) -> None:
    pass


def is_unpadded(model: PreTrainedModel) -> bool:
    """Return whether the model takes flat batches."""
    return bool(model.config._attn_implementation == attention.NAME)  # private; read in transformers 5.23


def published_attention(model: PreTrainedModel) -> str:
    """Return the attention that transformers gives this model for padded rows: `sdpa`, or `eager` if the model has no other."""
    return str(model.__dict__.get("published_attention", model.config._attn_implementation))


def transformer_of(model: PreTrainedModel) -> Any:
    """Return the module that the head calls."""
    name = batch_form(model).transformer
    return model.base_model.get_submodule(name) if name else model.base_model
