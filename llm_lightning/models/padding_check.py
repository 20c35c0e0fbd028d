"""Test whether a kind of model reads padding: whether the logits of a text depend on the lengths of the texts beside it.

A mask removes padding from attention, but not from convolutions over neighbours (ConvBERT, MobileBERT, Nyströmformer), pooling of
tokens (Funnel) or Fourier transforms (FNet). A small copy (`small_copy.py`) gets documents of different lengths as one padded batch,
and each alone, as no list of architectures is reliable. The test takes a few tenths of a second, once for each kind and settings in a
process. Models that take flat batches need no padding.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llm_lightning.data.collate import MicroBatch
from llm_lightning.models import flat_check, forward
from llm_lightning.models.batch_form import batch_form, is_unpadded, set_batch_form
from llm_lightning.models.small_copy import build_small_copies, quiet

LENGTHS = (29, 17, 8, 5)
"""Tokens of the documents in the test."""

log = logging.getLogger(__name__)
_errors: dict[str, float | None] = {}
"""The result of `measure_padding_error` for each kind and settings of models in this process."""


def warn_of_padding(model: PreTrainedModel) -> None:
    """Log a warning, with advice, if the model reads padding."""
    error = measure_padding_error(model)
    if error is not None and error > flat_check.TOLERANCE:
        log.warning(
            "model: %s reads padding: the logits of a text change with the lengths of the texts beside it in a batch (by %s of the "
            "largest, in a small copy). For scores that depend on the text alone set batch.micro_sequences=1, which pads nothing, or "
            "choose another model",
            model.config.model_type,
            f"{error:.1%}" if error >= 0.001 else f"{error:.1g}",
        )


def measure_padding_error(model: PreTrainedModel) -> float | None:
    """Return the largest difference of logits between a padded batch and each document alone, as a share of the largest logit; 0 for a
    model that needs no padding, None if no small copy can be run."""
    if is_unpadded(model):
        return 0.0
    key = flat_check.kind_of(model)
    if key not in _errors:
        with quiet():
            _errors[key] = _try_copies(model)
    return _errors[key]


def _try_copies(model: PreTrainedModel) -> float | None:
    """Return the error of the first small copy that can be run."""
    with contextlib.suppress(Exception):  # any error of a model's code
        for small in build_small_copies(model):
            set_batch_form(small, batch_form(model))
            with contextlib.suppress(Exception):
                batch = flat_check.draw_batch(small, LENGTHS)
                together = _logits(small, batch)
                alone = torch.cat([_logits(small, document) for document in _split(batch)])
                return float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-30))
    return None


def _split(batch: MicroBatch) -> Iterator[MicroBatch]:
    """Yield each document of a batch as a separate batch."""
    for start, end in pairwise(batch.cu_seqlens.tolist()):
        yield replace(
            batch,
            input_ids=batch.input_ids[start:end],
            position_ids=batch.position_ids[start:end],
            targets=batch.targets[start:end],
            cu_seqlens=torch.tensor([0, end - start], dtype=torch.int32),
            longest=end - start,
            indices=torch.arange(1),
        )


@torch.no_grad()
def _logits(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Return the logits of a batch as objectives read them: (tokens, …) or (sequences, …)."""
    if model.config.is_encoder_decoder and model.can_generate():
        return forward.written_logits(model, replace(batch, cu_targets=batch.cu_seqlens, longest_target=batch.longest)).float()
    return flat_check.output_of(model)(model, batch).float()
