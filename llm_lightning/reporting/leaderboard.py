"""Write the page that compares runs: a sortable table, quality over cost, the effect of settings, and tests of significance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_lightning.reporting.figures import line
from llm_lightning.reporting.page import Figure, Section, sections, write_page
from llm_lightning.reporting.runs import Group, settings
from llm_lightning.reporting.significance import half_width
from llm_lightning.reporting.table import PAID, SCORES, Column, Quality, by_data, by_objective, quality, significance, tables

COMPARED = [
    *((f"Validation {title}", f"validation/{name}", "score") for name, title in SCORES.items()),
    ("Training loss", "train/loss", "nats per target"),
    ("Validation loss", "validation/loss", "nats per target"),
]
LABELLED, LONG = 10, 32  # points of a figure up to which names fit, and characters above which a name does not
BEST, OTHER = "#3b7ce8", "#8b8f97"
AXES = 6  # settings drawn as parallel axes, beside the costs and the quality
WIDE_RANGE = 20.0  # largest over smallest value above which an axis is logarithmic


def write_comparison(groups: list[Group], target: Path, title: str, figures: Sequence[Figure] = ()) -> Path:
    """Write a page for several runs. `figures`, dictionaries with a `title`, plotly `traces` and perhaps a `layout`, precede the curves."""
    count = sum(len(group.runs) for group in groups)
    lead = f"{count} runs of {len(groups)} configurations" if count > len(groups) else f"{count} runs"
    kinds = by_objective(groups)
    parts: list[partial[Section]] = []
    for kind, members in kinds.items():
        parts.append(partial(_ranking, members))
        parts += [partial(_draw_tradeoff, kind, comparable) for comparable in by_data(members) if len(comparable) > 1]
    parts += [partial(_sweep, list(figures)), *(partial(_curves, kind, members) for kind, members in kinds.items())]
    return write_page(target, title, lead, sections(parts))


def _sweep(figures: list[Figure]) -> Section:
    return Section("The sweep", figures=[{"x": "", "y": "", **figure} for figure in figures])


def _ranking(groups: list[Group]) -> Section:
    """Return the terminal's table, and tests whether its first row is the best."""
    (table,) = tables(groups)
    tests = [test for members in by_data(groups) if (test := significance(members)) is not None]
    return Section(table.title, tables=[replace(table, title=""), *tests])


def _draw_tradeoff(kind: str, groups: list[Group]) -> Section:
    """Return charts of quality over each cost, and of the settings with their results."""
    best = quality(groups)
    if best is None:
        return Section(kind)
    drawn = [figure for column in PAID if (figure := pareto(groups, best, column)) is not None]
    together = parallel(groups, best)
    note = "Line: the configurations that no other beats in both. Bars: 95% interval of the mean over seeds."
    return Section(f"Trade-offs · {kind} on {groups[0].data}", note, figures=([together] if together else []) + drawn)


def _curves(kind: str, groups: list[Group]) -> Section:
    """Return the curves of each compared metric, the first seed of every group above the others."""
    read = [(group.name, group.runs[0].curves()) for group in groups]
    figures = []
    for title, metric, axis in COMPARED:
        traces = [line(name, curves[metric]) for name, curves in read if metric in curves]
        if traces:
            figures.append({"title": f"{title} · {kind}", "traces": traces, "x": "optimizer step", "y": axis})
    note = "The first seed of each." if any(len(group.runs) > 1 for group in groups) else ""
    return Section(f"Curves · {kind}", note, figures=figures)


def pareto(groups: list[Group], best: Quality, column: Column) -> Figure | None:
    """Draw quality over a cost, with the Pareto frontier; None if fewer than two groups have the cost, or all have the same."""
    points = [
        (paid, score, half_width(group.values(best.column.pick)) or 0.0, group.name)
        for group in groups
        if (paid := group.mean(column.pick)) is not None and (score := group.mean(best.column.pick)) is not None
    ]
    if len({paid for paid, *_ in points}) < 2:
        return None
    points.sort(key=lambda point: (point[0], -point[1] if best.higher else point[1]))
    edge = frontier([(paid, score) for paid, score, *_ in points], best.higher)
    labelled = len(points) <= LABELLED and max(len(name) for *_, name in points) <= LONG
    x, y, halves, names = map(list, zip(*points, strict=True))
    logarithmic = min(x) > 0 and max(x) / min(x) > WIDE_RANGE
    middle = math.sqrt(min(x) * max(x)) if logarithmic else (min(x) + max(x)) / 2
    traces = [
        {
            "x": [x[i] for i in edge],
            "y": [y[i] for i in edge],
            "mode": "lines",
            "line": {"dash": "dot", "width": 1.5, "color": BEST},
            "hoverinfo": "skip",
        },
        {
            "x": x,
            "y": y,
            "text": names,
            "mode": "markers+text" if labelled else "markers",
            "textposition": ["middle right" if place < middle else "middle left" for place in x],
            "textfont": {"size": 11},
            "cliponaxis": False,
            "marker": {"size": 11, "opacity": 1, "color": [BEST if i in edge else OTHER for i in range(len(x))]},
            "error_y": {"type": "data", "array": halves, "thickness": 1, "width": 3, "color": OTHER, "visible": any(halves)},
            "hovertemplate": f"%{{text}}<br>{best.title} %{{y:.4g}}<br>{column.title} %{{x:.4g}}<extra></extra>",
        },
    ]
    layout: dict[str, Any] = {"showlegend": False, "hovermode": "closest"}
    span = (max(x) - min(x)) * 0.15
    if logarithmic:
        layout["xaxis"] = {"type": "log"}
    elif labelled:
        layout["xaxis"] = {"range": [min(x) - span, max(x) + span]}
    return {"title": f"{best.title} over {column.title}", "traces": traces, "x": column.title, "y": best.title, "layout": layout}


