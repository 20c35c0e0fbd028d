"""The audit of a run and of plain folders: what is written, what is said of measures that were not run, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llm_lightning.audit import crows_pairs, generations, stereoset, swap, templates
from llm_lightning.audit.page import write_audit_page
from llm_lightning.errors import UserError
from llm_lightning.reporting.audit_card import describe_audit, format_score
from llm_lightning.reporting.card import write_card
from llm_lightning.run import run as start_run

from ..conftest import QUIET, TINY_BERT
from ..reporting.test_browser import BROWSER, opened
from .conftest import EXAMPLES, Audit, MakeClassifier, load_config, pick, read_record


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt from a few texts, with a test split whose texts have terms."""
    folder, rng = tmp_path_factory.mktemp("run"), random.Random(0)
    (folder / "data").mkdir()
    for split, count in (("train", 40), ("test", 12)):
        texts = [f"{rng.choice(['He', 'she'])} was {('great', 'awful')[i % 2]},{('good', 'bad')[i % 2]}" for i in range(count)]
        (folder / "data" / f"{split}.csv").write_text("\n".join(["text,label", *texts]) + "\n")
    words = [
        *QUIET,
        *TINY_BERT,
        "task=finetune",
        "data=files",
        f"data.dir={folder}/data",
        "data.columns.label=label",
        "trainer.max_steps=2",
        "data.block_size=64",
    ]
    start_run(load_config([*words, f"cache_dir={folder}/cache", f"run_dir={folder}/run"]))
    return folder / "run"


def test_a_run_has_its_audit_in_its_folder_and_in_its_card(run: Path, audit: Audit) -> None:
    before = (run / "hf" / "README.md").read_text()
    assert "Social bias" not in before
    record = audit(run, f"{swap.KEY}={EXAMPLES}/swaps.csv")
    assert json.loads(json.dumps(record)) == read_record(run)
    measure = next(measure for measure in record["measures"] if measure["key"] == swap.KEY)
    assert measure["facts"] == {"file": f"{EXAMPLES}/swaps.csv", "rows_from": "the test split", "rows": 12, "rows_with_a_term": 12}
    card = (run / "hf" / "README.md").read_text()
    for key, table in ((templates.KEY, templates.SCORES), (swap.KEY, swap.FLIPS)):
        headlines = [score for score in pick(record, key, table).values() if score["is_headline"]]
        assert headlines
        for score in headlines:
            assert f"| {format_score(score)} | {score['count']:,} |" in card
    for title, needed in (
        ("CrowS-Pairs", "a masked language model or a causal language model"),
        ("Continuations", "a causal language model"),
    ):
        assert f"- {title}: needs {needed}" in card
    assert "Blodgett et al. 2021" in card
    assert card.count("## Social bias") == 1
    head, _, rest = before.partition("**Limits.**")
    assert card.startswith(head)  # the rest of the card is as it was
    assert card.endswith(rest)
    audit(run)  # without the swapped terms: the command that adds them is named
    card = (run / "hf" / "README.md").read_text()
    assert card.count("## Social bias") == 1
    assert f"- Swapped terms: not asked for; `python train.py task=audit run={run} audit.swap=<csv of term pairs>`" in card


def test_an_audit_of_other_weights_is_no_part_of_the_card(run: Path, audit: Audit) -> None:
    audit(run)
    assert describe_audit(run)
    record = read_record(run)
    (run / "audit.json").write_text(json.dumps(record | {"weights": "0" * 32}))
    assert describe_audit(run) == []
    write_card(run)
    assert "Social bias" not in (run / "hf" / "README.md").read_text()


def test_the_command_of_a_missing_measure_repeats_the_others(causal: Path, audit: Audit, tmp_path: Path) -> None:
    record = audit(causal, f"{crows_pairs.KEY}={EXAMPLES}/crows_pairs.csv", f"out={tmp_path}")
    entries = {entry["key"]: entry for entry in record["not_measured"]}
    assert list(entries) == [stereoset.KEY, generations.KEY, templates.KEY, swap.KEY]
    repeated = f"python train.py task=audit run={causal} {crows_pairs.KEY}={EXAMPLES}/crows_pairs.csv out={tmp_path}"
    assert entries[stereoset.KEY]["command"] == f"{repeated} audit.stereoset=<json>"
    assert entries[templates.KEY] == {
        "key": templates.KEY,
        "title": "Sentences about groups",
        "reason": "needs a classifier",
        "command": "",
    }
    assert record["head"] == "a causal language model"
    assert (tmp_path / "audit.html").is_file()


