"""Names and pages keep to plain English: variables name their content, functions are verbs, lines of documentation are short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from .conftest import ROOT

VAGUE = {
    "found",
    "known",
    "said",
    "own",
    "given",
    "wanted",
    "kept",
    "asked",
    "told",
    "seen",
    "left",
    "whole",
    "ours",
    "theirs",
    "gone",
    "there",
    "made",
    "named",
    "usual",
}
"""Names that tell nothing of a variable's content."""
PARTICIPLE = re.compile(r"_?[a-z]+(ed|en|wn|lt|pt)")
"""Names of one word that end as participles do: `prepared`, `written`, `built`."""
RIGHT = {
    "adapt",
    "decide",
    "fold",
    "hidden",
    "speed",
    "_hidden",
    "prompt",
    "seed",
    "shorten",
    "shown",
    "succeed",
    "widen",
    "consumed",
    "padded",
    "rounded",
    "redacted",
    "embed",
    "_decide",
    "_excerpt",
    "_fault",
    "_flatten",
    "_hold",
    "_open",
    "_prompt",
    "_result",
    "_script",
    "_shade",
    "_shorten",
    "_trade",
    "_build",
    "build",
}
"""Verbs and nouns among them, and names that a reader knows."""
WIDEST = 120
MODULES = sorted((ROOT / "llm_lightning").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def list_nodes(kind: type[ast.AST]) -> list[tuple[str, ast.AST]]:
    """Return (place, node) of every node of a kind in the package."""
    return [
        (f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kind)
    ]


def test_a_variable_names_its_content() -> None:
    stored = [
        (place, node) for place, node in list_nodes(ast.Name) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    vague = [f"{place} {node.id}" for place, node in stored if node.id in VAGUE]
    assert not vague, "\n".join(vague)


def test_a_function_is_a_verb() -> None:
    functions = [(place, node.name) for place, node in list_nodes(ast.FunctionDef) if isinstance(node, ast.FunctionDef)]
    participles = [f"{place} {name}" for place, name in functions if PARTICIPLE.fullmatch(name) and name not in RIGHT]
    assert not participles, "\n".join(participles)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_a_page_are_short(page: Path) -> None:
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    exempt = re.compile(r"\s*\||.*\]\(|.*http|    ")  # tables, links and code
    long = [f"{page.name}:{number} {line[:60]}…" for number, line in lines if len(line) > WIDEST and not exempt.match(line)]
    assert not long, "\n".join(long)
