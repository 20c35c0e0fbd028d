"""Inspect the rows of a data set (`task=inspect`): what would mislead a model or its scores, in inspect.json and inspect.html.

Personal data is neither printed nor written: a finding is a row and a kind, and shown texts have `[kind]` in the place of the data.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from llm_lightning.config.schema import ColumnsConfig, Config, cache_folder
from llm_lightning.config.targets import import_target
from llm_lightning.data import encodings
from llm_lightning.data.copies import Conflict, Copies, find_conflicts, find_copies, group_rows
from llm_lightning.data.encodings import Encoding
from llm_lightning.data.label_values import parse_number
from llm_lightning.data.paths import ending, expand
from llm_lightning.data.personal_rows import PersonalRow, find_personal_rows
from llm_lightning.data.prepare import load_rows
from llm_lightning.data.row_texts import RowTexts, read_texts
from llm_lightning.data.rows import LINE, Rows, label_columns
from llm_lightning.data.sources import files, text
from llm_lightning.errors import UserError
from llm_lightning.inspection.languages import load_identifier
from llm_lightning.inspection.overlap import Evaluation
from llm_lightning.inspection.personal_data import Finder, find_personal_data, mask
from llm_lightning.inspection.presidio import Presidio
from llm_lightning.inspection.scripts import find_scripts
from llm_lightning.models import build
from llm_lightning.reporting import inspection_page
from llm_lightning.reporting.about import data_name
from llm_lightning.reporting.table import show
from llm_lightning.runs.folder import open_folder_alone, write_json
from llm_lightning.runs.log import start_log

log = logging.getLogger(__name__)

SAMPLE = 2000
"""Rows of train by which a column holds labels, or text."""
MANY = 10
"""Number of different labels up to which they are labels, whatever the number of rows."""
BARS = 24
LANGUAGES = 1000
"""Rows of a split whose language is identified."""


@dataclass(frozen=True, order=True)
class SharedPhrases:
    """A row that shares word 13-grams with a text of an evaluation."""

    split: str
    row: int
    other_file: str
    other_place: str
    shared: int


@dataclass(frozen=True, order=True)
class UnknownRow:
    """A row with characters that the tokenizer cannot spell."""

    split: str
    row: int
    unknown: int
    """Number of its unknown tokens."""


@dataclass(frozen=True)
class Facts:
    """Facts of a split."""

    rows: int
    blank: int
    characters: dict[str, Any]
    """Lengths: median, p95, longest, histogram."""
    scripts: dict[str, int]
    languages: dict[str, int]
    """Of the first LANGUAGES rows; empty where no language identifier is installed."""
    labels: dict[str, int]
    tokens: dict[str, Any] | None
    """Lengths, where a tokenizer is given."""


@dataclass(frozen=True)
class Inspection:
    """All that was found in a data set."""

    name: str
    texts: dict[str, RowTexts]
    facts: dict[str, Facts]
    copies: Copies
    conflicts: list[Conflict]
    personal: list[PersonalRow]
    unknown: list[UnknownRow] | None
    """None without a tokenizer."""
    overlaps: list[SharedPhrases] | None
    """None without inspect.against."""
    hide: Callable[[str], str]
    """Masks the personal data of a text that is shown."""


def inspect_data(config: Config) -> dict[str, Any]:
    """Inspect the data of `config`, write inspect.json and inspect.html, and print a table. Return the counts."""
    datasets.disable_progress_bars()
    folder = open_folder_alone(config)
    start_log(folder)
    log.info("inspect: %s", folder)
    inspection = find_everything(config)
    record = to_record(inspection)
    write_json(folder / "inspect.json", record)
    page = inspection_page.write_inspection(folder, inspection)
    show([inspection_page.summarize(inspection)])
    log.info("inspect: %s", page)
    return {"counts": record["counts"], "page": str(page)}


def find_everything(config: Config) -> Inspection:
    """Read the rows of every split, and find what there is to find."""
    cache = cache_folder(config)
    cache.mkdir(parents=True, exist_ok=True)
    encoder = encodings.get_encoder(import_target(config.objective["_target_"]).encoding)
    rows = load_rows(config.data, encoder, cache)
    columns, shares_contexts = config.data.columns, encoder.shares_contexts or config.data.source == "squad"
    if shares_contexts:
        columns = replace(columns, label=None)  # an answer is a part of the context
    texts = read_texts(rows, columns, encoder, not _holds_labels(rows["train"], columns))
    tokenizer = build.tokenizer(config.model)
    tokenize = None if tokenizer is None else encodings.get_encoder("documents")(tokenizer, config.data)
    log.info("inspect: %s", ", ".join(f"{split} {len(part):,} rows" for split, part in texts.items()))
    groups = group_rows(texts)
    finders: list[Finder] = [find_personal_data, *([Presidio()] if config.inspect.presidio else [])]
    personal = sorted({row for find in finders for row in find_personal_rows(texts, find)})
    hide = partial(_mask, finders=finders)
    facts, unknown = {}, []
    for split, part in texts.items():
        facts[split], unknown_rows = _describe(split, part, tokenize, hide)
        unknown += unknown_rows
    return Inspection(
        name=data_name(config),
        texts=texts,
        facts=facts,
        copies=find_copies(groups, near=not shares_contexts),
        conflicts=[
            replace(conflict, label=hide(conflict.label), other_label=hide(conflict.other_label))
            for conflict in find_conflicts(groups)
        ],
        personal=personal,
        unknown=None if tokenize is None else unknown,
        overlaps=None if config.inspect.against is None else _find_overlaps(texts, config, encoder),
        hide=hide,
    )


def to_record(inspection: Inspection) -> dict[str, Any]:
    """Return what inspect.json holds: the findings, each with its file, and their counts."""

    def locate(finding: Any) -> dict[str, Any]:
        entry = asdict(finding)
        for split, row, prefix in (("split", "row", ""), ("other_split", "other_row", "other_")):
            if split in entry:
                file, place = inspection.texts[entry[split]].place(entry[row])
                entry |= {f"{prefix}file": file, f"{prefix}place": place}
        return entry

    lists: dict[str, list[Any] | None] = {
        "near_duplicates": inspection.copies.duplicates,
        "leaks": inspection.copies.leaks,
        "conflicts": inspection.conflicts,
        "pii": inspection.personal,
        "unknown_tokens": inspection.unknown,
        "overlaps": inspection.overlaps,
    }
    findings_by_name = {name: findings for name, findings in lists.items() if findings is not None}
    counts = {name: len({(finding.split, finding.row) for finding in findings}) for name, findings in findings_by_name.items()}
    splits = {
        split: asdict(facts) | {name: count_rows(findings, split) for name, findings in findings_by_name.items()}
        for split, facts in inspection.facts.items()
    }
    everything = {name: [locate(finding) for finding in findings] for name, findings in findings_by_name.items()}
    return {"data": inspection.name, "counts": counts, "splits": splits, **everything}


def count_rows(findings: list[Any], split: str) -> int:
    """Return the number of rows of a split among findings."""
    return len({finding.row for finding in findings if finding.split == split})


def _holds_labels(train: Rows, columns: ColumnsConfig) -> bool:
    """Return whether the column of labels holds values that repeat, or numbers, and not text."""
    if columns.label is None:
        return False
    label = RowTexts(train, (), columns.label)
    names = label_columns(columns.label)
    if len(names) > 1 or not isinstance(train.table.features.get(names[0]), datasets.Value):
        return True
    front = replace(train, table=train.table.select(range(min(SAMPLE, len(train)))))
    values = [value for value in replace(label, rows=front).labels() if value is not None]
    numbers = sum(parse_number(value) is not None for value in values)
    return len(set(values)) <= max(MANY, len(values) // 2) or numbers > 0.9 * len(values)


def _describe(split: str, texts: RowTexts, encoder: Encoding | None, hide: Callable[[str], str]) -> tuple[Facts, list[UnknownRow]]:
    """Return the facts of a split, and its rows with unknown tokens if an encoder with a tokenizer is given."""
    characters: list[int] = []
    tokens: list[int] = []
    scripts: Counter[str] = Counter()
    unknown: list[UnknownRow] = []
    blank = 0
    unknown_token = None if encoder is None else encoder.tokenizer.unk_token_id
    for start, block in texts.blocks():
        characters += map(len, block)
        blank += sum(not text.strip() for text in block)
        scripts.update(find_scripts(block))
        if encoder is None:
            continue
        for number, ids in enumerate(encoder.tokenize(block)):
            tokens.append(len(ids))
            if unknown_token is not None and unknown_token in ids:
                unknown.append(UnknownRow(split, start + number, ids.count(unknown_token)))
    facts = Facts(
        rows=len(texts),
        blank=blank,
        characters=_measure(characters),
        scripts=dict(scripts.most_common()),
        languages=_count_languages(texts),
        labels={hide(label): count for label, count in _count_labels(texts).items()},
        tokens=None if encoder is None else _measure(tokens),
    )
    return facts, unknown


def _count_languages(texts: RowTexts) -> dict[str, int]:
    identify = load_identifier()
    if identify is None:
        return {}
    return dict(Counter(map(identify, texts.read(np.arange(min(LANGUAGES, len(texts)))))).most_common())


def _measure(lengths: list[int]) -> dict[str, Any]:
    """Return quantiles and a histogram of lengths."""
    counts, edges = np.histogram(lengths, BARS)
    quantiles = {name: float(np.quantile(lengths, share)) for name, share in (("median", 0.5), ("p95", 0.95), ("longest", 1.0))}
    return {**quantiles, "histogram": {"edges": edges.tolist(), "counts": counts.tolist()}}


def _count_labels(texts: RowTexts) -> dict[str, int]:
    """Return the number of rows (of tags, the number of words) with each label, the most frequent first."""
    counts: Counter[str] = Counter()
    if texts.label is None or not set(label_columns(texts.label)) <= set(texts.rows.table.column_names):
        return {}
    for names in texts.label_parts():
        counts.update(names)
    return dict(counts.most_common())


def _mask(text: str, finders: list[Finder]) -> str:
    for find in finders:
        text = mask(text, find)
    return text


def _find_overlaps(texts: dict[str, RowTexts], config: Config, encoder: type[Encoding]) -> list[SharedPhrases]:
    """Return the rows of train and validation that share phrases with the files of inspect.against."""
    others, places = [], []
    for path in expand("inspect.against", str(config.inspect.against)):
        for other, place in _read_evaluation(path, config, encoder):
            others.append(other)
            places.append(place)
    if not others:
        raise UserError(f"inspect.against={config.inspect.against}: there is no text in it.")
    evaluation = Evaluation(others)
    return sorted(
        SharedPhrases(split, start + overlap.text, *places[overlap.other], overlap.shared)
        for split, part in texts.items()
        if split != "test"  # which the files may be
        for start, block in part.blocks()
        for overlap in evaluation.find(block)
    )


def _read_evaluation(path: Path, config: Config, encoder: type[Encoding]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield (text, (file, place)) of a file: of its rows if it is a table or of the data's own kind, of its lines if it is plain text."""
    if ending(path) in text.ENDINGS:
        for piece in text.documents(path, replace(config.data, document="line")):
            yield piece["text"], (str(path), f"line {piece[LINE]}")
        return
    data = replace(config.data, train=str(path), validation=None, test=None, dir=None)
    if ending(path) in files.TABLES and data.source not in ("squad", "self_instruct"):
        column = config.inspect.against_column
        columns = replace(data.columns, label=None) if column is None else ColumnsConfig(text=column)
        data = replace(data, source="files", columns=columns)
    part = read_texts(load_rows(data, encoder, cache_folder(config)), data.columns, encoder)["train"]
    for start, block in part.blocks():
        yield from ((other, part.place(start + number)) for number, other in enumerate(block))
