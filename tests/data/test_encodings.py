"""What rows become: the target of every word, answers at every edge of a window, what of a conversation is the assistant's."""

from __future__ import annotations

import copy
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lightning.config import ColumnsConfig, DataConfig, TokenizerConfig
from llm_lightning.data import tokenizers
from llm_lightning.data.encodings import chat, spans, translation, words
from llm_lightning.data.examples import BadRow, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.rows import Rows

from .test_tokenizers import bpe

ASKED = ColumnsConfig(text="question", text_pair="context", label="answers")
KNOWN = Labels((), ())


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Any:
    table = datasets.Dataset.from_dict({"text": [" ".join(f"w{i}" for i in range(60)), "who is it"]})
    config = TokenizerConfig(kind="wordpiece", vocab_size=300)
    return tokenizers.train(config, Rows(table, "x", str), ["text"], tmp_path_factory.mktemp("tokenizer"))


# ---- words ----


@given(st.lists(st.text(min_size=1, max_size=12).filter(lambda w: not w.isspace()), min_size=1, max_size=30), st.integers(8, 40))
@settings(max_examples=200, deadline=None)
def test_every_word_has_its_tag_once_in_pieces_that_fit(sentence: list[str], block: int) -> None:
    tags = list(range(len(sentence)))
    names = tuple(map(str, tags))
    encoder = words.Encoder(bpe(), DataConfig(block_size=block), Labels(names, names))
    found = encoder([Example(0, sentence, None, tags)], None)
    assert all(len(tokens) == len(targets) <= block for tokens, targets in zip(found.tokens, found.token_targets, strict=True))
    assert [target for piece in found.token_targets for target in piece if target != IGNORED] == tags
    if not encoder.truncated:
        whole = bpe()(" ".join(sentence))["input_ids"]
        assert [token for piece in found.tokens for token in piece if token not in encoder.before + encoder.after] == [
            token for token in whole if token not in encoder.before + encoder.after
        ]


def test_the_tag_is_on_the_first_token_of_its_word() -> None:
    encoder = words.Encoder(bpe(), DataConfig(block_size=64), Labels(("a", "b"), ("a", "b")))
    found = encoder([Example(0, ["some", "unheard", "words"], None, [0, 1, 0])], None)
    (tokens,), (targets,) = found.tokens, found.token_targets
    tagged = [bpe().decode([token]).strip()[:1] for token, target in zip(tokens, targets, strict=True) if target != IGNORED]
    assert tagged == ["s", "u", "w"]


# ---- answers ----


@pytest.mark.parametrize("overlap", [4, 8])
def test_an_answer_up_to_the_overlap_is_whole_in_a_window_wherever_it_is(wordpiece: Any, overlap: int) -> None:
    context = " ".join(f"w{i}" for i in range(60))
    encoder = spans.Encoder(wordpiece, DataConfig(block_size=24, overlap=overlap, columns=ASKED), KNOWN)
    bounds = [(len(" ".join(f"w{i}" for i in range(n))) + (n > 0)) for n in range(61)]
    cut_off = 0
    for first in range(60):
        for size in (1, 2, 3):
            if first + size > 60:
                continue
            answer = context[bounds[first] : bounds[first + size] - 1 if first + size < 60 else None]
            question, text, label = encoder.read("who is it", context, {"text": [answer], "answer_start": [bounds[first]]})
            found = encoder([Example(0, question, text, label)], None)
            (windows,) = encoder.windows([Example(0, question, text)])
            assert found.tokens == [window.tokens for window in windows]
            assert len(windows) > 2
            tokens = len(wordpiece.tokenize(answer))
            whole = [i for i, target in enumerate(found.labels) if target != [0, 0]]
            cut_off += tokens > overlap and not whole
            assert whole or tokens > overlap
            for i in whole:
                start, end = found.labels[i]
                spans_ = windows[i].spans
                assert text[spans_[start][0] : spans_[end][1]] == answer  # type: ignore[index]


BAD_ANSWERS = [
    ({"text": ["nowhere"], "answer_start": [0]}, "'nowhere' is not in the context"),
    ({"text": ["was"], "answer_start": [90]}, "lies outside the context of"),
    ({"text": ["was"], "answer_start": [0]}, "at answer_start=0 the context has 'It ' and not the answer 'was', which is at 3"),
    ({"text": ["was", "in"], "answer_start": [3]}, "2 answers and 1 offsets"),
    ("i", "more than once"),
    ([{"text": ""}], "an answer is empty"),
    ([None], "holds no answers"),
]


