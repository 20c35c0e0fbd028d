"""Write report.html of one run: its results with their intervals, its curves, its mistakes, its cost, and how to repeat it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from llm_lightning.reporting import figures
from llm_lightning.reporting.changed_settings import differences
from llm_lightning.reporting.confidence import confidence
from llm_lightning.reporting.intervals import Interval, intervals
from llm_lightning.reporting.label_issues import label_issues
from llm_lightning.reporting.page import Section, sections, write_page
from llm_lightning.reporting.robustness import invariance, slices
from llm_lightning.reporting.runs import Group, Run, load
from llm_lightning.reporting.table import COSTS, Column, Table, columns_of, format_cell

PERCENT = " %"


def write_report(folder: Path) -> Path:
    """Write report.html of one run into its folder. Sections without a record are left out. Return the path."""
    run = load(folder)
    model = run.summary["model"]
    size = f" · {model['parameters'] / 1e6:.1f}M parameters" if model["parameters"] else ""
    name = (run.config.get("choices") or {}).get("model") or Path(str(model["name"])).name
    lead = f"{run.folder.name} · {name}{size} · seed {run.summary['seed']}"
    return write_page(folder / "report.html", run.title, lead, sections(parts(run)))


def parts(run: Run) -> list[partial[Section]]:
    """Return functions that each build a section of the report from the run."""
    builders = (
        results,
        confidence,
        learning,
        slices,
        invariance,
        mistakes,
        label_issues,
        samples,
        data,
        speed,
        configuration,
        reproduction,
    )
    return [partial(build, run) for build in builders]


def results(run: Run) -> Section:
    """Return headline numbers with their intervals, figures of right and wrong predictions, and all metrics."""
    interval_by_metric = intervals(run)
    group = Group(run.title, [run])
    tiles = [(column.title, format_cell(group, column), _format_interval(column, interval_by_metric)) for column in columns_of(run)]
    tiles.sort(key=lambda tile: not tile[0].startswith("test"))
    drawn = [
        figure
        for split, tables in run.evaluations().items()
        for draw in (figures.confusion, figures.reliability, figures.precision_recall, figures.predictions)
        for figure in draw(split, tables)
    ]
    note = (
        "95% intervals by the bootstrap over the examples of the split (of a language model, its batches)."
        if interval_by_metric
        else ""
    )
    result_tables = [*_class_tables(run), _metrics(run, interval_by_metric)]
    return Section("Results", note, tiles=[tile for tile in tiles if tile[1] != "–"], figures=drawn, tables=result_tables)


def _format_interval(column: Column, interval_by_metric: dict[str, Interval]) -> str:
    """Return a tile's interval, formatted like its value."""
    if column.metric not in interval_by_metric:
        return ""
    factor = 100 if column.title.endswith(PERCENT) else 1
    low, high = (column.form.format(factor * bound) for bound in interval_by_metric[column.metric])
    return f"{low} to {high}"


def _metrics(run: Run, interval_by_metric: dict[str, Interval]) -> Table:
    """Return a table with a row per metric: its value and interval on each split."""
    splits = list(dict.fromkeys(name.split("/")[0] for name in run.metrics))
    names = dict.fromkeys(name.partition("/")[2] for name in run.metrics)
    rows = [[name, *(_cell(run, f"{split}/{name}", interval_by_metric) for split in splits)] for name in names]
    return Table("All metrics", ["metric", *splits], rows, sortable=True)


def _cell(run: Run, metric: str, interval_by_metric: dict[str, Interval]) -> str:
    if metric not in run.metrics:
        return "–"
    interval = (
        f" ({interval_by_metric[metric][0]:.4g} to {interval_by_metric[metric][1]:.4g})" if metric in interval_by_metric else ""
    )
    return f"{run.metrics[metric]:.5g}{interval}"


def _class_tables(run: Run) -> list[Table]:
    class_tables = []
    for split, tables in run.evaluations().items():
        rows = [
            [name, *(f"{s[k]:.3f}" for k in ("precision", "recall", "f1")), f"{s['support']:,}"]
            for name, s in (tables.get("per_class") or {}).items()
        ]
        if rows:
            which = f", the {len(rows)} worst of {tables['classes']:,}" if tables.get("classes", 0) > len(rows) else ""
            class_tables.append(
                Table(f"Classes · {split}{which}", ["class", "precision", "recall", "F1", "number"], rows, sortable=True)
            )
        pairs = [[pair["true"], pair["said"], f"{pair['count']:,}"] for pair in tables.get("confusions") or []]
        if pairs and tables.get("classes", 0) > figures.CLASSES:  # fewer are drawn as a matrix
            class_tables.append(Table(f"Confused most often · {split}", ["true", "said", "number"], pairs, sortable=True))
    return class_tables


def learning(run: Run) -> Section:
    note = f"{run.summary['steps']:,} optimizer steps, {run.summary['tokens_seen']:,} tokens."
    return Section("Learning", note, figures=figures.learning(run))


def mistakes(run: Run) -> Section:
    """Return the worst mistakes of the last split that has some."""
    for split, tables in reversed(run.evaluations().items()):
        if tables.get("mistakes"):
            sure = "probability" in tables["mistakes"][0]
            order = "those that the model was surest of first" if sure else "the worst first"
            return Section("Mistakes", f"Of the {split} split, {order}.", mistakes=tables["mistakes"])
    return Section("Mistakes")


