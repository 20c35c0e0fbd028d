"""Render conversations with a tokenizer's chat template, and find the assistant's answers in the rendered text.

An answer begins after the generation prompt and ends with the end of its turn. Its place is found by the first method that applies:

- The template marks the answer ({% generation %}).
- The conversation up to the answer, and the one including it, both render to a prefix of the whole text: the answer lies between.
- Replace the answer by another text: the part of the rendered text that changes is the answer, even if the template strips it or drops
  its reasoning. The generation prompt and the end of the turn are taken from the conversation cut there.

Templates expect conversations in different forms (content as text or as parts, arguments of calls as objects or as JSON). A form is
rejected if the template fails on it, hides an answer or writes a call in another notation than JSON; a conversation without a form is a
bad row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from llm_lightning.data.conversations import REASONING, TEXT, Conversation, Message
from llm_lightning.data.examples import BadRow

DEFAULT = (
    "{% if tools %}<|tools|>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% if message['reasoning_content'] %}<think>\n{{ message['reasoning_content'] }}\n</think>\n{% endif %}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}{% if message['content'] or not loop.first %}{{ '\n' }}{% endif %}"
    "{{ '<tool_call>\n' }}{\"name\": {{ call['function']['name'] | tojson }}, "
    "\"arguments\": {{ call['function']['arguments'] | tojson }}}\n"
    "</tool_call>{% endfor %}"
    "{{ eos_token or sep_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""The template of tokenizers that have none."""
HEADERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|tools|>")
"""The beginnings of messages in `DEFAULT`."""
SENTINELS = ("qz7", "xj4")
"""Texts that replace an answer. No text begins, or ends, like both."""
PROBE: list[Message] = [{"role": "user", "content": "a"}]
CERTAIN = 16  # characters; so long a text occurs in a rendered conversation only because a message has it
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Form:
    """The form in which a conversation is passed to a template."""

    content: str = "text"
    """`text`, or `parts`: [{type: text, text}]."""
    missing: str = "absent"
    """Content beside calls that is null: `absent`, `blank` or `null`."""
    calls: str = "object"
    """Arguments of calls: an `object`, or JSON `text`; `content`: a call that was content in the file becomes content again."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text."""

    text: str
    answers: list[Span]
    """The characters that are learnt, in order."""
    notes: tuple[str, ...]
    """Notes on parts of the conversation that the template does not show."""


