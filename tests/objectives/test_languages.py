"""Multilingual translators: batches, loss and translations are those of Hugging Face's own tokenizer and model with both languages set."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MBartConfig, MBartForConditionalGeneration
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as MBART
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART50

import llm_lightning
from llm_lightning.config.compose import load_config
from llm_lightning.data import languages
from llm_lightning.data.collate import EVALUATION
from llm_lightning.errors import UserError
from llm_lightning.run import prepare

from ..conftest import QUIET, Runner
from .test_supervised import made, padded

TEXTS = [(f"a small dog {i}", f"ein kleiner Hund {i}") for i in range(24)]
SIZES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "init_std": 0.5,
}


def pieces(kind: str) -> dict[str, Any]:
    """The vocabulary of a tokenizer trained on the texts."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = (
        trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
        if kind == "unigram"
        else trainers.BpeTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    )
    backend.train_from_iterator([text for pair in TEXTS for text in pair], trainer)
    content: dict[str, Any] = json.loads(backend.to_str())["model"]
    return content


def tokenizer_of(kind: str) -> Any:
    if kind == "nllb":
        content = pieces("bpe")
        return transformers.NllbTokenizer(vocab=content["vocab"], merges=[tuple(pair) for pair in content["merges"]])
    codes = MBART if kind == "mbart" else MBART50
    vocabulary = [(token, score) for token, score in pieces("unigram")["vocab"]]
    vocabulary += [(code, 0.0) for code in [*codes, "<mask>"]]
    return (transformers.MBartTokenizer if kind == "mbart" else transformers.MBart50Tokenizer)(vocab=vocabulary)


@pytest.fixture
def translator(tmp_path: Path) -> Callable[[str], list[str]]:
    """A tiny model of a kind and parallel files; returns the command line without the languages."""

    def build(kind: str) -> list[str]:
        torch.manual_seed(0)
        tokenizer = tokenizer_of(kind)
        tokenizer.save_pretrained(tmp_path / kind)
        config = transformers.M2M100Config if kind == "nllb" else MBartConfig
        start = {} if kind == "mbart" else {"decoder_start_token_id": 2}
        model = transformers.M2M100ForConditionalGeneration if kind == "nllb" else MBartForConditionalGeneration
        model(config(vocab_size=len(tokenizer), **SIZES, **start)).save_pretrained(tmp_path / kind)
        for side, ending in enumerate(("en", "de")):
            (tmp_path / f"train.{ending}").write_text("\n".join(pair[side] for pair in TEXTS))
        data = ["data=parallel", f"data.train={tmp_path}/train", f"data.validation={tmp_path}/train"]
        columns = ["data.columns.text=en", "data.columns.label=de", "batch.sequences=8", "trainer.max_steps=2"]
        return ["task=finetune", "objective=translation", *data, *columns, f"model.name_or_path={tmp_path}/{kind}"]

    return build


KINDS = {"mbart": ("en_XX", "de_DE"), "mbart50": ("en_XX", "de_DE"), "nllb": ("eng_Latn", "deu_Latn")}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_loss_are_those_of_hugging_face(
    kind: str, translator: Callable[[str], list[str]], cache: Path, tmp_path: Path
) -> None:
    arguments = translator(kind)
    objective, data = made(cache, *arguments, "data.languages={source: en, target: de}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / kind)
    tokenizer.src_lang, tokenizer.tgt_lang = KINDS[kind]
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / kind)
    batch = data.collator(data.dataset.splits["validation"], [[i] for i in range(4)], EVALUATION)
    sources = [part.tolist() for part in batch.input_ids.split(batch.cu_seqlens.diff().tolist())]
    assert batch.cu_targets is not None
    targets = [part.tolist() for part in batch.targets.split(batch.cu_targets.diff().tolist())]
    order = [TEXTS[i] for i in batch.indices.tolist()]
    expected = tokenizer([source for source, _ in order], text_target=[target for _, target in order])
    assert sources == expected["input_ids"]
    assert targets == expected["labels"]
    objective.eval()
    loss, _ = objective.loss_and_outputs(batch)
    labels = padded([torch.tensor(target) for target in targets], -100)
    given = {
        name: padded([torch.tensor(row) for row in expected[name]], fill)
        for name, fill in (("input_ids", 1), ("attention_mask", 0))
    }
    assert float(loss) == pytest.approx(float(theirs.eval()(**given, labels=labels).loss) * len(batch.targets), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_translates_with_its_languages(
    kind: str, translator: Callable[[str], list[str]], run: Runner, tmp_path: Path
) -> None:
    languages = "data.languages={source: en, target: de}"
    run(*translator(kind), languages, "trainer.precision=32-true", f"run_dir={tmp_path}/run", "data.block_size=16")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "hf")
    target = tokenizer.convert_tokens_to_ids(KINDS[kind][1])
    begin = model.generation_config.decoder_start_token_id if kind == "mbart" else model.generation_config.forced_bos_token_id
    assert begin == target
    sources = [source for source, _ in TEXTS[:4]]
    settings = {"num_beams": 4, "max_new_tokens": 16, "early_stopping": True}
    expected = [
        tokenizer.decode(model.generate(**tokenizer(source, return_tensors="pt"), **settings)[0], skip_special_tokens=True)
        for source in sources
    ]
    ours = llm_lightning.load(tmp_path / "run", "trainer.precision=32-true").predict(sources)
    assert [row["translation"] for row in ours] == expected
    plain = llm_lightning.load(tmp_path / "run" / "hf", "trainer.precision=32-true", "data.block_size=16").predict(sources)
    assert plain == ours  # the tokenizer names its languages


