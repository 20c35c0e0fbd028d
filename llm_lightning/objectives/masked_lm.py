"""Masked language modelling: guess the masked tokens from both sides (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from torch import Tensor

from llm_lightning.config.signatures import Range
from llm_lightning.data import tokenizers
from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.masking import Masking
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.errors import UserError
from llm_lightning.metrics.state import States
from llm_lightning.models.forward import token_loss
from llm_lightning.objectives.base import Evaluation, Objective
from llm_lightning.objectives.language import perplexity, unigram_entropy


class MaskedLM(Objective):
    """Negative log-likelihood of the masked tokens; masks change with each epoch, and are the same in every evaluation."""

    family = "encoder"
    encoding = "documents"
    whole_sequences = True
    auto_class = "AutoModelForMaskedLM"
    monitor = "validation/loss"
    maximize = False

    def __init__(
        self,
        dataset: TokenizedDataset,
        *,
        mask_probability: Annotated[float, Range(0, 1, open=True)] = 0.15,
        whole_words: bool = False,
    ) -> None:
        """`mask_probability` of the tokens are targets; `whole_words` masks all pieces of a word together."""
        super().__init__(dataset)
        self.mask_probability, self.whole_words = mask_probability, whole_words

    def masking(self, seed: int) -> Masking:
        tokenizer = self.dataset.tokenizer
        if tokenizer.mask_token_id is None:
            raise UserError(
                "objective=masked_lm: the model's tokenizer has no mask token; choose an encoder such as model=bert_tiny."
            )
        return Masking(
            probability=self.mask_probability,
            whole_words=self.whole_words,
            mask_id=tokenizer.mask_token_id,
            vocabulary=len(tokenizer),
            special=self._special(),
            continues=np.array(tokenizers.continues_word(tokenizer)),
            seed=seed,
        )

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, None]:
        """Return (summed loss, None)."""
        return token_loss(self.model, batch), None

    def compute_metrics(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        return {"loss": mean_loss, "perplexity": perplexity(mean_loss)}

    def summary(self) -> dict[str, float]:
        tokens = self.dataset.splits["validation"].tokens
        return {"validation/unigram_entropy": unigram_entropy(tokens[~self._special()[tokens]])}

    def _special(self) -> np.ndarray:
        """Return (vocabulary,) bool: the tokens that are never masked; the unknown token may be masked."""
        tokenizer = self.dataset.tokenizer
        special = np.zeros(len(tokenizer), dtype=bool)
        special[[i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]] = True
        return special