class ChatTemplate:
    """The chat template of a tokenizer.

    A tokenizer without a template gets `DEFAULT`. A template without a generation prompt gets the header of its answers as prompt.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.extended: str | None = None
        """The generation prompt that was added to the template."""
        if tokenizer.chat_template is None:
            tokenizer.chat_template = DEFAULT
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} | set(
            tokenizer.all_special_tokens
        )
        names = sorted(map(re.escape, special), key=len, reverse=True)
        self._special = re.compile(rf"\s*(?:{'|'.join(names)})") if names else re.compile(r"(?!)")
        self._extend()

    def render(self, conversation: Conversation) -> str:
        """Return the text of a conversation up to the assistant's next answer. Raises BadRow if the template cannot render it."""
        problem: BadRow | None = None
        for form in _forms(conversation):
            try:
                shaped = self._shape(conversation, form)
                text = self._render(shaped, conversation.tools, prompt=True)[0]
                if conversation.messages and not self._shows(shaped, len(shaped) - 1, conversation.tools, text, prompt=True):
                    raise BadRow(f"the chat template does not show the last message, of the {shaped[-1]['role']}'s")
                return text
            except BadRow as error:
                problem = problem or error
        assert problem is not None
        raise problem

    def locate(self, conversation: Conversation) -> Rendered:
        """Return a conversation as text with the places of its answers.

        Raises BadRow if the template cannot render it, or hides a learnt answer or a call in it.
        """
        problem: BadRow | None = None
        for form in _forms(conversation):
            try:
                return self._locate(conversation, self._shape(conversation, form))
            except BadRow as error:
                problem = problem or error
        assert problem is not None
        raise problem

    def mentions(self, name: str, tools: list[dict[str, Any]] | None = None) -> bool:
        """Return whether the template reads a field of that name."""
        return re.search(rf"[.'\"]{re.escape(name)}\b", self._source(tools)) is not None

    # ---- places of answers ----

    def _locate(self, conversation: Conversation, messages: list[Message]) -> Rendered:
        tools = conversation.tools
        text, marks = self._render(messages, tools)
        notes = list(self._hidden(conversation, messages, text))
        if marks is not None and _are_all_marked(conversation, messages, text, marks):
            return Rendered(text, marks, tuple(notes))
        answers: list[Span] = []
        lower = 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start, stop = self._turn(messages, i, tools, text, lower)
            lower = stop
            if not conversation.learnt[i]:
                continue
            spans = (
                [(start, stop)] if marks is None else [(max(a, start), min(b, stop)) for a, b in marks if a < stop and b > start]
            )
            self._require_shown(messages, i, tools, text, spans)
            if message.get("reasoning_content") and not self._covers(messages, i, tools, text, spans, ("reasoning_content",)):
                notes.append("an answer has reasoning that the chat template does not show there: it is not learnt")
            answers += spans
        return Rendered(text, answers, tuple(notes))

    def _turn(self, messages: list[Message], i: int, tools: Any, text: str, lower: int) -> Span:
        """Return the span of message i, the assistant's, in the text, with the end of its turn."""
        try:  # an empty conversation, before a first message, has no generation prompt in many templates
            before = self._render(messages[:i], tools, prompt=True)[0] if i else None
            behind = text if i == len(messages) - 1 else self._render(messages[: i + 1], tools)[0]
            if before is not None and lower <= len(before) and text.startswith(behind) and behind.startswith(before):
                return len(before), max(len(before), len(behind.rstrip()))  # blanks behind a turn are no part of it
        except BadRow:
            pass  # a beginning of a conversation that the template refuses
        start, stop = self._find_change(messages, i, tools, text) or (0, 0)
        if start == stop or start < lower:
            raise BadRow(f"the chat template does not show what the assistant says in message {i + 1} of {_roles(messages)}")
        prompt = self._generation_prompt(tools)
        ends = {
            len(prompt),
            *(match.end() for match in self._special.finditer(prompt)),
            *(m.end() for m in re.finditer("\n", prompt)),
        }
        for end in sorted(ends - {0}, reverse=True):  # an answer without reasoning may begin before the end of a prompt to reason
            if (place := text.rfind(prompt[:end], lower, start)) >= 0:
                start = place + end
                break
        return start, stop + self._end_length(messages, i, tools, text[stop:])

    def _end_length(self, messages: list[Message], i: int, tools: Any, following: str) -> int:
        """Return how many of the characters in `following`, the text after message i, belong to its turn."""
        try:
            behind = self._render(messages[: i + 1], tools)[0]
            changed = self._find_change(messages[: i + 1], i, tools, behind)
        except BadRow:
            return 0
        end = "" if changed is None else behind[changed[1] :].rstrip()
        if following.startswith(end):
            return len(end)
        if self._special.match(end) and (match := self._special.match(following)):
            return match.end()  # the end of a turn is another token at the end of a conversation
        return 0

    def _find_change(
        self, messages: list[Message], i: int, tools: Any, text: str, fields: tuple[str, ...] | None = None, prompt: bool = False
    ) -> Span | None:
        """Return the span of the rendered text that depends on message i, or on its `fields`; None if no character does."""
        start, stop = len(text), 0
        for sentinel in SENTINELS:
            other = [*messages[:i], _replace_fields(messages[i], sentinel, fields), *messages[i + 1 :]]
            changed = self._render(other, tools, prompt=prompt)[0]
            if changed == text:
                continue
            prefix = _common(text, changed)
            suffix = _common(text[prefix:][::-1], changed[prefix:][::-1])
            start, stop = min(start, prefix), max(stop, len(text) - suffix)
        return (start, stop) if start < stop else None

    def _covers(self, messages: list[Message], i: int, tools: Any, text: str, spans: list[Span], fields: tuple[str, ...]) -> bool:
        """Return whether the fields of message i are shown within the spans. Blanks at their edges do not count."""
        changed = self._find_change(messages, i, tools, text, fields)
        if changed is None:
            return False
        shown = text[changed[0] : changed[1]]
        start = changed[1] - len(shown.lstrip())
        stop = max(start, changed[0] + len(shown.rstrip()))
        return any(a <= start and stop <= b for a, b in spans)

    def _shows(self, messages: list[Message], i: int, tools: Any, text: str, prompt: bool = False) -> bool:
        """Return whether the rendered text shows the content of message i."""
        content = _text(messages[i]).strip()
        return not content or _is_in(content, text) or self._find_change(messages, i, tools, text, ("content",), prompt) is not None

    def _require_shown(self, messages: list[Message], i: int, tools: Any, text: str, spans: list[Span]) -> None:
        """Raise BadRow if the content or the calls of message i, the assistant's, are not within the spans."""
        message, shown = messages[i], "".join(text[a:b] for a, b in spans)
        content = _text(message).strip()
        is_shown = not content or _is_in(content, shown) or self._covers(messages, i, tools, text, spans, ("content",))
        if not is_shown:
            raise BadRow(f"the chat template does not show what the assistant says in message {i + 1} of {_roles(messages)}")
        if not message.get("tool_calls"):
            return
        has_arguments = any(call["function"]["arguments"] not in ({}, "{}") for call in message["tool_calls"])
        for field in ("name", "arguments") if has_arguments else ("name",):
            if not self._covers(messages, i, tools, text, spans, (field,)):
                raise BadRow(
                    f"message {i + 1}: tool_calls are not learnt: the chat template does not show them in what the assistant says"
                )
        for call in message["tool_calls"]:
            arguments = call["function"]["arguments"]
            written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            for other in (json.dumps(written, ensure_ascii=False)[1:-1], "" if isinstance(arguments, str) else str(arguments)):
                if other and other != written and other in shown:
                    raise BadRow(
                        f"message {i + 1}: the chat template writes the arguments of tool_calls as {other[:80]}, which is no JSON"
                    )

    def _hidden(self, conversation: Conversation, messages: list[Message], text: str) -> Iterator[str]:
        """Yield notes on tools, and on messages that are not learnt, that the template leaves out."""
        tools = conversation.tools
        for i, message in enumerate(messages):
            if message["role"] != "assistant" and not self._shows(messages, i, tools, text):
                yield f"a message of the {message['role']}'s is not shown by the chat template"
        if tools and self._render(messages, None)[0] == text:
            yield "the tools are not shown by the chat template"

    # ---- rendering ----

    def _shape(self, conversation: Conversation, form: Form) -> list[Message]:
        """Return the messages in the given form."""
        names = [name for name in REASONING if self.mentions(name, conversation.tools)]
        shaped = []
        for original in conversation.messages:
            message = {name: value for name, value in original.items() if name != TEXT}
            if TEXT in original and form.calls == "content":
                del message["tool_calls"]
                message["content"] = original[TEXT]
            elif "tool_calls" in message and form.calls == "text":
                message["tool_calls"] = [_with_text(call) for call in message["tool_calls"]]
            if (reasoning := message.get("reasoning_content")) is not None:
                if names:
                    message |= dict.fromkeys(names, reasoning)
                elif "</think>" in self._source(conversation.tools) and "</think>" not in (message["content"] or ""):
                    message["content"] = f"<think>\n{reasoning}\n</think>\n\n{message['content'] or ''}"
            if message["content"] is None:
                if form.missing == "absent":
                    del message["content"]
                elif form.missing == "blank":
                    message["content"] = ""
            elif form.content == "parts":
                message["content"] = [{"type": "text", "text": message["content"]}]
            shaped.append(message)
        return shaped

    def _render(self, messages: list[Message], tools: Any, prompt: bool = False) -> tuple[str, list[Span] | None]:
        """Return (text, the spans that the template marks as the assistant's; None if it has no marks).

        Raises BadRow for any error of the template.
        """
        source = self._source(tools)
        marks = not prompt and re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        try:
            rendered: Any = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=source,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=prompt,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:  # jinja's errors, or any that a template raises itself
            advice = ""
            if messages and messages[0]["role"] == "system" and "system" in str(error).lower():
                advice = " (it takes no system prompt: put that in front of what the user says first)"
            raise BadRow(f"the chat template cannot render a conversation of {_roles(messages)}: {error}{advice}") from error
        (text,), (marks_of_text, *_) = rendered[0], rendered[1] or [None]
        for message in messages:
            if isinstance(parts := message.get("content"), list) and (
                str(parts) in text or json.dumps(parts, ensure_ascii=False) in text
            ):
                raise BadRow("the chat template writes a list of parts as it stands")
        return text, [(start, stop) for start, stop in marks_of_text] if marks else None

    def _source(self, tools: Any) -> str:
        source: str = self.tokenizer.get_chat_template(tools=tools)
        return source

    def _generation_prompt(self, tools: Any) -> str:
        """Return the text that the template writes before an answer; empty if it cannot be determined."""
        for content in ("a", [{"type": "text", "text": "a"}]):
            messages = [{"role": "user", "content": content}]
            try:
                text, prompted = (self._render(messages, tools, prompt)[0] for prompt in (False, True))
            except BadRow:
                continue
            if prompted.startswith(text):
                return prompted[len(text) :]
        return ""

    def _extend(self) -> None:
        """Add the header of answers as generation prompt to a template that has none, so that the model need not write the header."""
        if not isinstance(self.tokenizer.chat_template, str):
            return
        answered = [*PROBE, {"role": "assistant", "content": "b"}]
        try:
            user, prompted = (self._render(PROBE, None, prompt)[0] for prompt in (False, True))
            text = self._render(answered, None)[0]
            changed = self._find_change(answered, 1, None, text)
        except BadRow:
            return
        if user != prompted or changed is None or not text.startswith(user):
            return
        header = text[len(user) : changed[0]]
        if header.strip():
            self.extended = header
            self.tokenizer.chat_template += f"{{% if add_generation_prompt %}}{{{{ {json.dumps(header)} }}}}{{% endif %}}"


