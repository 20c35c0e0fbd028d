"""Tags in brackets become tags of IOB2: those of whole files as people have them, and of tables."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data.brackets import convert_brackets, convert_sentence, is_bracketed
from llm_lightning.data.examples import BadRow
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.data.rows import PROBLEM, Rows
from llm_lightning.errors import UserError
from llm_lightning.objectives.tagging import Tagging

SENTENCES = [
    ("(PERSON* *) * (DATE)", "B-PERSON I-PERSON O B-DATE"),
    ("(PERSON* * *) * (DATE*)", "B-PERSON I-PERSON I-PERSON O B-DATE"),
    ("(GPE) (GPE*) (GPE* *)", "B-GPE B-GPE B-GPE I-GPE"),
    ("(A0*A0) (V*V) (A1* * *A1) *", "B-A0 B-V B-A1 I-A1 I-A1 O"),
    ("(ARGM-TMP*) (C-ARG1* *) (V*)", "B-ARGM-TMP B-C-ARG1 I-C-ARG1 B-V"),
    ("(ORG* (GPE*) *) *", "B-ORG I-ORG I-ORG O"),
    ("(ORG(GPE*) *) (LAW(CARDINAL))", "B-ORG I-ORG B-LAW"),
    ("(S(S* *S) * *S)", "B-S I-S I-S I-S"),
    ("- (DATE) _ O", "O B-DATE O O"),
    ("(PER - PER)", "B-PER I-PER I-PER"),
]


@pytest.mark.parametrize(("tags", "expected"), SENTENCES)
def test_brackets_are_those_of_iob2(tags: str, expected: str) -> None:
    assert is_bracketed({*tags.split(), "*"})
    assert convert_sentence([*tags.split()]).tags == expected.split()


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("* *) *", "word 2 closes a bracket that none opens"),
        ("(DATE)) *", "word 1 closes a bracket that none opens"),
        ("* (DATE* *", r"'\(DATE' that word 2 opens is not closed"),
        ("(PER* *ORG)", "word 2 closes 'ORG', and 'PER' is open"),
        ("(PER*) B-PER", "'B-PER' of word 2 is no tag in brackets"),
        ("(PER*) (3)", r"'\(3\)' of word 2 is a mention of a coreference chain"),
        ("(PER*) 7)|(3", "is a mention of a coreference chain"),
        ("(PER*) (", "'\\(' of word 2 is no tag in brackets"),
    ],
)
def test_brackets_that_do_not_go_together_are_a_bad_row(tags: str, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        convert_sentence([*tags.split()])


@pytest.mark.parametrize(
    "tags", ["O B-PER I-PER", "NN ( ) , *", "* -", "DET NOUN", "(0) 0) (0 -", ":( :) O", "( ) NN", "-LRB- -RRB-"]
)
def test_other_tags_are_no_brackets(tags: str) -> None:
    assert not is_bracketed(set(tags.split()))


FLAT = st.lists(st.tuples(st.sampled_from(["", "PER", "C-ARG1", "LOC"]), st.integers(1, 4)), min_size=1, max_size=6)


@given(FLAT, st.booleans())
def test_what_is_written_in_brackets_is_read(spans: list[tuple[str, int]], names_ends: bool) -> None:
    written, expected = [], []
    for kind, size in spans:
        if not kind:
            written += ["*"] * size
            expected += ["O"] * size
            continue
        tags = ["*"] * size
        tags[0] = f"({kind}{tags[0]}"
        tags[-1] += f"{kind if names_ends else ''})"
        written += tags
        expected += [f"B-{kind}", *[f"I-{kind}"] * (size - 1)]
    converted = convert_sentence([*written])
    assert converted.tags == expected
    assert (converted.spans, converted.inner_spans) == (sum(bool(kind) for kind, _ in spans), 0)


WORDS_2012 = [  # word, part of speech, parse, lemma, frameset, sense, speaker, name, arguments of predicates, chain
    "John NNP (TOP(S(NP* - - - Sp1 (PERSON* (ARG0* (12",
    "Smith NNP *) - - - Sp1 *) *) 12)",
    "visited VBD (VP* visit 01 1 Sp1 * (V*) -",
    "the DT (NP(NP* - - - Sp1 (ORG* (ARG1* (3|(5",
    "Bank NNP *) - - - Sp1 * * 5)",
    "of IN (PP* - - - Sp1 * * -",
    "Japan NNP (NP*))) - - - Sp1 (GPE)) *) 3)",
    "Monday NNP (NP*)) - - - Sp1 (DATE*) (ARGM-TMP*) -",
    ". . *)) - - - Sp1 * * -",
]
WITHOUT_PREDICATE = ["Nobody NN (TOP(NP*) - - - Sp2 * (7)", ". . *) - - - Sp2 * -"]
TWO_PREDICATES = [
    "She PRP (TOP(S* - - - Sp1 * (ARG0*) * (12)",
    "saw VBD * see 01 - Sp1 * (V*) * -",
    "him PRP * - - - Sp1 * (ARG1* (ARG0*) -",
    "run VB * run 01 - Sp1 * *) (V*) -",
    "there RB *)) - - - Sp1 (LOC*) * * -",
]
DOCUMENT = "bc/cctv/00/cctv_0000"
NAMES_2012 = [
    ["B-PERSON", "I-PERSON", "O", "B-ORG", "I-ORG", "I-ORG", "I-ORG", "B-DATE", "O"],
    ["O", "O"],
    ["O", "O", "O", "O", "B-LOC"],
]


def write_conll_2012(path: Path, end: str = "#end document") -> Path:
    """Write a file as those of CoNLL-2012 are: columns aligned by blanks, as many as a sentence has predicates."""
    lines = []
    for part in range(2):
        lines.append(f"#begin document ({DOCUMENT}); part {part:03}")
        for sentence in (WORDS_2012, WITHOUT_PREDICATE, TWO_PREDICATES):
            for number, line in enumerate(sentence):
                fields = [DOCUMENT, str(part), str(number), *line.split()]
                lines.append("".join(f"{field:>12}" if i > 2 else f"{field}   " for i, field in enumerate(fields)))
            lines.append("")
        lines.append(end)
    path.write_text("\n".join(lines) + "\n")
    return path


def prepare(folder: Path, *arguments: str) -> TokenizedDataset:
    config = load_config(
        [
            *("task=finetune", "objective=tagging", *arguments),
            *(f"cache_dir={folder / 'cache'}", "model.tokenizer.vocab_size=300", f"run_dir={folder / 'run'}"),
        ]
    )
    return prepare_dataset(config, "words", None)


@pytest.mark.parametrize("columns", [["data.columns.words=4", "data.columns.tags=11"], ["data.columns.tags=ner"], []])
def test_a_file_of_conll_2012_is_read_as_people_have_it(
    columns: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_conll_2012(tmp_path / "train.english.v4_gold_conll")
    given_columns = ["data=conll", f"data.train={path}", f"data.validation={path}", *columns]
    for start in ("cold", "warm cache"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            dataset = prepare(tmp_path, *given_columns)
            scheme = Tagging(dataset).scheme
        table = dataset.rows["train"].table
        assert table["words"][:3] == [[line.split()[0] for line in s] for s in (WORDS_2012, WITHOUT_PREDICATE, TWO_PREDICATES)], (
            start
        )
        assert table["tags"][:] == NAMES_2012 * 2
        assert table[PROBLEM][:] == [None] * 6
        assert scheme is not None
        assert scheme.name == "iob2"
        assert scheme.types(dataset.label_names or ()) == ["DATE", "LOC", "ORG", "PERSON"]
        assert "train: the tags are brackets such as (PERSON*, * and *)" in caplog.text
        assert "2 of 10 spans are inside others and are left out" in caplog.text
        assert "4 comment lines" in caplog.text
        assert "tags: IOB2 (BIO), spans of DATE, LOC, ORG, PERSON" in caplog.text


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("6", r"conll, line 2: column 'tags' holds trees: .* are inside others"),
        ("12", r"conll, line 12: the tag '\(7\)' of word 1 is a mention of a coreference chain"),
        ("-1", r"conll, line 2: column 'tags' holds coreference chains \(\(12, \(3\|\(5"),
    ],
)
def test_columns_of_conll_2012_that_are_no_spans_are_refused(column: str, message: str, tmp_path: Path) -> None:
    path = write_conll_2012(tmp_path / "train.conll")
    columns = ["data.columns.words=4", f"data.columns.tags={column}"]
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, "data=conll", f"data.train={path}", f"data.validation={path}", *columns)


def test_skeletons_are_refused(tmp_path: Path) -> None:
    path = write_conll_2012(tmp_path / "train.conll")
    lines = [line.split() for line in path.read_text().splitlines()]
    skeleton = [" ".join([*fields[:3], "[WORD]", *fields[4:]] if len(fields) > 5 else fields) for fields in lines]
    path.write_text("\n".join(skeleton) + "\n")
    with pytest.raises(UserError, match=r"train\.conll: the words are left out \(\[WORD\]\)"):
        prepare(tmp_path, "data=conll", f"data.train={path}", "data.columns.words=4", "data.columns.tags=11")


def test_coreference_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("Ann (0)\nmet -\nher (1\nboss (0)|1)\n\nAnn (0)\n\n")
    with pytest.raises(UserError, match=r"line 1: column 'tags' holds coreference chains"):
        prepare(tmp_path, "data=conll", f"data.train={tmp_path / 'train.conll'}", f"data.validation={tmp_path / 'train.conll'}")


def test_unbalanced_brackets_are_counted_with_their_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = "Ann (PER*)\nleft *\n\n" * 4
    (tmp_path / "train.conll").write_text(f"{good}Bob (PER*\nSmith *\n\nBonn *)\n\nCleo B-PER\n\n{good}")
    (tmp_path / "validation.conll").write_text("left *\nnow *\n\nRome (LOC\nAve LOC)\n\n")
    files = ["data=conll", f"data.train={tmp_path / 'train.conll'}", f"data.validation={tmp_path / 'validation.conll'}"]
    with pytest.raises(
        UserError, match=r"train\.conll, line 13: the bracket '\(PER' that word 1 opens is not closed.*on_bad_row=skip"
    ):
        prepare(tmp_path, *files)
    dataset = prepare(tmp_path, *files, "data.on_bad_row=skip")
    assert dataset.splits["train"].facts.skipped == 3
    assert "train.conll, line 16: the tag '*)' of word 1 closes a bracket that none opens" in caplog.text
    assert "validation.conll, line 4: column 'tags' has the label 'B-LOC', which train does not have" in caplog.text
    assert dataset.label_names == ("B-PER", "I-PER", "O")


ROWS: list[tuple[Any, str]] = [
    (["(PER*", "*)", "*"], "B-PER I-PER O"),
    (["*", "(DATE)", "*"], "O B-DATE O"),
    (["(ORG*", "(GPE)", "*)"], "B-ORG I-ORG I-ORG"),
]
WORDS = ["Ann", "May", "left"]
AS_TEXT = {
    "jsonl of lists": lambda tags: tags,
    "jsonl of text": " ".join,
    "csv of json": json.dumps,
    "csv of python": str,
    "csv of text": " ".join,
}


@pytest.mark.parametrize("setting", ["auto", "brackets"])
@pytest.mark.parametrize("kind", AS_TEXT)
def test_brackets_in_tables(kind: str, setting: str, tmp_path: Path) -> None:
    import csv

    path = tmp_path / f"train.{kind.partition(' ')[0]}"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if path.suffix == ".csv":
            writer.writerow(["tokens", "ner"])
        for tags, _ in ROWS * 4:
            row = [" ".join(WORDS), AS_TEXT[kind](tags)]
            writer.writerow(row) if path.suffix == ".csv" else file.write(
                json.dumps(dict(zip(["tokens", "ner"], row, strict=True))) + "\n"
            )
    columns = ["data.columns.text=tokens", "data.columns.label=ner"]
    dataset = prepare(tmp_path, "data=files", f"data.train={path}", f"data.validation={path}", f"data.tags={setting}", *columns)
    assert [" ".join(tags) for tags in dataset.rows["train"].table["ner"]] == [expected for _, expected in ROWS] * 4
    assert dataset.label_names == ("B-DATE", "B-ORG", "B-PER", "I-DATE", "I-ORG", "I-PER", "O")


def test_brackets_in_a_word_a_row(tmp_path: Path) -> None:
    rows = "".join(f"{i},Ann,(PER*\n,Lee,*)\n,left,*\n" for i in range(6))
    (tmp_path / "train.csv").write_text(f"Sentence,Word,Tag\n{rows}")
    columns = ["data.columns.text=Word", "data.columns.label=Tag", "data.columns.sentence=Sentence"]
    dataset = prepare(tmp_path, "data=files", f"data.train={tmp_path / 'train.csv'}", *columns)
    assert dataset.rows["train"].table["Tag"][0] == ["B-PER", "I-PER", "O"]


def test_brackets_that_are_names_of_numbers(tmp_path: Path) -> None:
    """A data set of the hub has its names beside its numbers."""
    names = ["*", "(PER*", "*)"]
    features = datasets.Features(
        {"words": datasets.List(datasets.Value("string")), "tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    table = datasets.Dataset.from_dict({"words": [["Ann", "Lee", "left"]] * 2, "tags": [[1, 2, 0], [0, 0, 1]]}, features=features)
    data = DataConfig(columns=ColumnsConfig(text="words", label="tags"))
    rows = convert_brackets({"train": Rows(table=table, fingerprint="x", where=str)}, data, tmp_path)["train"]
    assert rows.table["tags"][:] == [["B-PER", "I-PER", "O"], None]
    assert rows.table[PROBLEM][1] == "the bracket '(PER' that word 3 opens is not closed in its sentence"


def test_the_setting_decides(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("Ann (PER*)\nleft *\n\n" * 8)
    (tmp_path / "b.conll").write_text("Ann B-PER\nleft O\n\n" * 8)
    dataset = prepare(tmp_path, "data=conll", f"data.train={tmp_path / 'a.conll'}", "data.tags=none")
    assert dataset.label_names == ("(PER*)", "*")
    with pytest.raises(UserError, match=r"data\.tags=brackets: the tags of column 'tags' of train \(B-PER, O\) are not"):
        prepare(tmp_path, "data=conll", f"data.train={tmp_path / 'b.conll'}", "data.tags=brackets")
