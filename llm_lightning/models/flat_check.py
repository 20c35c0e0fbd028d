"""Test whether a kind of model takes flat batches: a small copy must give the same results for a flat batch as for padded rows.

A list of architectures would not do, as a model may mix tokens in many ways beside attention (convolutions, states, positions counted
from the shape of the input), and a new version of transformers may change any of them. The copy (`small_copy.py`) gets documents of
different lengths, longer than its windows and together longer than its table of positions, in every form of `BatchForm`. Logits, loss
and the gradient of every weight must equal those of padded rows, in fp32 up to rounding. The test takes a few tenths of a second, once
for each kind of model and settings in a process.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_lightning import distributed
from llm_lightning.data.collate import MicroBatch
from llm_lightning.errors import first_line
from llm_lightning.models import forward
from llm_lightning.models.attention import LengthsMissing
from llm_lightning.models.batch_form import BatchForm, batch_form, is_unpadded, set_batch_form
from llm_lightning.models.small_copy import build_small_copies, quiet, shrink

LENGTHS = (29, 17, 17, 8, 2)
"""Tokens of the documents for the comparison of logits and gradients: with padding 96, more than `small_copy.POSITIONS`."""
OTHER_LENGTHS = (40, 1)
"""Tokens of the documents for the comparison of logits alone."""
TOLERANCE = 2e-4
"""Largest difference of logits or gradients, as a share of the largest one: rounding in fp32 makes 1e-6 to 5e-5."""

NAMES = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version", "quantization_config")
"""Entries of a config that change with an export and a load, and do not influence any result."""
MESSAGE = 120  # characters of an error's message
POOLINGS = ("first", "last", "mean", "late")

_decided: dict[str, BatchForm] = {}
"""The form for each kind and settings of models in this process."""


def use_flat_batches(model: PreTrainedModel) -> PreTrainedModel:
    """Let the model take flat batches if its kind gives the same results for them as for padded rows. Returns the model."""
    set_batch_form(model, _decide(model))
    return model


def agree_on_batch_form(model: PreTrainedModel) -> None:
    """Use rank 0's batch form for the model, and for later models of its kind in this process. A collective."""
    form = distributed.broadcast(batch_form(model))
    _decided[kind_of(model)] = form
    set_batch_form(model, form)


def _decide(model: PreTrainedModel) -> BatchForm:
    if model.config.is_encoder_decoder:
        return BatchForm("an encoder-decoder is given two texts, each in padded rows")
    if not model._can_set_attn_implementation():  # private, as is `_is_stateful`; read in transformers 5.23
        return BatchForm("its attention is code of its own, which no other function can replace (transformers' AttentionInterface)")
    if getattr(model, "_is_stateful", False):
        return BatchForm("its layers carry a state from token to token, and so from document to document")
    key = kind_of(model)
    if key not in _decided:
        with quiet():
            _decided[key] = _try_copies(model)
    return _decided[key]


def kind_of(model: PreTrainedModel) -> str:
    """Return a key for the checks of a model's kind: its class and the settings of its small copy, as text."""
    try:
        config = shrink(model.config)
    except Exception:  # the model has no small copy
        config = model.config
    settings = {name: value for name, value in config.to_dict().items() if name not in NAMES}
    return f"{type(model).__module__}.{type(model).__qualname__} {json.dumps(settings, sort_keys=True, default=str)}"


def _try_copies(model: PreTrainedModel) -> BatchForm:
    """Return the form of the first small copy that can be run."""
    problem = "no small copy of it could be made"
    try:
        for small in build_small_copies(model):
            try:
                return _try_forms(small)
            except Exception as error:  # any error of a model's code
                problem = f"a small copy of it cannot be run ({first_line(error, MESSAGE)})"
    except Exception as error:
        problem = f"no small copy of it could be made ({first_line(error, MESSAGE)})"
    return BatchForm(problem)


def _try_forms(reference: PreTrainedModel) -> BatchForm:
    """Return the first form in which the small model's logits and gradients equal those of padded rows, or the reason why none does.

    Raises the model's own errors on padded rows.
    """
    flat = copy.deepcopy(reference)
    batches = [draw_batch(reference, LENGTHS), draw_batch(reference, OTHER_LENGTHS)]
    if _reads_token_types(reference):
        batches.append(_with_token_types(batches[0]))
    expected = [_logits(reference, batch) for batch in batches]
    if not all(bool(logits.isfinite().all()) for logits in expected):
        return BatchForm("its logits on padded rows are not finite in a small copy")
    problems: list[tuple[float, str]] = []
    forms = _forms(flat, expected[0])
    while forms:
        form = forms.pop(0)
        try:
            set_batch_form(flat, form)
            if not is_unpadded(flat):
                return BatchForm("it does not take a function for its attention")
            pairs = zip((_logits(flat, batch) for batch in batches), expected, strict=True)
            off = max(_distance(flat_logits, padded_logits) for flat_logits, padded_logits in pairs)
            if off <= TOLERANCE:
                off = _gradient_distance(
                    _gradients(flat, _probe(flat, batches[0])), _gradients(reference, _probe(reference, batches[0]))
                )
            if off <= TOLERANCE:
                return dataclasses.replace(form, plain_head=_is_plain_head(flat, reference, form, batches[0]))
            problems.append((off, f"on a flat batch it gives other numbers than on padded rows (off by {off:.1%} of the largest)"))
        except LengthsMissing:
            if form.lengths_at_hand:
                problems.append((math.inf, "it makes a mask of its own"))
            else:
                forms.insert(0, dataclasses.replace(form, lengths_at_hand=True))
        except Exception as error:  # any error of a model's code
            problems.append((math.inf, f"it fails on a flat batch ({first_line(error, MESSAGE)})"))
    return BatchForm(min(problems, key=lambda problem: problem[0])[1])


