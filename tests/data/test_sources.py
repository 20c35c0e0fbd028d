"""Every way of giving data ends in the same rows; and what was encoded once is not encoded again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.errors import UserError

ROWS = [(f"a {'fine' if i % 2 else 'dull'} film, number {i}", i % 2) for i in range(40)]
COLUMNS = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}


def csv_text(separator: str) -> str:
    return "\n".join(["text,label".replace(",", separator), *(f'"{t}"{separator}{n}' for t, n in ROWS)])


WRITERS: dict[str, Callable[[Path], object]] = {
    "csv": lambda p: p.write_text(csv_text(",")),
    "tsv": lambda p: p.write_text(csv_text("\t")),
    "jsonl": lambda p: p.write_text("\n".join(json.dumps({"text": t, "label": n}) for t, n in ROWS)),
    "json": lambda p: p.write_text(json.dumps([{"text": t, "label": n} for t, n in ROWS])),
    "parquet": lambda p: datasets.Dataset.from_dict(COLUMNS).to_parquet(p),
    "arrow": lambda p: _arrow(p),
}


def _arrow(path: Path) -> None:
    import pyarrow as pa

    table = pa.table(COLUMNS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def prepare(*arguments: str, encoding: str = "texts") -> TokenizedDataset:
    config = load_config([*arguments, "model.tokenizer.vocab_size=320"])
    return prepare_dataset(config, encoding, None)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_table_is_the_same_in_every_format(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"train.{kind}")
    given = ["task=finetune", "data=files", "data.columns.label=label", f"cache_dir={tmp_path}/cache"]
    dataset = prepare(*given, f"data.dir={tmp_path}")
    assert dataset.label_names == ("0", "1")
    assert {split: len(part) for split, part in dataset.splits.items()} == {"train": 36, "validation": 4}
    train = dataset.splits["train"]
    said = [dataset.tokenizer.decode(train[i], skip_special_tokens=True) for i in range(len(train))]
    assert train.labels is not None
    assert all(("fine" in sentence) == bool(label) for sentence, label in zip(said, train.labels, strict=True))
    assert sorted(said) == sorted(set(said))


def test_what_was_encoded_once_is_not_encoded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    WRITERS["csv"](tmp_path / "train.csv")
    given = ["task=finetune", "data=files", "data.columns.label=label", f"cache_dir={tmp_path}/cache", f"data.dir={tmp_path}"]
    caplog.set_level("INFO", logger="llm_lightning")
    first = prepare(*given)
    assert caplog.text.count("encoding") == 2
    caplog.clear()
    assert prepare(*given).fingerprint == first.fingerprint
    assert "encoding" not in caplog.text
    assert prepare(*given, "model.tokenizer.kind=bpe").fingerprint != first.fingerprint  # never another tokenizer's cache


def test_text_comes_from_files_folders_globs_and_lists(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    parts = {"one.txt": "first text\n\nsecond text\n", "more/two.txt": "third text\n", "more/three.md": "fourth\ntext\n"}
    for name, content in parts.items():
        (tmp_path / name).write_text(content * 30)
    (tmp_path / "held.txt").write_text("a text to validate on\n")

    def documents(train: str, document: str) -> int:
        given = ["data=text", f"data.train={train}", f"data.document={document}", f"data.validation={tmp_path}/held.txt"]
        return prepare(*given, f"cache_dir={tmp_path}/cache", encoding="stream").splits["train"].facts.rows

    assert documents(f"{tmp_path}/more", "file") == 2
    assert documents(f"{tmp_path}/*.txt", "file") == 2  # held.txt too
    assert documents(f"[{tmp_path}/one.txt,{tmp_path}/more/two.txt]", "line") == 90
    assert documents(f"{tmp_path}/one.txt", "blank_line") == 31
    assert documents(f"'{tmp_path}/**/*.txt'", "file") == 3


def test_a_document_longer_than_a_piece_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in pieces, it has the tokens that it has as a whole: one end-of-text, and no target is lost between the pieces."""
    from llm_lightning.data.sources import text as source

    (tmp_path / "long.txt").write_text("".join(f"line {i} of a long document.\n" for i in range(300)))
    (tmp_path / "held.txt").write_text("a text to validate on\n")
    given = ["data=text", f"data.train={tmp_path}/long.txt", f"data.validation={tmp_path}/held.txt", "data.block_size=32"]
    for packing in ("best_fit", "concat"):
        found = []
        for pieces, size in (("whole", 1 << 20), ("pieces", 500)):
            monkeypatch.setattr(source, "LARGE", size)
            dataset = prepare(*given, f"data.packing={packing}", f"cache_dir={tmp_path}/{packing}-{pieces}", encoding="stream")
            train = dataset.splits["train"]
            end = dataset.tokenizer.eos_token_id
            targets = [int(token) for i in range(len(train)) for token in train[i][1:]]
            assert train.facts.rows == 1
            assert targets.count(end) == 1
            found.append((train.facts.bytes, dataset.tokenizer.decode(targets)))
        assert found[0] == found[1]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> datasets.DatasetDict:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["dull", "fine"])})
    hidden = {"text": COLUMNS["text"], "label": [-1] * len(ROWS)}
    loaded = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(COLUMNS, features=features),
        validation=datasets.Dataset.from_dict(COLUMNS, features=features),
        test=datasets.Dataset.from_dict(hidden, features=features),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    return loaded


HUB = ["task=finetune", "data=hub", "data.name=some/films", "data.columns.label=label"]


def test_a_hub_data_set_brings_its_names_and_hides_its_test_labels(
    hub: datasets.DatasetDict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = prepare(*HUB, f"cache_dir={tmp_path}")
    assert dataset.label_names == ("dull", "fine")
    assert set(dataset.splits) == {"train", "validation"}
    assert "test has no labels" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.validation=valid"], r"data\.validation=valid: some/films has no such split; it has train, validation, test"),
        (["data.columns.text=txt"], r"train: there is no column 'txt'.*Did you mean 'text'"),
        (["data.labels=[a,b,c]"], r"data\.labels names 3 classes.*the data set has 2 \(dull, fine\)"),
    ],
)
def test_what_a_hub_data_set_does_not_have(hub: datasets.DatasetDict, arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare(*HUB, *arguments, f"cache_dir={tmp_path}")


def test_two_files_for_a_split_are_ambiguous(tmp_path: Path) -> None:
    for kind in ("csv", "jsonl"):
        WRITERS[kind](tmp_path / f"train.{kind}")
    with pytest.raises(UserError, match=r"several files could be train \(train\.csv, train\.jsonl\)"):
        prepare("task=finetune", "data=files", "data.columns.label=label", f"data.dir={tmp_path}", f"cache_dir={tmp_path}/cache")


@pytest.mark.parametrize("value", ["1", "1.0", "true"])
def test_a_label_is_the_same_however_it_is_written(value: str, tmp_path: Path) -> None:
    WRITERS["csv"](tmp_path / "train.csv")
    (tmp_path / "validation.jsonl").write_text(f'{{"text": "a fine film", "label": {value}}}\n')
    given = ["task=finetune", "data=files", "data.columns.label=label", f"data.dir={tmp_path}", f"cache_dir={tmp_path}/cache"]
    labels = prepare(*given).splits["validation"].labels
    assert labels is not None
    assert labels.tolist() == [1]
