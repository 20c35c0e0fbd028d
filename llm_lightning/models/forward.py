"""Compute the logits of a flat batch's targets by an unmodified Hugging Face model.

The transformer gets the batch without padding if `flat_check.py` allows it, else padded to the longest sequence. The head, whatever its
modules, gets only the hidden states with a target, as if the batch held nothing else. The same holds for the modules behind the last
layer's attention (`last_layer.py`).

Without padding, hooks exchange values inside the model's own `forward` while one call runs (`_exchange_hidden`, `_compute_loss_in_head`):

    model(input_ids=…)                        the ids only tell the model how many rows its output has
        transformer(…)                        in:  the batch as one row of whole sequences (`_flat`), in place of those ids
        hidden = output.last_hidden_state     out: only the positions with a target, in the shape that the head expects
        logits = head(hidden)                 out: in `token_loss` the sum of the losses, a scalar, in place of logits
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_lightning.data.collate import MicroBatch, rounded
from llm_lightning.models import attention, last_layer
from llm_lightning.models.batch_form import batch_form, is_unpadded, transformer_of
from llm_lightning.models.loss import cross_entropy, linear_cross_entropy
from llm_lightning.models.windows import Weigh, pool_windows, weigh_by_level


def token_logits(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Return (targets, vocabulary) logits of the head at each target."""
    places = batch.target_places
    if not is_unpadded(model):
        logits = model(**padded(model, batch)).logits[sequence_of(batch), batch.position_ids]
        return logits if places is None else logits[places]
    count = len(batch.input_ids if places is None else places)
    with _exchange_hidden(model, batch, lambda hidden: F.pad(hidden, (0, 0, 0, rounded(count) - count))[None], places):
        return model(input_ids=batch.input_ids[None]).logits[0, :count]


def token_loss(model: PreTrainedModel, batch: MicroBatch, chunked: bool = True) -> Tensor:
    """Return Σ -log p of the targets, a scalar.

    The head of most decoders is one matrix, unless an adapter adds to it. Then the loss is computed from the hidden states, with a part of
    the logits in memory at a time. `chunked=False` computes all logits at once.
    """
    head = model.get_output_embeddings()
    if chunked and type(head) is nn.Linear and is_unpadded(model) and batch_form(model).plain_head:
        exchanged = _exchange_hidden(model, batch, lambda hidden: hidden[None], batch.target_places)
        with exchanged, _compute_loss_in_head(head, batch.targets):
            loss_in_place_of_logits: Tensor = model(input_ids=batch.input_ids[None]).logits
        return loss_in_place_of_logits
    return cross_entropy(token_logits(model, batch), batch.targets)


def log_likelihoods(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Return (sequences,) Σ log p of the targets of each sequence."""
    losses = F.cross_entropy(token_logits(model, batch).float(), batch.targets, reduction="none")
    sequence = sequence_of(batch)
    target_sequence = sequence if batch.target_places is None else sequence[batch.target_places]
    return losses.new_zeros(len(batch.indices)).index_add(0, target_sequence, -losses)


def sequence_logits(model: PreTrainedModel, batch: MicroBatch, weigh: Weigh = weigh_by_level) -> Tensor:
    """Return (rows, classes) logits; those of a row in several windows are pooled, with the weights of `weigh` (`windows.py`)."""
    logits = _text_logits(model, batch)
    return logits if batch.window_rows is None else pool_windows(logits, batch.window_rows, len(batch.indices), weigh)


def _text_logits(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Return (sequences, classes) logits of the head from each sequence's first token (encoders), last token (decoders) or mean.

    EuroBERT can also take the mean of its head's logits of all tokens.
    """
    if not is_unpadded(model):
        return model(**padded(model, batch, in_front=head_reads_last_place(model))).logits
    first = batch.cu_seqlens[:-1]

    def mean(values: Tensor) -> Tensor:
        sums = values.new_zeros(len(first), values.shape[1]).index_add(0, sequence_of(batch), values)
        return sums / batch.cu_seqlens.diff()[:, None]

    pooling = batch_form(model).pooling
    if pooling == "late":
        with _exchange_hidden(model, batch, lambda hidden: hidden[:, None]):
            return mean(model(input_ids=batch.input_ids[:, None]).logits)[: batch.texts]
    if pooling == "mean":
        exchanged = _exchange_hidden(model, batch, lambda hidden: mean(hidden)[:, None])
    else:
        places = _last(model, batch) if pooling == "last" else first
        exchanged = _exchange_hidden(model, batch, lambda hidden: hidden[:, None], places)
    with exchanged:
        return model(input_ids=batch.input_ids[first][:, None]).logits[: batch.texts]  # as if each sequence had one token


def span_logits(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Return (tokens, 2) logits of each token as the beginning and as the end of an answer."""
    if not is_unpadded(model):
        place = (sequence_of(batch), batch.position_ids)
        outputs = model(**padded(model, batch))
        return torch.stack([outputs.start_logits[place], outputs.end_logits[place]], dim=-1)
    with _exchange_hidden(model, batch, lambda hidden: hidden[None]):
        outputs = model(input_ids=batch.input_ids[None])
        return torch.stack([outputs.start_logits[0], outputs.end_logits[0]], dim=-1)


def written_logits(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Return (targets, vocabulary) logits of an encoder-decoder at each target, given the targets before it.

    Both texts are padded to their longest; the head sees only the real targets.
    """
    assert batch.cu_targets is not None
    counts = batch.cu_targets.diff()
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=len(batch.targets))
    place = torch.arange(len(batch.targets), device=counts.device) - batch.cu_targets[row]
    longest = batch.longest_target
    decoded = batch.targets.new_full((len(counts), longest + 1), model.config.pad_token_id or 0)
    decoded[:, 0] = model.config.decoder_start_token_id
    decoded[row, place + 1] = batch.targets
    head: Any = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, args: (args[0][row, place][None],))
    try:
        return model(**padded(model, batch), decoder_input_ids=decoded[:, :-1], use_cache=False).logits[0]
    finally:
        hook.remove()


