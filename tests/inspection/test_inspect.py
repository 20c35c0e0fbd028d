"""task=inspect and data.clean from the command line: what they find, write and leave out, and that no datum leaves the data."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.data.row_texts import RowTexts, join_text
from llm_lightning.data.rows import Rows
from llm_lightning.data.same_texts import find_same_texts
from llm_lightning.errors import UserError

from ..conftest import TINY_BERT, TINY_GPT, Runner
from ..reporting.test_browser import BROWSER, opened

WORDS = "river stone cloud market paper winter garden engine music letter silver window travel orange".split()  # noqa: SIM905
SECRETS = {
    "email": "anna.secret@example.com",
    "phone": "+49 30 5550123",
    "card": "4111 1111 1111 1111",
    "iban": "DE89370400440532013000",
    "password": "hunter2-Zebra",
    "ip_address": "203.0.113.77",
}
ALL = "data.clean=[near_duplicates,leaks,conflicts,pii]"


def sentence(rng: random.Random, size: int = 24) -> str:
    return " ".join(f"{rng.choice(WORDS)}{rng.randrange(99)}" for _ in range(size))


class Planted:
    """A folder with train, validation and test, with planted rows, and the same without the rows that data.clean leaves out."""

    def __init__(self, folder: Path) -> None:
        rng = random.Random(0)
        self.rows = {
            split: [(f"{sentence(rng)} {'good' if i % 2 else 'bad'}", "good" if i % 2 else "bad") for i in range(size)]
            for split, size in (("train", 120), ("validation", 24), ("test", 24))
        }
        train = self.rows["train"]
        self.original, self.near = train[3], (train[5][0] + " appended", train[5][1])
        self.bad: dict[str, list[tuple[str, str]]] = {
            "near_duplicates": [(self.original[0].upper(), self.original[1]), self.near],
            "leaks": [self.rows["test"][4], (f"so {self.rows['validation'][7][0]}", self.rows["validation"][7][1])],
            "pii": [
                (f"{'password: ' * (kind == 'password')}{secret} {sentence(rng, 4)} good", "good")
                for kind, secret in SECRETS.items()
            ],
        }
        self.contradiction = sentence(rng)
        self.bad["conflicts"] = [(self.contradiction, "good"), (self.contradiction, "bad")]
        self.place: dict[str, list[int]] = {}
        everything = list(train)
        for reason, rows in self.bad.items():
            self.place[reason] = list(range(len(everything), len(everything) + len(rows)))
            everything += rows
        self.dirty, self.clean = folder / "dirty", folder / "clean"
        for target, rows in ((self.dirty, everything), (self.clean, train)):
            target.mkdir()
            for split, part in {**self.rows, "train": rows}.items():
                with (target / f"{split}.csv").open("w", newline="") as file:
                    csv.writer(file).writerows([("text", "label"), *part])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


def read_all(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def require_no_secret(text: str) -> None:
    for secret in SECRETS.values():
        assert secret.lower() not in text.lower()
        assert secret.replace(" ", "") not in text


def arguments(planted: Planted, folder: str = "dirty") -> list[str]:
    return ["data=files", f"data.dir={getattr(planted, folder)}", "data.columns.label=label"]


def test_planted_rows_are_reported_and_no_datum_is_written(
    planted: Planted, tmp_path: Path, command: Callable[..., CompletedProcess[str]]
) -> None:
    done = command("task=inspect", *arguments(planted), f"run_dir={tmp_path}/run", f"cache_dir={tmp_path}/cache")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "inspect.json").read_text())
    pairs = {(entry["row"], entry["other_row"]): entry["jaccard"] for entry in found["near_duplicates"]}
    copy, near = planted.place["near_duplicates"]
    one, other = planted.place["conflicts"]
    assert set(pairs) == {(copy, 3), (near, 5), (other, one)}
    assert pairs[copy, 3] == pairs[other, one] == 1.0
    assert 0.8 <= pairs[near, 5] < 1.0
    leaks = {(entry["split"], entry["row"], entry["other_split"], entry["other_row"]) for entry in found["leaks"]}
    assert leaks == {("train", planted.place["leaks"][0], "test", 4), ("train", planted.place["leaks"][1], "validation", 7)}
    conflicts = {(entry["row"], entry["other_row"], entry["label"], entry["other_label"]) for entry in found["conflicts"]}
    assert conflicts == {(one, other, "good", "bad"), (other, one, "bad", "good")}
    personal = {(entry["split"], entry["row"], entry["kind"]) for entry in found["pii"]}
    assert personal == {("train", row, kind) for row, kind in zip(planted.place["pii"], SECRETS, strict=True)}
    assert found["counts"] == {"near_duplicates": 3, "leaks": 2, "conflicts": 2, "pii": 6}
    with (planted.dirty / "train.csv").open() as file:
        assert found["splits"]["train"]["labels"] == Counter(row["label"] for row in csv.DictReader(file))
    for entry in found["leaks"]:
        assert (Path(entry["file"]).name, entry["place"]) == ("train.csv", f"line {entry['row'] + 2}")
    require_no_secret(read_all(tmp_path / "run") + done.stdout + done.stderr)
    assert "data.clean=[leaks]" in done.stdout


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium or google-chrome on this machine")
def test_the_page_shows_masked_texts_and_no_error(planted: Planted, tmp_path: Path, run: Runner) -> None:
    """A row that is a copy and holds personal data is shown without it."""
    with (planted.dirty / "train.csv").open() as file:
        rows = list(csv.reader(file))
    (tmp_path / "train.csv").write_text("")
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*rows, rows[planted.place["pii"][0] + 1]])
    page = run(
        "task=inspect", "data=files", f"data.train={tmp_path}/train.csv", "data.columns.label=label", f"run_dir={tmp_path}/run"
    )
    elements, console = opened(Path(page["page"]), tmp_path / "profile", "--window-size=1280,900")
    assert console == []
    assert "[email]" in elements
    require_no_secret(elements)
    titles = ["At a glance", "Leaks", "Conflicts", "Personal data", "Duplicates", "Labels", "Lengths and scripts"]
    assert all(f">{title}</h2>" in elements for title in titles if title != "Leaks")
    assert ">Leaks</h2>" not in elements  # of one split there are none
    assert elements.count('<div class="figure js-plotly-plot"') == 2


TRAIN = ["task=finetune", *TINY_BERT, "trainer.max_steps=4", "batch.sequences=16", "data.block_size=64", "optimizer.lr=1e-3"]


def test_a_cleaned_run_is_the_run_of_a_file_without_the_rows(planted: Planted, tmp_path: Path, run: Runner) -> None:
    cleaned = run(*TRAIN, *arguments(planted), ALL, f"run_dir={tmp_path}/cleaned")
    plain = run(*TRAIN, *arguments(planted, "clean"), f"run_dir={tmp_path}/plain")
    assert cleaned["metrics"] == plain["metrics"]
    assert cleaned["data"]["rows"] == plain["data"]["rows"]
    with (tmp_path / "cleaned" / "data_cleaned.csv").open() as file:
        rows = list(csv.DictReader(file))
    places = {(int(row["row"]), row["reason"].partition(":")[0]) for row in rows}
    expected = {(row, reason) for reason, numbers in planted.place.items() for row in numbers}
    assert places == expected | {(planted.place["conflicts"][1], "near_duplicates")}
    leak = next(row for row in rows if row["reason"] == "leaks" and row["other_split"] == "test")
    assert (leak["split"], Path(leak["file"]).name, leak["place"]) == (
        "train",
        "train.csv",
        f"line {planted.place['leaks'][0] + 2}",
    )
    assert (Path(leak["other_file"]).name, leak["other_row"], leak["other_place"]) == ("test.csv", "4", "line 6")
    counts = {"rows": 12, "conflicts": 2, "leaks": 2, "near_duplicates": 3, "pii": 6}
    assert cleaned["data"]["left_out"] == counts
    assert json.loads((tmp_path / "cleaned" / "data.json").read_text())["train"]["left_out"] == counts
    assert "12 of 132 rows of train are left out" in (tmp_path / "cleaned" / "train.log").read_text()
    require_no_secret(read_all(tmp_path / "cleaned"))
    assert not (tmp_path / "plain" / "data_cleaned.csv").exists()
    assert "task=inspect" not in (tmp_path / "cleaned" / "train.log").read_text()


def test_a_run_warns_of_leaks_and_contradictions(planted: Planted, run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    run("task=check", "objective=classification", *TINY_BERT, *arguments(planted), "data.block_size=64")
    lines = [line for line in capsys.readouterr().err.splitlines() if "task=inspect" in line]
    assert len(lines) == 1
    assert "1 row is in test too and 2 rows have a text that another row has with another label" in lines[0]


def prepare(*overrides: str, encoding: str = "texts") -> TokenizedDataset:
    return prepare_dataset(load_config([*overrides, "model.tokenizer.vocab_size=400"]), encoding, None)


def test_documents_are_cleaned_and_validation_is_cut_off_the_rest(planted: Planted, tmp_path: Path) -> None:
    rng = random.Random(1)
    documents = [sentence(rng) for _ in range(60)]
    files = {"dirty": [*documents[:30], documents[2].title(), *documents[30:], f"mail {SECRETS['email']}"], "clean": documents}
    for name, lines in files.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    common = ["task=pretrain", *TINY_GPT, "data=text", "data.document=line", f"cache_dir={tmp_path}/cache"]
    cleaned = prepare(*common, f"data.train={tmp_path}/dirty.txt", "data.clean=[near_duplicates,pii]", encoding="stream")
    plain = prepare(*common, f"data.train={tmp_path}/clean.txt", encoding="stream")
    for split in ("train", "validation"):
        assert cleaned.rows[split].table["text"][:] == plain.rows[split].table["text"][:]
    assert [(row.row, row.reason) for row in cleaned.cleaned] == [(30, "near_duplicates"), (61, "pii: email")]


def test_a_document_in_pieces_begins_anew_behind_a_piece_that_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_lightning.data.sources.text.LARGE", 150)
    rng = random.Random(2)
    pieces = [sentence(rng) for _ in range(12)]
    (tmp_path / "a.txt").write_text("\n".join([*pieces[:6], f"write to {SECRETS['email']} {pieces[6]}", *pieces[7:]]))
    common = ["task=pretrain", *TINY_GPT, "data=text", f"data.train={tmp_path}/a.txt", f"data.validation={tmp_path}/a.txt"]
    dataset = prepare(*common, f"cache_dir={tmp_path}/cache", "data.clean=[pii]", encoding="stream")
    assert [row.row for row in dataset.cleaned] == [6]
    train = dataset.rows["train"].table
    assert train["__continues__"][:] == [False, *[True] * 5, False, *[True] * 4]
    assert dataset.rows["train"].where(6).endswith("line 8")


def test_the_cache_tells_cleaned_data_from_other_data(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each choice has its own fingerprint; what was found is not searched again; a choice that finds nothing changes nothing."""
    cache = f"cache_dir={tmp_path}/cache"
    fingerprints = {
        clean: prepare("task=finetune", *arguments(planted), f"data.clean={clean}", cache).fingerprint
        for clean in ("[]", "[leaks]", "[pii]", "[pii,leaks]")
    }
    assert len(set(fingerprints.values())) == 4
    monkeypatch.setattr("llm_lightning.data.clean._find", None)
    again = prepare("task=finetune", *arguments(planted), "data.clean=[leaks,pii]", cache)
    assert again.fingerprint == fingerprints["[pii,leaks]"]
    monkeypatch.undo()
    plain = prepare("task=finetune", *arguments(planted, "clean"), cache)
    cleaned = prepare("task=finetune", *arguments(planted, "clean"), ALL, cache)
    assert cleaned.fingerprint == plain.fingerprint
    assert cleaned.cleaned == ()


