"""Test how a kind of model can compute in bf16: with bf16 copies of its weights, else under autocast, else not at all.

Some models make fp32 tensors in their forward pass, or read an embedding's matrix themselves; with bf16 copies they then multiply
matrices of two types, which torch refuses (DeBERTa-v2 with relative attention, M2M100 and NLLB, XLNet). The test runs a small copy of
the model (`small_copy.py`) forward and backward, once for each kind and settings in a process.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_lightning import distributed
from llm_lightning.errors import first_line
from llm_lightning.models import flat_check, forward
from llm_lightning.models.batch_form import batch_form, set_batch_form
from llm_lightning.models.small_copy import build_small_copies, quiet

log = logging.getLogger(__name__)

Bf16Mode = Literal["copies", "autocast", "fp32"]
"""How a model computes in bf16: with bf16 copies of its weights, under autocast, or not at all."""

ERROR = 0.1
"""Relative error of the logits up to which bf16 copies are always accepted; a larger one must be below `FACTOR` times autocast's."""
FACTOR = 3.0

_decided: dict[str, Bf16Mode] = {}


def find_bf16_mode(model: PreTrainedModel, in_copies: Callable[[nn.Module], AbstractContextManager[Any]]) -> Bf16Mode:
    """Return how the model should compute in bf16; `in_copies` returns the context in which a model uses bf16 copies of its weights.

    The first call for a model is a collective, before the model is sharded: rank 0 decides.
    """
    mode: Bf16Mode | None = model.__dict__.get("bf16_mode")
    if mode is None:
        decides = distributed.world_size() == 1 or distributed.is_rank_zero()
        mode = distributed.broadcast(_decide(model, in_copies) if decides else None)
        model.__dict__["bf16_mode"] = mode
    return mode


def computes_after(model: PreTrainedModel, cast: Callable[[nn.Module], Any]) -> bool:
    """Return whether a small copy of the model runs after `cast` changes the types of its weights. A collective."""
    decides = distributed.world_size() == 1 or distributed.is_rank_zero()
    return distributed.broadcast(_try_cast(model, cast) if decides else None)


def _try_cast(model: PreTrainedModel, cast: Callable[[nn.Module], Any]) -> bool:
    with quiet(), contextlib.suppress(Exception):  # any error of a model's code
        for small in build_small_copies(model):
            set_batch_form(small, batch_form(model))
            try:
                _run(small, contextlib.nullcontext())
            except Exception:
                continue
            cast(small)
            try:
                _run(small, contextlib.nullcontext())
            except Exception:
                return False
            return True
    return True


def _decide(model: PreTrainedModel, in_copies: Callable[[nn.Module], AbstractContextManager[Any]]) -> Bf16Mode:
    key = flat_check.kind_of(model)
    if key not in _decided:
        mode, problem = _try(model, in_copies)
        if mode == "autocast":
            log.info("precision: bf16 by autocast, as %s does not compute with bf16 weights (%s)", model.config.model_type, problem)
        if mode == "fp32":
            log.warning("precision: fp32, as %s does not compute in bf16 (%s)", model.config.model_type, problem)
        _decided[key] = mode
    return _decided[key]


def _try(model: PreTrainedModel, in_copies: Callable[[nn.Module], AbstractContextManager[Any]]) -> tuple[Bf16Mode, str]:
    """Return the first mode that works, and the problem of the mode before it. If no small copy runs, the mode is copies."""
    with quiet(), contextlib.suppress(Exception):  # any error of a model's code
        for small in build_small_copies(model):
            set_batch_form(small, batch_form(model))
            try:
                expected = _run(small, contextlib.nullcontext())
            except Exception:
                continue
            return _first_mode(small, expected, in_copies)
    return "copies", ""


def _first_mode(
    small: PreTrainedModel, expected: Tensor, in_copies: Callable[[nn.Module], AbstractContextManager[Any]]
) -> tuple[Bf16Mode, str]:
    errors, problems = {}, {}
    contexts = {"copies": in_copies(small), "autocast": torch.autocast("cpu", torch.bfloat16)}
    for name, context in contexts.items():
        try:
            errors[name] = float((_run(small, context) - expected).norm() / expected.norm())
        except Exception as error:
            errors[name], problems[name] = math.inf, first_line(error, flat_check.MESSAGE)
    limit = max(ERROR, FACTOR * errors["autocast"]) if errors["autocast"] < math.inf else ERROR
    if errors["copies"] <= limit:
        return "copies", ""
    if errors["autocast"] < math.inf:
        return "autocast", problems.get("copies", f"logits are off by {errors['copies']:.0%}, by autocast {errors['autocast']:.0%}")
    return "fp32", problems.get("autocast", "")


def _run(model: PreTrainedModel, context: AbstractContextManager[Any]) -> Tensor:
    """Return the logits of a few documents, after a backward pass. Raises ArithmeticError if logits or gradients are not finite."""
    batch = flat_check.draw_batch(model, flat_check.LENGTHS)
    with context:
        if model.config.is_encoder_decoder and model.can_generate():
            logits = forward.written_logits(model, replace(batch, cu_targets=batch.cu_seqlens, longest_target=batch.longest))
        else:
            logits = flat_check.output_of(model)(model, batch)
    logits = logits.float()
    logits.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not all(bool(tensor.isfinite().all()) for tensor in (logits, *gradients)):
        raise ArithmeticError("numbers are not finite")
    model.zero_grad()
    return logits.detach()
