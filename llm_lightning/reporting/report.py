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
from llm_lightning.reporting.table import COSTS, SCORES, Table, by_objective, columns_of, tables, written

Figure = dict[str, Any]
"""title, note, plotly traces and the axes' titles"""

CURVES = [  # title, the metrics drawn in it, the axis
    ("Loss", ["train/loss", "validation/loss"], "nats per target"),
    ("Quality", [f"validation/{name}" for name in (*SCORES, "mcc")], "score"),
    ("Bits per byte", ["validation/bits_per_byte"], "bits"),
    ("Learning rate", ["train/learning_rate"], "rate"),
    ("Gradient norm", ["train/gradient_norm"], "norm before clipping"),
    ("Throughput", ["train/tokens_per_second"], "tokens per second"),
]
COMPARED = [
    *((f"Validation {title}", f"validation/{name}", "score") for name, title in SCORES.items()),
    ("Training loss", "train/loss", "nats per target"),
    ("Validation loss", "validation/loss", "nats per target"),
]


def write_report(folder: Path) -> Path:
    """report.html of one run, in its folder."""
    run = load(folder)
    group = Group(run.summary["data"]["name"], [run])
    tiles = [(column.title, written(group, column)) for column in [*columns_of(run), *COSTS]]
    page = {
        "title": f"{run.summary['objective']} on {run.summary['data']['name']}",
        "lead": f"{run.folder.name} · {run.summary['model']['name']} · {run.summary['model']['parameters'] / 1e6:.1f}M parameters",
        "tiles": [tile for tile in tiles if tile[1] != "–"],
        "figures": [*_curves(run), *_confusions(run)],
        "tables": [_metrics_table(run), *_class_tables(run), _data_table(run), _about_table(run)],
        "texts": [("Configuration", yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))],
    }
    return _write(folder / "report.html", page)


def write_comparison(groups: list[Group], target: Path, title: str) -> Path:
    """One page for several runs: the tables that the terminal shows, and the curves over each other."""
    figures = [figure for kind, members in by_objective(groups).items() for figure in _comparisons(kind, members)]
    seeds = "Mean ± standard deviation over seeds; curves show the first seed." if any(len(g.runs) > 1 for g in groups) else ""
    return _write(target, {"title": title, "lead": seeds, "figures": figures, "tables": tables(groups), "tiles": [], "texts": []})


def _curves(run: Run) -> list[Figure]:
    """The curves of one run; a language model's unigram entropy is a dashed line in its loss."""
    curves = run.curves()
    figures = []
    for title, metrics, axis in CURVES:
        traces = [_line(metric, curves[metric]) for metric in metrics if metric in curves]
        entropy = run.metrics.get("validation/unigram_entropy")
        if traces and title == "Loss" and entropy is not None:
            steps = [step for trace in traces for step in trace["x"]]
            traces.append(_line("unigram entropy", [(min(steps), entropy), (max(steps), entropy)]) | {"line": {"dash": "dash"}})
        if traces:
            figures.append({"title": title, "traces": traces, "x": "optimizer step", "y": axis})
    return figures


def _comparisons(kind: str, groups: list[Group]) -> list[Figure]:
    """Each compared metric, the first seed of every group over the others."""
    read = [(group.name, group.runs[0].curves()) for group in groups]
    figures = []
    for title, metric, axis in COMPARED:
        traces = [_line(name, curves[metric]) for name, curves in read if metric in curves]
        if traces:
            figures.append({"title": f"{title} · {kind}", "traces": traces, "x": "optimizer step", "y": axis})
    return figures


def _line(name: str, points: list[tuple[float, float]]) -> dict[str, Any]:
    steps, values = zip(*points, strict=True)
    return {"x": steps, "y": values, "name": name, "mode": "lines" if len(points) > 30 else "lines+markers", "type": "scatter"}


def _confusions(run: Run) -> list[Figure]:
    figures = []
    for split, found in run.evaluations().items():
        if "confusion_matrix" not in found:
            continue
        matrix = found["confusion_matrix"]
        shares = [[value / max(sum(row), 1) for value in row] for row in matrix]
        trace = {"z": shares, "x": found["labels"], "y": found["labels"], "text": matrix, "type": "heatmap", "zmin": 0, "zmax": 1}
        trace |= {
            "colorscale": [[0, "rgba(47,111,222,0.03)"], [1, "rgba(47,111,222,0.95)"]],
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
            for name, s in found_.get("per_class", {}).items()
        ]
        if rows:
            found.append(Table(f"Classes · {split}", ["class", "precision", "recall", "F1", "number"], rows))
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
