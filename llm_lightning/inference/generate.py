"""Generate text: for a prompt, for every row of a file, or in a conversation at the terminal."""

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
from llm_lightning.errors import UserError, escape_controls
from llm_lightning.inference.predict import Row, usable, without_label
from llm_lightning.models.generate import as_published, continue_prompts, end_tokens
from llm_lightning.models.positions import positions_of

log = logging.getLogger(__name__)


@dataclass
class Generator:
    """A decoder, its tokenizer and its sampling settings. A tokenizer's chat template turns a prompt into a message of the user."""

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
        """Return `text` for the prompt (or conversation) of each row. A row without a prompt has `error`, or raises UserError."""
        prompts, results = usable(rows, lambda number, row: self.tokens(self._read_prompt(row)), self.data)
        self._report_notes(len(rows))
        written = list(continue_prompts(self.model, list(prompts.values()), self.tokenizer.pad_token_id, **self.options()).values())
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True) if written else []
        results |= {number: {"text": self._cut_at_stop(text)} for number, text in zip(prompts, texts, strict=True)}
        return [results[number] for number in range(len(rows))]

    def _read_prompt(self, row: Row) -> str | Conversation:
        """Return a row's prompt: its text, or a conversation in a form of the training data. Raises BadRow for other values."""
        columns = self.data.columns
        value = row.get(columns.text)
        extra = {name: row[name] for name in Encoder.extra_columns if row.get(name) is not None}
        pair = None if columns.text_pair is None else row.get(columns.text_pair)
        if self._encoder is None or (self.settings.raw and isinstance(value, str)):
            if isinstance(value, list | dict):
                raise BadRow("the model has no chat template, so that a prompt is text and no conversation")
            return text_of(columns.text, value)
        return self._encoder.read(value, pair, None, extra)[0]

    def tokens(self, prompt: str | Conversation) -> list[int]:
        """Return the tokens of a prompt or a conversation, cut at the beginning to the model's positions."""
        if self._encoder is None or (isinstance(prompt, str) and self.settings.raw):
            if not isinstance(prompt, str):
                raise BadRow("the model has no chat template, so that a prompt is text and no conversation")
            ids = self.tokenizer(prompt)["input_ids"] or [self.tokenizer.bos_token_id]
        else:
            conversation = Conversation([{"role": "user", "content": prompt}], [False]) if isinstance(prompt, str) else prompt
            self._notes.update(conversation.notes)
            ids = self._encoder.encode_prompt(conversation)
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
        """Log which parts of prompts were left out, and in how many rows."""
        for note, count in self._notes.items():
            log.warning("in %s of %s rows %s", count, rows, note)
        self._notes.clear()

    def options(self) -> dict[str, Any]:
        """Return the arguments of transformers' `generate`."""
        settings = self.settings
        options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "repetition_penalty": settings.repetition_penalty}
        if self._encoder is not None and (ends := self._encoder.ends() | end_tokens(self.model.generation_config)):
            options["eos_token_id"] = sorted(ends)
        if settings.stop:
            options |= {"stop_strings": settings.stop, "tokenizer": self.tokenizer}
        if not settings.temperature:
            return options | {"do_sample": False}
        limits = {"top_k": settings.top_k or 0, "top_p": settings.top_p, "min_p": settings.min_p}
        return options | {"do_sample": True, "temperature": settings.temperature, **limits}

    def say(self, prompt: str | list[Message] | Conversation, show: bool = True) -> str:
        """Return the model's answer; `show` prints it as it is written. Raises UserError if the chat template cannot render the prompt."""
        try:
            if isinstance(prompt, list):
                prompt = self._read_prompt({self.data.columns.text: prompt})
            ids = torch.tensor([self.tokens(prompt)], device=self.model.device)
        except BadRow as problem:
            raise UserError(f"{problem}.") from problem
        self._report_notes(1)
        streamer = _Terminal(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if show else None
        with torch.inference_mode(), as_published(self.model):
            written = self.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pad_token_id=self.tokenizer.pad_token_id,
                streamer=streamer,
                **self.options(),
            )
        return self._cut_at_stop(self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))

    def chat(self, ask: Callable[[str], str] = input) -> list[Message]:
        """Chat at the terminal until /quit, end of input or Ctrl-C; /reset begins a new conversation. Return the messages."""
        if self.tokenizer.chat_template is None:
            raise UserError(
                "task=chat: the model has no chat template; it can continue text (task=generate), or train one with "
                "objective=instruction."
            )
        print("/reset begins anew, /quit ends", file=sys.stderr)
        messages: list[Message] = []
        while True:
            try:
                message = ask("> ").strip()
            except (EOFError, KeyboardInterrupt):
                return messages
            if message == "/quit":
                return messages
            if message == "/reset":
                messages = []
            elif message:
                messages.append({"role": "user", "content": message})
                messages.append({"role": "assistant", "content": self.say([*messages])})

    def _cut_at_stop(self, text: str) -> str:
        """Return the text before the first stop string."""
        return min((text.partition(stop)[0] for stop in self.settings.stop), key=len, default=text)


class _Terminal(TextStreamer):
    """Prints text as it is written; on a terminal without the characters that it would obey."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(escape_controls(text) if sys.stdout.isatty() else text, stream_end)


def plain_generation(model: PreTrainedModel) -> None:
    """Remove a checkpoint's own sampling settings, which would mix with ours; its special tokens stay."""
    generation = model.generation_config
    special_tokens = {
        name: getattr(generation, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    }
    model.generation_config = GenerationConfig(**special_tokens)