def _forms(conversation: Conversation) -> Iterator[Form]:
    """Yield the forms that a conversation can have, the most common one first."""
    calling = [message for message in conversation.messages if "tool_calls" in message]
    calls = ["object", "text", *(["content"] if any(TEXT in message for message in calling) else [])] if calling else ["object"]
    missing = ["absent", "blank", "null"] if any(message["content"] is None for message in calling) else ["absent"]
    yield from (Form(*choice) for choice in product(("text", "parts"), missing, calls))


def _are_all_marked(conversation: Conversation, messages: list[Message], text: str, marks: list[Span]) -> bool:
    """Return whether every answer is learnt, is plain text, and is marked unchanged: then no answer has to be searched for."""
    shown, place = "".join(text[a:b] for a, b in marks), 0
    for message, is_learnt in zip(messages, conversation.learnt, strict=True):
        if message["role"] != "assistant":
            continue
        content = _text(message).strip()
        if not _is_in(content, shown):
            return False
        place = shown.find(content, place) + len(content)
        if not is_learnt or "tool_calls" in message or "reasoning_content" in message or place < len(content):
            return False
    return True


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _replace_fields(message: Message, sentinel: str, fields: tuple[str, ...] | None) -> Message:
    """Return a message with `sentinel` in `fields`: `content`, `reasoning_content`, `name` and `arguments` of its calls; None is all."""
    message = dict(message)
    if (fields is None or "content" in fields) and _text(message):
        message["content"] = sentinel if isinstance(message["content"], str) else [{"type": "text", "text": sentinel}]
    if fields is None or "reasoning_content" in fields:
        message |= {name: sentinel for name in REASONING if message.get(name)}
        if fields is not None and isinstance(message.get("content"), str) and message["content"].startswith("<think>"):
            message["content"] = f"<think>\n{sentinel}\n</think>{message['content'].partition('</think>')[2]}"
    if message.get("tool_calls"):
        calls = []
        for call in message["tool_calls"]:
            function = dict(call["function"])
            if fields is None or "name" in fields:
                function["name"] = sentinel
            if fields is None or "arguments" in fields:
                is_text = isinstance(function["arguments"], str)
                function["arguments"] = json.dumps({sentinel: sentinel}) if is_text else {sentinel: sentinel}
            calls.append({**call, "function": function})
        message["tool_calls"] = calls
    return message


def _is_in(content: str, text: str) -> bool:
    """Return whether a text surely contains `content`: a short one may occur by chance, such as in the header of a message."""
    return len(content) >= CERTAIN and content in text


def _text(message: Message) -> str:
    content = message.get("content")
    return (content[0]["text"] if isinstance(content, list) else content) or ""


def _common(a: str, b: str) -> int:
    """Return the length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a.startswith(b[low:middle], low) else (low, middle - 1)
    return low


def _roles(messages: list[Message]) -> str:
    return ", ".join(message["role"] for message in messages) or "no message"
