"""Text that goes on with a prompt: once, for every row of a file, or in a conversation at the terminal."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, TextStreamer

from llm_lightning.config.schema import DataConfig, GenerateConfig
from llm_lightning.data.conversations import Conversation, Message
from llm_lightning.data.encodings import text_of
from llm_lightning.data.encodings.chat import Encoder
from llm_lightning.data.examples import BadRow
from llm_lightning.errors import UserError
from llm_lightning.inference.predict import Row, usable, without_label
from llm_lightning.models.generate import as_published, continue_prompts, end_tokens
from llm_lightning.models.positions import positions_of

log = logging.getLogger(__name__)


@dataclass
class Generator:
    """A decoder with its tokenizer, and how its tokens are drawn; a tokenizer's chat template makes a prompt a message of the user's."""

    model: PreTrainedModel
    tokenizer: Any
    settings: GenerateConfig
    data: DataConfig = field(default_factory=lambda: DataConfig(source="files"))

    def __post_init__(self) -> None:
        self._encoder = None if self.tokenizer.chat_template is None else Encoder(self.tokenizer, without_label(self.data))
        self._notes: Counter[str] = Counter()

    @property
    def extra_columns(self) -> tuple[str, ...]:
        return () if self._encoder is None else Encoder.extra_columns

    def __call__(self, rows: list[Row]) -> list[Row]:
        """`text` for the prompt (or conversation) of each row; a row without one has `error`, or raises UserError."""
        prompts, said = usable(rows, lambda number, row: self.tokens(self._asked(row)), self.data)
        self._report_notes(len(rows))
        found = list(continue_prompts(self.model, list(prompts.values()), self.tokenizer.pad_token_id, **self.options()).values())
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True) if found else []
        said |= {number: {"text": self._stopped(text)} for number, text in zip(prompts, texts, strict=True)}
        return [said[number] for number in range(len(rows))]

    def _asked(self, row: Row) -> str | Conversation:
        """Return what a row asks: text as it is, and a conversation in the shapes of training data. Raises BadRow for what is neither."""
        columns = self.data.columns
        value = row.get(columns.text)
        extra = {name: row[name] for name in Encoder.extra_columns if row.get(name) is not None}
        pair = None if columns.text_pair is None else row.get(columns.text_pair)
        if self._encoder is None or (self.settings.raw and isinstance(value, str)):
            if isinstance(value, list | dict):
                raise BadRow("the model has no chat template, so that a prompt is text and no conversation")
            return text_of(columns.text, value)
        return self._encoder.read(value, pair, None, extra)[0]

    def tokens(self, asked: str | Conversation) -> list[int]:
        """Return the tokens of a prompt or a conversation, the last ones of as many as the model has positions for."""
        if self._encoder is None or (isinstance(asked, str) and self.settings.raw):
            if not isinstance(asked, str):
                raise BadRow("the model has no chat template, so that a prompt is text and no conversation")
            ids = self.tokenizer(asked)["input_ids"] or [self.tokenizer.bos_token_id]
        else:
            conversation = Conversation([{"role": "user", "content": asked}], [False]) if isinstance(asked, str) else asked
            self._notes.update(conversation.notes)
            ids = self._encoder.prompt(conversation)
        most = positions_of(self.model.config)
        room = len(ids) if most is None else most - self.settings.max_new_tokens
        if room < 1:
            raise UserError(
                f"generate.max_new_tokens={self.settings.max_new_tokens}: the model has {most} positions in all; lower it."
            )
        if len(ids) > room:
            self._notes[f"a prompt is cut at its beginning to {room} tokens, as the model has {most} positions"] += 1
        return ids[-room:]

    def _report_notes(self, rows: int) -> None:
        """Say what was left out of the prompts of some rows."""
        for note, count in self._notes.items():
            log.warning("in %s of %s rows %s", count, rows, note)
        self._notes.clear()

    def options(self) -> dict[str, Any]:
        """What transformers' generate is told."""
        given = self.settings
        options: dict[str, Any] = {"max_new_tokens": given.max_new_tokens, "repetition_penalty": given.repetition_penalty}
        if self._encoder is not None and (ends := self._encoder.ends() | end_tokens(self.model.generation_config)):
            options["eos_token_id"] = sorted(ends)
        if given.stop:
            options |= {"stop_strings": given.stop, "tokenizer": self.tokenizer}
        if not given.temperature:
            return options | {"do_sample": False}
        kept = {"top_k": given.top_k or 0, "top_p": given.top_p, "min_p": given.min_p}
        return options | {"do_sample": True, "temperature": given.temperature, **kept}

    def say(self, asked: str | list[Message] | Conversation, show: bool = True) -> str:
        """What the model says, shown as it comes where `show`. Raises UserError where the chat template cannot render it."""
        try:
            if isinstance(asked, list):
                asked = self._asked({self.data.columns.text: asked})
            ids = torch.tensor([self.tokens(asked)], device=self.model.device)
        except BadRow as problem:
            raise UserError(f"{problem}.") from problem
        self._report_notes(1)
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
                messages.append({"role": "assistant", "content": self.say([*messages])})

    def _stopped(self, text: str) -> str:
        """The text before the first stop string."""
        return min((text.partition(stop)[0] for stop in self.settings.stop), key=len, default=text)


def plain_generation(model: PreTrainedModel) -> None:
    """A checkpoint's own habits of drawing tokens do not mix with those that are asked for; what ends a text stays."""
    own = model.generation_config
    kept = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")}
    model.generation_config = GenerationConfig(**kept)
