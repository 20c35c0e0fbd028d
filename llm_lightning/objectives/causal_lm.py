"""Causal language modelling: maximise Σ log p(token | tokens before it)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.module import Text
from llm_lightning.objectives.base import Evaluation, Objective
from llm_lightning.objectives.language import bits_per_byte, perplexity, unigram_entropy


class CausalLM(Objective):
    """Next-token negative log-likelihood (Bengio et al. 2003, equation 1)."""

    family = "decoder"
    encoding = "stream"
    auto_class = "AutoModelForCausalLM"
    monitor = "validation/loss"
    maximize = False

    def score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(summed loss, logits (batch, time, vocabulary)); targets are already the next tokens."""
        logits = self.model(**batch.inputs(), use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return loss, logits

    def scores(self, split: str, mean_loss: float, targets: int) -> Evaluation:
        size = self.text.splits[split].facts.bytes
        return {
            "loss": mean_loss,
            "perplexity": perplexity(mean_loss),
            "bits_per_byte": bits_per_byte(mean_loss * targets, size),
        }

    def summary(self, text: Text) -> dict[str, float]:
        return {"validation/unigram_entropy": unigram_entropy(text.splits["validation"], [])}
