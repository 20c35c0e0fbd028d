"""Translation, and whatever else makes a text of a text: an encoder-decoder under teacher forcing."""

from __future__ import annotations

import logging
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.data.collate import EVALUATION, Collator, MicroBatch
from llm_lightning.data.examples import Example
from llm_lightning.data.module import Text
from llm_lightning.metrics.rows import Rows, TopRows
from llm_lightning.metrics.state import States
from llm_lightning.metrics.text import SAMPLE, CorpusScores
from llm_lightning.models.forward import written_logits
from llm_lightning.models.generate import until, written
from llm_lightning.objectives.base import SAMPLES, Evaluation, Objective
from llm_lightning.objectives.language import perplexity
from llm_lightning.signatures import Range

log = logging.getLogger(__name__)

SHOWN = 20  # translations that are kept to be read


class Translation(Objective):
    """-Σ log p(target token | source, target tokens before it), smoothed in training (Szegedy et al. 2016, section 7).

    The last evaluation of a run translates by beam search and scores BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacrebleu.
    """

    family = "encoder-decoder"
    encoding = "translation"
    labelled = True
    whole_sequences = True
    auto_class = "AutoModelForSeq2SeqLM"
    monitor = "validation/loss"
    maximize = False

    def __init__(
        self,
        text: Text,
        *,
        label_smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.1,
        beams: Annotated[int, Range(1)] = 4,
        length_penalty: float = 1.0,
    ) -> None:
        """`beams` is the number of translations that are followed at once; above 0, `length_penalty` favours long ones."""
        super().__init__(text)
        self.label_smoothing, self.beams, self.length_penalty = label_smoothing, beams, length_penalty
        self._tables: dict[str, Any] = {}

    def score(self, batch: MicroBatch) -> tuple[Tensor, None]:
        """(summed loss, nothing); without smoothing where the model is evaluated."""
        logits = written_logits(self.model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        smoothing = self.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits, batch.targets, label_smoothing=smoothing, reduction="sum"), None

    def build_states(self) -> States:
        if not self.final:
            return {}
        return {
            "scores": CorpusScores(self._references()),
            "examples": Rows(len(self.text.splits[self.split])),
            "samples": TopRows(SHOWN),
        }

    def evaluate_batch(self, batch: MicroBatch) -> tuple[Tensor, list[str]]:
        """(summed loss, the translations in the last evaluation of a run)."""
        loss, _ = self.score(batch)
        return loss, self.translate(batch) if self.final else []

    def update_states(self, states: States, batch: MicroBatch, outputs: list[str]) -> None:
        if not self.final:
            return
        rows = self.rows(batch)
        examples = [self.text.example(self.split, int(row)) for row in rows]
        chrf = states["scores"].update(outputs, [example.label for example in examples])
        states["examples"].update(rows, chrf=chrf)

        def describe(i: int) -> dict[str, str]:
            return {"source": examples[i].text, "reference": examples[i].label, "translation": outputs[i]}

        states["samples"].update(rows, np.zeros(len(rows)), np.ones(len(rows), dtype=bool), describe)

    def predict(self, batch: MicroBatch) -> list[str]:
        return self.translate(batch)

    def answer_row(self, example: Example, found: list[str]) -> dict[str, Any]:
        return {"translation": found[0]}

    def translate(self, batch: MicroBatch) -> list[str]:
        """The best translation of each source that beam search finds."""
        tokenizer = self.text.tokenizer
        most = min(2 * batch.longest + 10, self.text.encoding.data.block_size)
        settings: dict[str, Any] = {"num_beams": self.beams, "max_new_tokens": most, "do_sample": False}
        if self.beams > 1:
            settings |= {"length_penalty": self.length_penalty, "early_stopping": True}
        found = written(self.model, batch, **settings)
        return tokenizer.batch_decode([until(ids, {tokenizer.eos_token_id}) for ids in found], skip_special_tokens=True)

    def scores(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        found = {"loss": mean_loss, "perplexity": perplexity(mean_loss)}
        if self.final:
            found |= states["scores"].scores()
            compared = {"bleu": states["scores"].describe(), "chrf": "characters"}
            log.info("%s: BLEU compares %s", self.split, compared["bleu"])
            samples = [sample for _, sample in states["samples"].rows()]
            self._tables = {
                "compared": compared,
                "samples": samples,
                "examples": states["examples"].table(),
                **states["examples"].sampled(),
            }
        return found

    def _references(self) -> list[str]:
        """Return the first references of the split, which are the same on every rank."""
        column = self.text.encoding.data.columns.label
        return [text for text in self.text.rows[self.split].table[:SAMPLE][column] if isinstance(text, str)]

    def details(self) -> dict[str, Any]:
        return super().details() | self._tables

    def samples(self) -> list[dict[str, str]]:
        part = self.text.splits["validation"]
        assert part.rows is not None
        first = np.arange(min(SAMPLES, len(part)))
        batch = Collator(translates=True)(part, [first], EVALUATION)
        found = self.translate(self.transfer_batch_to_device(batch, self.model.device, 0))
        said = dict(zip(batch.indices.tolist(), found, strict=True))
        numbers = {int(part.rows[i]): int(i) for i in first}
        examples = (example for example in self.text.examples("validation") if example.row in numbers)
        return [
            {"prompt": example.text, "reference": example.label, "text": said[numbers[example.row]]}
            for example in islice(examples, len(numbers))
        ]