@pytest.mark.parametrize(("value", "expected"), BAD_ANSWERS)
def test_answers_that_are_not_where_they_are_said_to_be(value: Any, expected: str) -> None:
    encoder = spans.Encoder(bpe(), DataConfig(block_size=64, columns=ASKED), KNOWN)
    with pytest.raises(BadRow) as error:
        encoder.read("Where was it?", "It was in it.", value)
    assert expected in str(error.value)


# ---- conversations ----

MARKED = (
    "{% for m in messages %}[{{ m['role'] }}] {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %} {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
FORGETFUL = (  # as templates of models that reason: what an earlier turn thought is left out
    "{% for m in messages %}[{{ m['role'] }}] {% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% else %}{{ m['content'] }}{% if m['role'] == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endif %} {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
TALK = [
    {"role": "system", "content": "some words"},
    {"role": "user", "content": "more words"},
    {"role": "assistant", "content": "and some"},
    {"role": "user", "content": "and some"},
    {"role": "assistant", "content": "words and more words"},
]


def talking(template: str | None, **options: Any) -> chat.Encoder:
    tokenizer = copy.deepcopy(bpe())
    tokenizer.chat_template = template
    return chat.Encoder(tokenizer, DataConfig(block_size=256, **options), KNOWN)


def learnt(encoder: chat.Encoder, messages: list[dict[str, str]]) -> list[str]:
    """What of a conversation is learnt, each stretch as text."""
    found = encoder([Example(0, messages)], None)
    (tokens,), (targets,) = found.tokens, found.token_targets
    assert all(target in (token, IGNORED) for token, target in zip(tokens, targets, strict=True))
    stretches: list[list[int]] = []
    for before, target in zip([IGNORED, *targets], targets, strict=False):
        if target != IGNORED:
            if before == IGNORED:
                stretches.append([])
            stretches[-1].append(target)
    return [encoder.tokenizer.decode(stretch) for stretch in stretches]


@pytest.mark.parametrize("template", [MARKED, PLAIN, None], ids=["marked", "unmarked", "ours"])
def test_only_what_the_assistant_says_is_learnt(template: str | None) -> None:
    end = bpe().eos_token
    said = learnt(talking(template), TALK)
    assert [text.lstrip() for text in said] == [f"and some{end}", f"words and more words{end}"]


def test_both_ways_to_the_mask_give_the_same() -> None:
    marked, plain = (talking(template)([Example(0, TALK)], None) for template in (MARKED, PLAIN))
    assert marked.tokens == plain.tokens
    assert marked.token_targets == plain.token_targets


def test_a_template_that_rewrites_earlier_turns_teaches_what_it_shows() -> None:
    messages = [dict(message) for message in TALK]
    messages[2]["content"] = "some words</think>and some"
    said = learnt(talking(FORGETFUL), messages)
    assert [text.replace(bpe().eos_token, "").strip() for text in said] == ["and some", "words and more words"]


def test_instruction_input_and_output_are_a_conversation() -> None:
    columns = ColumnsConfig(text="instruction", text_pair="input", label="output")
    messages, _, _ = talking(None, columns=columns).read("Do it.", "some words", "Done.")
    assert messages == [{"role": "user", "content": "Do it.\n\nsome words"}, {"role": "assistant", "content": "Done."}]
    assert talking(None, columns=columns).read("Do it.", "", "Done.")[0][0]["content"] == "Do it."


BAD_TALK = [
    ("words", "holds no conversation"),
    ([], "holds no conversation"),
    ([{"role": "usr", "content": "a"}], "message 1: unknown role 'usr'"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "message 2: the assistant says nothing"),
    ([{"role": "user", "content": "a"}], "the assistant says nothing"),
    ([3], "message 1: expected {role, content}, found int"),
]


@pytest.mark.parametrize(("value", "expected"), BAD_TALK)
def test_conversations_that_are_none(value: Any, expected: str) -> None:
    with pytest.raises(BadRow) as error:
        talking(None).read(value, None, None)
    assert expected in str(error.value)


def test_sharegpt_names_are_understood() -> None:
    value = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert talking(None).read(value, None, None)[0] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


# ---- translation ----


def test_a_translation_is_the_source_then_the_target_with_its_end() -> None:
    encoder = translation.Encoder(bpe(), DataConfig(block_size=8, columns=ColumnsConfig(text="en", label="de")), KNOWN)
    source, target = "some words", "more words and more words and words"
    found = encoder([Example(0, source, None, target)], None)
    (tokens,), (second,) = found.tokens, found.second
    whole = bpe()(target)["input_ids"]
    assert tokens[:second] == bpe()(source)["input_ids"]
    assert tokens[second:] == [*whole[:7], bpe().eos_token_id]
    assert encoder.truncated == (len(whole) > 8)
