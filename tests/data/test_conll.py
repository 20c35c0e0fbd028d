"""CoNLL files as people have them: which columns are words and tags, which lines are no words, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data.conll_layout import ConllLayout, decide_layout
from llm_lightning.data.conll_survey import looks_like_conll, survey_file
from llm_lightning.data.rows import LINE, PROBLEM, Rows
from llm_lightning.data.sources import conll
from llm_lightning.errors import UserError

CONLL_2003 = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\nsays VBZ B-VP O\n"
GERMEVAL = "#\thttp://example.org\t[2009-10-17]\n1\tAnna\tB-PER\tO\n2\tmag\tO\tO\n3\tBonn\tB-LOC\tO\n\n"
UD = (
    "# sent_id = 1\n# text = They came.\n1\tThey\tthey\tPRON\tPRP\t_\t2\tnsubj\t_\tNER=B-PER\n"
    "2-3\tcame\t_\t_\t_\t_\t_\t_\t_\t_\n2\tcame\tcome\tVERB\tVBD\t_\t0\troot\t_\tSpaceAfter=No|NER=O\n5.1\tx\t_\t_\t_\t_\t_\t_\t_\t_\n\n"
)
MULTICONER = "# id 7\tdomain=en\nanna _ _ B-PER\nleft _ _ O\n\n# id 8 domain=en\nrome _ _ B-LOC\n# _ _ O\n\n"
HIPE = "TOKEN\tNE-COARSE\tMISC\n# language = en\nAnna\tB-pers\t_\nmet\tO\tNoSpaceAfter\n"

Read = list[tuple[list[str], list[str]]]
GOOD: list[tuple[str, str, dict[str, Any], Read]] = [  # name, content, columns, sentences
    ("two columns", "Anna B-PER\nmet O\n\nBob B-PER\n", {}, [(["Anna", "met"], ["B-PER", "O"]), (["Bob"], ["B-PER"])]),
    (
        "trailing blanks",
        "Anna B-PER \t\r\nmet   O\r\n \t\r\nBob\tB-PER\r\n",
        {},
        [(["Anna", "met"], ["B-PER", "O"]), (["Bob"], ["B-PER"])],
    ),
    ("blanks in words", "New York\tB-LOC\nis\tO\n", {}, [(["New York", "is"], ["B-LOC", "O"])]),
    ("non-breaking space", "\xa0 O\nAnna B-PER\na\xa0b O\n", {}, [(["\xa0", "Anna", "a\xa0b"], ["O", "B-PER", "O"])]),
    ("line separators", "a\u2028b O\nAnna\x85 B-PER\n", {}, [(["a\u2028b", "Anna\x85"], ["O", "B-PER"])]),
    ("CoNLL-2003", CONLL_2003, {}, [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter", "says"], ["B-PER", "O"])]),
    ("chunks", "EU NNP B-NP\nrejects VBZ B-VP\n", {}, [(["EU", "rejects"], ["B-NP", "B-VP"])]),
    ("CoNLL-2003, chosen", CONLL_2003, {"tags": 2}, [(["EU", "rejects"], ["NNP", "VBZ"]), (["Peter", "says"], ["NNP", "VBZ"])]),
    ("from the end", CONLL_2003, {"tags": -2}, [(["EU", "rejects"], ["B-NP", "B-VP"]), (["Peter", "says"], ["B-NP", "B-VP"])]),
    ("GermEval", GERMEVAL, {}, [(["Anna", "mag", "Bonn"], ["B-PER", "O", "B-LOC"])]),
    (
        "GermEval, outer",
        GERMEVAL.replace("mag\tO\tO", "mag\tO\tB-X"),
        {"tags": 3},
        [(["Anna", "mag", "Bonn"], ["B-PER", "O", "B-LOC"])],
    ),
    (
        "index without blank lines",
        "1 Anna B-PER\n2 met O\n1 Bob B-PER\n",
        {},
        [(["Anna", "met"], ["B-PER", "O"]), (["Bob"], ["B-PER"])],
    ),
    ("CoNLL-U", UD, {}, [(["They", "came"], ["PRON", "VERB"])]),
    ("CoNLL-U xpos", UD, {"tags": "xpos"}, [(["They", "came"], ["PRP", "VBD"])]),
    ("CoNLL-U lemma", UD, {"words": "lemma", "tags": "deprel"}, [(["they", "come"], ["nsubj", "root"])]),
    ("CoNLL-U misc", UD, {"tags": "ner"}, [(["They", "came"], ["B-PER", "O"])]),
    (
        "CoNLL-U Plus",
        "# global.columns = ID FORM NER\n1\tAnna\tB-PER\n2\tmet\tO\n",
        {"tags": "ner"},
        [(["Anna", "met"], ["B-PER", "O"])],
    ),
    ("MultiCoNER", MULTICONER, {}, [(["anna", "left"], ["B-PER", "O"]), (["rome", "#"], ["B-LOC", "O"])]),
    ("HIPE", HIPE, {"tags": "ne-coarse"}, [(["Anna", "met"], ["B-pers", "O"])]),
    ("header", "Word\tTag\nAnna\tB-PER\nmet\tO\n", {}, [(["Anna", "met"], ["B-PER", "O"])]),
    ("tag first", "B-PER Anna\nO met\n", {}, [(["Anna", "met"], ["B-PER", "O"])]),
    ("type first", "PER Anna\nO met\nPER Bob\n", {}, [(["Anna", "met", "Bob"], ["PER", "O", "PER"])]),
    (
        "# inside",
        "Anna B-PER\n# O\n1 O\n\n# O\nwow O\n",
        {},
        [(["Anna", "#", "1"], ["B-PER", "O", "O"]), (["#", "wow"], ["O", "O"])],
    ),
    ("hashtags", "#love O\nAnna B-PER\n\n#\tB-PER\n", {}, [(["#love", "Anna"], ["O", "B-PER"]), (["#"], ["B-PER"])]),
    ("comments", "# a comment\n#another\nAnna B-PER\nmet O\n", {}, [(["Anna", "met"], ["B-PER", "O"])]),
    ("comments inside", "Anna B-PER\n# note\nleft O\n# one more\n", {}, [(["Anna", "left"], ["B-PER", "O"])]),
    ("comments inside, tabs", "Anna\tB-PER\n# note\n#\tnote\nleft\tO\n", {}, [(["Anna", "left"], ["B-PER", "O"])]),
    ("hashtags with a tag", "so R\n#love #\nhi !\n#cats #\n", {}, [(["so", "#love", "hi", "#cats"], ["R", "#", "!", "#"])]),
    ("hashtags of a type", "Anna B-PER\n#bonn B-LOC\n", {}, [(["Anna", "#bonn"], ["B-PER", "B-LOC"])]),
    ("Portuguese O", "O DET\ngato NOUN\nO DET\nrato NOUN\n", {}, [(["O", "gato", "O", "rato"], ["DET", "NOUN", "DET", "NOUN"])]),
    ("more tags than words", "a X1\na X2\nb X3\n", {}, [(["a", "a", "b"], ["X1", "X2", "X3"])]),
    ("CoNLL-2009", "1 a x _\n2 b y _\n\n1 c z _ A0\n", {"words": 2, "tags": 3}, [(["a", "b"], ["x", "y"]), (["c"], ["z"])]),
]


def load(folder: Path, content: str, name: str = "train.conll", **columns: Any) -> Rows:
    (folder / name).write_bytes(content.encode())
    settings_ = ColumnsConfig(text="words", label="tags", **columns)
    return conll.load(DataConfig(source="conll", train=str(folder / name), columns=settings_), folder / "cache")["train"]


@pytest.mark.parametrize(("name", "content", "columns", "expected"), GOOD, ids=[case[0] for case in GOOD])
def test_words_and_tags_are_those_that_the_file_means(
    name: str, content: str, columns: dict[str, Any], expected: Read, tmp_path: Path
) -> None:
    for _ in ("cold", "warm cache"):
        rows = load(tmp_path, content, **columns)
        assert [(row["words"], row["tags"]) for row in rows.table] == expected
        assert rows.table[PROBLEM] == [None] * len(expected)


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "GermEval with inner tags",
        GERMEVAL + "1\tUni\tB-ORG\tO\n2\tBonn\tI-ORG\tB-LOC\n",
        {},
        r"3 \(B-LOC, B-ORG.*4 \(B-LOC, O\).*tags=3",
    ),
    ("two parts of speech", "dog NOUN NN\nran VERB VBD\n", {}, r"columns 2 \(NOUN, VERB\) and 3 .* data.columns.tags=2"),
    ("sentences", "we paid them all today\nthey owe us two euros\n", {}, "and 1 more may .* a row of a table.*data=files reads it"),
    ("words alone", "Anna\nmet\n", {}, "no column of tags"),
    ("csv", "Anna,B-PER\nmet,O\n", {}, "data=files.*data.columns.sentence"),
    ("tags at words", "The/DT dog/NN\nA/DT cat/NN\n", {}, r"words carry their tags \(The/DT dog/NN\)"),
    ("a sentence column", "Sentence_ID\tWord\tTag\n1\tAnna\tB-PER\n1\tmet\tO\n2\tBob\tB-PER\n", {}, "data.columns.sentence"),
    ("jsonl", '{"a": 1}\n{"a": 2}\n', {}, "this is JSON.*data=files"),
    ("sentence numbers", "7 Anna B-PER\n7 met O\n\n9 Bob B-PER\n9 ran O\n", {}, "column 1 holds numbers .*data.columns.words=2"),
    (
        "document names",
        "d1 Anna B-PER\nd1 met O\n\nd2 Bob B-PER\nd2 ran O\n",
        {},
        "column 1 is the same in all lines of a sentence",
    ),
    ("no such column", "Anna B-PER\nmet O\n", {"tags": 3}, "data.columns.tags=3: the file has 2 columns"),
    ("column 0", "Anna B-PER\nmet O\n", {"words": 0}, "data.columns.words=0: .* a number from 1"),
    ("no names", "Anna B-PER\nmet O\n", {"tags": "ner"}, "data.columns.tags=ner: the 2 columns have no names"),
    ("unknown name", UD, {"tags": "upo"}, "there is no such column; there are id, form.*Did you mean 'upos'"),
    ("the same column", "Anna B-PER\nmet O\n", {"words": 2, "tags": 2}, "column 2 cannot be both"),
    ("nothing", "# a\n\n-DOCSTART- O\n", {}, "there is no sentence in the file"),
    (
        "tags that seem to stand first",
        "".join(f"t{i % 3} word{i}\n" for i in range(60)),
        {},
        "data.columns.words=2 data.columns.tags=1",
    ),
]


@pytest.mark.parametrize(("name", "content", "columns", "message"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_is_open_is_refused(name: str, content: str, columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, content, **columns)
    assert "train.conll" in str(error.value)


PROBLEMS = [
    ("no tag", "a B-X\nb O\nc\n", "line 3 has no word and tag: 'c'"),
    ("no tag between tabs", "a b\tB-X\nb\tO\nNew York\n", "line 3 has no word and tag: 'New York'"),
    ("too many columns", "a B-X\nb O\nc d O\n", "line 3 has 3 columns where there should be 2"),
    ("too few columns", "a NN B-X\nb NN O\nc O\n", "line 3 has 2 columns where there should be 3"),
    ("no word", "a\tB-X\nb\tO\n\tO\n", "line 3 has no word"),
    (
        "no number",
        "1 a B-X\n" + "2 b O\n3 c O\n4 c O\n5 c O\n6 c O\n7 c O\n8 c O\n9 c O\n10 c O\n" + "x d O\n",
        "line 11 has no number in column 1",
    ),
    ("a # with too many columns", "a B-X\nb O\n# O comment\n", "line 3 has 3 columns where there should be 2"),
    ("CoNLL-U without a tag", UD.replace("PRON", "_").replace("\n\n", "\n3\tx\tx\tX\tX\t_\t2\tx\t_\t_\n\n"), "has no tag"),
]


@pytest.mark.parametrize(("name", "content", "problem"), PROBLEMS, ids=[case[0] for case in PROBLEMS])
def test_a_damaged_line_makes_its_sentence_a_bad_row(name: str, content: str, problem: str, tmp_path: Path) -> None:
    rows = load(tmp_path, f"{content}\n", "x.conll")
    problems = rows.table[PROBLEM]
    assert [problem in str(found) for found in problems] == [True]


def test_the_last_column_is_the_same_in_all_sentences(tmp_path: Path) -> None:
    rows = load(tmp_path, "1 Anna NNP B-PER\n2 met VBD O\n\n1 Bob B-PER\n", words=2, tags=-1)
    assert rows.table["tags"][0] == ["B-PER", "O"]
    assert "has 3 columns where there should be 4" in rows.table[PROBLEM][1]


def test_what_is_left_out_is_counted_and_the_columns_are_named(tmp_path: Path) -> None:
    notes = " ".join(load(tmp_path, UD * 3).notes)
    for part in (
        "column 2 'form'",
        "column 4 'upos'",
        "5 'xpos' (PRP, VBD)",
        "6 comment lines",
        "6 ranges and empty nodes",
        "tags=ner",
    ):
        assert part in notes
    assert "1 -DOCSTART- lines" in " ".join(load(tmp_path, CONLL_2003).notes)
    assert load(tmp_path, "Anna B-PER\nmet O\n").notes == ()


def test_other_files_are_read_as_the_training_file(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text(GERMEVAL.replace("mag\tO\tO", "mag\tO\tB-X"))
    (tmp_path / "train.tsv").write_text(GERMEVAL)
    (tmp_path / "test.tsv").write_text("Anna B-PER\nmet O\n")
    columns = ColumnsConfig(text="words", label="tags")
    splits = conll.load(DataConfig(source="conll", dir=str(tmp_path), columns=columns), tmp_path / "cache")
    assert splits["validation"].table[0]["tags"] == ["B-PER", "O", "B-LOC"]
    assert splits["test"].table[0]["words"] == ["Anna", "met"]


NAMED = "token pos ner\nAnna NNP B-PER\nmet VBD O\nBob NNP B-PER\n"
SECOND: list[tuple[str, str, str, tuple[list[str], list[str]]]] = [  # name, first file, second file, its sentence
    ("names in another order", NAMED, "ner pos token\nB-LOC NNP Rome\nO VBD fell\n", (["Rome", "fell"], ["B-LOC", "O"])),
    ("fewer names", NAMED, "ner token\nB-LOC Rome\nO fell\n", (["Rome", "fell"], ["B-LOC", "O"])),
    ("other names", NAMED, "word tag label\nRome NNP B-LOC\nfell VBD O\n", (["Rome", "fell"], ["B-LOC", "O"])),
    ("no names", NAMED, "Rome NNP B-LOC\nfell VBD O\n", (["Rome", "fell"], ["B-LOC", "O"])),
    ("other types", "Ann B-PER NNP\nmet O VBD\n", "Rome B-LOC NNP\nAve I-LOC NNP\n", (["Rome", "Ave"], ["B-LOC", "I-LOC"])),
    ("other parts of speech", "the DET\ndog NOUN\n", "runs VERB\nfast ADV\n", (["runs", "fast"], ["VERB", "ADV"])),
]


def load_two(folder: Path, first: str, second: str, **columns: Any) -> Rows:
    (folder / "a.conll").write_text(first)
    (folder / "b.conll").write_text(second)
    settings_ = ColumnsConfig(text="words", label="tags", **columns)
    data = DataConfig(source="conll", train=str(folder / "a.conll"), validation=str(folder / "b.conll"), columns=settings_)
    return conll.load(data, folder / "cache")["validation"]


@pytest.mark.parametrize(("name", "first", "second", "expected"), SECOND, ids=[case[0] for case in SECOND])
def test_columns_of_another_file_are_those_of_the_first(
    name: str, first: str, second: str, expected: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    for _ in ("cold", "warm cache"):
        rows = load_two(tmp_path, first, second)
        assert [(row["words"], row["tags"]) for row in rows.table] == [expected]


@pytest.mark.parametrize(
    ("first", "second", "columns"),
    [
        ("Anna B-PER NNP\nmet O VBD\n", "Rome NNP B-LOC\nfell VBD O\n", {}),
        ("Anna B-PER NNP\nmet O VBD\n", "Rome NNP B-LOC\nfell VBD O\n", {"tags": 2}),
        ("Anna B-PER\nmet O\n", "B-LOC Rome\nO fell\n", {}),
        ("Anna NNP B-PER\nmet VBD O\n", "NNP Rome B-LOC\nVBD fell O\n", {}),
        ("Anna NNP B-PER\nmet VBD O\n", "Rome NNP\nfell VBD\n", {}),
        (NAMED, "ner pos word\nB-LOC NNP Rome\nO VBD fell\n", {}),
    ],
)
def test_a_file_with_other_columns_is_refused_with_both_names(
    first: str, second: str, columns: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"b\.conll: .*a\.conll"):
        load_two(tmp_path, first, second, **columns)


WORD = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=6)
TAG = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC"])
SENTENCE = st.lists(st.tuples(WORD, TAG), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sentences=st.lists(SENTENCE, min_size=1, max_size=5),
    line=st.sampled_from(["{w} {t}", "{w}\t{t}", "{i}\t{w}\t{t}", "{w} _ _ {t}", "{w} -X- {t}"]),
    end=st.sampled_from(["\n", "\r\n", " \n"]),
    has_comments=st.booleans(),
)
def test_what_is_written_is_read(
    sentences: list[list[tuple[str, str]]], line: str, end: str, has_comments: bool, tmp_path: Path
) -> None:
    sentences = [[("start", "B-PER"), ("next", "O")], *sentences]
    if has_comments:
        sentences = [[(f"x{word}", tag) for word, tag in sentence] for sentence in sentences]
    parts = []
    for sentence in sentences:
        comment = f"# text = {sentence[0][0]} and some more words{end}" if has_comments else ""
        parts.append(comment + "".join(line.format(w=word, t=tag, i=i) + end for i, (word, tag) in enumerate(sentence, 1)))
    (tmp_path / "x.conll").write_bytes(end.join(parts).encode())
    data = DataConfig(source="conll", columns=ColumnsConfig(text="words", label="tags"))
    path = tmp_path / "x.conll"
    layout = decide_layout(path, survey_file(path), data.columns, True)
    found = list(conll.rows(path, data, layout))
    assert [[*zip(row["words"], row["tags"], strict=True)] for row in found] == sentences
    assert all(row[PROBLEM] is None for row in found)
    passed_over: Counter[str] = Counter()
    list(conll.sentences(path, data, layout, passed_over))
    assert sum(passed_over.values()) == has_comments * len(sentences)


def test_a_cache_key_has_the_same_layout_in_every_version() -> None:
    layout = ConllLayout(columns=2, has_tabs=True, words=0, tags=1)
    assert repr(layout) == (
        "Layout(columns=2, has_tabs=True, words=0, tags=1, index=None, attribute=None, header=0, varies=False, misses=None, closed=(), "
        "names=(), others=(), notes=())"
    )


TO_PREDICT = [
    ("Paris S-LOC\nhosts O\n\nNew B-ORG\nBlue I-ORG\n", True),
    ("Paris\nhosts\n\nNew\nBlue\n", True),
    ("the DET\ndog NOUN\n", True),
    ("1 the\n2 dog\n\n1 a\n", True),
    ("New York\tx\nis\ty\n", True),
    ("Ann met\nBob slept\n", False),
    ("Ann met Bob in Rome\nunbelievably sunny\n", False),
    ("Ann met Bob.\n\nThey slept.\n", False),
    ("我爱北京\n他在上海\n", False),
    ("one\n", False),
    ("Paris hosts New Blue Band1 .\n", False),
    ("Paris hosts .\nRome hosts .\n", False),
    ("GO HOME\nCALL THEM\n", False),
    ("O gato\nO rato\n", False),
    ("".join(f"word{i} {'noun' if i % 2 else 'verb'}\n" for i in range(20)), True),
    ("", False),
]


@pytest.mark.parametrize(("content", "expected"), TO_PREDICT)
def test_plain_text_is_told_from_words_in_lines(content: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(content)
    assert looks_like_conll(survey_file(tmp_path / "x.txt")) is expected
    data = DataConfig(source="conll", columns=ColumnsConfig(text="words"))
    assert conll.is_to_predict(tmp_path / "x.txt", data) is expected


def test_words_alone_are_right_for_predicting(tmp_path: Path) -> None:
    data = DataConfig(source="conll", columns=ColumnsConfig(text="words", words=2, tags=3))
    for content in ("Anna\nmet\n\nBob\n", "1 Anna\n2 met\n\n1 Bob\n", "1 Anna B-PER\n2 met O\n\n1 Bob O\n"):
        (tmp_path / "x.tsv").write_text(content)
        rows = list(conll.rows_to_predict(tmp_path / "x.tsv", data))
        assert [(row["words"], row[PROBLEM], row[LINE]) for row in rows] == [(["Anna", "met"], None, 1), (["Bob"], None, 4)]


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("Anna B-PER\nmet O\n\nBob B-PER\n", {"words": 2}),  # trained on: document, word, tag
        ("Anna PER\nmet O\n", {"words": 2, "tags": 3}),
        ("dog NOUN\nran VERB\n", {"words": 2}),
        ("Anna x\nmet y\n", {"words": 2, "tags": 4}),
        ("d1 p1 Anna B-PER\nd1 p1 met O\n\nd1 p2 Bob B-PER\nd1 p2 ran O\n", {"words": 2}),
    ],
)
def test_a_file_to_predict_with_other_columns_is_refused(content: str, columns: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.conll").write_text(content)
    data = DataConfig(source="conll", columns=ColumnsConfig(text="words", **columns))
    with pytest.raises(UserError, match=r"x\.conll: .*data.columns.words=2"):
        list(conll.rows_to_predict(tmp_path / "x.conll", data))


@pytest.mark.parametrize("content", ["B-PER Anna\nO met\n", "d1 Anna B-PER\nd1 met O\n", "O Anna\nO met\n", "_ O\n_ gato\n"])
def test_the_chosen_column_is_read_in_files_to_predict(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.conll").write_text(content)
    data = DataConfig(source="conll", columns=ColumnsConfig(text="words", words=2))
    (row,) = conll.rows_to_predict(tmp_path / "x.conll", data)
    assert row["words"] == [line.split()[1] for line in content.splitlines()]
