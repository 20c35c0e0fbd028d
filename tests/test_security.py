"""Files of strangers are data: a stored run, a checkpoint, rows, names and labels run no code, and write nowhere else."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llm_lightning.config.compose import load_config
from llm_lightning.config.saved_runs import load_saved_config
from llm_lightning.config.schema import plain
from llm_lightning.errors import UserError, escape_controls
from llm_lightning.objectives.classification import Classification
from llm_lightning.reporting.leaderboard import write_comparison
from llm_lightning.reporting.runs import find, group_runs

from .conftest import ROOT, TINY_BERT, Runner

# ---- what a stored run may name ----


@pytest.fixture(scope="module")
def ordinary() -> dict[str, Any]:
    return plain(load_config(["task=finetune", "data=docs_topics", "model=bert_tiny"]))


@pytest.fixture
def stranger(ordinary: dict[str, Any], tmp_path: Path) -> Any:
    """Write a run folder whose config has some settings of a stranger."""

    def write(settings: dict[str, Any]) -> str:
        config = copy.deepcopy(ordinary)
        for key, value in settings.items():
            group, name = key.split(".")
            config[group][name] = value
        (tmp_path / "run" / "hf").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "hf" / "config.json").write_text("{}")
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
        return str(tmp_path / "run")

    return write


@pytest.mark.parametrize("task", ["evaluate", "predict", "generate", "export"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective._target_", "os.system"),
        ("objective._target_", "llm_lightning.objectives.base.torch.load"),
        ("objective._target_", "llm_lightning.objectives.base.import_target"),
        ("objective._target_", "llm_lightning.atomic_files.write_atomically"),
        ("objective.weights", {"_target_": "os.system", "command": "touch here"}),
        ("data._target_", "subprocess.check_output"),
        ("data.arguments", {"rows": [{"_target_": "os.system"}]}),
        ("model._target_", "runs.stranger.model.build"),
    ],
)
def test_a_stored_run_names_no_code_of_others(task: str, key: str, value: Any, stranger: Any) -> None:
    with pytest.raises(UserError, match=r"its config\.yaml names code that is not an objective of llm_lightning: .*add trust=\["):
        load_saved_config(task, stranger({key: value}), [], checked=False)


def test_code_of_trusted_packages_is_kept(stranger: Any) -> None:
    run = stranger({"objective._target_": "my_package.objectives.Scaled"})
    config = load_saved_config("evaluate", run, ["trust=[my_package]"], checked=False)
    assert config.objective["_target_"] == "my_package.objectives.Scaled"
    with pytest.raises(UserError, match="my_package"):
        load_saved_config("evaluate", run, ["trust=[package]"], checked=False)


def test_what_evaluation_does_not_use_is_left_out(stranger: Any) -> None:
    """Profilers would write files; the code beside weights runs only where the command of today says so."""
    profiler = {"_target_": "lightning.pytorch.profilers.AdvancedProfiler", "dirpath": "/somewhere"}
    run = stranger({"trainer.profiler": profiler, "trainer.flags": {"profiler": profiler}, "model.trust_remote_code": True})
    config = load_saved_config("evaluate", run, [], checked=False)
    assert config.trainer.flags == {}
    assert not config.model.trust_remote_code
    assert load_saved_config("evaluate", run, ["model.trust_remote_code=true"], checked=False).model.trust_remote_code


class Marker:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {}, "extra": Marker(tmp_path / "ran")}, tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        Classification.load_from_checkpoint(tmp_path / "a.ckpt", dataset=None)
    assert not (tmp_path / "ran").exists()


FORBIDDEN = {
    *(
        "eval",
        "exec",
        "compile",
        "os.system",
        "os.popen",
        "pickle.load",
        "pickle.loads",
        "yaml.load",
        "marshal.loads",
        "shelve.open",
    ),
    *("tarfile.open", "shutil.unpack_archive", "joblib.load"),
}
"""Calls that run what a file says, or write where an archive says."""
REASONS = {
    ("config.signatures", "eval"): "annotations of an installed package, over the names of typing alone",
    ("config.overrides", "yaml.load"): "with BaseLoader, which makes texts, lists and mappings",
    ("launch", "pickle.load"): "what the parent process of this very run sends",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_package_calls_nothing_that_runs_a_file() -> None:
    found = set()
    for path in sorted((ROOT / "llm_lightning").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "llm_lightning").with_suffix("").parts)
        for name, call in calls(path):
            options = {keyword.arg: keyword.value for keyword in call.keywords}
            if name in FORBIDDEN:
                found.add((module, name))
            assert name != "torch.load" or ast.literal_eval(options["weights_only"]) is True, module
            assert "allow_pickle" not in options, module
            assert not name.endswith((".extractall", ".extract")), module
            assert "shell" not in options, module
            assert not name.endswith("Environment") or "autoescape" in options or name != "jinja2.Environment", module
    assert found == set(REASONS)


# ---- what pages and terminals show ----

HOSTILE = [
    "<img src=x onerror=planted()>",
    "</script><script>planted()</script>",
    '"><svg onload=planted()>',
    "' onmouseover='planted()",
    "<!--<script>planted()",
    "{{ planted() }} {% planted() %}",
    '<a href="javascript:planted()">x</a>',
    "]]><iframe srcdoc='<script>planted()</script>'>",
    "&lt;script&gt;planted()&lt;/script&gt;",
]
"""Texts that would be elements, attributes or code where a page does not escape them."""


class Elements(HTMLParser):
    """Collects what a browser would run or load: elements and attributes outside of our own scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.found += [f"{tag} {name}={value}" for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")]
        if tag in ("img", "svg", "iframe", "object", "embed"):
            self.found.append(tag)


def test_pages_show_hostile_rows_as_text(run: Runner, tmp_path: Path) -> None:
    """Rows, labels, column, file and run names: in the report, and in the comparison of runs."""
    place = tmp_path / "<b onclick=planted()>"
    place.mkdir()
    rows = [{"body <i>": f"{HOSTILE[i % len(HOSTILE)]} film {i}", "stars": HOSTILE[i % 3]} for i in range(90)]
    for name, part in (("train", rows[:60]), ("validation", rows[60:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    data = ["task=finetune", "data=files", f"data.dir={place}", "data.columns.text=body <i>", "data.columns.label=stars"]
    folder = place / "run <script>planted()"
    run(*data, *TINY_BERT, "trainer.max_steps=4", "trainer.max_epochs=null", f"run_dir={folder}")
    plain_page = Elements()
    plain_page.feed((folder / "report.html").read_text())
    comparison = Elements()
    comparison.feed(write_comparison(group_runs(find([place])), place / "all.html", HOSTILE[1]).read_text())
    assert plain_page.found == comparison.found == []
    assert {plain_page.scripts, comparison.scripts} == {2}  # plotly's, and the figures
    card = (folder / "hf" / "README.md").read_text()
    assert not any(text in card for text in HOSTILE[:3])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07 \x1b[2J\x1b[1;31mred\x1b[0m", r"\x1b]0;title\x07 \x1b[2J" + "\x1b[1;31mred\x1b[0m"),
        ("a\rb\x9bc\td\n", r"a\x0db\x9bc" + "\td\n"),
        ("naïve 日本", "naïve 日本"),
    ],
)
def test_a_terminal_obeys_no_row(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


def test_the_log_escapes_what_a_terminal_obeys(run: Runner, tmp_path: Path) -> None:
    rows = [{"text": f"\x1b]0;owned\x07 film {i} {'good' if i % 2 else 'bad'}", "label": str(i % 2)} for i in range(60)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["task=finetune", "data=files", f"data.train={tmp_path}/train.jsonl", "data.columns.label=label", "trainer.max_steps=1"]
    run(*data, *TINY_BERT, f"run_dir={tmp_path}/run")
    log = (tmp_path / "run" / "train.log").read_text()
    assert r"owned" in log
    assert "\x1b]" not in log