def samples(run: Run) -> Section:
    """Return the model's samples after each validation, and at the end."""
    prompts: dict[str, dict[str, Any]] = {}
    for line in run.samples():
        sample = prompts.setdefault(line["prompt"], {"prompt": line["prompt"], "reference": line.get("reference"), "texts": []})
        sample["texts"].append((line["step"], line["text"]))
    all_samples = list(prompts.values())
    for split, tables in run.evaluations().items():
        for line in (tables.get("samples") or [])[:5]:
            prompt, answer = line.get("prompt", line.get("source")), line.get("answer", line.get("translation"))
            all_samples.append(
                {"prompt": prompt, "reference": line.get("reference"), "texts": [(f"{split}, best weights", answer)]}
            )
    return Section(
        "Samples", "What the model makes of the same prompts in the course of its training, the latest first.", samples=all_samples
    )


def data(run: Run) -> Section:
    """Return the data card."""
    summary, cards = run.summary["data"], run.data()
    rows = [_data_row(split, summary, cards.get(split, {})) for split in summary["rows"]]
    columns = [
        "split",
        "rows",
        "tokens",
        "median length",
        "95th percentile",
        "longest",
        "cut",
        "skipped",
        "left out",
        "twice",
        "also in train",
    ]
    shown = [i for i in range(len(columns)) if any(row[i] != "–" for row in rows)]
    table = Table(summary["name"], [columns[i] for i in shown], [[row[i] for i in shown] for row in rows])
    notes = [f"Fingerprint {summary['fingerprint'][:12]}."] if summary["fingerprint"] else []
    if cards:
        notes.append("Lengths are in tokens; twice: sequences of the same tokens as one before them in the split.")
    changes = {"dropped": "rows of train are left out (data.drop)", "relabelled": "have another label (data.relabel)"}
    notes += [f"{count:,} {text}." for name, text in changes.items() if (count := cards.get("train", {}).get(name))]
    notes += [
        f"Skipped of {split}: {'; '.join(card['skipped_first'])}." for split, card in cards.items() if card.get("skipped_first")
    ]
    for split, card in cards.items():
        reasons = ((name, number) for name, number in (card.get("left_out") or {}).items() if name != "rows")
        if counts := ", ".join(f"{name} {number:,}" for name, number in reasons):
            notes.append(f"Left out of {split} by data.clean: {counts} (data_cleaned.csv).")
    notes += [
        f"In {split}, {card['windows']['rows']:,} rows are read in overlapping windows, {card['windows']['windows']:,} windows in all."
        for split, card in cards.items()
        if card.get("windows")
    ]
    drawn = [*figures.lengths(cards), *figures.balance(cards)]
    return Section("Data", " ".join(notes), figures=drawn, tables=[table] if rows else [])


def _data_row(split: str, summary: dict[str, Any], card: dict[str, Any]) -> list[str]:
    lengths = card.get("lengths") or {}
    values = [
        summary["rows"].get(split),
        summary["tokens"].get(split),
        *(lengths.get(name) for name in ("median", "p95", "longest")),
        *(card.get(name) for name in ("truncated", "skipped")),
        (card.get("left_out") or {}).get("rows"),
        *(card.get(name) for name in ("duplicates", "in_train")),
    ]
    return [split + (" (sample)" if card.get("sample") else ""), *("–" if value is None else f"{value:,.0f}" for value in values)]


def speed(run: Run) -> Section:
    """Return time, memory and energy."""
    group = Group(run.title, [run])
    tiles = [(column.title, format_cell(group, column), "") for column in COSTS]
    throughput, seconds, energy = (run.summary[name] for name in ("throughput", "seconds", "energy"))
    if throughput.get("mfu") is not None:
        tiles.insert(1, ("MFU", f"{throughput['mfu']:.1%}", "of the device's measured peak"))
    if energy.get("co2eq_kg") is not None:
        tiles.append(("g CO₂eq", f"{1000 * energy['co2eq_kg']:.2f}", ""))
    rows = [[f"seconds, {name}", f"{value:,.1f}"] for name, value in seconds.items() if value is not None]
    rows += [[f"seconds a step, {name}", f"{v:.3f}"] for name, v in (throughput.get("step_seconds") or {}).items() if v is not None]
    rows += [[name.replace("_", " "), _plain(value)] for name, value in _leaves(energy)]
    shown = [tile for tile in tiles if tile[1] != "–"]
    return Section("Speed, memory, energy", figures=figures.speed(run), tiles=shown, tables=[_facts("Time and energy", rows)])


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for name, value in values.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{name}, ")
        elif value is not None:
            leaves.append((prefix + name, value))
    return leaves


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def configuration(run: Run) -> Section:
    """Return the settings chosen for this run, and the whole configuration."""
    rows = [[key, _short(value), _short(default)] for key, value, default in differences(run.config)]
    setting_tables = [Table("Chosen", ["setting", "this run", "by default"], rows)] if rows else []
    full_config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    note = f"Against a plain run: python train.py task={run.summary['task']}"
    return Section("Configuration", note, tables=setting_tables, texts=[("The whole configuration", full_config)])


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def reproduction(run: Run) -> Section:
    """Return command, commit, versions and machine."""
    summary = run.summary
    rows = [
        ["command", str(run.config.get("command") or "–")],
        ["commit", summary["git"] or "–"],
        ["seed", str(summary["seed"])],
        ["weights", str(summary.get("export") or "–")],
        ["versions", ", ".join(f"{name} {version}" for name, version in summary["versions"].items()) or "–"],
        *([name.replace("_gib", ", GiB"), str(value)] for name, value in summary["machine"].items()),
    ]
    return Section("How to reproduce it", tables=[_facts("Run and environment", rows)])


def _facts(title: str, rows: list[list[str]]) -> Table:
    return Table(title, ["", ""], rows)
