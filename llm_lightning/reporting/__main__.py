"""Compare runs: `python -m llm_lightning.reporting <folder>...` prints the tables and writes one page.

For a single run's folder, it writes that run's own report anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llm_lightning.errors import UserError
from llm_lightning.reporting.leaderboard import write_comparison
from llm_lightning.reporting.report import write_report
from llm_lightning.reporting.runs import find, group_runs
from llm_lightning.reporting.table import all_tables, show, write_csv


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llm_lightning.reporting", description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], help="run folders, or folders with runs below them"
    )
    parser.add_argument("--terminal", action="store_true", help="print the tables and write no page")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the tables to this file too")
    parser.add_argument("--out", type=Path, help="the page to write; report.html in the first folder by default")
    parser.add_argument("--title", default="Runs compared")
    options = parser.parse_args()
    try:
        runs = find(options.folders)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    groups = group_runs(runs)
    tables = all_tables(groups)
    show(tables)
    if options.csv is not None:
        write_csv(tables, options.csv)
        print(f"csv: {options.csv}")
    if options.terminal:
        return
    first = options.folders[0]
    if options.out is None and [run.folder for run in runs] == [first]:
        print(f"report: {write_report(first)}")
        return
    name = "comparison.html" if (first / "summary.json").is_file() else "report.html"  # a run's own report stays
    print(f"report: {write_comparison(groups, options.out or first / name, options.title)}")


if __name__ == "__main__":
    main()
