"""Write the page of a report or a leaderboard: sections of figures and tables, in one file that needs no network.

Figures are plain plotly dictionaries: plotly.py is not imported (it would cost a second), only its JavaScript is put into the page
once (4.8 MB). Colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import html
import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from llm_lightning.atomic_files import write_atomically
from llm_lightning.reporting.table import Table

log = logging.getLogger(__name__)

Figure = dict[str, Any]
"""`title`, plotly `traces`, and optionally the axes' titles `x` and `y`, a `note`, whether it is `wide`, and plotly's `layout`."""


@dataclass
class Section:
    """A part of a page, with a heading that the page's menu links to."""

    title: str
    note: str = ""
    tiles: list[tuple[str, str, str]] = field(default_factory=list)
    """(name, value, remark)"""
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    """For each prompt: `prompt`, `reference` or None, and `texts` as (step, text)."""
    texts: list[tuple[str, str]] = field(default_factory=list)
    """(heading, preformatted text), collapsed."""
    sentences: list[str] = field(default_factory=list)
    changes: list[dict[str, str]] = field(default_factory=list)
    """Changed texts: `change`, `operation`, `before`, `after`, `predicted`, `predicted_after`."""

    @property
    def empty(self) -> bool:
        parts = (self.tiles, self.figures, self.tables, self.mistakes, self.samples, self.texts, self.sentences, self.changes)
        return not any(parts)


def sections(parts: Iterable[partial[Section]]) -> list[Section]:
    """Return the sections that are not empty. One that fails is named in the log and in the page; the others are kept."""
    shown = []
    for part in parts:
        try:
            section = part()
        except Exception as error:  # the run is done: a broken part of its record must not hide the rest
            name = part.func.__name__.strip("_").replace("_", " ")
            log.warning("report: %s is left out (%s: %s)", name, type(error).__name__, error)
            section = Section(name.capitalize(), texts=[("left out", f"{type(error).__name__}: {error}")])
        if not section.empty:
            shown.append(section)
    return shown


def write_page(target: Path, title: str, lead: str, page_sections: list[Section]) -> Path:
    """Write the sections as HTML. Return the path."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("llm_lightning.reporting"), autoescape=True, trim_blocks=True)
    figures = [figure for section in page_sections for figure in section.figures]
    drawn = json.dumps(_make_drawable(figures)).replace("<", "\\u003c")  # so that no text can end the script element
    script = files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    template = environment.get_template("page.html.j2")
    page = template.render(title=title, lead=lead, sections=page_sections, figures_json=drawn, plotly=script)
    with write_atomically(target) as file:
        file.write_text(page, encoding="utf-8")
    return target


def _make_drawable(value: Any, markup: bool = False) -> Any:
    """Return plain containers with null for NaN and infinity, which JSON lacks, and with texts escaped for plotly.

    Plotly interprets HTML in texts; only templates are meant to contain it.
    """
    if isinstance(value, dict):
        return {key: _make_drawable(item, str(key).endswith("template")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_make_drawable(item, markup) for item in value]
    if isinstance(value, str) and not markup:
        return html.escape(value, quote=False)
    return None if isinstance(value, float) and not math.isfinite(value) else value
