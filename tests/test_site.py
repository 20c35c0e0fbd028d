"""The site builds without a broken link or anchor, has every key, option and notebook, and no page needs a network."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from llm_lightning.config.schema import CONF, OPEN_GROUPS, Config

from .conftest import ROOT

MISSING = [package for package in ("mkdocs", "material", "mkdocstrings_handlers") if importlib.util.find_spec(package) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} is not installed: pip install 'llm_lightning[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; a warning, such as that of a broken link, fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def read_anchors(page: Path) -> set[str]:
    return set(re.findall(r' id="([^"]+)"', page.read_text(encoding="utf-8")))


def list_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        child = node._get_node(name)
        if isinstance(child, DictConfig) and is_dataclass(OmegaConf.get_type(child)):
            yield from list_keys(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_reference_has_every_key(site: Path) -> None:
    keys = set(list_keys(OmegaConf.structured(Config)))
    assert {"seed", "batch.sequences", "data.columns.text", *OPEN_GROUPS} <= keys
    assert {key.rstrip("_") for key in keys} <= read_anchors(site / "reference" / "keys.html")


def test_every_key_has_a_meaning(site: Path) -> None:
    page = (site / "reference" / "keys.html").read_text(encoding="utf-8")
    keys = re.split(r"<h3 ", page)[1:]  # a paragraph without a class behind the line of facts
    assert len(keys) > 100
    assert not [key.partition(">")[0] for key in keys if "<p>" not in key.partition("<h2")[0]]


def list_settings(target: str) -> list[str]:
    """Return the keyword-only parameters of a class or a function of the package."""
    module, _, name = target.rpartition(".")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    definition = next(node for node in tree.body if getattr(node, "name", None) == name)
    functions = [node for node in ast.walk(definition) if isinstance(node, ast.FunctionDef) and node.name in (name, "__init__")]
    return [argument.arg for argument in functions[0].args.kwonlyargs]


def test_the_reference_has_the_settings_of_every_objective_optimizer_and_schedule(site: Path) -> None:
    page = (site / "reference" / "keys.html").read_text(encoding="utf-8")
    for group in OPEN_GROUPS:
        for file in (CONF / group).glob("*.yaml"):
            target = OmegaConf.select(content := OmegaConf.load(file), f"{group}._target_") or content._target_
            section = page.partition(f'id="{group}.{file.stem}"')[2].partition("<h3")[0]
            for name in list_settings(target):
                assert f"<code>{group}.{name}</code>" in section, file
                assert f"<code>{name}" in section, f"the docstring of {file.stem} does not say what `{name}` is"


def test_the_reference_has_every_option(site: Path) -> None:
    page = (site / "reference" / "options.html").read_text(encoding="utf-8")
    for file in CONF.rglob("*.yaml"):
        group = file.parent.relative_to(CONF).as_posix()
        if group != "." and not group.startswith("hydra"):
            section = page.partition(f'id="{group.replace("/", ".")}"')[2].partition("<h2")[0]
            row = re.search(rf"<td><code>{re.escape(file.stem)}</code></td>\s*<td>(.*)</td>", section)
            assert row is not None, file
            assert row[1], f"{file} has no comment at its top"


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//[^>]*>", text), page
        assert not re.findall(r"<link[^>]*href=\"(?:https?:)?//[^>]*>", text), page


def test_the_site_has_the_notebooks(site: Path) -> None:
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / f"{notebook.stem}.html").is_file()


def test_a_notebook_becomes_markdown() -> None:
    convert = runpy.run_path(str(ROOT / "docs" / "hooks" / "notebooks.py"))["convert"]
    text = {"cell_type": "markdown", "source": ["# Title\n", "See [using](../docs/using.md)."]}
    code = {"cell_type": "code", "source": ["print(1)\n", "2"]}
    outputs = [{"output_type": "stream", "text": ["1\n"]}, {"output_type": "execute_result", "data": {"text/plain": ["2"]}}]
    page = convert({"cells": [text, code | {"outputs": outputs}, code | {"outputs": []}]})
    assert page.split("\n\n") == [
        "# Title\nSee [using](../using.md).",
        "```python\nprint(1)\n2\n```",
        "```text\n1\n2\n```",
        "```python\nprint(1)\n2\n```\n",
    ]
