"""Conversations: what each shape of file becomes, and that the assistant's words, and nobody else's, are learnt with any chat template."""

from __future__ import annotations

import copy
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data.conversations import Conversation
from llm_lightning.data.encodings.chat import Encoder
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError

from ..conftest import QUIET, TINY_GPT
from . import chat_templates as templates

KNOWN = Labels((), ())
TEXTS = ["the cat sees a dog, and runs (fast).", "what is it? 2 + 2 = 4!", "def f(x):\n    return [x]\n", "Ein Hund läuft. 你好"]
KINDS = ("bpe", "gpt2", "wordpiece", "unigram", "llama")


@lru_cache(None)
def make_tokenizer(kind: str, special: bool = True) -> Any:
    """A small tokenizer of a kind: byte-level BPE without and with GPT-2's trimmed offsets, WordPiece, and the two ways of ▁."""
    unknown: dict[str, Any] = {}
    if kind in ("bpe", "gpt2"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        if kind == "gpt2":
            backend.post_processor = processors.ByteLevel(trim_offsets=True)
    elif kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(c for c in map(chr, range(33, 127)) if not c.isupper())]
        trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special_tokens, show_progress=False)
        unknown = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        backend = Tokenizer(models.Unigram())
        if kind == "unigram":
            backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        else:
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        alphabet = [*map(chr, range(32, 127)), "\n", "ä", "你", "好"]
        trainer = trainers.UnigramTrainer(
            vocab_size=200,
            special_tokens=["<unk>", "<s>", "</s>"],
            unk_token="<unk>",
            initial_alphabet=alphabet,
            show_progress=False,
        )
        unknown = {"unk_token": "<unk>"}
    backend.train_from_iterator(TEXTS * 3, trainer)
    ends = {} if kind == "wordpiece" else {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **ends, **unknown)
    if kind == "wordpiece":  # the characters are entries, and no special ones
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_plain_entries(backend), **unknown)
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": templates.SPECIAL})
    return tokenizer


def _plain_entries(backend: Tokenizer) -> Tokenizer:
    entries = dict(sorted(backend.get_vocab().items(), key=lambda entry: entry[1]))
    entries |= {f"##{c}": len(entries) + i for i, c in enumerate(c for c in map(chr, range(33, 127)) if f"##{c}" not in entries)}
    plain = Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
    plain.normalizer, plain.pre_tokenizer, plain.decoder = backend.normalizer, backend.pre_tokenizer, backend.decoder
    return plain


def encoder_of(
    template: str | None, kind: str = "bpe", special: bool = True, labels: Labels | None = KNOWN, **options: Any
) -> Encoder:
    tokenizer = copy.deepcopy(make_tokenizer(kind, special))
    if template is not None and kind == "wordpiece":
        tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"  # which templates put together with text
    tokenizer.chat_template = template
    return Encoder(tokenizer, DataConfig(**({"block_size": 2048} | options)), labels)


