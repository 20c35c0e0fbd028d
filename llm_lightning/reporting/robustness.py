"""Show the slices of a split and the invariance tests of a run: sentences, sections of the report, and a paragraph of the model card."""

from __future__ import annotations

import csv
import json
from typing import Any

from llm_lightning.reporting.page import Figure, Section
from llm_lightning.reporting.runs import Run
from llm_lightning.reporting.table import SCORES, WRITTEN, Table

SIGNIFICANT = 0.05
SENTENCES = 5  # slices that are told in a sentence; the table has all
DRAWN = 15  # slices in the figure, the worst
EXAMPLES = 4  # changed texts of each kind of change
TITLES = SCORES | WRITTEN | {"mae": "mean absolute error"}
KINDS = {
    "typos": "typos",
    "case": "other case",
    "punctuation": "punctuation at the end",
    "names": "swapped first names",
    "negation": "a negation added or removed",
}

Record = dict[str, Any]


def read_record(run: Run, name: str) -> Record | None:
    """Return the record `slices` or `invariance` of a run: that of the last task=evaluate on the same data, else that of its own end."""
    stored: Record | None = run.summary.get(name)
    try:
        later = json.loads((run.folder / "evaluate.json").read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError):
        return stored
    is_same = later is not None and run.evaluations().get(later["split"], {}).get("rows") == later["data"]
    return later if is_same else stored


# ---- sentences ----


def describe_slices(record: Record) -> list[str]:
    """Return a sentence on all rows, then one on each slice, the worst first."""
    overall = "" if record["overall"] is None else f" {_number(record['overall'], record['unit'])}"
    count = record["compared"]
    tests = f"p of {count} comparisons with the rest is corrected (Holm)" if count else "no slice can be compared with the rest"
    title = _title(record)
    first = f"{title} of {record['split']}:{overall} over {record['rows']:,} rows; {tests}"
    return [first, *(describe_slice(part, record["unit"]) for part in record["parts"])]


def describe_slice(part: Record, unit: str) -> str:
    """Return a sentence: `27 to 51 tokens: 81.2% [76.0, 85.9] of 220 rows, 6.1 points below the rest, p = 0.004`."""
    rows = f"{part['rows']:,} row{'s' if part['rows'] != 1 else ''}"
    if part["score"] is None:
        return f"{name_slice(part)}: no score, {part['note']} ({rows})"
    low, high = (_number(part[bound], unit).rstrip("%") for bound in ("low", "high"))
    value = f"{name_slice(part)}: {_number(part['score'], unit)} [{low}, {high}] of {rows}"
    if part["difference"] is None:
        return f"{value}, not compared: {part['note']}"
    gap = abs(part["difference"]) * (100 if unit == "share" else 1)
    points = f"{gap:.1f} points" if unit == "share" else f"{gap:.1f}" if unit == "points" else f"{gap:.3g}"
    side = "as the rest" if not gap else f"{points} {'above' if part['difference'] > 0 else 'below'} the rest"
    return f"{value}, {side}, {_p(part['p'])}"


def name_slice(part: Record) -> str:
    """Return the name of a slice with what it is cut by: `27 to 51 tokens`, `script Latin`, `source = web`."""
    if part["by"] == "length":
        return str(part["slice"])
    return f"{part['by']} {part['slice']}" if part["by"] in ("script", "language") else f"{part['by']} = {part['slice']}"


def _title(record: Record) -> str:
    return TITLES.get(str(record["score"]), str(record["score"]))


def _number(value: float, unit: str) -> str:
    return f"{100 * value:.1f}%" if unit == "share" else f"{value:.1f}" if unit == "points" else f"{value:.3g}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def describe_invariance(record: Record) -> list[str]:
    """Return a sentence on each kind of change, and of pairs one on the text that is changed."""
    which = [f"of each pair, the text in the column '{record['column']}' is changed"] if record["is_pair"] else []
    return [*(describe_change(entry, record["predicts"]) for entry in record["changes"]), *which]