REFUSED = {
    "data.clean=[leak]": "Did you mean 'leaks'?",
    "data.clean=[conflicts] task=pretrain objective=causal_lm": "conflicts are texts with two labels",
    "data.clean=[pii] task=pretrain data.streaming=true data.packing=best_fit trainer.max_steps=1": "never has all rows to compare",
    "task=inspect data.streaming=true": "task=inspect compares all rows",
    "task=inspect inspect.against=absent.csv": "inspect.against=absent.csv",
    "task=inspect run=runs/x": "task=inspect reads data, and no run",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_done_is_refused_with_its_reason(words: str, planted: Planted) -> None:
    with pytest.raises(UserError) as error:
        load_config(["task=finetune", *arguments(planted), *words.split()])
    assert REFUSED[words] in str(error.value)


def test_a_train_split_without_a_row_left_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"call +49 30 55501{i:02d},{i % 2}\n" for i in range(20)))
    with pytest.raises(UserError, match="no row of train is left of 20"):
        prepare(
            "task=finetune",
            "data=files",
            f"data.train={tmp_path}/train.csv",
            "data.columns.label=label",
            "data.clean=[pii]",
            f"cache_dir={tmp_path}",
        )


def test_copies_are_those_of_all_pairs(tmp_path: Path, run: Runner) -> None:
    """Rows drawn from few texts, in all splits: exact copies and leaks as a comparison of all rows finds them."""
    rng = random.Random(3)
    pool = [sentence(rng, 8) for _ in range(30)] + ["", " "]
    rows = {split: [rng.choice(pool) for _ in range(size)] for split, size in (("train", 60), ("validation", 12), ("test", 12))}
    for split, texts in rows.items():
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    run("task=inspect", "data=files", f"data.dir={tmp_path}", f"run_dir={tmp_path}/run")
    found = json.loads((tmp_path / "run" / "inspect.json").read_text())
    for entry in [*found["near_duplicates"], *found["leaks"]]:
        assert rows[entry["split"]][entry["row"]] == rows[entry["other_split"]][entry["other_row"]]
    copies = {(split, i) for split, texts in rows.items() for i, text in enumerate(texts) if text.strip() and text in texts[:i]}
    assert {(entry["split"], entry["row"]) for entry in found["near_duplicates"]} == copies
    pairs = (("train", "validation"), ("train", "test"), ("validation", "test"))
    leaks = {(s, i, other) for s, other in pairs for i, text in enumerate(rows[s]) if text.strip() and text in rows[other]}
    assert {(entry["split"], entry["row"], entry["other_split"]) for entry in found["leaks"]} == leaks
    assert [found["splits"][split]["blank"] for split in rows] == [sum(not t.strip() for t in texts) for texts in rows.values()]


