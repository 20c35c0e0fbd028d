"""Wrong labels end to end: runs that leave a part of train out, the list of suspects, its report, and training with it."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from omegaconf import OmegaConf

from llm_lightning.config.compose import load_config
from llm_lightning.errors import UserError
from llm_lightning.inference.label_errors import ISSUES, RECORD, SCORES, list_label_errors
from llm_lightning.reporting.report import write_report
from llm_lightning.reporting.runs import find
from llm_lightning.run import find_label_errors, prepare
from llm_lightning.run import run as start
from llm_lightning.runs.folder import release_folder
from llm_lightning.training.checkpoints import Checkpoints

from ..conftest import QUIET, TINY_BERT, Runner
from ..objectives.test_supervised import write
from .test_runs import FINETUNE, same_weights

TRAINING = [
    "trainer.max_epochs=10",
    "batch.sequences=8",
    "optimizer.lr=5e-3",
    "data.block_size=64",
    "trainer.validate_every_steps=30",
]
WRONG = (10, 31, 52, 73, 94, 115)
FOLDS = 2


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews of which six have the other label, each with a word of its own that a model can learn by heart."""
    draw, rows = random.Random(0), ["body,stars"]
    for i in range(120):
        filler = " ".join(draw.choice(["really", "film", "plot", "and", "was", "quite"]) for _ in range(draw.randint(1, 8)))
        mark = f" {'abcdefghij'[i % 10] * 5}" if i in WRONG else ""
        rows.append(f"{filler} {'great' if i % 2 else 'awful'} {filler}{mark},{'good' if (i % 2) ^ (i in WRONG) else 'bad'}")
    file = tmp_path_factory.mktemp("table") / "train.csv"
    file.write_text("\n".join(rows) + "\n")
    (file.parent / "held.csv").write_text(
        "\n".join(["body,stars", *(row for i, row in enumerate(rows[1:]) if i not in WRONG)][:40]) + "\n"
    )
    return file


def words(table: Path, folder: Path, *more: str) -> list[str]:
    data = [f"data.train={table}", f"data.validation={table.parent}/held.csv"]
    return [*FINETUNE[:-1], *data, *TINY_BERT, *TRAINING, f"run_dir={folder}", *more]


@pytest.fixture(scope="module")
def finished(table: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    start(load_config([*QUIET, f"cache_dir={cache}", *words(table, folder, f"data.folds={FOLDS}")]))
    return folder


def read_issues(folder: Path) -> list[dict[str, str]]:
    with (folder / ISSUES).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_wrong_labels_are_listed_with_their_places(finished: Path, table: Path) -> None:
    issues = read_issues(finished)
    assert {int(issue["row"]) - 2 for issue in issues} == set(WRONG)
    lines = table.read_text().splitlines()
    for issue in issues:
        assert list(issue) == ["file", "row", "label", "suggested_label", "score"]
        assert issue["file"] == str(table)
        assert lines[int(issue["row"]) - 1].endswith(f",{issue['label']}")
        assert {issue["label"], issue["suggested_label"]} == {"good", "bad"}
    scores = [float(issue["score"]) for issue in issues]
    assert scores == sorted(scores)


def test_every_row_is_scored_once_by_weights_that_never_saw_it(finished: Path, table: Path) -> None:
    """Rows with a wrong label have a word of their own: weights that saw the row know the label by it, others do not."""
    numbers = []
    bodies = [line.rpartition(",")[0] for line in table.read_text().splitlines()[1:]]
    for part in range(1, FOLDS + 1):
        folder = finished / "folds" / str(part)
        columns = dict(np.load(folder / SCORES))
        numbers += columns["number"].tolist()
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "hf").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
        for number, probabilities in list(zip(columns["number"].tolist(), columns["probabilities"], strict=True))[:5]:
            logits = model(**tokenizer(bodies[number], return_tensors="pt")).logits
            assert logits.softmax(-1)[0].tolist() == pytest.approx(probabilities.tolist(), abs=0.02)  # bf16 where hardware has it
        wrong = [i for i, number in enumerate(columns["number"].tolist()) if number in WRONG]
        assert (columns["probabilities"].argmax(1)[wrong] != columns["label"][wrong]).all()
        card = json.loads((folder / "data.json").read_text())
        assert card["left_out"]["in_train"] == 0
        assert (folder / "summary.json").is_file()
        assert not (folder / "checkpoints").exists()
    assert sorted(numbers) == list(range(120))


