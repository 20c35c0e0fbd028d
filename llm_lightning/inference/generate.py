"""Text that goes on with a prompt: once, for every row of a file, or in a conversation at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, TextStreamer

from llm_lightning.config import DataConfig, GenerateConfig
from llm_lightning.data.encodings import text_of
from llm_lightning.data.encodings.chat import Message, conversation
from llm_lightning.data.examples import BadRow
from llm_lightning.errors import UserError
from llm_lightning.inference.predict import Row, usable
from llm_lightning.models.generate import as_published, continued
from llm_lightning.models.positions import positions_of


@dataclass
class Generator:
    """A decoder with its tokenizer, and how its tokens are drawn; a tokenizer's chat template makes a prompt a message of the user's."""

    model: PreTrainedModel
    tokenizer: Any
    settings: GenerateConfig
    data: DataConfig = field(default_factory=lambda: DataConfig(source="files"))

    def __call__(self, rows: list[Row]) -> list[Row]:
        """`text` for the prompt (or conversation) of each row; a row without one has `error`, or raises UserError."""
        prompts, said = usable(rows, lambda number, row: self.tokens(self._asked(row)), self.data)
        found = list(continued(self.model, list(prompts.values()), self.tokenizer.pad_token_id, **self.options()).values())
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True) if found else []
        said |= {number: {"text": self._stopped(text)} for number, text in zip(prompts, texts, strict=True)}
        return [said[number] for number in range(len(rows))]

    def _asked(self, row: Row) -> str | list[Message]:
        value, column = row.get(self.data.columns.text), self.data.columns.text
        return conversation(value, column, answered=False) if isinstance(value, list) else text_of(column, value)

    def tokens(self, asked: str | list[Message]) -> list[int]:
        """The tokens of a prompt or a conversation, the last ones of as many as the model has positions for."""
        if self.tokenizer.chat_template is None or (isinstance(asked, str) and self.settings.raw):
            if not isinstance(asked, str):
                raise BadRow("the model has no chat template, so that a prompt is text and no conversation")
            ids = self.tokenizer(asked)["input_ids"] or [self.tokenizer.bos_token_id]
        else:
            messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        most = positions_of(self.model.config)
        room = len(ids) if most is None else most - self.settings.max_new_tokens
        if room < 1:
            raise UserError(
                f"generate.max_new_tokens={self.settings.max_new_tokens}: the model has {most} positions in all; lower it."
            )
        return ids[-room:]

    def options(self) -> dict[str, Any]:
        """What transformers' generate is told."""
        given = self.settings
        options: dict[str, Any] = {"max_new_tokens": given.max_new_tokens, "repetition_penalty": given.repetition_penalty}
        if given.stop:
            options |= {"stop_strings": given.stop, "tokenizer": self.tokenizer}
        if not given.temperature:
            return options | {"do_sample": False}
        kept = {"top_k": given.top_k or 0, "top_p": given.top_p, "min_p": given.min_p}
        return options | {"do_sample": True, "temperature": given.temperature, **kept}

    def say(self, asked: str | list[Message], show: bool = True) -> str:
        """What the model says, shown as it comes where `show`."""
        ids = torch.tensor([self.tokens(asked)], device=self.model.device)
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if show else None
        with torch.inference_mode(), as_published(self.model):
            found = self.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pad_token_id=self.tokenizer.pad_token_id,
                streamer=streamer,
                **self.options(),
            )
        return self._stopped(self.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))

    def chat(self, ask: Callable[[str], str] = input) -> list[Message]:
        """A conversation at the terminal until /quit, end of input or Ctrl-C; /reset begins anew. Returns what was said."""
        if self.tokenizer.chat_template is None:
            raise UserError(
                "task=chat: the model has no chat template; it goes on with text (task=generate), or train one with "
                "objective=instruction."
            )
        print("/reset begins anew, /quit ends", file=sys.stderr)
        messages: list[Message] = []
        while True:
            try:
                said = ask("> ").strip()
            except (EOFError, KeyboardInterrupt):
                return messages
            if said == "/quit":
                return messages
            if said == "/reset":
                messages = []
            elif said:
                messages.append({"role": "user", "content": said})
                messages.append({"role": "assistant", "content": self.say(messages)})

    def _stopped(self, text: str) -> str:
        """The text before the first stop string."""
        return min((text.partition(stop)[0] for stop in self.settings.stop), key=len, default=text)


def plain_generation(model: PreTrainedModel) -> None:
    """A checkpoint's own habits of drawing tokens do not mix with those that are asked for; what ends a text stays."""
    own = model.generation_config
    kept = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")}
    model.generation_config = GenerationConfig(**kept)
