"""Read conversations of any common shape into one form: messages {role, content, tool_calls, reasoning_content} and tools.

The shapes are OpenAI's messages, ShareGPT's {from, value}, turns of {input, output}, a prompt with its completion (text or messages),
Alpaca's history of pairs, UltraChat's texts in turns, content in parts (OpenAI's, Anthropic's and Google's APIs), function calls in the
notations of these APIs, and answers with weight 0, which are not learnt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_lightning.config.checks.data import ROLES
from llm_lightning.data.examples import BadRow
from llm_lightning.data.label_values import truth
from llm_lightning.data.literals import parse_structure
from llm_lightning.errors import join_names, nearest

CALLS = ("function_call", "tool_call")
"""Names of roles whose text is a function call, as JSON."""
ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter", "customer"), "user"),
    **dict.fromkeys(("gpt", "ai", "bot", "model", "chatgpt", "chatbot", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(CALLS, "assistant"),
    **dict.fromkeys(("developer",), "system"),
    **dict.fromkeys(("observation", "function", "ipython", "tool_response", "tool_result", "function_response"), "tool"),
}
"""Names of roles in files, in lower case, with the chat template's role for each; data.roles adds to them."""
REASONING = ("reasoning_content", "reasoning", "thinking")
WEIGHTS = ("weight", "train", "training", "trainable", "loss")
"""Fields of a message that say whether it is learnt."""
TURNS = (("input", "output"), ("human", "assistant"), ("user", "assistant"), ("query", "response"), ("question", "answer"))
"""Keys of an object that holds a user message and its answer."""
SYSTEM = ("system", "system_prompt", "systemInstruction", "system_instruction")
BESIDE = ("tools", "functions", *SYSTEM)
"""Columns, or keys of an object, that may stand beside messages."""
LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "contents")
"""Keys of an object that holds the list of messages."""

NULL_ARGUMENT = (
    "a function is called with an argument that is null; a parquet file fills missing ones so, unless they are JSON text"
)
LEARNT, TEXT = "__learnt__", "__text__"
"""Keys of messages in this program only: whether a message is learnt, while it is read; and the file's text of a call."""

Message = dict[str, Any]
"""`role`, `content` (text, or None beside tool_calls), optionally `tool_calls`, `reasoning_content` and other fields of the file."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of a conversation, in order, and its tools."""

    messages: list[Message]
    learnt: list[bool]
    """For each message, whether it is learnt."""
    tools: list[dict[str, Any]] | None = None
    """Descriptions of callable functions, in the form of OpenAI's API."""
    notes: tuple[str, ...] = ()
    """Clauses on parts of the row that are left out; equal ones are counted over the rows."""

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def last_answer(self) -> int:
        """The index of the last learnt message."""
        return max(i for i, is_learnt in enumerate(self.learnt) if is_learnt)

    def before(self, place: int) -> Conversation:
        """Return the conversation before the message at `place`."""
        return Conversation(self.messages[:place], [False] * place, self.tools)


