"""Encode conversations, rendered by the tokenizer's chat template. The targets are the assistant's answers."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import numpy as np

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.chat_template import HEADERS, ChatTemplate, Rendered
from llm_lightning.data.conversations import BESIDE, LEARNT, Conversation, Message, Reader
from llm_lightning.data.encodings import Encoding, Sequences
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.rows import Rows

log = logging.getLogger(__name__)

INPUTS = ("input", "context")
"""Columns with the input of an instruction, as in Alpaca and Dolly."""
FIELDS = frozenset({"role", "content", "tool_calls", "reasoning_content", "name", "tool_call_id", "id", "type"})
"""Fields of messages that are used, or that do not concern the content."""


class Encoder(Encoding):
    """Encodes a conversation as one sequence of n+1 tokens; the targets are the assistant's answers with their ends."""

    needs_offsets = True
    next_token = True
    templated = True
    label_is_text = True
    special_tokens = HEADERS
    extra_columns = (*BESIDE, "history", *INPUTS)

    def __init__(self, tokenizer: Any, data: DataConfig, labels: Labels | None = None) -> None:
        super().__init__(tokenizer, data, labels)
        self._backend.post_processor = (
            None  # that of GPT-2 takes blanks out of the offsets, so that indentation would not be learnt
        )
        self.template = ChatTemplate(tokenizer)
        if self.template.extended is not None:
            log.warning(
                "the chat template has no generation prompt: %r is added to it, behind which answers begin", self.template.extended
            )
        self._reader = Reader(data.roles)

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return Labels((), ())

    def read(self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None) -> tuple[Conversation, None, None]:
        """Return the conversation of a row: its messages, or an instruction (with its input) or a prompt, and the answer.

        Without `labels` it ends with the message that the model has to answer.
        """
        columns, extra, reader = self.data.columns, extra or {}, self._reader
        reader.start()
        is_answered = self.labels is not None
        is_prompt = columns.label is not None or not is_answered
        messages = reader.messages(text, columns.text, "user" if is_prompt else None)
        if is_prompt:
            if pair is not None:
                _add_input(messages, pair, columns.text_pair)
            elif columns.text == "instruction":
                for name in INPUTS:
                    if name in extra:
                        _add_input(messages, extra[name], name)
            if columns.label is not None:
                messages = [message | {LEARNT: False} if message["role"] == "assistant" else message for message in messages]
            messages = reader.history(extra.get("history")) + messages
            if is_answered:
                messages += reader.completion(value, columns.label, messages)
        unused = dict.fromkeys(INPUTS, columns.text != "instruction" or pair is not None) | {"history": not is_prompt}
        reader.notes += [f"the column '{name}' is not used" for name in extra if unused.get(name)]
        return reader.conversation(messages, extra, is_answered), None, None

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        rendered = []
        for example in batch:
            try:
                rendered.append((example, self.template.locate(example.text)))
            except BadRow as problem:
                if bad is not None:
                    bad.add(example.row, str(problem))
        sequences, size = Sequences([], []), self.data.block_size + 1
        for example, (tokens, targets) in zip([e for e, _ in rendered], self._tokenize([r for _, r in rendered]), strict=True):
            self.truncated += len(tokens) > size
            if all(target == IGNORED for target in targets[1:size]):
                if bad is not None:
                    cut = f", cut at data.block_size={self.data.block_size}," if len(tokens) > size else ""
                    bad.add(example.row, f"the conversation{cut} holds nothing that the assistant says")
                continue
            sequences.tokens.append(tokens[:size])
            sequences.token_targets.append(targets[:size])
            sequences.examples.append(example)
            if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in targets[:size]:
                self.notes["an answer has characters that the tokenizer does not know"] += 1
        for example, conversation in rendered:
            self.notes.update({*example.text.notes, *conversation.notes, *self._list_ignored_fields(example.text)})
        return sequences

    def targets(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Return (tokens, the target of each) of a conversation. Raises BadRow if the template cannot render it with its answers."""
        return next(iter(self._tokenize([self.template.locate(conversation)])))

    def encode_prompt(self, conversation: Conversation) -> list[int]:
        """Return the tokens of a conversation up to the assistant's next answer. Raises BadRow if the template cannot render it."""
        ids: list[int] = self._backend.encode(self.template.render(conversation), add_special_tokens=False).ids
        return ids

    def answer(self, conversation: Conversation) -> str:
        """Return the last learnt answer as the tokenizer decodes it, without the tokens that end it."""
        _, targets = self.targets(conversation)
        stop = max(i for i, target in enumerate(targets) if target != IGNORED) + 1
        start = max((i for i, target in enumerate(targets[:stop]) if target == IGNORED), default=-1) + 1
        text = self.tokenizer.decode(targets[start:stop], skip_special_tokens=True)
        return self.without_end(text).strip()

    def ends(self) -> set[int]:
        """Return the tokens that end an answer: the end-of-text token, and the special tokens that the template puts after an answer."""
        special = set(self.tokenizer.all_special_ids)
        behind = {token for token in self._backend.encode(self._end(), add_special_tokens=False).ids if token in special}
        return (behind | {self.tokenizer.eos_token_id}) - {None}

    def without_end(self, text: str) -> str:
        """Cut a generated text at the end of the assistant's turn, if that end is plain text to the tokenizer."""
        end = self._end().strip()
        return (
            text.partition(end)[0]
            if end and not self.ends() & set(self._backend.encode(end, add_special_tokens=False).ids)
            else text
        )

    def _end(self) -> str:
        """Return the text that the template puts after an answer."""
        conversation = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "qz7"}], [False, True])
        try:
            rendered = self.template.locate(conversation)
        except BadRow:
            return ""
        start, stop = rendered.answers[-1]
        return rendered.text[start:stop].rpartition("qz7")[2]

    def _list_ignored_fields(self, conversation: Conversation) -> set[str]:
        names = {name for message in conversation.messages for name in message} - FIELDS
        unused = (name for name in names if not name.startswith("__") and not self.template.mentions(name, conversation.tools))
        return {f"a message has the field '{name}', which is not used" for name in unused}

    def _tokenize(self, rendered: list[Rendered]) -> list[tuple[list[int], list[int]]]:
        """Return (tokens, targets) of each conversation. A target is a token of an answer. Beside the answer it holds only blanks."""
        encodings = self._backend.encode_batch([conversation.text for conversation in rendered], add_special_tokens=False)
        return [self._with_targets(*pair) for pair in zip(rendered, encodings, strict=True)]

    def _with_targets(self, rendered: Rendered, encoding: Any) -> tuple[list[int], list[int]]:
        text, ids, offsets = rendered.text, encoding.ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        edges = sorted({edge for span in rendered.answers for edge in span if _joins(text, edge, rendered.answers, offsets)})
        if edges:  # a token with the end of one's words and the beginning of the other's: cut the text there
            ids, pieces = [], [0, *edges, len(text)]
            parts = []
            for start, stop in pairwise(pieces):
                piece = self._backend.encode(text[start:stop], add_special_tokens=False)
                ids += piece.ids
                parts.append(np.array(piece.offsets, dtype=np.int64).reshape(-1, 2) + start)
            offsets = np.concatenate(parts)
        targets = [IGNORED] * len(ids)
        for start, stop in rendered.answers:
            first, last = _tokens_of(offsets, start, stop)
            targets[first:last] = ids[first:last]
        return ids, targets


def _add_input(messages: list[Message], value: Any, column: str | None) -> None:
    """Put an input below the instruction, the last message. Raises BadRow if it is not text."""
    if not isinstance(value, str):
        raise BadRow(f"column '{column}' holds {type(value).__name__}, not text")
    if value.strip():
        messages[-1] = messages[-1] | {"content": f"{messages[-1]['content']}\n\n{value}"}


def _tokens_of(offsets: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Return (first, last + 1) of the tokens that hold characters of a span; `offsets` (tokens, 2) are in order."""
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    return first, max(first, int(np.searchsorted(offsets[:, 0], stop, side="left")))


def _joins(text: str, edge: int, answers: list[tuple[int, int]], offsets: np.ndarray) -> bool:
    """Return whether a token crosses an edge of an answer, and holds more than blanks outside the answer."""
    token = int(np.searchsorted(offsets[:, 1], edge, side="right"))
    if token == len(offsets) or offsets[token, 0] >= edge:
        return False
    begins = any(start == edge for start, _ in answers)
    outside = text[offsets[token, 0] : edge] if begins else text[edge : offsets[token, 1]]
    return bool(outside.strip())