def talk(*contents: str, first: str = "user") -> list[dict[str, Any]]:
    """Messages of the two in turn."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def learnt(encoder: Encoder, messages: Any, **extra: Any) -> list[str]:
    """What of a conversation is learnt, each stretch as text."""
    conversation = messages if isinstance(messages, Conversation) else encoder.read(messages, None, None, extra)[0]
    sequences = encoder([Example(0, conversation)], None)
    (tokens,), (targets,) = sequences.tokens, sequences.token_targets
    assert all(target in (token, IGNORED) for token, target in zip(tokens, targets, strict=True))
    stretches: list[list[int]] = []
    for before, target in zip([IGNORED, *targets], targets, strict=False):
        if target != IGNORED:
            if before == IGNORED:
                stretches.append([])
            stretches[-1].append(target)
    return [encoder.tokenizer.decode(stretch) for stretch in stretches]


ENDS = (
    "<think>\n\n</think>",
    "<|im_end|>",
    "</s>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|return|>",
    "<|message|>",
    "[SEP]",
    "<|calls_end|>",
)


def plain(encoder: Encoder, text: str) -> str:
    """A text as the tokenizer gives it back, without blanks and what ends a turn."""
    backend = encoder.tokenizer.backend_tokenizer
    text = encoder.tokenizer.decode(backend.encode(text, add_special_tokens=False).ids)
    for end in ENDS:
        text = text.replace(end, "").replace(plain_end(encoder, end), "")
    return re.sub(r"\s+", "", text)


def plain_end(encoder: Encoder, end: str) -> str:
    decoded: str = encoder.tokenizer.decode(encoder.tokenizer.backend_tokenizer.encode(end, add_special_tokens=False).ids)
    return decoded.strip() or end


# ---- only what the assistant says is learnt ----

WORDS = st.text("abcdez (){}[].,:!\n<|>qx7", min_size=1, max_size=12).filter(str.strip)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [None, *templates.ALL])
@given(contents=st.lists(WORDS, min_size=2, max_size=6), starts_with=st.sampled_from(["user", "assistant", "system"]))
@settings(max_examples=12, deadline=None)
def test_the_targets_are_the_assistants_words_with_any_template_and_tokenizer(
    name: str | None, kind: str, contents: list[str], starts_with: str
) -> None:
    encoder = encoder_of(None if name is None else templates.ALL[name], kind)
    messages = [{"role": "system", "content": "S"}] if starts_with == "system" else []
    messages += talk(*contents, first="assistant" if starts_with == "assistant" else "user")
    if messages[-1]["role"] == "user":
        messages.append({"role": "assistant", "content": "z"})
    try:
        stretches = learnt_or_bad(encoder, messages)
    except BadRow:
        assert (name == "gemma" and starts_with == "system") or (name == "llama2" and starts_with == "assistant")
        return
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    said = "".join(strip_ends(encoder, stretch) for stretch in stretches)
    ends = name == "glued"  # whose closing bracket ends a turn
    expected = "".join(plain(encoder, answer.strip()) + (")" if ends else "") for answer in answers)
    assert said == expected


def learnt_or_bad(encoder: Encoder, messages: Any) -> list[str]:
    conversation = encoder.read(messages, None, None)[0]
    encoder.template.locate(conversation)
    return learnt(encoder, conversation)


def strip_ends(encoder: Encoder, stretch: str) -> str:
    for end in ENDS:
        stretch = stretch.replace(end, "").replace(plain_end(encoder, end), "")
    return re.sub(r"\s+", "", stretch)


def test_both_ways_to_the_targets_give_the_same() -> None:
    marked = "{% for m in messages %}[{{ m['role'] }}] {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{{ eos_token }}"
    marked += "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %} {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    unmarked = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    messages = talk("what is it?", "the cat sees a dog", "and?", "a dog runs")
    of_marked, of_unmarked = (
        encoder_of(t)([Example(0, Conversation(messages, [False, True] * 2))], None) for t in (marked, unmarked)
    )
    assert of_marked.tokens == of_unmarked.tokens
    assert of_marked.token_targets == of_unmarked.token_targets


def test_the_tokens_are_those_of_transformers() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *talk("hi", "hello", "and?", "bye")]
    for template in (templates.CHATML, templates.LLAMA3, templates.PHI3, templates.QWEN3):
        encoder = encoder_of(template)
        (tokens,) = encoder([Example(0, encoder.read(messages, None, None)[0])], None).tokens
        assert tokens == encoder.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        prompt = encoder.encode_prompt(Conversation(messages[:-1], [False] * 4))
        assert prompt == encoder.tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)


def test_indentation_is_learnt_although_offsets_leave_it_out() -> None:
    answer = "def f(x):\n    return [x]\n    # done"
    assert learnt(encoder_of(templates.CHATML, "gpt2"), talk("write f", answer)) == [f"{answer}<|im_end|>"]


def test_a_template_without_a_generation_prompt_gets_the_header_of_its_answers() -> None:
    encoder = encoder_of(templates.BARE)
    assert encoder.tokenizer.decode(encoder.encode_prompt(Conversation(talk("hi"), [False]))) == "[user]hi</s>[assistant]"
    assert learnt(encoder, talk("hi", "hello")) == ["hello</s>"]
    assert encoder_of(templates.LLAMA2).template.extended is None  # its answers have no header


@pytest.mark.parametrize(
    ("template", "special", "ends", "written"),
    [
        (templates.CHATML, True, {"<|im_end|>", "</s>"}, "hello"),
        (templates.CHATML, False, {"</s>"}, "hello"),  # the end of a turn is plain text to the tokenizer
        (templates.PHI3, True, {"<|end|>", "</s>"}, "hello"),
        (None, True, {"</s>"}, "hello"),
    ],
)
def test_what_ends_an_answer(template: str | None, special: bool, ends: set[str], written: str) -> None:
    encoder = encoder_of(template, special=special)
    assert set(encoder.tokenizer.convert_ids_to_tokens(sorted(encoder.ends()))) == ends
    conversation = encoder.read(talk("hi", "hello"), None, None)[0]
    assert encoder.answer(conversation) == written


def test_the_default_template_ends_answers_of_a_tokenizer_without_end_of_text() -> None:
    encoder = encoder_of(None, "wordpiece")
    assert encoder.tokenizer.convert_ids_to_tokens(sorted(encoder.ends())) == ["[SEP]"]
    assert learnt(encoder, talk("Thanks a lot.", "You are welcome. \n", "thanks", "bye\n")) == [
        "you are welcome. [SEP]",
        "bye [SEP]",
    ]


# ---- tools and calls ----

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Osló"}'}}
CALLED = '{"name": "weather", "arguments": {"city": "Osló"}}'


def calling(content: str | None = None, call: Any = CALL, key: str = "tool_calls") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "weather in Oslo?"},
        {"role": "assistant", "content": content, key: [call] if key == "tool_calls" else call},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": '{"deg": 3}'},
        {"role": "assistant", "content": "It is 3 degrees."},
    ]


OBJECT = {"function": {"name": "weather", "arguments": {"city": "Osló"}}}


@pytest.mark.parametrize("content", [None, "", "Let me look up the weather."])
@pytest.mark.parametrize(
    ("call", "key"),
    [(CALL, "tool_calls"), (OBJECT, "tool_calls"), (OBJECT["function"], "tool_calls"), (CALL["function"], "function_call")],
)
@pytest.mark.parametrize("template", [None, templates.QWEN3], ids=["ours", "qwen"])
def test_calls_are_learnt_in_the_notation_of_the_template(template: str | None, call: Any, key: str, content: str | None) -> None:
    encoder = encoder_of(template, "gpt2")
    conversation = encoder.read(calling(content, call, key), None, None, {"tools": TOOLS})[0]
    called, answer = learnt(encoder, conversation)
    assert called.startswith((content or "") + ("\n" if content else "") + "<tool_call>")
    assert json.loads(called.split("<tool_call>")[1].split("</tool_call>")[0]) == json.loads(CALLED)
    assert answer.replace("<think>\n\n</think>\n\n", "").startswith("It is 3 degrees.")
    shown = encoder.template.locate(conversation).text
    assert json.dumps(TOOLS[0]) in shown
    assert '{"deg": 3}' in shown


@pytest.mark.parametrize("template", [None, templates.QWEN3])
@pytest.mark.parametrize("arguments", ["", "{}", {}])
def test_a_call_without_arguments_is_learnt(template: str | None, arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    assert any('{"name": "weather", "arguments": {}}' in stretch for stretch in learnt(encoder_of(template), calling(None, call)))


ANTHROPIC = [
    {"role": "user", "content": "Where?"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "3"}]},
            {"type": "text", "text": "And?"},
        ],
    },
    {"role": "assistant", "content": "Cold."},
]
GOOGLE = [
    {"role": "user", "parts": [{"text": "Where?"}]},
    {"role": "model", "parts": [{"text": "Let me look."}, {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}]},
    {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": 3}}, {"text": "And?"}]},
    {"role": "model", "parts": [{"text": "Cold."}]},
]


@pytest.mark.parametrize("messages", [ANTHROPIC, GOOGLE])
def test_calls_and_results_among_the_parts(messages: list[dict[str, Any]]) -> None:
    conversation = encoder_of(None).read(messages, None, None)[0]
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    spoken = [(message["role"], message["content"]) for message in conversation.messages]
    assert spoken == [("user", "Where?"), ("assistant", "Let me look."), ("tool", "3"), ("user", "And?"), ("assistant", "Cold.")]
    assert [call["function"] for call in conversation.messages[1]["tool_calls"]] == [call]
    assert conversation.learnt == [False, True, False, False, True]


def test_a_template_that_wants_arguments_as_text_gets_them() -> None:
    called, _ = learnt(encoder_of(templates.DEEPSEEK), calling(None, OBJECT))
    assert called == '<|call|>weather\n```json\n{"city": "Osló"}\n```<|calls_end|></s>'


@pytest.mark.parametrize(
    ("template", "content"),
    [
        (templates.CHATML, "Let me look up the weather."),
        (templates.CHATML, None),
        (templates.DEEPSEEK, "Let me look up the weather."),
        (templates.MARKED, "Let me look up the weather."),
        (templates.MARKED.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m['tool_calls'] }}"), "Let me look."),
    ],
)
def test_a_call_that_the_template_does_not_show_is_a_bad_row(template: str, content: str | None) -> None:
    encoder = encoder_of(template)
    with pytest.raises(BadRow, match=r"tool_calls are not learnt|cannot render|writes the arguments"):
        encoder.template.locate(encoder.read(calling(content), None, None, {"tools": TOOLS})[0])


def test_a_template_that_writes_arguments_in_another_notation_than_json_is_not_trained_with() -> None:
    shows = "{% for c in m['tool_calls'] or [] %}{{ c['function']['name'] ~ c['function']['arguments'] }}{% endfor %}"
    template = templates.CHATML.replace("{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}" + shows + "{{ '<|im_end|>\\n' }}")  # fmt: skip
    called, _ = learnt(encoder_of(template), calling("", OBJECT))
    assert called == 'weather{"city": "Osló"}<|im_end|>'  # as text, where an object would become {'city': 'Osló'}


def test_calls_of_sharegpt_are_calls_or_their_text() -> None:
    value = [
        {"from": "developer", "value": "You are brief."},
        {"from": "human", "value": "area of 5 by 3?"},
        {"from": "function_call", "value": '{"name": "area", "arguments": [5, 3]}'},
        {"from": "observation", "value": '{"area": 15}'},
        {"from": "gpt", "value": "15"},
    ]
    called, answer = learnt(encoder_of(None), value, tools=json.dumps([{"name": "area", "parameters": {}}]))
    assert '{"name": "area", "arguments": [5, 3]}' in called
    assert answer == "15</s>"
    assert learnt(encoder_of(templates.CHATML), value) == ['{"name": "area", "arguments": [5, 3]}<|im_end|>', "15<|im_end|>"]
    value[2]["value"] = "area(5, 3)"
    assert learnt(encoder_of(None), value) == ["area(5, 3)</s>", "15</s>"]


# ---- reasoning, weights, fields ----


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_given_to_the_template(name: str) -> None:
    messages = talk("2+2?", "4", "and 3+3?", "6")
    messages[1][name], messages[3][name] = "add two twice", "add three twice"
    assert learnt(encoder_of(None), messages) == [
        "<think>\nadd two twice\n</think>\n4</s>",
        "<think>\nadd three twice\n</think>\n6</s>",
    ]
    qwen = encoder_of(templates.QWEN3)
    assert learnt(qwen, messages) == ["4<|im_end|>", "<think>\nadd three twice\n</think>\n\n6<|im_end|>"]
    assert qwen.notes == {"an answer has reasoning that the chat template does not show there: it is not learnt": 1}
    chatml = encoder_of(templates.CHATML)
    assert learnt(chatml, messages) == ["4<|im_end|>", "6<|im_end|>"]
    assert [count for note, count in chatml.notes.items() if "reasoning" in note] == [1]


def test_reasoning_inside_of_answers_is_learnt_where_it_is_shown() -> None:
    messages = talk("2+2?", "<think>\nadd two twice\n</think>\n\n4", "and 3+3?", "<think>\nadd three twice\n</think>\n\n6")
    assert learnt(encoder_of(templates.QWEN3), messages) == ["4<|im_end|>", "<think>\nadd three twice\n</think>\n\n6<|im_end|>"]
    assert learnt(encoder_of(templates.DEEPSEEK), messages) == ["\n\n4</s>", "\n\n6</s>"]


@pytest.mark.parametrize("template", [None, templates.CHATML, templates.MARKED_ANYHOW])
@pytest.mark.parametrize(
    ("field", "value"), [("weight", 0), ("train", False), ("loss", 0.0), ("trainable", "false"), ("training", False)]
)
def test_answers_that_are_marked_as_such_are_not_learnt(template: str | None, field: str, value: Any) -> None:
    messages = talk("2+2?", "five", "wrong", "four")
    messages[1][field] = value
    (answer,) = learnt(encoder_of(template), messages)
    assert answer.strip().startswith("four")
    messages[3][field] = value
    with pytest.raises(BadRow, match="every answer is marked as one that is not learnt"):
        encoder_of(template).read(messages, None, None)
    messages[3][field] = 0.5
    with pytest.raises(BadRow, match=rf"message 4: {field} is 0.5"):
        encoder_of(template).read(messages, None, None)


def test_fields_that_are_not_used_are_counted() -> None:
    encoder = encoder_of(None)
    messages = talk("hi", "hello")
    messages[0] |= {"mood": "good", "name": "Ada", "empty": None}
    learnt(encoder, messages)
    assert encoder.notes == {"a message has the field 'mood', which is not used": 1}


def test_what_the_template_leaves_out_is_counted() -> None:
    template = templates.CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    encoder = encoder_of(template)
    learnt(encoder, [{"role": "system", "content": "Answer in Latin."}, *talk("hi", "salve")], tools=TOOLS)
    assert set(encoder.notes) == {
        "a message of the system's is not shown by the chat template",
        "the tools are not shown by the chat template",
    }


# ---- shapes of rows ----

HI = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHAPES = {
    "messages": HI,
    "sharegpt": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
    "other names": [{"role": "Human", "content": "hi"}, {"role": "AI", "content": "hello"}],
    "capitals": [{"role": "USER", "text": "hi"}, {"role": "Model", "text": "hello"}],
    "json": json.dumps(HI),
    "python": str(HI),
    "object": {"conversation": HI},
    "object as json": json.dumps({"messages": HI}),
    "turns": [{"input": "hi", "output": "hello"}],
    "moss": [{"human": "hi", "assistant": "hello"}],
    "parts": [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in HI],
    "parts of the responses api": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "hello"}]},
    ],
    "ultrachat": ["hi", "hello"],
    "ultrachat as python": "['hi' 'hello']",
    "google's": [{"role": "user", "parts": [{"text": "hi"}]}, {"role": "model", "parts": [{"text": "hello"}]}],
    "array as text": f"[{HI[0]}\n {HI[1]}]",
    "array of an array": repr(np.array(HI, dtype=object)),
    "nulls": [m | {"name": None, "tool_calls": None, "weight": None} for m in HI],
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_conversations(name: str) -> None:
    conversation = encoder_of(None).read(SHAPES[name], None, None)[0]
    assert (conversation.messages, conversation.learnt) == (HI, [False, True])


COMPLETED = ColumnsConfig(text="prompt", label="completion")


DIALOGUE = '{"dialogue": "hello there", "system": "be nice"}'


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("hi", "hello", HI),
        (HI[:1], HI[1:], HI),
        (HI[:1], "hello", HI),
        ("hi", HI[1:], HI),
        (json.dumps(HI[:1]), json.dumps(HI[1:]), HI),
        ("sort [3, 1]", "[1, 3]", talk("sort [3, 1]", "[1, 3]")),  # text that is JSON stays text
        ("as json", '[{"a": 1}]', talk("as json", '[{"a": 1}]')),
        (DIALOGUE, "yes", talk(DIALOGUE, "yes")),  # and adds no system prompt
        ([*HI, {"role": "user", "content": "bye"}], HI[1:], [*HI, {"role": "user", "content": "bye"}, HI[1]]),
        (HI[:1], HI, HI),  # the prompt again in front of the answer
        ("hi", HI, HI),
    ],
)
def test_a_prompt_and_its_completion(prompt: Any, completion: Any, expected: list[dict[str, str]]) -> None:
    conversation = encoder_of(None, columns=COMPLETED).read(prompt, None, completion)[0]
    assert conversation.messages == expected
    assert conversation.learnt == [False] * (len(expected) - 1) + [True]  # of the prompt nothing


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        (talk("ho", "hello"), "column 'completion' begins with a message of the user's that is not the prompt"),
        ({"x": 1}, "column 'completion' holds dict, not text"),
        (["hello"], "column 'completion' holds list, not text"),
        (5, "column 'completion' holds int, not text"),
        (None, "column 'completion' is empty"),
        (" ", "column 'completion' is empty"),
        (HI[:1], "begins with a message of the user's"),
    ],
)
def test_completions_that_are_none(completion: Any, problem: str) -> None:
    with pytest.raises(BadRow, match=problem):
        encoder_of(None, columns=COMPLETED).read("hi", None, completion)


ALPACA = ColumnsConfig(text="instruction", label="output")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, talk("Add.", "3")),
        ({"input": ""}, talk("Add.", "3")),
        ({"input": "1 and 2"}, talk("Add.\n\n1 and 2", "3")),
        ({"context": "1 and 2"}, talk("Add.\n\n1 and 2", "3")),
        ({"context": " "}, talk("Add.", "3")),
        (
            {"system": "Be brief.", "history": [["a", "b"]]},
            [{"role": "system", "content": "Be brief."}, *talk("a", "b", "Add.", "3")],
        ),
        ({"system": "", "history": '[["a", "b"]]'}, talk("a", "b", "Add.", "3")),
        ({"history": HI}, [*HI, *talk("Add.", "3")]),
        ({"history": []}, talk("Add.", "3")),
    ],
)
def test_alpaca_has_columns_that_rows_may_lack(extra: dict[str, Any], expected: list[dict[str, str]]) -> None:
    conversation = encoder_of(None, columns=ALPACA).read("Add.", None, "3", extra)[0]
    assert conversation.messages == expected
    assert conversation.learnt == [message["role"] == "assistant" for message in expected]
    paired = ColumnsConfig(text="instruction", text_pair="input", label="output")
    pair = extra.pop("input", extra.pop("context", None))
    assert encoder_of(None, columns=paired).read("Add.", pair, "3", extra)[0].messages == expected


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"input": {"x": 1}}, "column 'input' holds dict, not text"),
        ({"input": 3}, "column 'input' holds int, not text"),
        ({"context": {"x": 1}}, "column 'context' holds dict, not text"),
        ({"system": ["a"]}, "column 'system' holds list, not text"),
        ({"history": "a"}, "column 'history' holds no list"),
        ({"history": [["a"]]}, "column 'history', turn 1: expected"),
        ({"tools": "none"}, "column 'tools' holds no list of functions"),
        ({"tools": [1]}, "column 'tools' holds no list of functions"),
        ({"tools": {"a": 1}}, "column 'tools' holds a function without a name"),
    ],
)
def test_columns_beside_that_hold_something_else_are_bad_rows(extra: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRow, match=problem):
        encoder_of(None, columns=ALPACA).read("Add.", None, "3", extra)


def test_a_system_prompt_beside_the_messages_comes_first() -> None:
    encoder = encoder_of(None)
    values = [("system", "Answer in Latin."), ("system_prompt", "Answer in Latin.")]
    values += [
        ("system", [{"type": "text", "text": "Answer in Latin."}]),
        ("systemInstruction", {"parts": [{"text": "Answer in Latin."}]}),
    ]
    for column, value in values:
        conversation = encoder.read(HI, None, None, {column: value})[0]
        assert conversation.messages == [{"role": "system", "content": "Answer in Latin."}, *HI]
    same = [{"role": "system", "content": "a"}, *HI]
    assert encoder.read(same, None, None, {"system": "a"})[0].messages == same
    with pytest.raises(BadRow, match="column 'system' and the first message are both a system prompt"):
        encoder.read(same, None, None, {"system": "b"})


def test_what_an_object_has_beside_its_messages_is_used_or_counted() -> None:
    encoder = encoder_of(None)
    value = {"id": "1", "conversations": HI, "system": "Be brief.", "tools": TOOLS, "source": "web"}
    conversation = encoder.read(value, None, None)[0]
    assert conversation.messages == [{"role": "system", "content": "Be brief."}, *HI]
    assert conversation.tools == TOOLS
    assert conversation.notes == ("a conversation has the field 'source', which is not used",)
    assert encoder.read(HI, None, None, {"input": "a", "history": []})[0].notes == (
        "the column 'input' is not used",
        "the column 'history' is not used",
    )


def test_roles_can_be_named() -> None:
    value = [{"from": "Frage", "value": "hi"}, {"from": "Antwort", "value": "hello"}, {"from": "ipython", "value": "1"}]
    with pytest.raises(BadRow, match=r"message 1: unknown role 'Frage'; understood are .*function_call.*gpt.*human.*data\.roles="):
        encoder_of(None).read(value, None, None)
    encoder = encoder_of(None, roles={"frage": "user", "Antwort": "assistant"})
    assert [message["role"] for message in encoder.read(value, None, None)[0].messages] == ["user", "assistant", "tool"]


BAD_TALK = [
    ("words", "holds no conversation"),
    (None, "holds no conversation"),
    ([], "holds no conversation"),
    ("[]", "holds no conversation"),
    ([["hi", "hello"]], "message 1: expected {role, content}, found list"),
    ([{"role": "usr", "content": "a"}], "message 1: unknown role 'usr'"),
    ([{"question": "a"}], "message 1: expected {role, content}, found the fields question"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "message 2: the assistant says nothing"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "message 2: the assistant says nothing"),
    ([{"role": "user", "content": 5}], "message 1: the user says int, not text"),
    ([{"role": "user", "content": "a"}], "the assistant says nothing"),
    ([3], "message 1: expected {role, content}, found int"),
    ([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], "message 1: a part of the content is of type 'image'"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "of type 'image_url'"),
    ([{"role": "user", "content": "a", "tool_calls": [CALL]}], "message 1: the user calls a function"),
    ([{"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}], "message 1: a call in tool_calls has no name"),
    ([{"role": "assistant", "content": "a", "reasoning": ["b"]}], "message 1: 'reasoning' holds list, not text"),
]


@pytest.mark.parametrize(("value", "problem"), BAD_TALK)
def test_conversations_that_are_none(value: Any, problem: str) -> None:
    with pytest.raises(BadRow) as error:
        encoder_of(None).read(value, None, None)
    assert problem in str(error.value)


def test_rows_that_the_template_refuses_are_bad_rows_with_their_line() -> None:
    encoder = encoder_of(templates.GEMMA, on_bad_row="skip")
    values = [HI, [{"role": "system", "content": "a"}, *HI], HI]
    rows = Rows(
        datasets.Dataset.from_dict({"text": [json.dumps(value) for value in values]}), "x", lambda i: f"a.jsonl, line {i + 1}"
    )
    bad = BadRows(rows, encoder.data)
    examples = [Example(i, encoder.read(value, None, None)[0]) for i, value in enumerate(values)]
    assert [example.row for example in encoder(examples, bad).examples] == [0, 2]
    assert bad.count == 1
    assert (
        "a.jsonl, line 2: the chat template cannot render a conversation of system, user, assistant: System role not"
        in bad.first[0]
    )


# ---- what is to be answered ----


@pytest.mark.parametrize("value", ["hi", HI[:1], json.dumps(HI[:1]), {"messages": HI[:1]}, HI])
def test_rows_to_answer_have_the_shapes_of_training(value: Any) -> None:
    encoder = encoder_of(None, labels=None)
    conversation = encoder.read(value, None, None)[0]
    assert conversation.messages == HI[:1]
    assert conversation.notes == (("the answer at the end is left out, as the model writes its own",) if value is HI else ())


def test_instructions_to_answer_have_their_input_and_history() -> None:
    encoder = encoder_of(None, labels=None, columns=ColumnsConfig(text="instruction"))
    extra = {"input": "1 and 2", "system": "Be brief.", "history": [["a", "b"]]}
    messages = encoder.read("Add.", None, None, extra)[0].messages
    assert messages == [{"role": "system", "content": "Be brief."}, *talk("a", "b", "Add.\n\n1 and 2")]


# ---- files ----


def prepared(tmp_path: Path, cache: Path, rows: list[dict[str, Any]], *overrides: str, ending: str = "jsonl") -> TokenizedDataset:
    """The text of a run on a file of these rows."""
    file = tmp_path / f"train.{ending}"
    if ending == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(file))
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    settings = [*QUIET, *TINY_GPT, f"cache_dir={cache}", f"data.train={file}", f"run_dir={tmp_path}/run"]
    return prepare_dataset(load_config(["task=finetune", "objective=instruction", *settings, *overrides]), "chat", None)


def train_targets(dataset: TokenizedDataset) -> list[str]:
    """What is learnt of each training sequence."""
    train, decode = dataset.splits["train"], dataset.tokenizer.decode
    assert train.token_targets is not None
    parts = [train.token_targets[start : start + size] for start, size in zip(train.starts, train.lengths, strict=True)]
    return [decode(part[part != IGNORED].tolist()).replace("<|endoftext|>", "|") for part in parts]


@pytest.mark.parametrize(
    ("row", "overrides", "expected"),
    [
        ({"messages": calling()[:2] + calling()[3:]}, ["data=chat"], f"<tool_call>\n{CALLED}\n</tool_call>|It is 3 degrees.|"),
        ({"dialogue": SHAPES["sharegpt"]}, ["data=chat", "data.columns.text=dialogue"], "hello|"),
        ({"a": SHAPES["turns"]}, ["data=chat", "data.columns.text=a"], "hello|"),
        ({"q": HI[:1], "a": HI[1:]}, ["data=files", "data.columns.text=q", "data.columns.label=a"], "hello|"),
        ({"messages": [{"role": "Frage", "content": "hi"}, HI[1]]}, ["data=chat", "data.roles={Frage: user}"], "hello|"),
        ({"instruction": "Add", "output": "2"}, ["data=alpaca"], "2|"),
    ],
)
def test_files_of_conversations(tmp_path: Path, cache: Path, row: dict[str, Any], overrides: list[str], expected: str) -> None:
    assert train_targets(prepared(tmp_path, cache, [row] * 20, *overrides)) == [expected] * 18


def test_columns_beside_the_messages_reach_the_template(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"messages": [m | {"mood": "good"} for m in HI], "system": "Answer in Latin.", "tools": json.dumps(TOOLS)}
    dataset = prepared(tmp_path, cache, [row] * 20, "data=chat", ending="parquet")
    assert dataset.tokenizer.decode(dataset.splits["train"][0]).startswith(
        f"<|tools|>\n{json.dumps(TOOLS[0])}\n<|system|>\nAnswer in Latin.\n<|user|>\nhi"
    )
    assert train_targets(dataset) == ["hello|"] * 18
    note = "train: in 18 of 18 rows a message has the field 'mood', which is not used"
    assert note in caplog.text
    caplog.clear()
    prepared(tmp_path, cache, [row] * 20, "data=chat", ending="parquet")
    assert note in caplog.text  # from a warm cache too


def test_roles_and_template_are_part_of_the_caches_identity(tmp_path: Path, cache: Path) -> None:
    rows = [{"messages": [*HI, {"role": "system", "content": "a"}, {"role": "assistant", "content": "bye"}]}] * 20
    plain, mapped = (prepared(tmp_path, cache, rows, "data=chat", *more) for more in ([], ["data.roles={system: tool}"]))
    assert plain.fingerprint != mapped.fingerprint
    assert "<|tool|>" in mapped.tokenizer.decode(mapped.splits["train"][0])


@pytest.mark.parametrize(
    ("row", "suggestion"),
    [
        ({"conversations": HI}, "Set data.columns.text=conversations."),
        ({"dialogue": HI, "id": "1"}, "Set data.columns.text=dialogue."),
        ({"prompt": "a", "completion": "b"}, "Set data.columns.text=prompt data.columns.label=completion."),
        ({"instruction": "a", "output": "b"}, "Set data.columns.text=instruction data.columns.label=output."),
        ({"instruction": "a", "context": "", "response": "b"}, "Set data.columns.text=instruction data.columns.label=response."),
        ({"question": "a", "context": "c", "answer": "b"}, "Set data.columns.text=question data.columns.text_pair=context data.c"),
        ({"text": "a", "role": "prompter"}, "A row is a message there; expected is a row for each conversation"),
        (
            {"prompt": "a", "chosen": HI, "rejected": HI},
            "Preferences (chosen, rejected) are not learnt; the chosen answers can be: Set data.columns.text=prompt",
        ),
        ({"chosen": HI, "rejected": HI}, "the chosen answers can be: Set data.columns.text=chosen."),
    ],
)
def test_a_file_of_another_shape_is_refused_with_the_settings_for_it(
    tmp_path: Path, cache: Path, row: dict[str, Any], suggestion: str
) -> None:
    with pytest.raises(UserError, match=re.escape(suggestion)):
        prepared(tmp_path, cache, [row] * 20, "data=chat")


def test_a_role_that_there_is_not_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(
        UserError,
        match=re.escape("data.roles={a: asistant}: expected one of system, user, assistant, tool. Did you mean 'assistant'?"),
    ):
        prepared(tmp_path, cache, [{"messages": HI}], "data=chat", "data.roles={a: asistant}")


def test_a_wordpiece_tokenizer_knows_who_speaks(tmp_path: Path, cache: Path) -> None:
    rows = [{"messages": talk("Welcome. ", "thanks", "bye\n", first="assistant")}] * 20
    dataset = prepared(tmp_path, cache, rows, "data=chat", "model.tokenizer.kind=wordpiece")
    assert (
        dataset.tokenizer.decode(dataset.splits["train"][0])
        == "<|assistant|> welcome. [SEP] <|user|> thanks <|assistant|> bye [SEP]"
    )
    assert train_targets(dataset) == ["welcome. [SEP] bye [SEP]"] * 18


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", " ", "a", "user", "gpt", "[", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "function", "name", "arguments", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "role",
    "from",
    "content",
    "value",
    "text",
    "tool_calls",
    "function_call",
    "reasoning",
    "weight",
    "train",
    "input",
    "output",
    "name",
    "x",
]
ROLE = st.sampled_from(["user", "assistant", "gpt", "tool", "function_call", "system", "?"])
ODD = st.lists(
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4)
    | st.builds(
        lambda r, d: d | {"role": r}, ROLE, st.dictionaries(st.sampled_from(KEYS[2:]), JSON | st.just("some words"), max_size=4)
    )
    | JSON,
    max_size=4,
)


@lru_cache(None)
def fuzzed(template: str | None) -> list[Encoder]:
    """Encoders of messages, of instructions, and of what is to be answered."""
    kinds: list[tuple[ColumnsConfig, Labels | None]] = [(ColumnsConfig(), KNOWN), (ALPACA, KNOWN), (ColumnsConfig(), None)]
    return [encoder_of(template, labels=labels, columns=columns) for columns, labels in kinds]


@pytest.mark.parametrize("template", [None, templates.QWEN3, templates.PARTS])
@given(value=ODD | JSON, label=JSON | ODD, extra=st.dictionaries(st.sampled_from(Encoder.extra_columns), JSON | ODD))
@settings(max_examples=50, deadline=None)
def test_whatever_a_row_holds_it_is_a_conversation_or_a_bad_row(
    template: str | None, value: Any, label: Any, extra: dict[str, Any]
) -> None:
    for encoder in fuzzed(template):
        present = {name: item for name, item in extra.items() if item is not None}
        try:
            conversation = encoder.read(value, None, label, present)[0]
            tokens, targets = encoder.targets(conversation) if encoder.labels else (encoder.encode_prompt(conversation), [])
        except BadRow:
            continue
        assert len(tokens) > 0
        assert not encoder.labels or any(target != IGNORED for target in targets)
