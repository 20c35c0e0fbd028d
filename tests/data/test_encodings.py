"""What rows become: the target of every word, answers at every edge of a window, what of a conversation is the assistant's."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lightning.config.schema import ColumnsConfig, DataConfig, TokenizerConfig
from llm_lightning.data import tokenizers
from llm_lightning.data.encodings import spans, translation, words
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