def test_an_evaluation_file_and_a_tokenizer_add_their_findings(planted: Planted, minilm: Path, tmp_path: Path, run: Runner) -> None:
    rng = random.Random(4)
    words = sentence(rng, 20).split()
    rows = [sentence(rng) for _ in range(6)] + [" ".join(["we", "read", *words[2:17]]), "an unknown 𓀀𓀁 sign"]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in rows))
    (tmp_path / "evaluation.txt").write_text(f"another line\n{' '.join(words)}\n")
    run(
        *("task=inspect", "data=files", f"data.train={tmp_path}/train.jsonl", f"inspect.against={tmp_path}/evaluation.txt"),
        *(f"model.name_or_path={minilm}", f"run_dir={tmp_path}/run"),
    )
    found = json.loads((tmp_path / "run" / "inspect.json").read_text())
    (tmp_path / "evaluation.csv").write_text(f"id,question\n1,another line\n2,{' '.join(words)}\n")
    run(
        *("task=inspect", "data=files", f"data.train={tmp_path}/train.jsonl", f"inspect.against={tmp_path}/evaluation.csv"),
        *("inspect.against_column=question", f"run_dir={tmp_path}/again"),
    )
    (overlap,) = json.loads((tmp_path / "again" / "inspect.json").read_text())["overlaps"]
    assert (overlap["row"], overlap["other_place"], overlap["shared"]) == (6, "line 3", 3)
    (overlap,) = found["overlaps"]
    assert (overlap["row"], overlap["other_place"], overlap["shared"]) == (6, "line 2", 3)
    assert [(entry["row"], entry["unknown"]) for entry in found["unknown_tokens"]] == [(7, 1)]
    assert found["splits"]["train"]["tokens"]["longest"] > 20


