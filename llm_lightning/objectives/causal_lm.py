"""Causal language modelling: maximise Σ log p(token | tokens before it)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.metrics.state import States
from llm_lightning.models.forward import token_loss
from llm_lightning.models.generate import continue_prompts
from llm_lightning.models.positions import positions_of
from llm_lightning.objectives.base import SAMPLED, SAMPLES, Evaluation, Objective
from llm_lightning.objectives.language import bits_per_byte, perplexity, unigram_entropy

PROMPT = 16  # tokens that a sample begins with


class CausalLM(Objective):
    """Next-token negative log-likelihood (Bengio et al. 2003, equation 1)."""

    family = "decoder"
    encoding = "stream"
    auto_class = "AutoModelForCausalLM"
    monitor = "validation/loss"
    maximize = False

    def __init__(self, dataset: TokenizedDataset, *, chunked_loss: bool = True) -> None:
        """`chunked_loss`: hold a part of the logits in memory at a time, if the head allows it."""
        super().__init__(dataset)
        self.chunked_loss = chunked_loss

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, None]:
        """Return (summed loss, None); targets are already the next tokens."""
        return token_loss(self.model, batch, self.chunked_loss), None

    def compute_metrics(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        size = self.dataset.splits[self.split].facts.bytes
        return {
            "loss": mean_loss,
            "perplexity": perplexity(mean_loss),
            "bits_per_byte": bits_per_byte(mean_loss * targets, size),
        }

    def samples(self) -> list[dict[str, str]]:
        """Return continuations of the beginnings of validation texts, drawn at a temperature of 0.8 with the same seed each time."""
        validation, tokenizer = self.dataset.splits["validation"], self.dataset.tokenizer
        places = np.linspace(0, len(validation) - 1, min(SAMPLES, len(validation))).astype(int)
        prompts = [validation[i][: min(PROMPT, len(validation[i]) // 2)].tolist() for i in places if len(validation[i]) > 1]
        room = (positions_of(self.model.config) or PROMPT + SAMPLED) - max(map(len, prompts), default=0)
        settings: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 0, "max_new_tokens": min(SAMPLED, room)}
        continuations = list(continue_prompts(self.model, prompts, tokenizer.pad_token_id, **settings).values()) if room > 0 else []
        decoded = (tokenizer.batch_decode(part, skip_special_tokens=True) for part in (prompts, continuations))
        return [{"prompt": prompt, "text": text} for prompt, text in zip(*decoded, strict=False)]

    def summary(self) -> dict[str, float]:
        validation = self.dataset.splits["validation"]
        # the first token of a sequence may also be the last target of the sequence before
        shared = np.append(False, validation.starts[1:] < validation.starts[:-1] + validation.lengths[:-1])
        target = np.ones(len(validation.tokens), dtype=bool)
        target[validation.starts[~shared]] = False
        return {"validation/unigram_entropy": unigram_entropy(validation.tokens[target])}
