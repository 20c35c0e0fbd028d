"""report.html: one page that needs no network, for a run or for a comparison of runs.

Figures are plain plotly dictionaries: plotly.py is not imported (it would cost a second), only its JavaScript is put into the
page once.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml

from llm_lightning.reporting.runs import Group, Run, load
from llm_lightning.reporting.table import COSTS, LABELLED, LANGUAGE, Table, tables, written

Figure = dict[str, Any]
"""title, note, plotly traces and the axes' titles"""

CURVES = [  # title, the metrics drawn in it, the axis
    ("Loss", ["train/loss", "validation/loss"], "nats per target"),
    ("Quality", ["validation/accuracy", "validation/macro_f1", "validation/mcc"], "score"),
    ("Bits per byte", ["validation/bits_per_byte"], "bits"),
    ("Learning rate", ["train/learning_rate"], "rate"),
    ("Gradient norm", ["train/gradient_norm"], "norm before clipping"),
    ("Throughput", ["train/tokens_per_second"], "tokens per second"),
]


def write_report(folder: Path) -> Path:
    """report.html of one run, in its folder."""
    run = load(folder)
    group = Group(run.summary["data"]["name"], [run])
    columns = LABELLED if "validation/accuracy" in run.metrics else LANGUAGE
    tiles = [(column.title, written(group, column)) for column in [*columns, *COSTS]]
    page = {
        "title": f"{run.summary['objective']} on {run.summary['data']['name']}",
        "lead": f"{run.folder.name} · {run.summary['model']['name']} · {run.summary['model']['parameters'] / 1e6:.1f}M parameters",
        "tiles": [tile for tile in tiles if tile[1] != "–"],
        "figures": [*_curves({"": run}, dashed=True), *_confusions(run)],
        "tables": [_metrics_table(run), *_class_tables(run), _data_table(run), _about_table(run)],
        "texts": [("Configuration", yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))],
    }
    return _write(folder / "report.html", page)


def write_comparison(groups: list[Group], target: Path, title: str) -> Path:
    """One page for several runs: the tables that the terminal shows, and the curves over each other."""
    first = {group.name: group.runs[0] for group in groups}
    kinds: dict[str, dict[str, Run]] = {}
    for name, run in first.items():
        kinds.setdefault(run.summary["objective"], {})[name] = run
    figures = [figure for runs in kinds.values() for figure in _curves(runs, dashed=False)]
    seeds = "Mean ± standard deviation over seeds; curves show the first seed." if any(len(g.runs) > 1 for g in groups) else ""
    return _write(target, {"title": title, "lead": seeds, "figures": figures, "tables": tables(groups), "tiles": [], "texts": []})


def _curves(runs: dict[str, Run], dashed: bool) -> list[Figure]:
    """The curves of runs of one objective; a single run's own unigram entropy is drawn as a dashed line."""
    read = {name: run.curves() for name, run in runs.items()}
    kind = next(iter(runs.values())).summary["objective"]
    figures = []
    for title, metrics, axis in CURVES:
        traces: list[dict[str, Any]] = []
        for name, curves in read.items():
            for metric in metrics if len(runs) == 1 else [m for m in metrics if m.startswith("validation/")][:1] or metrics:
                points = curves.get(metric, [])
                if len(points) > 0:
                    steps, values = zip(*points, strict=True)
                    mode = "lines" if len(points) > 30 else "lines+markers"
                    label = " · ".join(filter(None, [name, metric if len(runs) == 1 else ""]))
                    traces.append({"x": steps, "y": values, "name": label, "mode": mode, "type": "scatter"})
        entropy = next(iter(runs.values())).metrics.get("validation/unigram_entropy")
        if traces and title == "Loss" and dashed and entropy is not None:
            span = [min(t["x"][0] for t in traces), max(t["x"][-1] for t in traces)]
            traces.append(
                {
                    "x": span,
                    "y": [entropy] * 2,
                    "name": "unigram entropy",
                    "mode": "lines",
                    "line": {"dash": "dash"},
                    "type": "scatter",
                }
            )
        if traces:
            heading = title if dashed else f"{title} · {kind}"
            figures.append({"title": heading, "traces": traces, "x": "optimizer step", "y": axis})
    return figures


def _confusions(run: Run) -> list[Figure]:
    figures = []
    for split, found in run.evaluations().items():
        matrix = found["confusion_matrix"]
        shares = [[value / max(sum(row), 1) for value in row] for row in matrix]
        trace = {"z": shares, "x": found["labels"], "y": found["labels"], "text": matrix, "type": "heatmap", "colorscale": "Blues"}
        trace |= {
            "texttemplate": "%{text}",
            "showscale": False,
            "hovertemplate": "true %{y}<br>said %{x}<br>%{text}<extra></extra>",
        }
        figures.append({"title": f"Confusion · {split}", "traces": [trace], "x": "said", "y": "true", "reversed": True})
    return figures


def _metrics_table(run: Run) -> Table:
    return Table("Metrics", ["metric", "value"], [[name, f"{value:.5g}"] for name, value in run.metrics.items()])


def _class_tables(run: Run) -> list[Table]:
    found = []
    for split, found_ in run.evaluations().items():
        rows = [
            [name, *(f"{s[k]:.3f}" for k in ("precision", "recall", "f1")), str(s["support"])]
            for name, s in found_["per_class"].items()
        ]
        found.append(Table(f"Classes · {split}", ["class", "precision", "recall", "F1", "rows"], rows))
    return found


def _data_table(run: Run) -> Table:
    data = run.summary["data"]
    rows = [[split, f"{data['rows'][split]:,}", f"{data['tokens'][split]:,}"] for split in data["rows"]]
    return Table(f"Data · {data['name']} · {data['fingerprint'][:12]}", ["split", "rows", "tokens"], rows)


def _about_table(run: Run) -> Table:
    summary, seconds, energy = run.summary, run.summary["seconds"], run.summary["energy"]
    rows = [
        ["command", run.config.get("command") or "–"],
        ["seed", str(summary["seed"])],
        ["steps, tokens seen", f"{summary['steps']:,}, {summary['tokens_seen']:,}"],
        ["seconds", " · ".join(f"{name} {value:.1f}" for name, value in seconds.items())],
        [
            "energy",
            "not measured" if energy.get("kwh") is None else f"{energy['kwh']:.6f} kWh, {energy['co2eq_kg'] * 1000:.3f} g CO2eq",
        ],
        ["commit", summary["git"] or "–"],
        ["versions", ", ".join(f"{name} {version}" for name, version in summary["versions"].items())],
    ]
    return Table("How to reproduce it", ["", ""], rows)


def _write(target: Path, page: dict[str, Any]) -> Path:
    environment = jinja2.Environment(loader=jinja2.PackageLoader("llm_lightning.reporting"), autoescape=True)
    figures = json.dumps(page["figures"]).replace("</", "<\\/")
    script = files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    html = environment.get_template("report.html.j2").render(page, figures_json=figures, plotly=script)
    target.write_text(html, encoding="utf-8")
    return target
