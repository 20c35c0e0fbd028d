"""Tokenizers: the same text gives the same one, nothing is lost on the way there and back."""

from __future__ import annotations

import copy
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lightning.config import DataConfig, TokenizerConfig
from llm_lightning.data import tokenizers
from llm_lightning.data.encodings.documents import Encoder
from llm_lightning.data.rows import Rows


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