REFUSED = [
    (
        "masked",
        [],
        "is a masked language model: say what to measure, by one or several of audit.crows_pairs=<csv>, audit.stereoset=<json>",
    ),
    ("causal", [], "audit.classifier=<run of a classifier>"),
    ("masked", [f"{swap.KEY}={EXAMPLES}/swaps.csv"], "is a masked language model, and this needs a classifier; leave it out"),
    ("masked", [f"{generations.KEY}=some/run"], "this needs a causal language model; leave it out"),
    (
        "classifier",
        [f"{crows_pairs.KEY}={EXAMPLES}/crows_pairs.csv"],
        "is a classifier, and this needs a masked language model or a causal",
    ),
    ("scores", [], "its answers are no classes"),
    ("masked", [f"{crows_pairs.KEY}=missing.csv"], "audit.crows_pairs=missing.csv: no such file"),
    ("masked", [f"{crows_pairs.KEY}={EXAMPLES}"], "expected one file, and this is a folder"),
    ("classifier", ["data.predict=rows.csv"], "task=audit reads rows for audit.swap=<csv of term pairs> only"),
    ("classifier", ["out=null"], "out is not set: give out=<folder> for audit.html and audit.json"),
    ("classifier", ["audit.generations=0"], "audit.generations=0: expected"),
]


@pytest.mark.parametrize(("name", "words", "message"), REFUSED)
def test_what_does_not_fit_the_model_is_refused(
    name: str,
    words: list[str],
    message: str,
    request: pytest.FixtureRequest,
    make_classifier: MakeClassifier,
    audit: Audit,
    tmp_path: Path,
) -> None:
    if name in ("masked", "causal"):
        folder = request.getfixturevalue(name)
    else:
        folder = make_classifier({"she"}, **({"problem_type": "regression"} if name == "scores" else {}))
    with pytest.raises(UserError) as error:
        audit(folder, f"out={tmp_path}", *words)
    assert message in str(error.value)
    assert not (tmp_path / "audit.json").exists()


HOSTILE = '</script><script>alert("x")</script> & | `code` *bold*'


def hostile_record(weights: str | None) -> dict[str, Any]:
    score = {
        "name": HOSTILE,
        "value": 0.5,
        "interval": [0.4, 0.6],
        "count": 3,
        "detail": HOSTILE,
        "neutral": 0.0,
        "is_share": True,
        "is_headline": True,
    }
    measure = {
        "key": swap.KEY,
        "title": HOSTILE,
        "method": HOSTILE,
        "scores": [score | {"table": HOSTILE}, score | {"table": HOSTILE, "name": "b", "interval": None}],
        "facts": {},
        "tables": [{"title": HOSTILE, "columns": ["", ""], "rows": [[HOSTILE, HOSTILE]], "note": "", "sortable": False}],
        "examples": [{"where": HOSTILE, "before": HOSTILE, "after": HOSTILE, "change": HOSTILE}],
    }
    missing = [{"key": "a", "title": "A", "reason": HOSTILE, "command": ""}]
    facts = {"run": HOSTILE, "head": "a classifier", "weights": weights, "seed": 0, "limits": "limits"}
    return facts | {"measures": [measure], "not_measured": missing}


def test_texts_of_files_are_no_markup_of_the_page(tmp_path: Path) -> None:
    page = write_audit_page(tmp_path / "audit.html", hostile_record(None)).read_text(encoding="utf-8")
    assert 'alert("x")' not in page
    assert "alert(&#34;x&#34;)" in page
    assert "<script>alert" not in page
    drawn = page.partition("const figures = ")[2].partition(";\n")[0]
    assert json.loads(drawn)[0]["traces"][0]["y"][1] == "b"
    assert "&lt;script&gt;" in json.loads(drawn)[0]["traces"][0]["y"][0]


def test_texts_of_files_are_no_markup_of_the_card(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(json.dumps(hostile_record(None)))
    section = "\n".join(describe_audit(tmp_path))
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)
    assert "<script>" not in section.replace("\\<", "").replace("\\>", "")


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium or google-chrome on this machine")
def test_the_page_draws_its_figures_without_an_error(causal: Path, audit: Audit, tmp_path: Path) -> None:
    audit(causal, f"{crows_pairs.KEY}={EXAMPLES}/crows_pairs.csv", f"{stereoset.KEY}={EXAMPLES}/stereoset.json", f"out={tmp_path}")
    elements, console = opened(tmp_path / "audit.html", tmp_path / "profile")
    assert console == []
    assert elements.count('<div class="plot-container plotly"') == 1 + 3  # the likelihood, and StereoSet's three scores
