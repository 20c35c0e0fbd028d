"""Instruction tuning: learn to answer conversations, from the assistant's messages alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llm_lightning.config.signatures import Range
from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.conversations import Conversation
from llm_lightning.data.encodings.chat import Encoder
from llm_lightning.data.examples import BadRow, Example
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.metrics.rows import Rows, TopRows
from llm_lightning.metrics.state import States
from llm_lightning.metrics.text import rouge_l
from llm_lightning.metrics.words import describe_words
from llm_lightning.models.forward import token_loss
from llm_lightning.models.generate import Fitted, continue_prompts, end_tokens, fit, until
from llm_lightning.objectives.base import SAMPLED, SAMPLES, Evaluation, Objective
from llm_lightning.objectives.language import perplexity

log = logging.getLogger(__name__)


class Instruction(Objective):
    """-Σ log p(token of the assistant | conversation before it).

    The last evaluation of a run answers the first `answered` conversations of a split, greedily, and scores ROUGE-L (Lin 2004) against
    the answers in the data, and the share of exact matches.
    """

    family = "decoder"
    encoding = "chat"
    scores_rows = True
    auto_class = "AutoModelForCausalLM"
    monitor = "validation/loss"
    maximize = False

    def __init__(
        self,
        dataset: TokenizedDataset,
        *,
        answered: Annotated[int, Range(0)] = 50,
        max_answer: Annotated[int, Range(1)] = 256,
        chunked_loss: bool = True,
    ) -> None:
        """`max_answer` is the longest answer that is generated, in tokens; `chunked_loss`: hold a part of the logits at a time."""
        super().__init__(dataset)
        self.chunked_loss = chunked_loss
        self.answered, self.max_answer = answered, max_answer
        self._tables: dict[str, Any] = {"samples": [], "examples": {}}

    def connect(self, model: PreTrainedModel, *arguments: Any) -> None:
        """Make the model's own generation, in exports too, end where the chat template ends an answer."""
        super().connect(model, *arguments)
        if (generation := getattr(model, "generation_config", None)) is not None and (
            ends := self._encoder().ends() | end_tokens(generation)
        ):
            generation.eos_token_id = sorted(ends) if len(ends) > 1 else min(ends)

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, None]:
        """Return (summed loss, None)."""
        return token_loss(self.model, batch, self.chunked_loss), None

    def build_states(self) -> States:
        return {"answers": Rows(self.answered), "samples": TopRows(self.answered)} if self.final else {}

    def complete_states(self, states: States) -> None:
        """Answer the first conversations of the split and score the answers. Each rank takes its share."""
        if not self.final:
            return
        prompts, examples = self._prompts(self.split, self.answered)
        for number, generated in self.answer(prompts, shared=True).items():
            reference, answer = self._encoder().answer(examples[number].text), generated.strip()
            scores = {"rouge_l": np.array([rouge_l(answer, reference)]), "exact_match": np.array([float(answer == reference)])}
            row = np.array([examples[number].row])
            states["answers"].update(row, **scores)
            sample = {"prompt": _last_question(examples[number].text), "reference": reference, "answer": answer}
            states["samples"].update(row, np.zeros(1), np.ones(1, dtype=bool), lambda _, sample=sample: sample)

    def compute_metrics(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        metrics = {"loss": mean_loss, "perplexity": perplexity(mean_loss)}
        if self.final and (scores := states["answers"].columns()):
            metrics["rouge_l"] = 100 * sum(scores["rouge_l"].tolist()) / len(scores["rouge_l"])
            metrics["exact_match"] = sum(scores["exact_match"].tolist()) / len(scores["exact_match"])
            self.scored[self.split] = scores
            examples = states["answers"].table(lambda columns: columns | {"rouge_l": 100 * columns["rouge_l"]})
            samples = [sample for _, sample in states["samples"].rows()]
            compared = describe_words(sample["reference"] for sample in samples)
            log.info("%s: ROUGE-L compares %s", self.split, compared)
            self._tables = {"compared": {"rouge_l": compared}, "samples": samples, "examples": examples}
        return metrics

    def details(self) -> dict[str, Any]:
        return super().details() | self._tables

    def samples(self) -> list[dict[str, str]]:
        prompts, examples = self._prompts("validation", SAMPLES)
        answers = self.answer(prompts, max_new_tokens=min(self.max_answer, SAMPLED))
        return [
            {
                "prompt": _last_question(examples[number].text),
                "reference": self._encoder().answer(examples[number].text),
                "text": text,
            }
            for number, text in answers.items()
        ]

    def describe_writing(self) -> str | None:
        """Return how many conversations will be answered; log for how many of them the model has too few positions."""
        parts = []
        for split in self.dataset.splits:
            if split == "train" or not self.answered:
                continue
            prompts, examples = self._prompts(split, self.answered)
            cut = self._fit(prompts, self.max_answer).describe(self.model.config, self.max_answer)
            if unanswerable := len(examples) - len(prompts):
                cut = f"{unanswerable} conversations begin with their only answer, and are not answered" + (
                    f"; {cut}" if cut else ""
                )
            if cut:
                log.warning("answers to %s: %s (objective.max_answer=%s)", split, cut, self.max_answer)
            parts.append(f"{len(prompts)} conversations of {split}" + (f": {cut}" if cut else ""))
        return "; ".join(parts) or None

    def answer(self, prompts: dict[int, list[int]], shared: bool = False, **settings: Any) -> dict[int, str]:
        """Return the model's answer to each prompt, by the prompt's key. `settings` are those of generate; the default is greedy.

        `shared`: every rank calls it with the same prompts, and answers its share of them.
        """
        encoder, tokenizer = self._encoder(), self.dataset.tokenizer
        settings = {"max_new_tokens": self.max_answer, "do_sample": False, **settings}
        ends, keys = encoder.ends(), list(prompts)
        fitted = self._fit(prompts, settings["max_new_tokens"]).prompts
        with torch.no_grad(), self.precision_context():
            tokens = continue_prompts(
                self.model, fitted, tokenizer.pad_token_id, shared, eos_token_id=sorted(ends) or None, **settings
            )
        decoded = {keys[i]: tokenizer.decode(until(written, ends), skip_special_tokens=True) for i, written in tokens.items()}
        return {key: encoder.without_end(text) for key, text in decoded.items()}

    def _prompts(self, split: str, most: int) -> tuple[dict[int, list[int]], list[Example]]:
        """Return (the prompts of the first conversations of a split by their places, the conversations). A conversation that begins with
        its only answer has no prompt."""
        encoder, prompts = self._encoder(), {}
        examples = list(islice(self._read_used(split), most))
        for number, example in enumerate(examples):
            try:
                prompts[number] = encoder.encode_prompt(example.text.before(example.text.last_answer))
            except BadRow:  # no message before the answer, which most templates require
                continue
        return prompts, examples

    def _read_used(self, split: str) -> Iterator[Example]:
        """Yield the conversations of a split that became sequences; a template may refuse others."""
        rows = self.dataset.splits[split].rows
        assert rows is not None
        used = set(rows[: self.answered + SAMPLES].tolist())
        return (example for example in self.dataset.examples(split) if example.row in used)

    def _fit(self, prompts: dict[int, list[int]], new_tokens: int) -> Fitted:
        return fit(self.model.config, list(prompts.values()), new_tokens, self.dataset.encoding.data.block_size)

    def _encoder(self) -> Encoder:
        assert isinstance(self.dataset.encoding, Encoder)
        return self.dataset.encoding


def _last_question(conversation: Conversation) -> str:
    """Return the message before the last answer."""
    place = conversation.last_answer
    return str(conversation.messages[place - 1]["content"] or "") if place else ""