class Reader:
    """Reads values of a table into messages; `roles` adds names of roles to ROLE_NAMES."""

    def __init__(self, roles: Mapping[str, str]) -> None:
        self.roles = ROLE_NAMES | {name.lower(): role for name, role in roles.items()}
        self.start()

    def start(self) -> None:
        """Begin a row."""
        self.notes: list[str] = []
        self.beside: dict[str, Any] = {}
        """Tools and system prompts that an object holds beside its messages, as columns may."""

    def conversation(self, messages: list[Message], extra: Mapping[str, Any], is_answered: bool) -> Conversation:
        """Build a conversation of messages, with the tools and the system prompt from the columns beside them (`extra`).

        Without `is_answered`, the assistant's messages at the end are left out, as the model has to write them. Raises BadRow if an
        answered conversation has nothing to learn, or another has no message.
        """
        extra = {**self.beside, **extra}
        messages = self._with_system(messages, extra)
        learnt = [message.pop(LEARNT, message["role"] == "assistant") for message in messages]
        notes = self.notes
        if not is_answered:
            size = len(messages)
            while messages and messages[-1]["role"] == "assistant":
                messages.pop()
            if len(messages) < size:
                notes.append("the answer at the end is left out, as the model writes its own")
            if not messages:
                raise BadRow("the conversation has no message that could be answered")
        elif not any(learnt):
            is_unlearnt = any(message["role"] == "assistant" for message in messages)
            reason = "every answer is marked as one that is not learnt" if is_unlearnt else "the assistant says nothing"
            raise BadRow(f"{reason}, so there is nothing to learn")
        return Conversation(messages, learnt[: len(messages)], read_tools(extra), tuple(notes))

    def messages(self, value: Any, column: str | None, role: str | None = None) -> list[Message]:
        """Return the messages of a value. If `role` is given, text is one message of that role.

        Raises BadRow for a value that is not a conversation, with the number of the invalid message.
        """
        structure = parse_structure(value)
        parsed = _find_list(structure) if isinstance(structure, dict) else structure
        if isinstance(value, str) and role is not None and not _has_messages(parsed):  # a text may be JSON and yet no conversation
            if not value.strip():
                raise BadRow(f"column '{column}' is empty")
            return [{"role": role, "content": value}]
        if isinstance(structure, dict):
            self._keep_beside(structure)
        is_list = isinstance(parsed, list) and (any(isinstance(m, dict) for m in parsed) or (role == "user" and _are_turns(parsed)))
        if role is not None and not is_list:
            raise BadRow(
                f"column '{column}' is empty" if value is None else f"column '{column}' holds {type(value).__name__}, not text"
            )
        if not isinstance(parsed, list) or not parsed:
            advice = "; plain text is learnt by task=pretrain" if isinstance(value, str) and value.strip() else ""
            raise BadRow(f"column '{column}' holds no conversation: expected a list of {{role, content}}{advice}")
        if _are_turns(parsed):
            self.notes.append("texts without roles are read as the user's and the assistant's, in turns")
            parsed = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(parsed)]
        messages: list[Message] = []
        for number, item in enumerate(parsed, 1):
            messages += self._read_item(item, f"column '{column}', message {number}")
        return messages

    def completion(self, value: Any, column: str | None, prompt: list[Message]) -> list[Message]:
        """Return the messages that answer a prompt. Some files repeat the prompt before them.

        Raises BadRow if anything but the prompt stands before the answer.
        """
        messages = self.messages(value, column, "assistant")
        shown = [{name: item for name, item in message.items() if name != LEARNT} for message in messages]
        for size in (len(prompt), 0):
            before = [{name: item for name, item in message.items() if name != LEARNT} for message in prompt[:size]]
            if size < len(messages) and shown[:size] == before and messages[size]["role"] == "assistant":
                return messages[size:]
        role = messages[0]["role"]
        raise BadRow(f"column '{column}' begins with a message of the {role}'s that is not the prompt; it has to be the answer")

    def history(self, value: Any) -> list[Message]:
        """Return the messages of earlier turns, which are pairs of user and assistant texts, or messages."""
        parsed = parse_structure(value)
        if not parsed:
            return []
        if not isinstance(parsed, list):
            raise BadRow("column 'history' holds no list of [question, answer]")
        if _has_messages(parsed):
            return self.messages(parsed, "history")
        messages: list[Message] = []
        for number, pair in enumerate(parsed, 1):
            if not (
                isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) and text.strip() for text in pair)
            ):
                raise BadRow(f"column 'history', turn {number}: expected [question, answer], two texts")
            messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        return messages

    def _keep_beside(self, conversation: dict[str, Any]) -> None:
        """Keep the tools and the system prompt that an object has beside its list of messages, and note its other fields."""
        lists = [name for name in LISTS if name in conversation]
        if {"role", "from"} & conversation.keys() or not lists:
            return
        for name, item in conversation.items():
            if name in BESIDE:
                self.beside[name] = item
            elif name not in (lists[0], "id") and not _is_empty(item):
                self.notes.append(f"a conversation has the field '{name}', which is not used")

    def _with_system(self, messages: list[Message], extra: Mapping[str, Any]) -> list[Message]:
        for column in SYSTEM:
            text = extra.get(column)
            parts = text.get("parts") if isinstance(text, dict) else text
            if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):  # in the APIs of Anthropic and Google
                text = _join_parts({"content": parts}, f"column '{column}'")
            if text is None or (isinstance(text, str) and not text.strip()):
                continue
            if not isinstance(text, str):
                raise BadRow(f"column '{column}' holds {type(text).__name__}, not text")
            if messages and messages[0]["role"] == "system":
                if messages[0]["content"] != text:
                    raise BadRow(f"column '{column}' and the first message are both a system prompt, and differ: leave one out")
            else:
                messages = [{"role": "system", "content": text}, *messages]
        return messages

    def _read_item(self, item: Any, place: str) -> list[Message]:
        if not isinstance(item, dict):
            raise BadRow(f"{place}: expected {{role, content}}, found {type(item).__name__}")
        if item.get("role", item.get("from")) is not None:
            return [self._read_message(message, place) for message in split_parts(item, place)]
        pair = next((keys for keys in TURNS if all(item.get(key) is not None for key in keys)), None)
        if pair is None:
            raise BadRow(f"{place}: expected {{role, content}}, found the fields {join_names(item) or 'none'}")
        turn = [{"role": "user", "content": item[pair[0]]}, {"role": "assistant", "content": item[pair[1]]}]
        if item.get("system"):
            turn.insert(0, {"role": "system", "content": item["system"]})
        for name in sorted(key for key, value in item.items() if key not in (*pair, "system") and not _is_empty(value)):
            self.notes.append(f"a turn has the field '{name}', which is not used")
        return [self._read_message(message, place) for message in turn]

    def _read_message(self, item: dict[str, Any], place: str) -> Message:
        fields = {name: value for name, value in item.items() if not _is_empty(value)}
        source = str(item.get("role", item.get("from")))
        for name in ("role", "from", "content", "value"):
            fields.pop(name, None)
        role = self.roles.get(source.strip().lower())
        if role is None:
            names = sorted(self.roles)
            raise BadRow(
                f"{place}: unknown role '{source}'; understood are {join_names(names, len(names))}."
                f"{nearest(source.lower(), names)} Map it with 'data.roles={{{source}: user}}' (or system, assistant, tool)"
            )
        content = next((item[name] for name in ("content", "value", "text") if item.get(name) is not None), None)
        if "content" not in item and "value" not in item:
            fields.pop("text", None)
        is_learnt = _is_learnt(fields, role, place)
        if is_learnt and role != "assistant":
            self.notes.append(f"a message of the {role}'s is marked to be learnt, and is not: only the assistant's are")
        message: Message = {"role": role, "content": content, **fields}
        for name in REASONING:
            if name in message:
                reasoning = message.pop(name)
                if not isinstance(reasoning, str):
                    raise BadRow(f"{place}: '{name}' holds {type(reasoning).__name__}, not text")
                message.setdefault("reasoning_content", reasoning)
        if isinstance(content, list) and (role != "tool" or any(isinstance(part, dict) and "type" in part for part in content)):
            _join_parts(message, place)
        elif role == "tool" and content is not None and not isinstance(content, str):
            message["content"] = json.dumps(content, ensure_ascii=False)  # results of functions are often objects
        if (calls := read_calls(message, place)) is not None:
            if role != "assistant":
                raise BadRow(f"{place}: the {role} calls a function, which only the assistant can")
            message["tool_calls"] = calls
            if any(_has_null(call["function"]["arguments"]) for call in calls):
                self.notes.append(NULL_ARGUMENT)
        elif source.strip().lower() in CALLS and (call := as_call(message["content"])) is not None:
            message |= {"content": None, "tool_calls": call, TEXT: message["content"]}
        content = message["content"]
        is_blank = content is None or (isinstance(content, str) and not content.strip())
        if is_blank and "tool_calls" in message:
            message["content"] = None
        elif not isinstance(content, str) or (role == "assistant" and is_blank):
            problem = f"says nothing (content is {content!r})" if is_blank else f"says {type(content).__name__}, not text"
            raise BadRow(f"{place}: the {role} {problem}")
        return message if is_learnt is None or role != "assistant" else message | {LEARNT: is_learnt}


