"""Conversations, rendered by the tokenizer's chat template; what the assistant says is what is learnt.

A template may mark the assistant's part itself ({% generation %}). Where it does not, the conversation is rendered up to before each
of the assistant's messages and up to behind it: what comes between is the assistant's.
"""

from __future__ import annotations

from typing import Any

from llm_lightning.config import DataConfig
from llm_lightning.data.encodings import Encoding, Sequences, structured, text_of
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError, listed, nearest

ROLES = ("system", "user", "assistant", "tool")
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
"""Names of roles in ShareGPT's files."""
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""For tokenizers that have none."""

Message = dict[str, str]


class Encoder(Encoding):
    """A conversation to one sequence of n+1 tokens; the targets are the assistant's, and their end."""

    needs_offsets = True
    next_token = True
    templated = True
    label_is_text = True

    def __init__(self, tokenizer: Any, data: DataConfig, labels: Labels | None = None) -> None:
        super().__init__(tokenizer, data, labels)
        if tokenizer.chat_template is None:
            tokenizer.chat_template = TEMPLATE
        self.marked = "{% generation" in tokenizer.chat_template.replace("{%-", "{%")
        """Whether the template says which part is the assistant's."""

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return Labels((), ())

    def read(self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None) -> tuple[list[Message], None, None]:
        columns = self.data.columns
        if columns.label is None:
            return conversation(text, columns.text, answered=self.labels is not None), None, None
        said = text_of(columns.text, text)
        said += f"\n\n{pair}" if isinstance(pair, str) and pair.strip() else ""
        messages = [{"role": "user", "content": said}]
        if self.labels is not None:
            messages.append({"role": "assistant", "content": text_of(columns.label, value)})
        return messages, None, None

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        found, size = Sequences([], []), self.data.block_size + 1
        for example in batch:
            tokens, said = self.rendered(example.text)
            self.truncated += len(tokens) > size
            targets = [token if own else IGNORED for token, own in zip(tokens[:size], said, strict=False)]
            if all(target == IGNORED for target in targets[1:]):
                if bad is not None:
                    cut = f", cut at data.block_size={self.data.block_size}," if len(tokens) > size else ""
                    bad.add(example.row, f"the conversation{cut} holds nothing that the assistant says")
                continue
            found.tokens.append(tokens[:size])
            found.token_targets.append(targets)
            found.examples.append(example)
        return found

    def rendered(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        """(tokens, whether each is the assistant's) of a conversation. Raises UserError where the template cannot render it so."""
        try:
            if self.marked:
                given = self.tokenizer.apply_chat_template(
                    messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
                )
                return given["input_ids"], [bool(own) for own in given["assistant_masks"]]
            whole = self.template(messages)
            parts = [self._part(messages, i, whole) for i, message in enumerate(messages) if message["role"] == "assistant"]
        except Exception as error:  # jinja's, or whatever a template raises of itself
            if isinstance(error, UserError):
                raise
            raise UserError(f"the chat template cannot render a conversation of {_roles(messages)}: {error}") from error
        encoded = self._backend.encode(whole, add_special_tokens=False)
        return encoded.ids, [any(end > start and at < stop for start, stop in parts) for at, end in encoded.offsets]

    def prompt(self, messages: list[Message]) -> list[int]:
        """The tokens of a conversation up to where the assistant speaks next, the last ones of as many as fit into a block."""
        ids = self._backend.encode(self.template(messages, add_generation_prompt=True), add_special_tokens=False).ids
        return ids[-self.data.block_size :]

    def ends(self) -> set[int]:
        """The tokens that end what the assistant says: the end of text, and what the template puts behind an answer."""
        tokens, said = self.rendered([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        last = [token for token, own in zip(tokens, said, strict=True) if own][-1]
        return {self.tokenizer.eos_token_id, *({last} & set(self.tokenizer.all_special_ids))} - {None}

    def _part(self, messages: list[Message], i: int, whole: str) -> tuple[int, int]:
        """The characters of the whole that message i, the assistant's, and the end of its turn take."""
        before, behind = self.template(messages[:i], add_generation_prompt=True), self.template(messages[: i + 1])
        if whole.startswith(behind) and behind.startswith(before):
            return len(before), len(behind.rstrip())  # blanks behind a turn are no part of it
        said = messages[i]["content"].split("</think>")[-1].strip()  # earlier turns may be shown without what led to them
        start = whole.find(said, len(before) if whole.startswith(before) else 0)
        if start < 0:
            raise UserError(f"the chat template does not show what the assistant says in message {i + 1} of {_roles(messages)}")
        stop, end = start + len(said), self.tokenizer.eos_token
        return start, stop + len(end) if end and whole.startswith(end, stop) else stop

    def template(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        return text


def conversation(value: Any, column: str | None, answered: bool) -> list[Message]:
    """Messages {role, content} of a row, also as ShareGPT has them ({from, value}).

    Raises BadRow for what is none, an unknown role, and, where it has to be `answered`, a conversation without the assistant.
    """
    value = structured(value)
    if isinstance(value, str) and value.strip() and not answered:
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise BadRow(f"column '{column}' holds no conversation: expected a list of {{role, content}}")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise BadRow(f"column '{column}', message {number}: expected {{role, content}}, found {type(message).__name__}")
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        role = SPEAKERS.get(str(role), role)
        if role not in ROLES:
            raise BadRow(
                f"column '{column}', message {number}: unknown role '{role}'; there are {listed(ROLES)}{nearest(str(role), ROLES)}"
            )
        if not isinstance(content, str) or (role == "assistant" and not content.strip()):
            raise BadRow(f"column '{column}', message {number}: the {role} says nothing (content is {content!r})")
        messages.append({"role": role, "content": content})
    if answered and all(message["role"] != "assistant" for message in messages):
        raise BadRow(f"column '{column}': the assistant says nothing, so there is nothing to learn")
    return messages


def _roles(messages: list[Message]) -> str:
    return ", ".join(message["role"] for message in messages)
