"""Train tokenizers on the training split, or load them with their checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm_lightning.atomic_files import write_atomically
from llm_lightning.config.schema import TokenizerConfig, expand_home
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError, first_line

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # or it warns when a loader worker forks

FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm", "*.tiktoken", "tekken.json")
NO_FILES = (
    "model.name_or_path={name}: there are no tokenizer files (tokenizer.json, vocab.txt, spiece.model, …); copy those of the model that it "
    "was trained from beside config.json."
)
ENOUGH = 50_000_000  # characters; more text changes a vocabulary of this size very little


def train(config: TokenizerConfig, rows: Rows, columns: list[str], cache_dir: Path) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the text columns, cached under the fingerprint of text and settings.

    Byte-level BPE (Radford et al. 2019) or lower-cased WordPiece (Devlin et al. 2019).
    """
    identity = xxhash.xxh3_128(f"4 {config} {rows.fingerprint} {columns}".encode()).hexdigest()
    file = cache_dir / "tokenizers" / f"{identity}.json"
    if not file.is_file():
        tokenizer = {"bpe": _train_bpe, "wordpiece": _train_wordpiece}[config.kind](config, lambda: _texts(rows, columns))
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as partial:
            tokenizer.save(str(partial))
    return _wrap(config.kind, Tokenizer.from_file(str(file)))


def begin_texts(tokenizer: Any) -> None:
    """Let a trained tokenizer begin each text with the token that documents of `causal_lm` begin with, and end none.

    A prompt then begins as the documents did in training, also in transformers' own pipelines. Without that token each position of a
    short text is one that the model has not learnt: it repeats words and ends sentences twice.
    """
    token = tokenizer.bos_token or tokenizer.sep_token
    special = [(token, tokenizer.convert_tokens_to_ids(token))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=special
    )


def load(folder_or_name: str, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a Hugging Face folder or hub name. Without a padding token it pads with its end-of-text token.

    Losses and masks distinguish padding from text by lengths, so the two may share an id. Hugging Face's decoder heads for
    classification search for the padding token: if a text ends with it, they read the token before, here as in an export.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder_or_name, trust_remote_code=trust_remote_code)
    except Exception as error:  # a checkpoint's own code, damaged files, missing packages: each has exceptions of its own
        raise UserError(unreachable(folder_or_name, error)) from error
    if tokenizer.is_fast and not set(tokenizer.get_vocab()) - {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), "▁"}:
        raise UserError(NO_FILES.format(name=folder_or_name))  # transformers makes one of special tokens alone
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def unreachable(name: str, error: Exception) -> str:
    """Return the message for a checkpoint that cannot be loaded, with advice for a missing connection."""
    reason, text = first_line(error), str(error)
    if "trust_remote_code" in text:
        return f"model.name_or_path={name}: the checkpoint has code of its own; read it, then let it run with model.trust_remote_code=true."
    is_folder = expand_home(name).is_dir()
    if is_folder and "okeniz" in text and not any(any(expand_home(name).glob(pattern)) for pattern in FILES):
        return NO_FILES.format(name=name)
    if is_folder and (pointer := _find_pointer(expand_home(name))) is not None:
        return (
            f"model.name_or_path={name}: {pointer.name} is a pointer of Git LFS, not the file itself; fetch it with git lfs pull."
        )
    pieces = is_folder and any(file.suffix in (".model", ".spm") for file in expand_home(name).iterdir())
    of_sentencepiece = pieces or "entencepiece" in text.lower() or "build an AutoTokenizer" in text
    if of_sentencepiece and importlib.util.find_spec("sentencepiece") is None:
        return f"model.name_or_path={name}: its tokenizer needs a package: pip install sentencepiece ({reason})."
    if is_folder:
        return f"model.name_or_path={name}: the folder cannot be loaded ({reason})."
    return (
        f"model.name_or_path={name}: cannot be loaded from the Hugging Face hub ({reason}). Check the name; a gated or private model "
        f"needs a login (hf auth login); without a connection, download the model elsewhere and give its folder: "
        f"model.name_or_path=<folder with config.json>."
    )


def _find_pointer(folder: Path) -> Path | None:
    """Return a file that a clone without Git LFS left in place of a large one."""
    small = (file for file in sorted(folder.iterdir()) if file.is_file() and file.stat().st_size < 1000)
    return next((file for file in small if file.read_bytes().startswith(b"version https://git-lfs")), None)


def identity(tokenizer: Any) -> str:
    """Return a hash of everything that determines the tokens of a text, without the truncation and padding that a call leaves behind.

    A tokenizer in Python is hashed by its saved files, which hold its class, its vocabulary and its settings.
    """
    if not tokenizer.is_fast:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
            contents = [(file.name.encode(), file.read_bytes()) for file in files]
        return xxhash.xxh3_128(b"\0".join(part for content in contents for part in content)).hexdigest()
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    return xxhash.xxh3_128(json.dumps(state).encode()).hexdigest()


SAMPLE = 200_000  # characters for a tokenizer's statistics


