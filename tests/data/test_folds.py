"""Parts of train: every row in one, as many of each label, copies together, and no row encoded again."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import Config
from llm_lightning.data import encode, folds
from llm_lightning.data.encode import TokenizedSplit
from llm_lightning.data.encodings import Sequences
from llm_lightning.data.examples import Example
from llm_lightning.data.folds import LEFT_OUT
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.errors import UserError

from ..conftest import QUIET, TINY_BERT
from ..objectives.test_supervised import write

OF_DATA = re.compile(r"data\.(dir|train|left_out|drop|relabel)=")
ENCODINGS = {"classification": "texts", "multi_label": "label_sets", "tagging": "words"}


def build_split(tokens: list[list[int]], labels: list[int]) -> TokenizedSplit:
    return encode.in_memory(Sequences(tokens, [Example(i, "") for i in range(len(tokens))], labels=labels), False)


@functools.cache
def compose(*words: str) -> Config:
    """Compose a config once: it takes longer than anything else here."""
    return load_config([*QUIET, *TINY_BERT, "task=finetune", f"data.train={__file__}", *words])


def prepare_files(cache: Path, *words: str) -> TokenizedDataset:
    """Prepare the data of a command line."""
    by_name = dict(word.removeprefix("data.").split("=", 1) for word in words if OF_DATA.match(word))
    config = compose(*(word for word in words if not OF_DATA.match(word)))
    config = replace(config, cache_dir=str(cache), data=replace(config.data, **({"train": None} | by_name)))
    return prepare_dataset(config, ENCODINGS[config.choices["objective"]], None)


def prepare(folder: Path, cache: Path, objective: str, *overrides: str) -> TokenizedDataset:
    return prepare_files(cache, *write(folder, objective), *overrides)


def list_rows(dataset: TokenizedDataset, split: str) -> list[tuple[list[int], object]]:
    """Return the tokens and the target of each sequence."""
    part = dataset.splits[split]
    if part.labels is not None:
        targets = [*part.labels]
    else:
        assert part.token_targets is not None
        targets = [part.token_targets[start : start + size] for start, size in zip(part.starts, part.lengths, strict=True)]
    return [(part[i].tolist(), np.asarray(target).tolist()) for i, target in enumerate(targets)]


@pytest.mark.parametrize("count", [2, 5, 7])
def test_parts_have_as_many_rows_of_each_label_and_copies_are_together(count: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 400, p=[0.6, 0.25, 0.1, 0.05])
    tokens = [[i, i + 1, 7] for i in range(400)]
    copies = {int(i): int(j) for i, j in rng.integers(0, 400, (30, 2))}
    for i, j in copies.items():
        tokens[i] = tokens[j]
    split = build_split(tokens, labels.tolist())
    assigned = folds.assign_folds(split, ("a", "b", "c", "d"), count, seed=1)
    assert len(assigned) == 400
    assert set(assigned) == set(range(count))
    assert all(assigned[i] == assigned[j] for i, j in enumerate(map(tokens.index, tokens)))
    sizes = np.bincount(assigned)
    assert sizes.max() - sizes.min() <= 12  # copies move rows by groups
    for label in range(4):
        of_label = np.bincount(assigned[labels == label], minlength=count)
        assert of_label.max() - of_label.min() <= 6
    assert (folds.assign_folds(split, ("a", "b", "c", "d"), count, seed=1) == assigned).all()
    assert (folds.assign_folds(split, ("a", "b", "c", "d"), count, seed=2) != assigned).any()


def test_without_copies_the_parts_of_a_label_differ_by_one_row() -> None:
    labels = [0] * 31 + [1] * 12 + [2] * 3
    assigned = folds.assign_folds(build_split([[i] for i in range(46)], labels), ("a", "b", "c"), 5, seed=0)
    for label in range(3):
        counts = np.bincount(assigned[np.array(labels) == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.ptp(np.bincount(assigned)) <= 1


def test_fewer_different_rows_than_parts_are_refused() -> None:
    with pytest.raises(UserError, match="train has 2 different rows"):
        folds.assign_folds(build_split([[1], [1], [2]], [0, 1, 0]), ("a", "b"), 3, seed=0)


@pytest.mark.parametrize("objective", ENCODINGS)
def test_the_runs_of_all_parts_score_every_row_of_train_once(
    objective: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(tmp_path, cache, objective)
    monkeypatch.setattr(encode, "_write", lambda *_: pytest.fail("a row is encoded again"))
    scored: list[int] = []
    for number in range(1, 4):
        dataset = prepare(tmp_path, cache, objective, f"data.left_out={number}/3")
        assert set(dataset.splits) == {"train", "validation", LEFT_OUT}
        rows = [*list_rows(dataset, "train"), *list_rows(dataset, LEFT_OUT)]
        assert sorted(rows, key=repr) == sorted(list_rows(whole, "train"), key=repr)
        trained, left_out = (set(dataset.splits[split].rows.tolist()) for split in ("train", LEFT_OUT))  # type: ignore[union-attr]
        assert not trained & left_out
        texts = {
            split: {dataset.show_row(split, row) for row in members}
            for split, members in (("train", trained), (LEFT_OUT, left_out))
        }
        assert not texts["train"] & texts[LEFT_OUT]
        scored += left_out
        assert dataset.fingerprint != whole.fingerprint
    assert sorted(scored) == sorted(set(whole.splits["train"].rows.tolist()))  # type: ignore[union-attr]


def test_the_sequences_of_a_cut_sentence_stay_together(tmp_path: Path, cache: Path) -> None:
    dataset = prepare(tmp_path, cache, "tagging", "data.block_size=8", "data.left_out=1/2")
    rows = {split: dataset.splits[split].rows for split in ("train", LEFT_OUT)}
    assert all(len(numbers) > len(set(numbers.tolist())) for numbers in rows.values() if numbers is not None)
    assert not {*rows["train"].tolist()} & {*rows[LEFT_OUT].tolist()}  # type: ignore[union-attr]
    targets = dataset.splits[LEFT_OUT].token_targets
    assert targets is not None
    assert len(targets) == len(dataset.splits[LEFT_OUT].tokens) == dataset.splits[LEFT_OUT].lengths.sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.left_out=0/5"], "expected a part and the number of parts"),
        (["data.left_out=6/5"], "expected a part and the number of parts"),
        (["data.left_out=1/1"], "expected a part and the number of parts"),
        (["data.left_out=2"], "expected a part and the number of parts"),
        (["data.folds=5", "data.left_out=2/5"], "leave data.folds=5 out"),
        (["data.folds=1"], "expected .* at least 2"),
        (["data.folds=5", "objective=regression"], "only objective=classification, multi_label and tagging"),
        (["data.folds=5", "trainer.overfit_batches=1"], "not together with trainer.overfit_batches"),
        (["data.drop=nowhere.csv"], "no such file"),
        (["data.relabel=."], "this is a folder"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: list[str], message: str, reviews: Path) -> None:
    words = [
        "task=finetune",
        "data=files",
        f"data.train={reviews}",
        "data.columns.text=body",
        "data.columns.label=stars",
        *TINY_BERT,
    ]
    with pytest.raises(UserError, match=message):
        load_config([*words, *settings])
