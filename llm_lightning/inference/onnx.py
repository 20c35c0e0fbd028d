"""Export a model as an ONNX file for other runtimes, and check its logits against torch's."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from llm_lightning.errors import RunError, first_line
from llm_lightning.inference.experts import computing_every_expert
from llm_lightning.models.batch_form import is_unpadded, published_attention
from llm_lightning.models.positions import count_positions

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference from torch's logits, as a share of the largest logit."""
LENGTHS = ((2, 9), (1, 2), (3, 33), (2, 130))
"""Numbers of texts, and of words in the longest one, for the comparison with torch. The model is traced with the first pair."""

CAUSES = (
    (r"Could not guard on data-dependent expression", "its code branches on the values of a tensor, which a trace cannot follow"),
    (r"No ONNX function found for <OpOverload\(op='([^']+)'", r"ONNX has no operator for \1"),
    (r"Got invalid dimensions for input", "a trace of its code holds for one number of tokens only"),
)
"""Messages of torch and of ONNX Runtime, and their meaning for the model."""
ADVICE = "nothing was exported. export.format=hf exports every model"


class Logits(nn.Module):
    """A model as a function of padded rows, without a cache: (rows, tokens, …) logits; for spans, logits of beginnings and of ends."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        options = {"use_cache": False} if "use_cache" in inspect.signature(self.model.forward).parameters else {}
        rows = dict(zip(inputs_of(self.model), inputs, strict=True))
        if self.model.config.model_type == "xlnet":  # torch cannot translate its 1.0 - mask of integers
            rows["attention_mask"] = rows["attention_mask"].to(self.model.dtype)
        outputs = self.model(**rows, **options)
        return (outputs.start_logits, outputs.end_logits) if "start_logits" in outputs else outputs.logits


def export(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write model.onnx into the folder.

    Raises RunError if the model cannot be exported, or if ONNX Runtime's logits differ from torch's: the caller must not keep the file.
    """
    if is_unpadded(model):
        model.set_attn_implementation(published_attention(model))
    function, file, kind = Logits(model.eval()), folder / "model.onnx", type(model).__name__
    try:
        _trace(function, tokenizer, file)
    except Exception as error:  # of torch.export, of the translation to ONNX, of a model's own code
        raise RunError(f"export.format=onnx: {kind} cannot be exported ({_reason(error)}); {ADVICE}.") from error
    try:
        difference = _check(function, tokenizer, file)
    except Exception as error:
        raise RunError(
            f"export.format=onnx: ONNX Runtime cannot run {kind} on texts of other lengths than the one it was traced with "
            f"({_reason(error)}); {ADVICE}."
        ) from error
    if not difference <= TOLERANCE:
        raise RunError(f"export.format=onnx: {kind} in ONNX Runtime: logits are off by {difference:.2g} of the largest; {ADVICE}.")
    log.info("onnx: the logits are torch's, to %.1e of the largest", difference)


def _trace(function: Logits, tokenizer: Any, file: Path) -> None:
    names = inputs_of(function.model)
    outputs = ["start_logits", "end_logits"] if "QuestionAnswering" in type(function.model).__name__ else ["logits"]
    rows, tokens, written = Dim("rows"), Dim("tokens"), Dim("written")
    dims = [{0: rows, 1: written if name.startswith("decoder") else tokens} for name in names]
    with _silence_tracer(), torch.inference_mode(), computing_every_expert(function.model):
        torch.onnx.export(
            function,
            tokenize_inputs(function.model, tokenizer, texts_of(*LENGTHS[0])),
            file,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=(tuple(dims),),
            dynamo=True,
            verbose=False,
        )


@contextlib.contextmanager
def _silence_tracer() -> Iterator[None]:
    """Drop the output and logs of torch within: for a model that cannot be traced, hundreds of lines above our own message."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _check(function: Logits, tokenizer: Any, file: Path) -> float:
    """Return the largest difference of the logits on texts of several numbers and lengths, cut to the length that the model takes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    limit = min(count_positions(function.model) or tokenizer.model_max_length, tokenizer.model_max_length)
    differences = []
    for count, words in LENGTHS:
        inputs = [value[:, :limit] for value in tokenize_inputs(function.model, tokenizer, texts_of(count, words))]
        differences.append(_difference(function, session, tuple(inputs)))
    return float(np.max(differences))  # NaN if one of them is


def inputs_of(model: PreTrainedModel) -> list[str]:
    """Return the names of the inputs; models with a decoder that writes also take the decoder's."""
    writes = model.config.is_encoder_decoder and model.can_generate()
    return ["input_ids", "attention_mask", *(["decoder_input_ids"] if writes else [])]


def texts_of(count: int, words: int) -> list[str]:
    """Return `count` texts, the longest of `words` words."""
    pool = ["a", "short", "text", "and", "another", "one", "that", "is", "a", "little", "longer", "than", "the", "first"]
    return [" ".join(pool[(i + row) % len(pool)] for i in range(max(words - 3 * row, 1))) for row in range(count)]


def _reason(error: BaseException) -> str:
    """Return the deepest cause of an exception in one line, in plain words if `CAUSES` has them: torch wraps it in several pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    for pattern, meaning in CAUSES:
        if match := re.search(pattern, str(error)):
            return match.expand(meaning)
    return f"{type(error).__name__}: {first_line(error)}"


def tokenize_inputs(model: PreTrainedModel, tokenizer: Any, texts: list[str]) -> tuple[Tensor, ...]:
    """Return texts as padded rows, and for an encoder-decoder the start tokens of its decoder."""
    encoding = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", verbose=False)  # `_check` cuts long texts
    inputs = (encoding["input_ids"], encoding["attention_mask"])
    if len(inputs_of(model)) == len(inputs):
        return inputs
    return *inputs, torch.full((len(texts), 3), model.config.decoder_start_token_id)


def _difference(function: Logits, session: Any, inputs: tuple[Tensor, ...]) -> float:
    """Return the largest difference of the logits, as a share of the largest. Logits of padding are left out: behind a sliding window
    a place of padding may see no token at all, and each runtime has its own softmax of nothing."""
    names = inputs_of(function.model)
    onnx_outputs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    with torch.inference_mode():
        torch_outputs = function(*inputs)
    has_logits_per_token = "SequenceClassification" not in type(function.model).__name__ and "decoder_input_ids" not in names
    real = inputs[1].numpy().astype(bool) if has_logits_per_token else ...
    pairs = [
        (a[real], b.numpy()[real])
        for a, b in zip(onnx_outputs, torch_outputs if isinstance(torch_outputs, tuple) else [torch_outputs], strict=True)
    ]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
