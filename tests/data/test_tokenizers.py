"""Tokenizers: the same text gives the same one, nothing is lost on the way there and back."""

from __future__ import annotations

import copy
from pathlib import Path

import datasets
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lightning.config.schema import DataConfig, TokenizerConfig
from llm_lightning.data import encodings, tokenizers
from llm_lightning.data.encodings import stream, texts
from llm_lightning.data.encodings.documents import Encoder
from llm_lightning.data.examples import Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError


def rows(corpus: Path) -> Rows:
    return Rows(datasets.Dataset.from_dict({"text": corpus.read_text().splitlines()}), "content", str)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_the_same_text_gives_the_same_tokenizer(kind: str, corpus: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(kind=kind, vocab_size=320)
    trained = [tokenizers.train(config, rows(corpus), ["text"], tmp_path / str(i)) for i in range(8)]
    assert len({tokenizers.identity(tokenizer) for tokenizer in trained}) == 1


def test_special_tokens_are_one_token_each(corpus: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.train(TokenizerConfig(kind="wordpiece", vocab_size=320), rows(corpus), ["text"], tmp_path)
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    ids = tokenizer("the cat", "the dog")
    assert [ids["input_ids"][0], ids["input_ids"].count(3)] == [2, 2]
    assert tokenizer.decode(tokenizer("the cat")["input_ids"], skip_special_tokens=True) == "the cat"


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_bytes_of_any_text_come_back(text: str) -> None:
    tokenizer = bpe()
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


_TRAINED: list[tokenizers.PreTrainedTokenizerFast] = []


def bpe() -> tokenizers.PreTrainedTokenizerFast:
    if not _TRAINED:
        import tempfile

        text = Rows(datasets.Dataset.from_dict({"text": ["some words and some more words", "naïve café"]}), "x", str)
        with tempfile.TemporaryDirectory() as folder:
            _TRAINED.append(tokenizers.train(TokenizerConfig(vocab_size=300), text, ["text"], Path(folder)))
    return _TRAINED[0]


def test_a_tokenizer_that_cuts_and_pads_does_neither_to_a_document() -> None:
    """Many checkpoints come with such settings (MiniLM: 128 tokens): nothing of a document may be dropped for them."""
    text = "some words and some more words " * 20
    plain = Encoder(bpe(), DataConfig(block_size=32)).tokenize([text, "words"])
    cutting = copy.deepcopy(bpe())
    cutting.backend_tokenizer.enable_truncation(8)
    cutting.backend_tokenizer.enable_padding(length=8)
    assert Encoder(cutting, DataConfig(block_size=32)).tokenize([text, "words"]) == plain
    assert len(plain[0]) > 60
    assert tokenizers.identity(cutting) == tokenizers.identity(bpe())


def test_statistics_are_those_of_the_text(corpus: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.train(TokenizerConfig(kind="wordpiece", vocab_size=320), rows(corpus), ["text"], tmp_path)
    texts = ["the cat sees rain", "a ☃ likes music"]
    found = tokenizers.statistics(tokenizer, Rows(datasets.Dataset.from_dict({"text": texts}), "few", str), ["text"])
    pieces = [piece for text in texts for piece in tokenizer.tokenize(text)]
    assert pieces.count("[UNK]") == 1
    assert found == {
        "entries": len(tokenizer.get_vocab()),
        "tokens_per_word": len(pieces) / 8,
        "bytes_per_token": sum(len(text.encode()) for text in texts) / len(pieces),
        "unknown_share": 1 / len(pieces),
    }


# ---- scripts ----

SCRIPTS = {
    "thai": "ภาษาไทยเป็นภาษาที่ไม่มีช่องว่างระหว่างคำ" * 5,
    "japanese": "東京でがんばっています。カタカナとひらがなが混ざったぶんしょうです。",
    "korean": "한국어 문장은 띄어쓰기가 있습니다",
    "hindi": "हिन्दी में लिखा हुआ एक वाक्य है",
    "arabic": "السَّلامُ عَلَيْكُمْ",
    "chinese": "".join(chr(0x4E00 + i) for i in range(1500)),
    "emoji": "great😀film👍🏽 so❤️good",
    "english": "Naïve café, don't! ÅB",
}


def rows_of(*values: str) -> Rows:
    return Rows(datasets.Dataset.from_dict({"text": list(values)}), str(hash(values)), str)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_spelt_without_loss(script: str, kind: str, tmp_path: Path) -> None:
    text = SCRIPTS[script]
    tokenizer = tokenizers.train(TokenizerConfig(kind=kind, vocab_size=4096), rows_of(*[text] * 20), ["text"], tmp_path)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    decoded = tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")
    expected = text.replace(" ", "")
    assert decoded == (expected if kind == "bpe" or script != "english" else "naivecafe,don't!ab")


def test_an_unknown_character_does_not_take_its_sentence_along(tmp_path: Path) -> None:
    text = SCRIPTS["thai"]
    tokenizer = tokenizers.train(TokenizerConfig(kind="wordpiece", vocab_size=400), rows_of(*[text] * 20), ["text"], tmp_path)
    pieces = tokenizer.tokenize(f"{text[:40]}☃{text[40:80]}")
    assert pieces.count("[UNK]") == 1
    assert "".join(pieces).replace("##", "").replace("[UNK]", "☃") == f"{text[:40]}☃{text[40:80]}"


def test_the_vocabulary_is_as_large_as_asked_for_or_refused(tmp_path: Path) -> None:
    text = rows_of(SCRIPTS["chinese"], SCRIPTS["english"])
    for size in (1700, 4096):
        assert len(tokenizers.train(TokenizerConfig(kind="wordpiece", vocab_size=size), text, ["text"], tmp_path)) <= size
    with pytest.raises(UserError, match=r"model\.tokenizer\.vocab_size=400: .* different characters"):
        tokenizers.train(TokenizerConfig(kind="wordpiece", vocab_size=400), text, ["text"], tmp_path)


# ---- tokenizers in Python ----


@pytest.mark.parametrize("kind", ["ByT5Tokenizer", "CanineTokenizer"])
def test_a_tokenizer_in_python_encodes_texts_as_it_does_itself(kind: str, tmp_path: Path) -> None:
    tokenizer = getattr(transformers, kind)()
    tokenizer.save_pretrained(tmp_path / "one")
    (tmp_path / "two").mkdir()
    tokenizer.save_pretrained(tmp_path / "two" / "deeper")
    loaded = [tokenizers.load(str(folder)) for folder in (tmp_path / "one", tmp_path / "two" / "deeper")]
    assert tokenizers.identity(loaded[0]) == tokenizers.identity(loaded[1])
    data = DataConfig(source="files", block_size=12)
    batch = [Example(0, "é 1", "other", 0), Example(1, "a longer text than fits", "b", 1)]
    sequences = texts.Encoder(loaded[0], data, Labels(("a", "b"), ("a", "b")))(batch, None)
    expected = tokenizer([e.text for e in batch], [e.text_pair for e in batch], truncation=True, max_length=12)["input_ids"]
    assert sequences.tokens == expected
    for tokens, second, example in zip(sequences.tokens, sequences.second, batch, strict=True):
        rest = tokenizer.decode(tokens[second:], skip_special_tokens=True)
        assert rest
        assert str(example.text_pair).startswith(rest)
    assert Encoder(loaded[0], data).tokenize(["é 1"]) == [tokenizer("é 1", add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("name", ["words", "spans", "chat"])
def test_what_needs_offsets_refuses_a_tokenizer_in_python(name: str) -> None:
    with pytest.raises(UserError, match="CanineTokenizer has no fast form"):
        encodings.get_encoder(name)(transformers.CanineTokenizer(), DataConfig(source="files"))


# ---- special tokens that are missing ----


@pytest.mark.parametrize("packing", ["none", "concat"])
def test_documents_of_a_tokenizer_without_an_end_of_text_follow_each_other(
    packing: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    trained = tokenizers.train(TokenizerConfig(vocab_size=300), rows_of("some words"), ["text"], tmp_path)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained.backend_tokenizer)
    encoder = stream.Encoder(tokenizer, DataConfig(source="text", packing=packing, block_size=8))
    assert "no end-of-text token" in caplog.text
    found = encoder([Example(0, "some words", None, None), Example(1, "more words", None, None)], None)
    ids = encoder.tokenize(["some words", "more words"])
    joined = list(np.concatenate(found.tokens))
    assert None not in joined
    if packing == "concat":
        assert joined == ids[0] + ids[1]
    else:  # every token but the first of a document is a target once
        assert sum(len(tokens) - 1 for tokens in found.tokens) == sum(len(part) - 1 for part in ids)


def test_a_translator_needs_an_end_of_text(tmp_path: Path) -> None:
    tokenizer = tokenizers.train(TokenizerConfig(kind="wordpiece", vocab_size=300), rows_of("some words"), ["text"], tmp_path)
    with pytest.raises(UserError, match="no end-of-text token"):
        encodings.get_encoder("translation")(tokenizer, DataConfig(source="files"))
