"""Translation and every other task that writes a text for a text: an encoder-decoder under teacher forcing."""

from __future__ import annotations

import logging
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from llm_lightning.config.signatures import Range
from llm_lightning.data.collate import EVALUATION, Collator, MicroBatch
from llm_lightning.data.examples import Example
from llm_lightning.data.languages import has_languages, language_id
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.errors import UserError, join_names
from llm_lightning.metrics.rows import Rows, TopRows
from llm_lightning.metrics.state import States
from llm_lightning.metrics.text import SAMPLE, CorpusScores
from llm_lightning.models.forward import written_logits
from llm_lightning.models.generate import until, write_targets
from llm_lightning.models.positions import positions_of
from llm_lightning.objectives.base import SAMPLES, Evaluation, Objective
from llm_lightning.objectives.language import perplexity

log = logging.getLogger(__name__)

SHOWN = 20  # translations that are stored for people to read


class Translation(Objective):
    """-Σ log p(target token | source, target tokens before it), smoothed by `label_smoothing` (Szegedy et al. 2016, section 7).

    The last evaluation of a run translates by beam search and scores BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacrebleu.
    """

    family = "encoder-decoder"
    encoding = "translation"
    labelled = True
    whole_sequences = True
    scores_rows = True
    auto_class = "AutoModelForSeq2SeqLM"
    monitor = "validation/loss"
    maximize = False

    def __init__(
        self,
        dataset: TokenizedDataset,
        *,
        label_smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.1,
        beams: Annotated[int, Range(1)] = 4,
        length_penalty: float = 1.0,
    ) -> None:
        """`beams` is the number of translations that beam search follows; a `length_penalty` above 0 favours long ones."""
        super().__init__(dataset)
        self.label_smoothing, self.beams, self.length_penalty = label_smoothing, beams, length_penalty
        self._tables: dict[str, Any] = {}

    def adapt(self, model: PreTrainedModel) -> None:
        """Make the model begin its text with the token of the target language, in exports too."""
        tokenizer, generation = self.dataset.tokenizer, model.generation_config
        assert generation is not None
        if has_languages(tokenizer):
            language = language_id(tokenizer, tokenizer.tgt_lang)
            marks = tokenizer(text_target="", verbose=False)["input_ids"]
            if marks[-1] == language:  # mBART: the mark is behind each text; its training moves it to the front
                model.config.decoder_start_token_id = generation.decoder_start_token_id = language
                generation.forced_bos_token_id = None
            else:
                generation.forced_bos_token_id = language
        if model.config.decoder_start_token_id is None:
            names = ("bos_token_id", "cls_token_id", "pad_token_id")
            starts = [generation.decoder_start_token_id, *(getattr(tokenizer, name) for name in names)]
            start = next((token for token in starts if token is not None), None)
            if start is None:
                raise UserError("objective=translation: the model has no decoder_start_token_id; set it in its config.json.")
            if generation.decoder_start_token_id is None:
                log.warning(
                    "model: its config has no decoder_start_token_id; translations begin with %s",
                    tokenizer.convert_ids_to_tokens(start),
                )
            model.config.decoder_start_token_id = generation.decoder_start_token_id = start
        self._name_prefixes(model)

    def _name_prefixes(self, model: PreTrainedModel) -> None:
        """Log the prefixes that the checkpoint expects before each source, if data.prefix is not set."""
        if self.dataset.encoding.data.prefix is not None:
            return
        tasks = getattr(model.config, "task_specific_params", None) or {}
        prefixes = [task["prefix"] for task in tasks.values() if isinstance(task, dict) and task.get("prefix")]
        codes = getattr(self.dataset.tokenizer, "supported_language_codes", None) or []  # of Marian's models for several languages
        if prefixes or codes:
            log.warning(
                "data.prefix is not set, and the checkpoint was trained with %s before each source: \"data.prefix='%s'\" for example",
                join_names([f"'{prefix}'" for prefix in prefixes or codes], 6),
                prefixes[0] if prefixes else f"{codes[0]} ",
            )

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, None]:
        """Return (summed loss, None); evaluation has no smoothing."""
        logits = written_logits(self.model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        smoothing = self.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits, batch.targets, label_smoothing=smoothing, reduction="sum"), None

    def build_states(self) -> States:
        if not self.final:
            return {}
        return {
            "scores": CorpusScores(self._references()),
            "examples": Rows(len(self.dataset.splits[self.split])),
            "samples": TopRows(SHOWN),
        }

    def evaluate_batch(self, batch: MicroBatch) -> tuple[Tensor, list[str]]:
        """Return (summed loss, the translations in the last evaluation of a run, else none)."""
        loss, _ = self.loss_and_outputs(batch)
        return loss, self.translate(batch) if self.final else []

    def update_states(self, states: States, batch: MicroBatch, outputs: list[str]) -> None:
        if not self.final:
            return
        rows = self.rows(batch)
        examples = [self.dataset.example(self.split, int(row)) for row in rows]
        chrf = states["scores"].update(outputs, [example.label for example in examples])
        states["examples"].update(rows, chrf=chrf)

        def describe(i: int) -> dict[str, str]:
            return {"source": examples[i].text, "reference": examples[i].label, "translation": outputs[i]}

        states["samples"].update(rows, np.zeros(len(rows)), np.ones(len(rows), dtype=bool), describe)

    def predict(self, batch: MicroBatch) -> list[str]:
        return self.translate(batch)

    def answer_row(self, example: Example, predictions: list[str]) -> dict[str, Any]:
        return {"translation": predictions[0]}

    def translate(self, batch: MicroBatch) -> list[str]:
        """Return the best translation that beam search finds for each source."""
        tokenizer = self.dataset.tokenizer
        most = min(2 * batch.longest + 10, self.dataset.encoding.data.block_size)
        if (limit := positions_of(self.model.config)) is not None:
            most = min(most, limit)
        settings: dict[str, Any] = {"num_beams": self.beams, "max_new_tokens": most, "do_sample": False}
        if self.beams > 1:
            settings |= {"length_penalty": self.length_penalty, "early_stopping": True}
        written = write_targets(self.model, batch, **settings)
        texts = [until(ids, {tokenizer.eos_token_id}) for ids in written]
        if has_languages(tokenizer):  # M2M100's tokenizer does not count language tokens among the special ones
            language = language_id(tokenizer, tokenizer.tgt_lang)
            texts = [[token for token in ids if token != language] for ids in texts]
        return tokenizer.batch_decode(texts, skip_special_tokens=True)

    def compute_metrics(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        metrics = {"loss": mean_loss, "perplexity": perplexity(mean_loss)}
        if self.final:
            metrics |= states["scores"].scores()
            compared = {"bleu": states["scores"].describe(), "chrf": "characters"}
            log.info("%s: BLEU compares %s", self.split, compared["bleu"])
            samples = [sample for _, sample in states["samples"].rows()]
            self.scored[self.split] = states["examples"].columns()
            self._tables = {
                "compared": compared,
                "samples": samples,
                "examples": states["examples"].table(),
                **states["examples"].describe_sample(),
            }
        return metrics

    def _references(self) -> list[str]:
        """Return the first references of the split, the same on every rank."""
        column = self.dataset.encoding.data.columns.label
        return [text for text in self.dataset.rows[self.split].table[:SAMPLE][column] if isinstance(text, str)]

    def details(self) -> dict[str, Any]:
        return super().details() | self._tables

    def samples(self) -> list[dict[str, str]]:
        validation = self.dataset.splits["validation"]
        assert validation.rows is not None
        first = np.arange(min(SAMPLES, len(validation)))
        batch = Collator(translates=True)(validation, [first], EVALUATION)
        translations = self.translate(self.transfer_batch_to_device(batch, self.model.device, 0))
        by_index = dict(zip(batch.indices.tolist(), translations, strict=True))
        numbers = {int(validation.rows[i]): int(i) for i in first}
        examples = (example for example in self.dataset.examples("validation") if example.row in numbers)
        return [
            {"prompt": example.text, "reference": example.label, "text": by_index[numbers[example.row]]}
            for example in islice(examples, len(numbers))
        ]