def _find_list(conversation: dict[str, Any]) -> Any:
    """Return the list of messages of an object, or the object itself if it has none; one message is a list of one."""
    if {"role", "from"} & conversation.keys():
        return [conversation]
    key = next((name for name in LISTS if name in conversation), None)
    return conversation if key is None else parse_structure(conversation[key])


def read_tools(extra: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the callable functions of a column `tools` or `functions`; bare descriptions are wrapped in the API's form."""
    for column in ("tools", "functions"):
        tools = parse_structure(extra.get(column))
        if _is_empty(tools):
            continue
        tools = [tools] if isinstance(tools, dict) else tools
        if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
            raise BadRow(
                f"column '{column}' holds no list of functions: expected [{{type: function, function: {{name, parameters}}}}]"
            )
        if nameless := next((tool for tool in tools if not {"name", "function", "type"} & set(tool)), None):
            raise BadRow(f"column '{column}' holds a function without a name: {str(nameless)[:80]}")
        return [tool if "name" not in tool else {"type": "function", "function": _describe_function(tool)} for tool in tools]
    return None


def read_calls(message: Message, place: str) -> list[dict[str, Any]] | None:
    """Remove `tool_calls` or `function_call` from a message; return {type, function: {name, arguments}} of each, arguments as objects."""
    single = parse_structure(message.pop("function_call", None))
    calls = parse_structure(message.pop("tool_calls", None)) or ([single] if single else None)
    if calls is None:
        return None
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise BadRow(f"{place}: tool_calls is no list of {{function: {{name, arguments}}}}")
    read = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not (isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]):
            raise BadRow(f"{place}: a call in tool_calls has no name; expected {{function: {{name, arguments}}}}")
        arguments = function.get("arguments", function.get("parameters", {}))
        other_fields = (
            {} if function is call else {name: value for name, value in call.items() if value is not None and name != "function"}
        )
        read.append(
            {"type": "function", **other_fields, "function": {"name": function["name"], "arguments": _arguments(arguments)}}
        )
    return read