def test_the_run_itself_is_the_run_without_folds(finished: Path, run: Runner, table: Path, tmp_path: Path) -> None:
    run(*words(table, tmp_path / "plain"))
    assert same_weights(finished, tmp_path / "plain")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (finished, tmp_path / "plain")]
    assert summaries[0]["data"] == summaries[1]["data"]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]


def test_the_report_shows_the_suspects_and_a_leaderboard_leaves_the_parts_out(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    record = json.loads((finished / RECORD).read_text())
    assert "Labels that are probably wrong" in page
    assert "Estimated noise" in page
    assert record["issues"] == record["rows_with_issues"] == len(record["first"]) == len(WRONG)
    assert all(entry["text"] in page for entry in record["first"])
    assert np.array(record["joint"]).sum() == record["scored"] == 120
    assert [found.folder for found in find([finished])] == [finished]
    assert len(find([finished / "folds"])) == FOLDS


def test_a_list_that_somebody_has_edited_stays(finished: Path, run: Runner, table: Path) -> None:
    before = (finished / ISSUES).read_text()
    edited = "".join(before.splitlines(keepends=True)[:-1])
    (finished / ISSUES).write_text(edited)
    run(*words(table, finished, f"data.folds={FOLDS}"))
    assert (finished / ISSUES).read_text() == edited
    (finished / ISSUES).write_text(before)


def test_a_killed_part_continues_and_finished_ones_are_not_repeated(
    finished: Path, table: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    save = Checkpoints.save
    saved: list[tuple[str, int]] = []

    def save_and_note(self: Checkpoints, trainer: Any) -> Path:
        path = save(self, trainer)
        saved.append((path.parent.parent.name, trainer.global_step))
        if "2" in {part for part, _ in saved[:-1]} and not any(isinstance(step, str) for _, step in saved):
            saved.append(("killed", "here"))  # type: ignore[arg-type]
            raise Killed
        return path

    monkeypatch.setattr(Checkpoints, "save", save_and_note)
    config = load_config([*QUIET, f"cache_dir={cache}", *words(table, tmp_path / "run", f"data.folds={FOLDS}")])
    (tmp_path / "run").mkdir()
    with pytest.raises(Killed):
        find_label_errors(config, tmp_path / "run")
    release_folder()  # as the end of the process does
    assert not (tmp_path / "run" / ISSUES).exists()
    killed = saved.index(("killed", "here"))  # type: ignore[arg-type]
    find_label_errors(config, tmp_path / "run")
    release_folder()
    later = saved[killed + 1 :]
    assert {part for part, _ in later} == {"2"}
    assert min(step for _, step in later) > saved[killed - 1][1]
    assert (tmp_path / "run" / ISSUES).read_text() == (finished / ISSUES).read_text()
    for part in ("1", "2"):
        assert same_weights(finished / "folds" / part, tmp_path / "run" / "folds" / part)


def test_parts_of_other_data_are_refused(finished: Path, table: Path, cache: Path) -> None:
    config = load_config([*QUIET, f"cache_dir={cache}", *words(table, finished, f"data.folds={FOLDS}", "seed=7")])
    summaries = [json.loads((finished / "folds" / str(i) / "summary.json").read_text()) for i in range(1, FOLDS + 1)]
    with pytest.raises(UserError, match=r"folds.1: this run scored other rows, as train or the tokenizer has changed"):
        list_label_errors(finished, config, prepare(config)[0], summaries)


def test_training_with_a_list_is_training_on_the_file_edited_by_hand(
    finished: Path, run: Runner, table: Path, tmp_path: Path
) -> None:
    issues = read_issues(finished)
    head, *lines = (finished / ISSUES).read_text().splitlines()
    for name, part in (("drop", lines[:3]), ("relabel", lines[3:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *part]) + "\n")
    edited = table.read_text().splitlines()
    for issue in issues[3:]:
        line = int(issue["row"]) - 1
        edited[line] = edited[line].rpartition(",")[0] + f",{issue['suggested_label']}"
    dropped = {int(issue["row"]) - 1 for issue in issues[:3]}
    (tmp_path / "train.csv").write_text("\n".join(line for i, line in enumerate(edited) if i not in dropped) + "\n")
    (tmp_path / "held.csv").write_text((table.parent / "held.csv").read_text())
    lists = [f"data.{name}={tmp_path / name}.csv" for name in ("drop", "relabel")]
    listed = run(*words(table, tmp_path / "listed", *lists, "trainer.max_epochs=1"))
    by_hand = run(*words(tmp_path / "train.csv", tmp_path / "by_hand", "trainer.max_epochs=1"))
    assert same_weights(tmp_path / "listed", tmp_path / "by_hand")
    assert listed["metrics"] == by_hand["metrics"]
    counts = json.loads((tmp_path / "listed" / "data.json").read_text())["train"]
    assert (counts["dropped"], counts["relabelled"]) == (3, 3)
    page = (tmp_path / "listed" / "report.html").read_text()
    assert "3 rows of train are left out (data.drop)" in page
    assert "3 have another label (data.relabel)" in page


@pytest.mark.parametrize("objective", ["multi_label", "tagging"])
def test_labels_of_sets_and_of_words_are_listed_and_relabelled(objective: str, finished: Path, cache: Path, tmp_path: Path) -> None:
    """A wrong label set and a wrong tag are found, and the list is accepted as it is."""
    settings = [
        *write(tmp_path, objective),
        *TINY_BERT,
        "batch.sequences=4",
        "optimizer.lr=5e-3",
        "trainer.max_epochs=15",
        "trainer.validate_every_steps=30",
    ]
    settings = [*QUIET, f"cache_dir={cache}", *settings, "data.block_size=16"]
    if objective == "multi_label":
        draw = random.Random(0)
        for split, count in (("train", 120), ("validation", 30), ("test", 8)):
            labels = [[name for name in ("fun", "sad") if draw.random() < 0.5] for _ in range(count)]
            texts = [" ".join([*names, *draw.choices(["film", "plot", "quite", "and"], k=3)]) for names in labels]
            if split == "train":
                planted = next(i for i, names in enumerate(labels) if names == ["sad"])
                labels[planted] = ["fun", "sad"]
            rows = [json.dumps({"text": text, "label": names}) for text, names in zip(texts, labels, strict=True)]
            (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
        expected = {"row": str(planted + 1), "label": "fun", "suggested_label": ""}
    else:
        lines = (tmp_path / "train.conll").read_text().splitlines()
        planted = next(i for i, line in enumerate(lines) if line == "Rome\tB-place")
        lines[planted] = "Rome\tB-person"
        (tmp_path / "train.conll").write_text("\n".join(lines) + "\n")
        start_line = max((i + 1 for i in range(planted) if not lines[i]), default=0)
        word = str(planted - start_line + 1)
        expected = {"row": str(start_line + 1), "word": word, "label": "B-person", "suggested_label": "B-place"}
    folder = tmp_path / "run"
    folder.mkdir()
    find_label_errors(load_config([*settings, "data.folds=2", f"run_dir={folder}"]), folder)
    release_folder()
    issues = read_issues(folder)
    assert any(expected.items() <= issue.items() for issue in issues)
    (folder / "summary.json").write_text((finished / "summary.json").read_text())
    (folder / "config.yaml").write_text((finished / "config.yaml").read_text())
    assert "Labels that are probably wrong" in write_report(folder).read_text()
    dataset = prepare(load_config([*settings, f"data.relabel={folder / ISSUES}"]))[0]
    assert dataset.edits.counts["relabelled"] == len({issue["row"] for issue in issues})


def test_the_config_of_a_part_says_which_and_its_command_repeats_the_run(finished: Path) -> None:
    config = OmegaConf.load(finished / "folds" / "2" / "config.yaml")
    assert config.data.left_out == f"2/{FOLDS}"
    assert config.data.folds is None
    assert OmegaConf.load(finished / "config.yaml").data.folds == FOLDS