def describe_change(entry: Record, predicts: str) -> str:
    """Return a sentence: `typos: 3.1% [2.0, 4.7] of 640 changed rows flip`; of a negation how many stay; of numbers how far they move."""
    kind = KINDS.get(entry["change"], entry["change"])
    if not entry["changed"]:
        return f"{kind}: none of {entry['tried']:,} rows can be changed so"
    rows = f"{entry['changed']:,} changed row{'s' if entry['changed'] != 1 else ''} (of {entry['tried']:,})"
    same = f"; the tokenizer reads {entry['same_tokens']:,} of them as before" if entry["same_tokens"] else ""
    if predicts == "number":
        interval = f"[{entry['move_low']:.3g}, {entry['move_high']:.3g}]"
        return f"{kind}: the prediction of {rows} moves by {entry['mean_move']:.3g} {interval} on average{same}"
    rate, low, high = read_failure(entry)
    verb = "stay, though they should flip" if entry["expected"] == "flip" else "flip"
    return f"{kind}: {100 * rate:.1f}% [{100 * low:.1f}, {100 * high:.1f}] of {rows} {verb}{same}"


def read_failure(entry: Record) -> tuple[float, float, float]:
    """Return the share of changed rows that fail, with its interval: those that flip, or of a directional change those that stay."""
    if entry["expected"] == "flip":
        return 1 - entry["rate"], 1 - entry["high"], 1 - entry["low"]
    return entry["rate"], entry["low"], entry["high"]


# ---- the report ----


def slices(run: Run) -> Section:
    """Return the scores of slices, the worst first."""
    record = read_record(run, "slices")
    if record is None:
        return Section("Slices")
    first, *sentences = describe_slices(record)
    few = f"A slice with fewer than {record['fewest_rows']} rows has no score."
    compared = [part for part in record["parts"] if part["difference"] is not None]
    rows = [_slice_row(part, record["unit"]) for part in record["parts"]]
    title = _title(record)
    table = Table(
        f"Slices · {record['split']}", ["slice", "rows", title, "95% interval", "the rest", "p (Holm)"], rows, few, sortable=True
    )
    worst = [describe_slice(part, record["unit"]) for part in compared[:SENTENCES]]
    note = f"{first[0].upper()}{first[1:]}. The worst first."
    return Section("Slices", note, sentences=worst or sentences[:SENTENCES], figures=_draw_slices(record, compared), tables=[table])


def _slice_row(part: Record, unit: str) -> list[str]:
    """Return a slice's row of the table: name, rows, score, interval, score of the rest, p or the reason why there is none."""
    row = [name_slice(part), f"{part['rows']:,}"]
    if part["score"] is None:
        return [*row, "–", "–", "–", str(part["note"])]
    row += [_number(part["score"], unit), f"{_number(part['low'], unit)} to {_number(part['high'], unit)}"]
    if part["p"] is None:
        return [*row, "–", str(part["note"])]
    return [*row, _number(part["rest"], unit), _p(part["p"]).removeprefix("p = ").removeprefix("p ")]


def _draw_slices(record: Record, compared: list[Record]) -> list[Figure]:
    """Draw the score of the worst slices with its interval, and the score of all rows as a line."""
    drawn = compared[:DRAWN][::-1]
    if not drawn or record["overall"] is None:
        return []
    factor = 100 if record["unit"] == "share" else 1
    scores = [factor * part["score"] for part in drawn]
    trace = {
        "x": scores,
        "y": [name_slice(part) for part in drawn],
        "type": "scatter",
        "mode": "markers",
        "name": "slice",
        "marker": {"size": 9},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [factor * part["high"] - score for part, score in zip(drawn, scores, strict=True)],
            "arrayminus": [score - factor * part["low"] for part, score in zip(drawn, scores, strict=True)],
            "thickness": 1.5,
            "width": 4,
        },
        "customdata": [part["rows"] for part in drawn],
        "hovertemplate": "%{x:.4g} · %{customdata:,} rows<extra></extra>",
    }
    overall = factor * record["overall"]
    mark = {"type": "line", "x0": overall, "x1": overall, "y0": 0, "y1": 1, "yref": "paper", "line": {"dash": "dot", "width": 1}}
    layout = {"shapes": [mark], "hovermode": "closest", "yaxis": {"type": "category"}}
    title = f"{_title(record)}{', %' if factor == 100 else ''}"
    note = "Dotted: all rows." + (f" The {DRAWN} worst of {len(compared)} slices." if len(compared) > DRAWN else "")
    return [
        {
            "title": f"Slices · {record['split']}",
            "traces": [trace],
            "x": title,
            "y": "",
            "layout": layout,
            "note": note,
            "wide": True,
        }
    ]