def as_call(text: Any) -> list[dict[str, Any]] | None:
    """Return the calls that a text spells (an object or a list of {name, arguments}); None for other text."""
    calls = parse_structure(text)
    calls = [calls] if isinstance(calls, dict) else calls
    keys = ({"name", "arguments"}, {"name", "parameters"})
    if not isinstance(calls, list) or not calls or not all(isinstance(call, dict) and set(call) in keys for call in calls):
        return None
    return read_calls({"tool_calls": calls}, "the call")


def _describe_function(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a function's description with the schema of its arguments under OpenAI's name."""
    return {"parameters" if name == "input_schema" else name: value for name, value in tool.items()}


def _arguments(value: Any) -> Any:
    try:
        return json.loads(value.strip() or "{}") if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _has_messages(value: Any) -> bool:
    """Return whether a value is a list of messages or turns, and not an answer that is a list."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return False
    return all({"role", "from"} & set(item) and {"content", "value", "tool_calls", "function_call"} & set(item) for item in value)


def _are_turns(value: Any) -> bool:
    """Return whether a value is a list of texts, by the user and the assistant in turns."""
    return isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and len(value) == 0)


def _has_null(value: Any) -> bool:
    return isinstance(value, dict) and any(item is None for item in value.values())


def _is_learnt(fields: dict[str, Any], role: str, place: str) -> bool | None:
    """Remove the weight fields from a message and return whether it is learnt; None if it has no such field."""
    answer = None
    for name in WEIGHTS:
        if name not in fields:
            continue
        value = fields.pop(name)
        flag = truth(value)
        if flag is None:
            raise BadRow(f"{place}: {name} is {value!r}; it is 0 or 1, true or false")
        answer = flag if answer is None else answer and flag
    return answer


def split_parts(item: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """Convert a message with function calls, and their results, among its parts (Anthropic's, Google's) to the form of OpenAI's API.

    These APIs put results into the user's message; here each is a message of the tool's. Raises BadRow for a result without a text.
    """
    parts = item.get("content", item.get("parts"))
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return [item]
    parts = [_from_google(part) for part in parts]
    calls = [
        {"type": "function", "function": {"name": part.get("name"), "arguments": part.get("input") or {}}}
        | ({"id": part["id"]} if part.get("id") else {})
        for part in parts
        if part.get("type") == "tool_use"
    ]
    results = []
    for part in parts:
        if part.get("type") == "tool_result":
            content = part.get("content")
            names = {name: part[key] for key, name in {"tool_use_id": "tool_call_id", "name": "name"}.items() if part.get(key)}
            results.append({"role": "tool", "content": "" if content is None else content, **names})
    others = [part for part in parts if part.get("type") not in ("tool_use", "tool_result")]
    if not calls and not results and "parts" not in item:
        return [item]
    message = {name: value for name, value in item.items() if name != "parts"} | {"content": others or None}
    message |= {"tool_calls": calls} if calls else {}
    return [*results, message] if others or calls or not results else results


def _from_google(part: dict[str, Any]) -> dict[str, Any]:
    """Convert a part in the form of Google's API to the form of Anthropic's."""
    if isinstance(call := part.get("functionCall", part.get("function_call")), dict):
        return {"type": "tool_use", "name": call.get("name"), "input": call.get("args")}
    if isinstance(answer := part.get("functionResponse", part.get("function_response")), dict):
        return {
            "type": "tool_result",
            "name": answer.get("name"),
            "content": json.dumps(answer.get("response"), ensure_ascii=False),
        }
    return part


def _join_parts(message: Message, place: str) -> str:
    """Join content that is a list of parts, and return it; thoughts become reasoning. Raises BadRow for a part that is not text."""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in message["content"]:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = (
            part
            if isinstance(part, str)
            else part.get("text" if kind != "thinking" else "thinking")
            if isinstance(part, dict)
            else None
        )
        if kind not in ("text", "input_text", "output_text", "thinking") or not isinstance(text, str):
            raise BadRow(f"{place}: a part of the content is of type '{kind}', and only text can be learnt")
        (thoughts if kind == "thinking" else texts).append(text)
    message["content"] = "\n".join(texts)
    if thoughts:
        message.setdefault("reasoning_content", "\n".join(thoughts))
    content: str = message["content"]
    return content
