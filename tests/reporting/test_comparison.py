"""Runs compared: gathered over seeds, named by what tells them apart, with their baseline."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import yaml

from llm_lightning.errors import UserError
from llm_lightning.reporting import __main__ as reporting
from llm_lightning.reporting.leaderboard import frontier, pareto, write_comparison
from llm_lightning.reporting.report import write_report
from llm_lightning.reporting.runs import find, group_runs
from llm_lightning.reporting.table import PAID, quality, tables

SCORES = {"a": {1: 0.61, 2: 0.65}, None: {1: 0.42, 2: 0.43}}


def write(
    folder: Path,
    seed: int,
    origin: str | None,
    accuracy: float,
    data: str = "reviews",
    lr: float = 1e-3,
    preset: str | None = None,
    seconds: float = 3.0,
) -> None:
    folder.mkdir(parents=True)
    config = {"task": "finetune", "model": {"init_from": origin}, "optimizer": {"lr": lr}, "seed": seed, "run_dir": str(folder)}
    config |= {"choices": {"model": preset}} if preset else {}
    metrics = {"validation/accuracy": accuracy, "test/accuracy": accuracy / 2, "validation/majority_accuracy": 0.25}
    summary: dict[str, Any] = {
        "task": "finetune",
        "objective": "classification",
        "model": {"name": "bert_tiny", "parameters": 1000},
        "data": {"name": data, "fingerprint": f"of {data}", "rows": {"train": 10}, "tokens": {"train": 100}},
        "metrics": metrics,
        "steps": 20,
        "tokens_seen": 100,
        "throughput": {"tokens_per_second": 1234.0},
        "seconds": {"setup": 1.0, "train": 2.0, "total": seconds},
        "energy": {"kwh": 0.001, "co2eq_kg": 0.0002},
        "seed": seed,
        "versions": {"python": "3"},
        "git": None,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text("step,train/loss,validation/accuracy\n10,1.5,\n10,,0.3\n20,0.5,\n")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for origin, scores in SCORES.items():
        for seed, accuracy in scores.items():
            write(tmp_path / f"{origin}-{seed}", seed, origin and f"runs/{origin}", accuracy)
    return tmp_path


def test_seeds_are_gathered_and_averaged(runs: Path) -> None:
    (table,) = tables(group_runs(find([runs])))
    assert table.title == "classification on reviews"
    rows = {row[0]: row for row in table.rows}
    assert set(rows) == {"from a", "from scratch", "most frequent class"}
    column = table.columns.index("validation accuracy %")
    for name, scores in (("from a", [61, 65]), ("from scratch", [42, 43])):
        half = 12.706 * stdev(scores) / 2**0.5  # Student's t of two seeds
        assert rows[name][column] == f"{mean(scores):.1f} ± {half:.1f}"
        assert rows[name][-1] == "2"
    assert rows["most frequent class"][column] == "25.0"
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "perplexity" not in table.columns  # no run has one


def test_groups_are_named_by_what_differs(runs: Path) -> None:
    write(runs / "faster", 1, None, 0.5, lr=1e-2)
    write(runs / "other", 1, None, 0.5, data="tweets")
    names = [group.name for group in group_runs(find([runs]))]
    assert sorted(names) == [
        "reviews · from a · lr=0.001",
        "reviews · from scratch · lr=0.001",
        "reviews · from scratch · lr=0.01",
        "tweets · from scratch · lr=0.001",
    ]


def test_what_is_chosen_and_how_data_are_read_is_in_a_name(tmp_path: Path) -> None:
    for i, (optimizer, length) in enumerate((("adamw", 128), ("muon", 128), ("adamw", 256))):
        write(tmp_path / str(i), 1, None, 0.5)
        config = yaml.safe_load((tmp_path / str(i) / "config.yaml").read_text())
        config["optimizer"]["_target_"] = f"llm_lightning.optim.{optimizer}.{optimizer}"
        config["data"] = {"block_size": length, "dir": f"folder/{i}"}
        (tmp_path / str(i) / "config.yaml").write_text(yaml.safe_dump(config))
    names = {group.name for group in group_runs(find([tmp_path]))}
    assert names == {f"block_size={n} · optimizer={o}" for o, n in (("adamw", 128), ("muon", 128), ("adamw", 256))}


def test_a_run_from_scratch_is_not_named_after_the_settings_of_its_architecture(tmp_path: Path) -> None:
    """A checkpoint brings its own, so that its run has none; two runs from scratch differ by theirs."""
    for name, origin, layers in (("a", "runs/a", None), ("b", None, 2), ("c", None, 3)):
        write(tmp_path / name, 1, origin, 0.5)
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        config["model"]["config"] = {} if layers is None else {"hidden_size": 64, "num_hidden_layers": layers}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    names = {group.name for group in group_runs(find([tmp_path]))}
    assert names == {"from a", *(f"from scratch · config.num_hidden_layers={n}" for n in (2, 3))}


def test_names_are_as_long_as_it_takes(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / str(i), 1, None, 0.5, lr=1e-3 * (1 + i // 2))
        config = yaml.safe_load((tmp_path / str(i) / "config.yaml").read_text())
        config |= {"batch": {"a": i // 2, "b": i // 2, "c": i // 2}, "trainer": {"z": i}}
        (tmp_path / str(i) / "config.yaml").write_text(yaml.safe_dump(config))
    assert len({group.name for group in group_runs(find([tmp_path]))}) == 4


def test_a_seed_that_was_run_twice_counts_once(runs: Path) -> None:
    write(runs / "again", 1, None, 0.99)
    os.utime(runs / "again" / "summary.json", (2e9, 2e9))  # later than the first
    found = {group.name: group.values(lambda run: run.metrics["validation/accuracy"]) for group in group_runs(find([runs]))}
    assert sorted(found["from scratch"]) == [0.43, 0.99]


def test_presets_stand_for_the_settings_that_come_with_them(runs: Path) -> None:
    for preset, lr in (("small", 1e-3), ("small", 2e-3), ("large", 1e-4)):
        write(runs / "presets" / f"{preset}{lr}", 1, None, 0.5, lr=lr, preset=preset)
    names = [group.name for group in group_runs(find([runs / "presets"]))]
    assert sorted(names) == ["large", "small · lr=0.001", "small · lr=0.002"]


def test_the_frontier_is_what_nothing_beats_in_both(runs: Path) -> None:
    for name, seconds, accuracy in (("a", 1, 0.5), ("b", 2, 0.4), ("c", 3, 0.7), ("d", 4, 0.7), ("e", 50, 0.9)):
        write(runs / "presets" / name, 1, None, accuracy, lr=seconds / 1000, preset=name, seconds=seconds)
    groups = group_runs(find([runs / "presets"]))
    best = quality(groups)
    assert best is not None
    assert best.metric == "test/accuracy"
    figure = pareto(groups, best, PAID[0])
    assert figure is not None
    assert figure["traces"][0]["x"] == [1, 3, 50]
    assert figure["traces"][0]["y"] == pytest.approx([25, 35, 45])  # the test accuracies, in per cent
    assert figure["layout"]["xaxis"] == {"type": "log"}
    assert frontier([(1, 3.0), (2, 2.0), (3, 2.5)], higher=False) == [0, 1]


def test_a_run_that_cannot_be_read_is_named_and_left_out(
    runs: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("llm_lightning"), "propagate", True)  # which a run in this process ends
    (runs / "a-1" / "summary.json").write_text("{")
    assert len(find([runs])) == 3
    assert "a-1: not a readable run" in caplog.text
    with pytest.raises(UserError, match=r"a-1: not a readable run"):
        find([runs / "a-1"])
    with pytest.raises(UserError, match=r"nothing: no finished run in or below"):
        find([runs / "nothing"])


def figures(page: Path) -> list[dict[str, Any]]:
    found = re.search(r"const figures = (\[.*?\]);\n", page.read_text())
    assert found is not None
    return json.loads(found.group(1).replace("<\\/", "</"))


def test_pages_draw_the_curves_of_metrics_csv(runs: Path) -> None:
    page = write_comparison(group_runs(find([runs])), runs / "report.html", "Compared")
    drawn = {figure["title"]: figure["traces"] for figure in figures(page)}
    assert {"Validation accuracy · classification", "Training loss · classification"} <= set(drawn)
    assert {trace["name"] for trace in drawn["Training loss · classification"]} == {"from scratch", "from a"}
    assert all((trace["x"], trace["y"]) == ([10.0, 20.0], [1.5, 0.5]) for trace in drawn["Training loss · classification"])
    single = {figure["title"]: figure["traces"] for figure in figures(write_report(runs / "a-1"))}
    assert [trace["name"] for trace in single["Loss"]] == ["train/loss"]


def test_the_command_prints_writes_csv_and_keeps_a_runs_own_report(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["reporting", str(runs), "--terminal", "--csv", str(runs / "found.csv")])
    reporting.main()
    said = capsys.readouterr().out
    assert "from a" in said
    assert "Is from a the best?" in said  # by the seeds, as no examples were kept
    assert not (runs / "report.html").exists()
    with (runs / "found.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file) if row["run"]}
    assert rows["from scratch"]["seeds"] == "2"
    assert rows["from a"]["test accuracy %"].startswith("31.5 ±")
    monkeypatch.setattr("sys.argv", ["reporting", str(runs / "a-1"), str(runs / "a-2")])
    reporting.main()
    assert not (runs / "a-1" / "report.html").exists()
    assert (runs / "a-1" / "comparison.html").exists()
    monkeypatch.setattr("sys.argv", ["reporting", str(runs / "a-1")])
    reporting.main()
    assert "classification on reviews" in (runs / "a-1" / "report.html").read_text()


def test_a_sweeps_figures_have_their_section(runs: Path) -> None:
    own = {"title": "Importance", "traces": [{"type": "bar", "x": ["lr"], "y": [1.0]}], "layout": {"hovermode": "closest"}}
    page = write_comparison(group_runs(find([runs])), runs / "report.html", "Sweep", [own])
    assert own | {"x": "", "y": ""} in figures(page)
    assert page.read_text().index("<h2>The sweep</h2>") < page.read_text().index("<h2>Curves · classification</h2>")


def test_names_from_the_data_are_text_and_not_markup(runs: Path) -> None:
    write(runs / "odd", 3, None, 0.5, data="<b>bold</b></script>")
    html = write_report(runs / "odd").read_text()
    assert "<b>bold" not in html
    assert "&lt;b&gt;bold" in html
    label = "<!--<script>"  # which would swallow the rest of the page, and which plotly would take for markup
    own = {"title": "Labels", "traces": [{"type": "bar", "x": [label], "y": [1.0], "hovertemplate": "%{x}<br>%{y}"}], "layout": {}}
    page = write_comparison(group_runs(find([runs])), runs / "report.html", "Sweep", [own])
    assert label not in page.read_text().split("const figures = ")[1].split("\n")[0]
    (trace,) = next(figure["traces"] for figure in figures(page) if figure["title"] == "Labels")
    assert trace["x"] == ["&lt;!--&lt;script&gt;"]
    assert trace["hovertemplate"] == "%{x}<br>%{y}"