def statistics(tokenizer: Any, rows: Rows, columns: list[str]) -> dict[str, float | None]:
    """Return the size of a tokenizer, and how it cuts the text of the first rows; special tokens are not counted."""
    texts, size = [], 0
    for text in (text for batch in _texts(rows, columns) for text in batch):
        texts.append(text[: SAMPLE - size])
        size += len(texts[-1])
        if size >= SAMPLE:
            break
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    ids = [token for text in encoded for token in text]
    words, length = sum(len(text.split()) for text in texts), sum(len(text.encode()) for text in texts)
    unknown = sum(token == tokenizer.unk_token_id for token in ids)
    return {
        "entries": len(tokenizer),
        "tokens_per_word": len(ids) / words if words else None,
        "bytes_per_token": length / len(ids) if ids else None,
        "unknown_share": unknown / len(ids) if ids else None,
    }


def continues_word(tokenizer: Any) -> list[bool]:
    """Return for each token id whether it continues a word: '##ing' in WordPiece, no leading space mark in BPE and SentencePiece."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    if any(t.startswith("##") for t in tokens):
        return [t.startswith("##") for t in tokens]
    special = set(tokenizer.all_special_tokens)
    return [t not in special and t[:1] not in ("Ġ", "Ċ", "▁") for t in tokens]


def _texts(rows: Rows, columns: list[str]) -> Iterator[list[str]]:
    character_count = 0
    for batch in rows.table.iter(batch_size=1000):
        texts = [text for column in columns for value in batch[column] for text in _strings(value)]
        yield texts
        character_count += sum(map(len, texts))
        if character_count > ENOUGH:
            return


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts of a value, which may be a list of words, or of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        yield from (text for item in (value.values() if isinstance(value, dict) else value) for text in _strings(item))


def _train_bpe(config: TokenizerConfig, texts: Callable[[], Iterator[list[str]]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A <|endoftext|> $B:1", special_tokens=[("<|endoftext|>", 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _train_wordpiece(config: TokenizerConfig, texts: Callable[[], Iterator[list[str]]]) -> Tokenizer:
    """Train WordPiece whose alphabet fits into half of the vocabulary, its most frequent characters before the others.

    The trainer numbers the pieces inside words at random and breaks ties by number, so it gets them in a fixed order. Raises
    UserError if the vocabulary is too small for the characters of the texts.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = _normalizer()
    characters = Counter(
        c for batch in texts() for text in batch for c in tokenizer.normalizer.normalize_str(text) if not c.isspace()
    )
    alphabet, pieces = _alphabet(characters, config.vocab_size, len(special))
    tokenizer.pre_tokenizer = _words(alphabet)
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[*special, *pieces],
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    wordpiece = Tokenizer(models.WordPiece(dict(entries), unk_token="[UNK]"))
    wordpiece.add_special_tokens(special)
    wordpiece.normalizer, wordpiece.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    wordpiece.decoder = decoders.WordPiece()
    wordpiece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return wordpiece


WORD = 100
"""Characters after which an unbroken word is cut, as in Thai: WordPiece has one [UNK] for a longer one."""
COVERED = 0.999
"""Least share of the training texts' characters that a vocabulary has to spell."""
STANDALONE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]")
"""Chinese characters. BERT's normalizer puts blanks around them, so none is ever inside a word."""


def _normalizer() -> normalizers.Normalizer:
    """Build a normalizer to lower case without accents, as in BERT. The marks of Thai, Hindi or Japanese, which are letters, stay."""
    accents = Regex(r"[\u0300-\u036f]")  # of Latin, Greek and Cyrillic
    bert = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    return normalizers.Sequence([bert, normalizers.NFD(), normalizers.Replace(accents, ""), normalizers.NFC()])


def _words(alphabet: list[str]) -> pre_tokenizers.PreTokenizer:
    """Split words and marks as BERT does. A character outside the alphabet stands alone, so that [UNK] replaces it and not its word."""
    others = Regex("[^" + "".join(f"\\x{{{ord(c):x}}}" for c in alphabet or "\0") + "]")  # no text holds a NUL
    return pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(others, "isolated"), pre_tokenizers.FixedLength(length=WORD)]
    )


def _alphabet(characters: Counter[str], vocab_size: int, special: int) -> tuple[list[str], list[str]]:
    """Return (the characters that the tokenizer can spell, their forms inside words), both by frequency.

    A character takes two entries, or one if it only stands alone.
    """
    room, total = (vocab_size - special) // 2, max(characters.total(), 1)
    alphabet: list[str] = []
    spelt, entries = 0, 0
    for c in sorted(sorted(characters), key=lambda c: -characters[c]):
        entries += 1 if STANDALONE.match(c) else 2
        if entries > room and spelt >= COVERED * total:
            break
        alphabet.append(c)
        spelt += characters[c]
    pieces = [f"##{c}" for c in alphabet if not STANDALONE.match(c)]
    least = special + len(alphabet) + len(pieces)
    if least > vocab_size:
        raise UserError(
            f"model.tokenizer.vocab_size={vocab_size}: the training texts have {len(characters):,} different characters, and "
            f"{COVERED:.1%} of the text takes {least:,} entries; set at least {2 * least:,}, or model.tokenizer.kind=bpe, which spells "
            f"rare characters in bytes."
        )
    return alphabet, pieces


def _wrap(kind: str, tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    if kind == "bpe":
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token="<|endoftext|>",
            bos_token="<|endoftext|>",
            pad_token="<|pad|>",
            model_input_names=["input_ids", "attention_mask"],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
