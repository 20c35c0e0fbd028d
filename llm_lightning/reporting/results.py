"""Write the results of a finished run: summary.json, the tables of its evaluations, the report and the model card."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from llm_lightning.reporting.card import write_card
from llm_lightning.reporting.report import write_report
from llm_lightning.runs.folder import write_json

log = logging.getLogger(__name__)


def write_results(folder: Path, summary: dict[str, Any], details: dict[str, Any]) -> None:
    """Write summary.json, the evaluation tables, the report and the model card, and log the metrics."""
    for split, tables in details.items():
        if tables:
            write_json(folder / "evaluation" / f"{split}.json", tables)
    write_json(folder / "summary.json", summary)
    page = write_pages(folder)
    log.info("%s", "\n".join(f"  {name:<32} {value:.4f}" for name, value in summary["metrics"].items()))
    log.info("weights: %s · report: %s", summary["export"], page)


def write_pages(folder: Path) -> Path:
    """Write the report and the model card of a finished run from its folder. Return the path of the report."""
    write_card(folder)
    return write_report(folder)
