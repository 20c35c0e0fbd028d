"""Instruction tuning: answers to conversations, learnt from what the assistant says in them and from nothing else."""

from __future__ import annotations

import logging
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.encodings.chat import Encoder, Message
from llm_lightning.data.module import Text
from llm_lightning.metrics.rows import Rows, TopRows
from llm_lightning.metrics.state import States
from llm_lightning.metrics.text import rouge_l
from llm_lightning.metrics.words import describe_words
from llm_lightning.models.forward import token_loss
from llm_lightning.models.generate import continued, until
from llm_lightning.objectives.base import SAMPLED, SAMPLES, Evaluation, Objective
from llm_lightning.objectives.language import perplexity
from llm_lightning.signatures import Range

log = logging.getLogger(__name__)


class Instruction(Objective):
    """-Σ log p(token of the assistant | conversation before it).

    The last evaluation of a run answers the first `answered` conversations of a split, greedily, and scores ROUGE-L (Lin 2004) with the
    answers that stand there, and the share that is the same to the letter.
    """

    family = "decoder"
    encoding = "chat"
    auto_class = "AutoModelForCausalLM"
    monitor = "validation/loss"
    maximize = False

    def __init__(
        self,
        text: Text,
        *,
        answered: Annotated[int, Range(0)] = 50,
        max_answer: Annotated[int, Range(1)] = 256,
        chunked_loss: bool = True,
    ) -> None:
        """`max_answer` is the longest answer that is generated, in tokens; `chunked_loss`: a part of the logits in memory at once."""
        super().__init__(text)
        self.chunked_loss = chunked_loss
        self.answered, self.max_answer = answered, max_answer
        self._tables: dict[str, Any] = {"samples": [], "examples": {}}

    def score(self, batch: MicroBatch) -> tuple[Tensor, None]:
        """(summed loss, nothing)."""
        return token_loss(self.model, batch, self.chunked_loss), None

    def build_states(self) -> States:
        return {"answers": Rows(self.answered), "samples": TopRows(self.answered)} if self.final else {}

    def complete_states(self, states: States) -> None:
        """Answer the first conversations of the split, each rank its share of them, and score the answers."""
        examples = list(islice(self.text.examples(self.split), self.answered)) if self.final else []
        asked = [example.text[: _last(example.text)] for example in examples]
        for number, answer in self.answer(asked, shared=True).items():
            wanted, said = examples[number].text[len(asked[number])]["content"].strip(), answer.strip()
            scores = {"rouge_l": np.array([rouge_l(said, wanted)]), "exact_match": np.array([float(said == wanted)])}
            states["answers"].update(np.array([number]), **scores)
            sample = {"prompt": asked[number][-1]["content"], "reference": wanted, "answer": said}
            states["samples"].update(np.array([number]), np.zeros(1), np.ones(1, dtype=bool), lambda _, sample=sample: sample)

    def scores(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        found = {"loss": mean_loss, "perplexity": perplexity(mean_loss)}
        if self.final and (scores := states["answers"].columns()):
            found["rouge_l"] = 100 * sum(scores["rouge_l"].tolist()) / len(scores["rouge_l"])
            found["exact_match"] = sum(scores["exact_match"].tolist()) / len(scores["exact_match"])
            examples = states["answers"].table(lambda columns: columns | {"rouge_l": 100 * columns["rouge_l"]})
            samples = [sample for _, sample in states["samples"].rows()]
            compared = describe_words(sample["reference"] for sample in samples)
            log.info("%s: ROUGE-L compares %s", self.split, compared)
            self._tables = {"compared": {"rouge_l": compared}, "samples": samples, "examples": examples}
        return found

    def details(self) -> dict[str, Any]:
        return super().details() | self._tables

    def samples(self) -> list[dict[str, str]]:
        examples = list(islice(self.text.examples("validation"), SAMPLES))
        asked = [example.text[: _last(example.text)] for example in examples]
        said = self.answer(asked, max_new_tokens=min(self.max_answer, SAMPLED))
        return [
            {
                "prompt": messages[-1]["content"] if messages else "",
                "reference": example.text[len(messages)]["content"],
                "text": text,
            }
            for messages, example, text in zip(asked, examples, said.values(), strict=True)
        ]

    def answer(self, conversations: list[list[Message]], shared: bool = False, **settings: Any) -> dict[int, str]:
        """Return the model's next message in each conversation, by its place; greedy unless `settings`, those of generate, say otherwise.

        `shared`: every rank is called with the same conversations, and answers its share of them.
        """
        encoder, tokenizer = self._encoder(), self.text.tokenizer
        settings = {"max_new_tokens": self.max_answer, "do_sample": False, **settings}
        ends = encoder.ends()
        prompts = [encoder.prompt(messages) for messages in conversations]
        with torch.no_grad(), self.precision_context():
            found = continued(self.model, prompts, tokenizer.pad_token_id, shared, eos_token_id=sorted(ends), **settings)
        texts = (tokenizer.decode(until(tokens, ends), skip_special_tokens=True) for tokens in found.values())
        return dict(zip(found, texts, strict=True))

    def _encoder(self) -> Encoder:
        assert isinstance(self.text.encoding, Encoder)
        return self.text.encoding


def _last(messages: list[Message]) -> int:
    """The place of the assistant's last message."""
    return max(i for i, message in enumerate(messages) if message["role"] == "assistant")