def invariance(run: Run) -> Section:
    """Return how often predictions flip when texts change in ways that should not matter, with the worst examples."""
    record = read_record(run, "invariance")
    if record is None:
        return Section("Invariance")
    is_number = record["predicts"] == "number"
    tiles = [_tile(entry, is_number) for entry in record["changes"] if entry["changed"]]
    drawn = f"All {record['rows']:,} rows"
    if record["rows"] < record["of"]:
        drawn = f"{record['rows']:,} of {record['of']:,} rows, drawn by the seed,"
    note = (
        f"{drawn} of {record['split']} are changed and predicted again. Typos, case, punctuation and names should change no prediction; "
        f"a negation should (there, what stayed is the failure)."
    )
    rows = [
        [
            f"{entry['change']}, {name}",
            f"{of_operation['changed']:,}",
            "–" if of_operation["flips"] is None else f"{of_operation['flips']:,}",
            f"{of_operation['mean_move']:.3f}",
        ]
        for entry in record["changes"]
        for name, of_operation in entry["operations"].items()
    ]
    table = Table("Changes", ["change", "rows", "flips", "mean move of the score"], rows, sortable=True)
    return Section(
        "Invariance",
        note,
        tiles=tiles,
        sentences=describe_invariance(record),
        tables=[table] if rows else [],
        changes=_read_worst(run),
    )


def _tile(entry: Record, is_number: bool) -> tuple[str, str, str]:
    if is_number:
        return entry["change"], f"{entry['mean_move']:.3g}", f"mean move of {entry['changed']:,} rows"
    rate, low, high = read_failure(entry)
    verb = "stayed" if entry["expected"] == "flip" else "flipped"
    return entry["change"], f"{100 * rate:.1f}%", f"{100 * low:.1f} to {100 * high:.1f}, of {entry['changed']:,} {verb}"


def _read_worst(run: Run) -> list[dict[str, str]]:
    """Return the worst rows of each kind of change from evaluation/invariance.csv, which lists them worst first."""
    file = run.folder / "evaluation" / "invariance.csv"
    if not file.is_file():
        return []
    worst: dict[str, list[dict[str, str]]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            members = worst.setdefault(row["change"], [])
            if len(members) < EXAMPLES:
                members.append(row)
    return [row for members in worst.values() for row in members]


# ---- the model card ----


def describe_failures(run: Run) -> str:
    """Return the paragraph of the model card on where the model fails, or on what was not measured."""
    sentences = []
    if (record := read_record(run, "slices")) is not None:
        sentences.append(_describe_worst_slice(record))
    if (record := read_record(run, "invariance")) is not None:
        results = "; ".join(describe_invariance(record))
        sentences.append(f"Predictions for changed texts ({record['rows']:,} rows of {record['split']}): {results}.")
    missing = [name for name in ("slices", "invariance") if read_record(run, name) is None]
    if missing:
        names = {"slices": "the scores of slices (evaluate.slices)", "invariance": "changes of the texts (evaluate.invariance)"}
        sentences.append(f"Not measured: {' and '.join(names[name] for name in missing)}.")
    return " ".join(sentences)


def _describe_worst_slice(record: Record) -> str:
    """Return a sentence on the slice that is worst by more than chance, or on that there is none."""
    sign = 1 if record["unit"] == "error" else -1
    compared = [part for part in record["parts"] if part["p"] is not None]
    worse = [part for part in compared if sign * part["difference"] > 0]
    cuts = ", ".join(record["names"])
    if sure := [part for part in worse if part["p"] < SIGNIFICANT]:
        more = f" ({len(sure)} slices are worse than the rest by more than chance)" if len(sure) > 1 else ""
        return f"Of slices by {cuts}, the worst is {describe_slice(sure[0], record['unit'])}{more}."
    if not worse:
        return f"Of slices by {cuts}, none could be compared with the rest." if not compared else f"Slices by {cuts} score alike."
    return (
        f"Of {len(compared)} slices by {cuts}, none is worse than the rest by more than chance (Holm, {SIGNIFICANT:.0%}); the lowest is "
        f"{describe_slice(worse[0], record['unit'])}."
    )