def frontier(points: list[tuple[float, float]], higher: bool) -> list[int]:
    """Return the indices of the points (cost, quality), sorted by cost, that are better than all points that cost no more."""
    indices: list[int] = []
    for i, (_, score) in enumerate(points):
        if not indices or (score > points[indices[-1]][1] if higher else score < points[indices[-1]][1]):
            indices.append(i)
    return indices


def parallel(groups: list[Group], best: Quality) -> Figure | None:
    """Draw a line per configuration through the settings in which they differ, their costs and their quality.

    These are plain lines: plotly's own parallel coordinates need WebGL, and are not legible on a phone.
    """
    axes = [*_settings(groups)[:AXES], *((c.title, [g.mean(c.pick) for g in groups]) for c in PAID[:1] + PAID[-1:])]
    axes.append((best.title, [group.mean(best.column.pick) for group in groups]))
    axes = [(name, values) for name, values in axes if len({str(value) for value in values}) > 1 and None not in values]
    if len(axes) < 3 or len(groups) < 3:
        return None
    placed = [_place_on_axis(values) for _, values in axes]
    scores = placed[-1][0] if best.higher else [1 - place for place in placed[-1][0]]
    traces = [
        {
            "x": list(range(len(axes))),
            "y": [places[i] for places, _ in placed],
            "name": group.name,
            "mode": "lines+markers",
            "line": {"color": _pick_shade(scores[i]), "width": 2},
            "text": [f"{group.name}: {name} {_text(values[i])}" for name, values in axes],
            "hovertemplate": "%{text}<extra></extra>",
        }
        for i, group in enumerate(groups)
    ]
    notes = [
        {"x": i, "y": place, "text": text, "showarrow": False, "xanchor": "left", "xshift": 4, "yshift": 7, "font": {"size": 10}}
        for i, (_, ticks) in enumerate(placed)
        for place, text in _drop_overlapping(ticks)
    ]
    layout = {
        "showlegend": False,
        "hovermode": "closest",
        "annotations": notes,
        "xaxis": {"tickvals": list(range(len(axes))), "ticktext": [name for name, _ in axes], "range": [-0.2, len(axes) - 0.4]},
        "yaxis": {"visible": False, "range": [-0.08, 1.08]},
    }
    return {"title": "What was set, and what came of it", "traces": traces, "x": "", "y": "", "wide": True, "layout": layout}


def _settings(groups: list[Group]) -> list[tuple[str, list[Any]]]:
    """Return (setting, its value in each group) for settings that differ; a preset replaces the model settings that come with it."""
    settings_by_group = [settings(group.runs[0].config) for group in groups]
    presets = [(group.runs[0].config.get("choices") or {}).get("model") for group in groups]
    several = len(set(presets)) > 1
    axes: list[tuple[str, list[Any]]] = [("model", presets)] if several else []
    for key in dict.fromkeys(key for group_settings in settings_by_group for key in group_settings):
        values = [group_settings.get(key) for group_settings in settings_by_group]
        if len({str(value) for value in values}) > 1 and not (several and key.startswith("model.")):
            name = key.removesuffix("._target_")
            shown = values if name == key else [str(value).rpartition(".")[2] for value in values]
            axes.append((name.split(".", 1)[-1], ["none" if value is None else value for value in shown]))
    return axes


def _place_on_axis(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the position of each value on an axis from 0 to 1, and the labelled positions."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        names = sorted({str(value) for value in values})
        place = {name: i / max(len(names) - 1, 1) for i, name in enumerate(names)}
        return [place[str(value)] for value in values], [(at, name) for name, at in place.items()]
    low, high = min(numbers), max(numbers)
    scale = math.log if low > 0 and high / low > WIDE_RANGE else float
    bottom, top = scale(low), scale(high)
    places = [(scale(value) - bottom) / (top - bottom) for value in numbers]
    ends = [(0.0, _text(low)), (1.0, _text(high))]
    if len(set(numbers)) <= 5:
        return places, sorted({(place, _text(value)) for place, value in zip(places, numbers, strict=True)})
    return places, ends


def _drop_overlapping(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Return labels that do not overlap, the ends first."""
    labels: list[tuple[float, str]] = []
    for place, text in sorted(ticks, key=lambda tick: -abs(tick[0] - 0.5)):
        if all(abs(place - other) > 0.07 for other, _ in labels):
            labels.append((place, text))
    return labels


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _pick_shade(share: float) -> str:
    """Return a colour from grey for the worst to blue for the best."""
    ends = ((150, 158, 170), (47, 111, 222))
    mixed = [round(a + (b - a) * share) for a, b in zip(*ends, strict=True)]
    return f"rgba({mixed[0]},{mixed[1]},{mixed[2]},{0.45 + 0.5 * share:.2f})"
