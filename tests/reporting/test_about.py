"""What a page calls the data that a run was trained on."""

from __future__ import annotations

import pytest

from llm_lightning.config.schema import Config, DataConfig
from llm_lightning.reporting.about import data_name


@pytest.mark.parametrize(
    ("preset", "data", "name"),
    [
        ("sst2", DataConfig(source="hub", name="nyu-mll/glue", config="sst2"), "sst2"),
        ("hub", DataConfig(source="hub", name="glue", config="mrpc"), "glue/mrpc"),
        ("hub", DataConfig(source="hub", name="imdb"), "imdb"),
        ("files", DataConfig(source="files", train="mine/reviews.csv"), "reviews"),
        ("files", DataConfig(source="files", train="mine/imdb/train.tsv"), "imdb"),
        ("files", DataConfig(source="files", train="train.csv"), "files"),
        ("files", DataConfig(source="files", dir="mine/imdb", train="train.csv"), "imdb"),
        ("sts", DataConfig(source="files", dir="sts2012", train="MSRpar.train.tsv"), "MSRpar"),
        ("mrpc", DataConfig(source="files", dir="data/mine"), "mrpc"),
        ("sst2", DataConfig(source="hub", dir="data/mine"), "sst2"),
        ("sst2", DataConfig(source="hub", train="train[:1000]"), "sst2"),
        ("files", DataConfig(source="files", train="strain.csv"), "strain"),
        ("alpaca", DataConfig(source="files", train="tasks.json"), "tasks"),
        ("docs", DataConfig(source="docs"), "docs"),
        ("text", DataConfig(source="text", train=["wiki.txt", "books.txt"]), "wiki"),
        ("text", DataConfig(source="text", train="books/*.txt"), "books"),
        ("text", DataConfig(source="text", train="books/"), "books"),
        ("conll", DataConfig(source="conll", dir="data/wnut17"), "wnut17"),
    ],
)
def test_data_has_the_name_of_its_preset_or_of_what_is_read(preset: str, data: DataConfig, name: str) -> None:
    assert data_name(Config(data=data, choices={"data": preset})) == name