def install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """Put a stand-in of a package where imports find it."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def test_presidio_and_a_language_identifier_are_used_where_they_are_installed(
    planted: Planted, tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins with the interfaces of presidio-analyzer, which finds a name, and of py3langid."""

    class AnalyzerEngine:
        def analyze(self, text: str, language: str, entities: list[str], score_threshold: float) -> list[Any]:
            start = text.find("river1")
            return [SimpleNamespace(entity_type="PERSON", start=start, end=start + 6)] if start >= 0 else []

    install(monkeypatch, "presidio_analyzer", AnalyzerEngine=AnalyzerEngine)
    install(monkeypatch, "py3langid", classify=lambda text: ("en" if "good" in text else "de", 1.0))
    run("task=inspect", *arguments(planted, "clean"), "inspect.presidio=true", f"run_dir={tmp_path}/run")
    found = json.loads((tmp_path / "run" / "inspect.json").read_text())
    rows = {(split, i) for split, part in planted.rows.items() for i, (text, _) in enumerate(part) if "river1" in text}
    assert {(entry["split"], entry["row"]) for entry in found["pii"]} == rows
    assert {entry["kind"] for entry in found["pii"]} == {"presidio: person"}
    assert found["splits"]["test"]["languages"] == {"de": 12, "en": 12}
    assert "river1" not in (tmp_path / "run" / "inspect.html").read_text().partition("<script>")[0]


