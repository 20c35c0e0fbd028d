"""Compare runs: `python -m llm_lightning.reporting <folder>...` prints the tables and writes one report.html."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llm_lightning.errors import UserError
from llm_lightning.reporting.report import write_comparison
from llm_lightning.reporting.runs import find, grouped
from llm_lightning.reporting.table import show, tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llm_lightning.reporting", description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], help="run folders, or folders with runs below them"
    )
    parser.add_argument("--terminal", action="store_true", help="print the tables and write no page")
    parser.add_argument("--out", type=Path, help="the page to write; report.html in the first folder by default")
    parser.add_argument("--title", default="Runs compared")
    options = parser.parse_args()
    try:
        groups = grouped(find(options.folders))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    show(tables(groups))
    if not options.terminal:
        print(f"report: {write_comparison(groups, options.out or options.folders[0] / 'report.html', options.title)}")


if __name__ == "__main__":
    main()
