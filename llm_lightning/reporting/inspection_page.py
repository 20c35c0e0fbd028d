"""Write inspect.html: a table of what was found, then a table for each subject, the worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_lightning.inspection.near_duplicates import THRESHOLD
from llm_lightning.reporting import figures
from llm_lightning.reporting.page import Section, write_page
from llm_lightning.reporting.table import Table

if TYPE_CHECKING:
    from llm_lightning.reporting.inspection import Inspection

SHOWN = 12
"""Findings that a table shows; inspect.json has all."""
EXCERPT = 160
"""Characters of a shown text."""
NOTHING = "–"
LABELS = 100
"""Labels that a table shows."""


def write_inspection(folder: Path, inspection: Inspection) -> Path:
    """Write inspect.html. Return its path."""
    rows = " · ".join(f"{split} {facts.rows:,} rows" for split, facts in inspection.facts.items())
    subjects: list[tuple[Callable[[Inspection], Section], Sequence[Any]]] = [
        (list_leaks, inspection.copies.leaks),
        (list_conflicts, inspection.conflicts),
        (list_overlaps, inspection.overlaps or []),
        (list_personal_data, inspection.personal),
        (list_duplicates, inspection.copies.duplicates),
        (list_unknown_tokens, inspection.unknown or []),
    ]
    subjects.sort(key=lambda subject: -_find_largest_share(inspection, subject[1]))
    parts = [show_summary, *(write for write, findings in subjects if findings), show_labels, show_lengths]
    shown = [section for section in (part(inspection) for part in parts) if not section.empty]
    return write_page(folder / "inspect.html", f"Data of {inspection.name}", rows, shown)


def summarize(inspection: Inspection) -> Table:
    """Return the table that the terminal shows too: the rows with each finding by split, and the setting that leaves them out."""
    splits = inspection.facts
    rows = []
    for title, findings, remedy in _subjects(inspection):
        counts = {split: len({finding.row for finding in findings if finding.split == split}) for split in splits}
        rows.append([title, *(_format_share(count, splits[split].rows) for split, count in counts.items()), remedy])
    rows.append(["no text", *(_format_share(facts.blank, facts.rows) for facts in splits.values()), ""])
    rows.sort(key=lambda row: set(row[1:-1]) == {NOTHING})
    return Table("Rows with", ["", *splits, "left out of train by"], rows)


def _format_share(count: int, rows: int) -> str:
    share = 100 * count / max(rows, 1)
    return f"{count:,} ({share:.1f}%)" if share >= 0.1 else f"{count:,} (<0.1%)" if count else NOTHING


def _subjects(inspection: Inspection) -> list[tuple[str, Sequence[Any], str]]:
    """Return (title, findings, setting that leaves them out) of each subject, the gravest first."""
    copies = inspection.copies
    subjects: list[tuple[str, Sequence[Any], str]] = [
        ("a copy in a split that evaluates", [copy for copy in copies.leaks if copy.jaccard == 1], "data.clean=[leaks]"),
        ("a near copy there", [copy for copy in copies.leaks if copy.jaccard < 1], "data.clean=[leaks]"),
        ("a text that has two labels", inspection.conflicts, "data.clean=[conflicts]"),
        ("personal data", inspection.personal, "data.clean=[pii]"),
        ("an earlier copy in the split", [copy for copy in copies.duplicates if copy.jaccard == 1], "data.clean=[near_duplicates]"),
        ("an earlier near copy", [copy for copy in copies.duplicates if copy.jaccard < 1], "data.clean=[near_duplicates]"),
    ]
    if inspection.overlaps is not None:
        subjects.insert(2, ("13 words of the evaluation in a row", inspection.overlaps, ""))
    if inspection.unknown is not None:
        subjects.append(("characters that the tokenizer cannot spell", inspection.unknown, ""))
    return subjects


def show_summary(inspection: Inspection) -> Section:
    table = summarize(inspection)
    columns = ["finding", *table.columns[1:]]
    note = "Rows with each finding, and their share of the split. A row may have several. inspect.json lists all of them."
    return Section("At a glance", note, tables=[Table(table.title, columns, table.rows, has_texts=True)])


def _find_largest_share(inspection: Inspection, findings: Sequence[Any]) -> float:
    """Return the share of the rows of a split that have findings, in the split where it is largest."""
    counts = Counter(split for split, _ in {(finding.split, finding.row) for finding in findings})
    return max((count / max(inspection.facts[split].rows, 1) for split, count in counts.items()), default=0.0)


def list_leaks(inspection: Inspection) -> Section:
    """Return the rows of train that are in validation or test too."""
    copies = sorted(inspection.copies.leaks, key=lambda copy: (-copy.jaccard, copy.split != "train", copy.split, copy.row))
    note = (
        f"Rows of train (or validation) whose text is in a split that evaluates: copies, and texts that share {THRESHOLD:.0%} of their "
        f"word 5-grams. A score on such rows tells what was learnt by heart."
    )
    rows = [
        [f"{copy.jaccard:.2f}", *_places(inspection, copy), _excerpt(inspection, copy.split, copy.row)] for copy in copies[:SHOWN]
    ]
    return _section("Leaks", note, ["similarity", "row", "is like", "text of the row"], rows, len(copies))


def list_duplicates(inspection: Inspection) -> Section:
    """Return the texts that have the most copies in their split."""
    copies = sorted(inspection.copies.duplicates, key=lambda copy: (-copy.jaccard, copy.split != "train", copy.split, copy.row))
    repeated = Counter((copy.split, copy.other_row) for copy in copies)
    note = (
        f"Rows like an earlier row of their split. They count several times in training; {len(repeated):,} texts have such copies."
    )
    groups = sorted(repeated.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    first = {(copy.split, copy.other_row): copy for copy in reversed(copies)}
    rows = [
        [
            f"{number:,}",
            *_places(inspection, first[place]),
            f"{first[place].jaccard:.2f}",
            _excerpt(inspection, place[0], place[1]),
        ]
        for place, number in groups
    ]
    return _section(
        "Duplicates", note, ["copies", "a copy", "first row", "similarity", "text of the first row"], rows, len(repeated)
    )


def list_conflicts(inspection: Inspection) -> Section:
    """Return the rows whose text has another label elsewhere."""
    note = "Rows whose text (case and blanks aside) stands in another row with another label: one is wrong, or both are possible."
    rows = [
        [
            *_places(inspection, conflict),
            _cut(conflict.label, 40),
            _cut(conflict.other_label, 40),
            _excerpt(inspection, conflict.split, conflict.row),
        ]
        for conflict in inspection.conflicts[:SHOWN]
    ]
    return _section("Conflicts", note, ["row", "other row", "label", "other label", "text"], rows, len(inspection.conflicts))


def list_personal_data(inspection: Inspection) -> Section:
    """Return the number of rows by kind of personal data, and where they are."""
    kinds = Counter((finding.kind, finding.split) for finding in inspection.personal)
    splits = list(inspection.facts)
    names = sorted({kind for kind, _ in kinds}, key=lambda kind: -sum(kinds[kind, split] for split in splits))
    rows = [[kind.replace("_", " "), *(f"{kinds[kind, split]:,}" for split in splits)] for kind in names]
    places = [
        [finding.kind.replace("_", " "), *_place(inspection, finding.split, finding.row)]
        for kind in names
        for finding in [finding for finding in inspection.personal if finding.kind == kind][: max(3, SHOWN // max(len(names), 1))]
    ]
    note = (
        "E-mail addresses, phone numbers, IBANs, card numbers, IP addresses, keys and passwords, by patterns and checksums. The data is "
        "not shown. Names and postal addresses are not looked for (inspect.presidio=true does)."
    )
    tables = [Table("Rows with personal data", ["kind", *splits], rows)] if rows else []
    if places:
        tables.append(
            Table("Where", ["kind", "split", "place"], places, _rest(len(places), len(inspection.personal)), has_texts=True)
        )
    return Section("Personal data", note, tables=tables)


def list_overlaps(inspection: Inspection) -> Section:
    """Return the rows that share phrases with an evaluation."""
    phrases = sorted(inspection.overlaps or [], key=lambda overlap: -overlap.shared)
    note = "Rows that share 13 words in a row, or all words of a shorter text, with a text of inspect.against."
    rows = [
        [
            f"{overlap.shared:,}",
            _name_place(inspection, overlap.split, overlap.row),
            f"{Path(overlap.other_file).name} {overlap.other_place}",
            _excerpt(inspection, overlap.split, overlap.row),
        ]
        for overlap in phrases[:SHOWN]
    ]
    return _section("Overlap with an evaluation", note, ["13-grams", "row", "evaluation", "text of the row"], rows, len(phrases))


def list_unknown_tokens(inspection: Inspection) -> Section:
    """Return the rows that the tokenizer cannot spell."""
    unknown_rows = sorted(inspection.unknown or [], key=lambda row: -row.unknown)
    note = "Rows with characters that become the tokenizer's unknown token: the model cannot read them."
    rows = [
        [f"{row.unknown:,}", *_place(inspection, row.split, row.row), _excerpt(inspection, row.split, row.row)]
        for row in unknown_rows[:SHOWN]
    ]
    return _section("Tokenizer", note, ["unknown tokens", "split", "place", "text"], rows, len(unknown_rows))


def show_labels(inspection: Inspection) -> Section:
    """Return how often each label occurs, the rarest first."""
    cards = {split: {"labels": facts.labels} for split, facts in inspection.facts.items() if facts.labels}
    counts = {split: card["labels"] for split, card in cards.items()}
    names = sorted(
        {name for part in counts.values() for name in part}, key=lambda name: (counts.get("train", {}).get(name, 0), name)
    )
    rows = [
        [
            _cut(name, 60),
            *(f"{part.get(name, 0):,} ({100 * part.get(name, 0) / max(sum(part.values()), 1):.1f}%)" for part in counts.values()),
        ]
        for name in names[:LABELS]
    ]
    drawn = figures.balance(cards) if len(names) <= LABELS else []
    return Section(
        "Labels", "The rarest in train first.", figures=drawn, tables=[Table("Labels", ["label", *counts], rows)] if rows else []
    )


def show_lengths(inspection: Inspection) -> Section:
    """Return the lengths of the rows, and their scripts."""
    rows = []
    for unit in ("characters", "tokens"):
        for split, facts in inspection.facts.items():
            if (measured := getattr(facts, unit)) is not None:
                rows.append([f"{unit}, {split}", *(f"{measured[name]:,.0f}" for name in ("median", "p95", "longest"))])
    drawn = figures.lengths({split: {"lengths": facts.tokens or facts.characters} for split, facts in inspection.facts.items()})
    unit = "tokens" if all(facts.tokens for facts in inspection.facts.values()) else "characters"
    drawn = [{**figure, "x": f"{unit} of a row", "y": "share of the rows"} for figure in drawn]
    tables = [
        Table("Lengths", ["of a row", "median", "95th percentile", "longest"], rows),
        _count_kinds(inspection, "Scripts", "scripts"),
        _count_kinds(inspection, "Languages of the first rows", "languages"),
    ]
    return Section("Lengths and scripts", "", figures=drawn, tables=[table for table in tables if table.rows])


def _count_kinds(inspection: Inspection, title: str, kinds: str) -> Table:
    """Return a table of the rows with each of the `kinds` (a field of Facts), the most frequent first."""
    counts = {split: Counter(getattr(facts, kinds)) for split, facts in inspection.facts.items()}
    total = sum(counts.values(), Counter())
    rows = [[name, *(f"{part[name]:,}" for part in counts.values())] for name, _ in total.most_common()]
    return Table(title, ["rows mostly in", *counts], rows)


def _section(title: str, note: str, columns: list[str], rows: list[list[str]], total: int) -> Section:
    return Section(title, note, tables=[Table("", columns, rows, _rest(len(rows), total), has_texts=True)] if rows else [])


def _rest(shown: int, total: int) -> str:
    return f"{shown:,} of {total:,}; inspect.json has all." if shown < total else ""


def _places(inspection: Inspection, finding: Any) -> list[str]:
    """Return the places of a row and of the row that it is like."""
    return [
        _name_place(inspection, split, row)
        for split, row in ((finding.split, finding.row), (finding.other_split, finding.other_row))
    ]


def _name_place(inspection: Inspection, split: str, row: int) -> str:
    """Return the place of a row, with its split unless the file's name tells it."""
    _, place = _place(inspection, split, row)
    return place if place.startswith(split) else f"{split} {place}"


def _place(inspection: Inspection, split: str, row: int) -> list[str]:
    """Return [split, file name and place in it] of a row."""
    file, place = inspection.texts[split].place(row)
    return [split, f"{Path(file).name} {place}".strip()]


def _excerpt(inspection: Inspection, split: str, row: int) -> str:
    """Return the beginning of a row's text, with its personal data masked."""
    text = inspection.texts[split].read(np.array([row]))[0]
    return _cut(inspection.hide(text[: 20 * EXCERPT]), EXCERPT)


def _cut(text: str, size: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= size else f"{flat[:size].rstrip()}…"