@pytest.mark.parametrize(
    ("kind", "given", "parts"),
    [
        ("nllb", None, ("data.languages.source is not set", "source: eng_Latn, target: deu_Latn", "ace_Arab")),
        ("mbart50", "{target: de}", ("data.languages.source is not set", "en_XX")),
        ("nllb", "{source: zh, target: de}", ("data.languages.source=zh", "zho_Hans", "zho_Hant")),
        ("nllb", "{source: eng_Lat, target: de}", ("no such language", "Did you mean 'eng_Latn'?")),
        ("mbart", "{source: en, target: klingon}", ("data.languages.target=klingon", "ar_AR")),
    ],
)
def test_languages_that_are_not_clear_are_refused(
    kind: str, given: str | None, parts: tuple[str, ...], translator: Callable[[str], list[str]], cache: Path
) -> None:
    arguments = [*translator(kind), *([] if given is None else [f"data.languages={given}"])]
    with pytest.raises(UserError) as error:
        prepare(load_config([*QUIET, f"cache_dir={cache}", *arguments]))
    assert all(part in str(error.value) for part in parts)


def test_short_codes_are_those_of_nllb() -> None:
    codes = languages.language_codes(tokenizer_of("nllb"))
    assert {code for code in languages.THREE_LETTERS.values() if not any(each.startswith(f"{code}_") for each in codes)} == set()


def test_a_long_target_keeps_its_end(translator: Callable[[str], list[str]], cache: Path) -> None:
    arguments = [*translator("mbart"), "data.languages={source: en, target: de}", "data.block_size=8"]
    _, data = made(cache, *arguments)
    split = data.dataset.splits["train"]
    tokenizer = data.dataset.tokenizer
    for i in range(len(split)):
        source, target = split[i][: split.second[i]].tolist(), split[i][split.second[i] :].tolist()
        assert max(len(source), len(target)) <= 8
        assert source[-2:] == tokenizer.convert_tokens_to_ids(["</s>", "en_XX"])
        assert target[-2:] == tokenizer.convert_tokens_to_ids(["</s>", "de_DE"])


def test_the_prefix_of_a_checkpoint_is_named_and_put_before_each_source(
    translator: Callable[[str], list[str]], cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = translator("mbart")[:-1]
    tokenizer = transformers.ByT5Tokenizer()
    tokenizer.save_pretrained(tmp_path / "t5")
    settings = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": 384}
    tasks = {"translation_en_to_de": {"prefix": "translate English to German: ", "num_beams": 4}}
    config = transformers.T5Config(**settings, decoder_start_token_id=0, task_specific_params=tasks)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    arguments.append(f"model.name_or_path={tmp_path}/t5")
    with caplog.at_level(logging.WARNING):
        made(cache, *arguments)
    assert "\"data.prefix='translate English to German: '\"" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        _, data = made(cache, *arguments, "data.prefix='translate English to German: '")
    assert "data.prefix" not in caplog.text
    first = data.dataset.splits["train"]
    assert first[0][: first.second[0]].tolist() == tokenizer(f"translate English to German: {TEXTS[0][0]}")["input_ids"]
    assert data.dataset.example("train", 0).text == TEXTS[0][0]  # reports show the source as it is in the file
