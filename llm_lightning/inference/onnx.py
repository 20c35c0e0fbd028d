"""A model as an ONNX file for other runtimes, whose logits are checked against torch's before it is trusted."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from llm_lightning.errors import RunError
from llm_lightning.models.batch_form import is_unpadded, published_attention

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""How far logits may be from torch's, of the largest of them."""
TEXTS = (["a short text", "and another one that is a little longer than the first"], ["one"])
"""What the two are compared on: another number of rows, and another length, than the model is traced with."""


class Logits(nn.Module):
    """A model as a function of padded rows, without a cache: (rows, tokens, …) logits; of spans, their beginnings and ends."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        found = self.model(**dict(zip(names, inputs, strict=False)), use_cache=False) if self.writes else self.model(*inputs)
        return (found.start_logits, found.end_logits) if "start_logits" in found else found.logits

    @property
    def writes(self) -> bool:
        return bool(self.model.config.is_encoder_decoder) or self.model.can_generate()


def export(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write model.onnx into the folder. Raises RunError where ONNX Runtime's logits are not torch's."""
    if is_unpadded(model):
        model.set_attn_implementation(published_attention(model))
    function, file = Logits(model.eval()), folder / "model.onnx"
    names = ["input_ids", "attention_mask", *(["decoder_input_ids"] if model.config.is_encoder_decoder else [])]
    outputs = ["start_logits", "end_logits"] if "QuestionAnswering" in type(model).__name__ else ["logits"]
    rows, tokens, written = Dim("rows"), Dim("tokens"), Dim("written")
    dims = [{0: rows, 1: written if name.startswith("decoder") else tokens} for name in names]
    quiet = logging.getLogger("onnxscript")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                function,
                given(model, tokenizer, TEXTS[0]),
                file,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=(tuple(dims),),
                dynamo=True,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    for texts in TEXTS:
        difference = _difference(function, file, names, given(model, tokenizer, texts))
        if difference > TOLERANCE:
            file.unlink()
            raise RunError(f"{file}: ONNX Runtime's logits are off by {difference:.2g} of the largest; nothing was exported.")
    log.info("onnx: the logits are torch's, to %.1e of the largest", difference)


def given(model: PreTrainedModel, tokenizer: Any, texts: list[str]) -> tuple[Tensor, ...]:
    """Texts as padded rows, and for an encoder-decoder the beginning of what it writes."""
    found = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    inputs = (found["input_ids"], found["attention_mask"])
    if not model.config.is_encoder_decoder:
        return inputs
    return *inputs, torch.full((len(texts), 3), model.config.decoder_start_token_id)


def _difference(function: nn.Module, file: Path, names: list[str], inputs: tuple[Tensor, ...]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    with torch.inference_mode():
        ours = function(*inputs)
    pairs = zip(theirs, ours if isinstance(ours, tuple) else [ours], strict=True)
    return max(float(np.abs(a - b.numpy()).max() / np.abs(b.numpy()).max()) for a, b in pairs)
