"""Conversations: what each shape of file becomes, and that the assistant's words, and nobody else's, are learnt with any chat template."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm_lightning.config import ColumnsConfig, DataConfig
from llm_lightning.data.conversations import Conversation
from llm_lightning.data.encodings.chat import Encoder
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.masking import IGNORED

from . import chat_templates as templates

KNOWN = Labels((), ())
TEXTS = ["the cat sees a dog, and runs (fast).", "what is it? 2 + 2 = 4!", "def f(x):\n    return [x]\n", "Ein Hund läuft. 你好"]
KINDS = ("bpe", "gpt2", "wordpiece", "unigram", "llama")


@cache
def make_tokenizer(kind: str, special: bool = True) -> Any:
    """A small tokenizer of a kind: byte-level BPE without and with GPT-2's trimmed offsets, WordPiece, and the two ways of ▁."""
    unknown: dict[str, Any] = {}
    if kind in ("bpe", "gpt2"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
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
            vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
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


def encoder_of(template: str | None, kind: str = "bpe", special: bool = True, labels: Labels | None = KNOWN, **options: Any) -> Encoder:
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


ENDS = ("<think>\n\n</think>", "<|im_end|>", "</s>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<|message|>", "[SEP]", "<|calls_end|>")


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