@contextlib.contextmanager
def _compute_loss_in_head(head: nn.Linear, targets: Tensor) -> Iterator[None]:
    """Have the head return the summed loss of hidden states (1, targets, width) in place of logits.

    The loss is computed inside the model's own forward pass, where FSDP2 has gathered the head's weight, tied or not.
    """
    head.__dict__["forward"] = lambda hidden: linear_cross_entropy(hidden[0], head.weight, targets)  # found before the class's
    try:
        yield
    finally:
        del head.__dict__["forward"]


@contextlib.contextmanager
def _exchange_hidden(
    model: PreTrainedModel, batch: MicroBatch, reshape: Callable[[Tensor], Tensor], places: Tensor | None = None
) -> Iterator[None]:
    """Replace the transformer's input by the batch, and its output by the hidden states at `places`, as `reshape` returns them."""
    transformer, arguments = transformer_of(model), _flat(model, batch)

    def replace_input(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return (), arguments

    def replace_output(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = reshape(take_places(output.last_hidden_state))
        if output.get("pooler_output") is not None:
            output.pooler_output = _pool(transformer, output.last_hidden_state)
        return output

    hooks = (
        transformer.register_forward_pre_hook(replace_input, with_kwargs=True),
        transformer.register_forward_hook(replace_output),
    )
    lengths: Any = contextlib.nullcontext()
    if batch_form(model).lengths_at_hand:
        lengths = attention.lengths_at_hand(arguments.pop("cu_seq_lens_q"), arguments.pop("max_length_q"))
    try:
        with lengths, last_layer.restrict_last_layer(model, places, len(batch.input_ids)) as take_places:
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _pool(transformer: Any, hidden: Tensor) -> Tensor:
    """Return (rows, width) the pooler's output for the first token of (rows, tokens, width). ALBERT's pooler is two modules."""
    if hasattr(transformer, "pooler_activation"):
        return transformer.pooler_activation(transformer.pooler(hidden[:, 0]))
    return transformer.pooler(hidden)


def _flat(model: PreTrainedModel, batch: MicroBatch) -> dict[str, Any]:
    """Return the transformer's keyword arguments for one row of whole sequences; padding at its end makes the number of tokens round."""
    tokens = len(batch.input_ids)
    extra = rounded(tokens) - tokens
    form = batch_form(model)
    offset = model.config.pad_token_id + 1 if form.behind_padding else 0

    def fill(values: Tensor) -> Tensor:
        return F.pad(values, (0, extra))[None]

    arguments = {
        "input_ids": fill(batch.input_ids),
        "position_ids": fill(batch.position_ids) + offset,
        "cu_seq_lens_q": F.pad(batch.cu_seqlens, (0, 1), value=tokens + extra) if extra else batch.cu_seqlens,
        "max_length_q": max(batch.longest, extra),
    }
    if batch.token_type_ids is not None:
        arguments["token_type_ids"] = fill(batch.token_type_ids)
    if form.has_cache:
        arguments["use_cache"] = False
    return arguments


def head_reads_last_place(model: PreTrainedModel) -> bool:
    """Return whether the head for sequences reads the last place of a row, padding or not, as in XLNet: padding then goes in front."""
    return bool(getattr(model.config, "summary_type", None) == "last")


def padded(model: PreTrainedModel, batch: MicroBatch, in_front: bool = False) -> dict[str, Any]:
    """Return a model's keyword arguments for one row a sequence, padded behind the sequence, or in front of it."""
    sequence, column = sequence_of(batch), batch.position_ids
    width = max(batch.longest, getattr(model.config, "downsampling_rate", 1))  # CANINE pools this many characters to one
    if in_front:
        column = column + width - batch.cu_seqlens.diff()[sequence]
    place = (sequence, column)

    def rows(values: Tensor, filler: int) -> Tensor:
        return values.new_full((batch.texts, width), filler).index_put(place, values)

    arguments = {"input_ids": rows(batch.input_ids, model.config.pad_token_id or 0)}
    arguments["attention_mask"] = rows(torch.ones_like(batch.input_ids), 0)
    if batch.token_type_ids is not None:
        arguments["token_type_ids"] = rows(batch.token_type_ids, 0)
    return arguments


def _last(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Return (sequences,) the place of the last token with another id than padding, as decoders' heads find it."""
    places = torch.where(batch.input_ids == model.config.pad_token_id, 0, batch.position_ids)
    first = batch.cu_seqlens[:-1].long()
    return first + torch.zeros_like(first).scatter_reduce(0, sequence_of(batch), places, "amax")


def sequence_of(batch: MicroBatch) -> Tensor:
    """Return (tokens,) the number of the sequence that each token belongs to."""
    numbers = torch.arange(batch.segments, device=batch.input_ids.device)
    return torch.repeat_interleave(numbers, batch.cu_seqlens.diff(), output_size=len(batch.input_ids))
