"""The page that reports and leaderboards are: sections of figures and tables, in one file that needs no network.

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

from llm_lightning.reporting.table import Table

log = logging.getLogger(__name__)

Figure = dict[str, Any]
"""`title`, plotly `traces`, and where there are such the axes' titles `x` and `y`, a `note`, whether it is `wide`, plotly's `layout`."""


@dataclass
class Section:
    """A part of a page, with a heading that the page's menu leads to."""

    title: str
    note: str = ""
    tiles: list[tuple[str, str, str]] = field(default_factory=list)
    """(name, value, remark)"""
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Of each prompt: `prompt`, `reference` where there is one, and `texts` as (step, text)."""
    texts: list[tuple[str, str]] = field(default_factory=list)
    """(heading, preformatted text), folded away."""

    @property
    def empty(self) -> bool:
        return not (self.tiles or self.figures or self.tables or self.mistakes or self.samples or self.texts)


def sections(parts: Iterable[partial[Section]]) -> list[Section]:
    """The sections that have something to show; one that fails is named in the log and in the page, and the others are there."""
    shown = []
    for part in parts:
        try:
            section = part()
        except Exception as error:  # a report is of a run that is done: what is broken in its record must not hide the rest
            name = part.func.__name__.strip("_").replace("_", " ")
            log.warning("report: %s is left out (%s: %s)", name, type(error).__name__, error)
            section = Section(name.capitalize(), texts=[("left out", f"{type(error).__name__}: {error}")])
        if not section.empty:
            shown.append(section)
    return shown


def write_page(target: Path, title: str, lead: str, page_sections: list[Section]) -> Path:
    """The sections as HTML."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("llm_lightning.reporting"), autoescape=True, trim_blocks=True)
    figures = [figure for section in page_sections for figure in section.figures]
    drawn = json.dumps(_drawable(figures)).replace("<", "\\u003c")  # nothing in it can end the script that it is in
    script = files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    template = environment.get_template("page.html.j2")
    page = template.render(title=title, lead=lead, sections=page_sections, figures_json=drawn, plotly=script)
    partial_file = target.with_name(f".{target.name}.partial")
    partial_file.write_text(page, encoding="utf-8")
    partial_file.replace(target)
    return target


def _drawable(value: Any, markup: bool = False) -> Any:
    """Plain containers with null for what is no number, which JSON does not have, and with texts that plotly shows as they are.

    It takes what looks like HTML in them for such; only templates are meant so.
    """
    if isinstance(value, dict):
        return {key: _drawable(item, str(key).endswith("template")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_drawable(item, markup) for item in value]
    if isinstance(value, str) and not markup:
        return html.escape(value, quote=False)
    return None if isinstance(value, float) and not math.isfinite(value) else value