def test_text_of_any_form_is_joined() -> None:
    assert join_text(["a", "word", "list"]) == "a word list"
    assert join_text(("text", None, "pair")) == "text\npair"
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": [{"type": "text", "text": "hi"}]}]
    assert join_text(talk) == "hello\nhi"


def make_texts(texts: list[str], labels: list[Any]) -> RowTexts:
    import datasets

    table = datasets.Dataset.from_dict({"text": texts, "label": labels})
    return RowTexts(Rows(table, "0", str), ("text",), "label")


def test_quick_counts_are_those_of_plain_python() -> None:
    rng = random.Random(5)
    texts = {split: [f"Text {rng.randrange(40)}" for _ in range(60)] for split in ("train", "test")}
    labels = [rng.choice(["a", "b", None, ""]) for _ in texts["train"]]
    same = find_same_texts(
        {"train": make_texts(texts["train"], labels), "test": make_texts([t.upper() for t in texts["test"]], labels)}
    )
    assert same.leaks == {"test": sum(text in texts["test"] for text in texts["train"])}
    known = {
        text: {label for t, label in zip(texts["train"], labels, strict=True) if t == text and label} for text in texts["train"]
    }
    assert same.conflicts == sum(bool(label) and len(known[text]) > 1 for text, label in zip(texts["train"], labels, strict=True))
    assert same.compared == 60
    assert np.array_equal(make_texts(["A  b", "a B", ""], [0, 0, 0]).hash_texts() == 0, [False, False, True])
