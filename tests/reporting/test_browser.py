"""The pages in a browser: no error in its console, figures that are drawn, a table that sorts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llm_lightning.reporting.leaderboard import write_comparison
from llm_lightning.reporting.report import write_report
from llm_lightning.reporting.runs import find, group_runs

from .test_comparison import figures, write

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium or google-chrome on this machine")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
CONSOLE = re.compile(r"CONSOLE[:(].*")


def opened(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """(the page's elements after its scripts ran, what was written to the console)"""
    settings = [
        *QUIET,
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=5000",
    ]
    assert BROWSER is not None
    result = subprocess.run(
        [BROWSER, "--headless", *settings, *options, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return result.stdout, CONSOLE.findall(result.stderr)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, seconds, accuracy in (("small", 1.0, 0.5), ("medium", 20.0, 0.8), ("large", 300.0, 0.7)):
        for seed in (1, 2):
            folder = tmp_path / f"{name}-{seed}"
            write(folder, seed, None, accuracy + 0.01 * seed, lr=seconds / 1000, preset=name, seconds=seconds)
    add_failures(tmp_path / "small-1")
    return tmp_path


def add_failures(folder: Path) -> None:
    """Add slices and flips to a run, with texts that are no markup."""
    slice_scores = {"rows": 220, "score": 0.8, "low": 0.7, "high": 0.9, "rest": 0.9, "difference": -0.1, "p": 0.01, "note": None}
    parts = [{"by": "length", "slice": "3 to 9 tokens"}, {"by": "source", "slice": "<b>web</b>"}]
    record = {"split": "test", "score": "accuracy", "unit": "share", "rows": 440, "overall": 0.85, "fewest_rows": 20, "compared": 2}
    change = {"change": "typos", "expected": "stay", "tried": 90, "changed": 80, "same_tokens": 0, "flips": 8, "rate": 0.1}
    change |= {"low": 0.05, "high": 0.18, "operations": {"swap": {"changed": 80, "flips": 8, "mean_move": 0.2}}}
    changes = {"split": "test", "of": 90, "rows": 90, "column": "text", "is_pair": False, "predicts": "label", "changes": [change]}
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"slices": record | {"parts": [part | slice_scores for part in parts]}, "invariance": changes}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "evaluation").mkdir()
    columns = "change,operation,row,place,before,after,predicted,predicted_after,distance"
    (folder / "evaluation" / "invariance.csv").write_text(
        f"{columns}\ntypos,swap,3,here,<i>good</i>,<i>godo</i>,good 90%,bad 80%,0.7\n"
    )


@pytest.mark.parametrize("size", ["1280,900", "390,844"])
def test_pages_load_without_an_error_and_draw_every_figure(runs: Path, tmp_path: Path, size: str) -> None:
    for page in (write_comparison(group_runs(find([runs])), runs / "report.html", "Compared"), write_report(runs / "small-1")):
        elements, console = opened(page, tmp_path / "profile", f"--window-size={size}")
        assert console == []
        assert elements.count('<div class="figure js-plotly-plot"') == len(figures(page)) > 1
        assert elements.count('<div class="plot-container plotly"') == len(figures(page))


def test_slices_and_flips_are_shown_as_text(runs: Path) -> None:
    page = write_report(runs / "small-1").read_text().partition("<script>")[0]
    assert "source = &lt;b&gt;web&lt;/b&gt;: 80.0% [70.0, 90.0] of 220 rows, 10.0 points below the rest, p = 0.010" in page
    assert "typos: 10.0% [5.0, 18.0] of 80 changed rows (of 90) flip" in page
    assert "&lt;i&gt;godo&lt;/i&gt;" in page


def test_an_error_in_a_page_would_be_seen(runs: Path, tmp_path: Path) -> None:
    page = write_report(runs / "small-1")
    page.write_text(page.read_text().replace("</body>", "<script>undefined_name()</script></body>"))
    assert any("undefined_name" in line for line in opened(page, tmp_path / "profile")[1])


def test_the_table_sorts_by_a_click(runs: Path, tmp_path: Path) -> None:
    page = write_comparison(group_runs(find([runs])), runs / "report.html", "Compared")
    heads = re.findall(r"<th>(.*?)</th>", page.read_text())
    column = heads.index("seconds")

    def order(clicks: int) -> list[str]:
        click = f"document.querySelector('table.sortable').tHead.rows[0].cells[{column}].click();" * clicks
        clicked = page.with_name(f"clicked-{clicks}.html")
        clicked.write_text(page.read_text().replace("</body>", f"<script>{click}</script></body>"))
        body = opened(clicked, tmp_path / "profile")[0].split("<tbody>")[1].split("</tbody>")[0]
        return re.findall(r"<tr><td>(.*?)</td>", body)

    assert order(0)[:3] == ["medium", "large", "small"]  # the best first
    assert order(1)[:3] == ["large", "medium", "small"]
    assert order(2)[:3] == ["small", "medium", "large"]
    assert order(1)[-1] == order(2)[-1] == "most frequent class"  # which has no seconds