def _forms(model: PreTrainedModel, logits: Tensor) -> list[BatchForm]:
    """Return the candidate forms, the most common ones first."""
    base = model.base_model
    modules: dict[str, Any] = {"": base, "decoder": getattr(base, "decoder", None), "model": getattr(base, "model", None)}
    has_table = any(isinstance(module, nn.Embedding) and "position" in name for name, module in base.named_modules())
    has_table = has_table and model.config.pad_token_id is not None
    poolings = POOLINGS if logits.dim() == 2 and len(logits) == len(LENGTHS) else POOLINGS[:1]
    forms = []
    offsets = (False, True) if has_table else (False,)
    for (name, transformer), behind, pooling in itertools.product(modules.items(), offsets, poolings):
        if isinstance(transformer, nn.Module) and transformer is not model:
            has_cache = "use_cache" in inspect.signature(transformer.forward).parameters
            forms.append(BatchForm(None, name, behind, pooling, has_cache=has_cache))
    return forms


def draw_batch(model: PreTrainedModel, lengths: tuple[int, ...]) -> MicroBatch:
    """Return a batch of documents of random tokens, none of them special, with a target for each token."""
    generator = torch.Generator().manual_seed(0)
    embeddings: Any = model.get_input_embeddings()
    vocabulary, tokens = embeddings.weight.shape[0], sum(lengths)
    special = [getattr(model.config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]  # a model may have several ends
    ordinary_tokens = torch.tensor([token for token in range(vocabulary) if not any(token in _as_list(ids) for ids in special)])
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return MicroBatch(
        input_ids=ordinary_tokens[torch.randint(len(ordinary_tokens), (tokens,), generator=generator)],
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=bounds,
        longest=max(lengths),
        targets=ordinary_tokens[torch.randint(len(ordinary_tokens), (tokens,), generator=generator)],
        indices=torch.arange(len(lengths)),
    )


def _reads_token_types(model: PreTrainedModel) -> bool:
    parameters = inspect.signature(model.base_model.forward).parameters
    return "token_type_ids" in parameters and getattr(model.config, "type_vocab_size", 0) > 1


def _with_token_types(batch: MicroBatch) -> MicroBatch:
    """Return the batch with the second half of each document as the second text of a pair."""
    half = torch.repeat_interleave(batch.cu_seqlens.diff() // 2, batch.cu_seqlens.diff())
    return dataclasses.replace(batch, token_type_ids=(batch.position_ids >= half).long())


def _logits(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Return the logits of a batch as objectives read them: (tokens, …) or (sequences, …)."""
    with torch.no_grad():
        return output_of(model)(model, batch)


def output_of(model: PreTrainedModel) -> Callable[[PreTrainedModel, MicroBatch], Tensor]:
    """Return the function of forward.py for a model's head."""
    head = type(model).__name__
    if "SequenceClassification" in head:
        return forward.sequence_logits
    return forward.span_logits if "QuestionAnswering" in head else forward.token_logits


def _probe(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Return a loss that weighs each logit differently."""
    logits = output_of(model)(model, batch).float()
    return (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum()


def _gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def _distance(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape or not bool(actual.isfinite().all()):
        return math.inf
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _gradient_distance(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference, as a share of the weight's largest gradient; small gradients count as a hundredth of the largest."""
    if actual.keys() != expected.keys():
        return math.inf
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(
        float((actual[name] - gradient).abs().max() / max(float(gradient.abs().max()), 0.01 * largest))
        for name, gradient in expected.items()
    )


def _is_plain_head(flat: PreTrainedModel, reference: PreTrainedModel, form: BatchForm, batch: MicroBatch) -> bool:
    """Return whether a language model's loss can come from its head's matrix alone: no bias, scale or cap of the logits."""
    head = flat.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or output_of(flat) is not forward.token_logits:
        return False
    set_batch_form(flat, dataclasses.replace(form, plain_head=True))
    batch = dataclasses.replace(batch, target_places=torch.arange(0, len(batch.input_ids), 3), targets=batch.targets[::3])
    expected = F.cross_entropy(forward.token_logits(reference, batch).float(), batch.targets, reduction="sum")
    try:
        loss = forward.token_loss(flat, batch)
    except Exception:  # the code behind the head cannot take a loss for logits
        return False
    if loss.dim() or abs(float(loss) - float(expected)) > TOLERANCE * abs(float(expected)):
        return False
    return _gradient_distance(_gradients(flat, loss), _gradients(reference, expected)) <= TOLERANCE


def _as_list(ids: Any) -> Any:
    return ids if isinstance(ids, list) else [ids]
