"""Imports keep to the layers of the package: read from the source, late imports included, imports for types alone left out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "llm_lightning"


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_module(path): path for path in PACKAGE.rglob("*.py")}


def list_imports(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the modules of the package that some statements import, those inside of functions too."""
    for statement in body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            continue
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            submodules = (f"{statement.module}.{alias.name}" for alias in statement.names)
            yield from (name if name in MODULES else statement.module for name in submodules)
        else:
            parts = (getattr(statement, field, []) for field in ("body", "orelse", "finalbody"))
            for part in parts:
                yield from list_imports(part)
            for handler in getattr(statement, "handlers", []):
                yield from list_imports(handler.body)


IMPORTS = {
    module: {name for name in list_imports(ast.parse(path.read_text(encoding="utf-8")).body) if name in MODULES and name != module}
    for module, path in MODULES.items()
}


def name_room(module: str) -> str:
    """Return the package that a module is in, or its own name at the top level."""
    return module.removeprefix("llm_lightning").removeprefix(".").partition(".")[0]


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        list(TopologicalSorter(IMPORTS).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


ALLOWED = {
    "distributed": {"errors"},
    "config": {"errors", "machine", "distributed", "llm_lightning.data.paths"},  # which tells whether files are there
    "runs": {"atomic_files", "config", "errors", "distributed"},
    "metrics": {"distributed", "errors"},
    "optim": {"config", "errors", "machine", "models"},
    "tracking": {"atomic_files", "config", "distributed", "errors", "reporting", "runs"},
    "reporting": {
        "atomic_files",
        "config",
        "data",
        "distributed",
        "errors",
        "inspection",
        "llm_lightning.metrics.correlation",
        "machine",
        "models",
        "runs",
    },
    "audit": {"config", "data", "errors", "inference", "models", "objectives", "reporting", "runs"},
    "models": {"config", "data", "distributed", "errors"},
    "data": {"atomic_files", "config", "distributed", "errors", "inspection", "machine"},
    "inspection": {"errors"},
    "privacy": {"config", "data", "distributed", "errors", "models"},
}
"""Of some packages, the other packages and top-level modules that they may import."""


@pytest.mark.parametrize("room", ALLOWED)
def test_a_package_imports_only_what_is_below_it(room: str) -> None:
    others = {(module, name) for module, names in IMPORTS.items() if name_room(module) == room for name in names}
    wrong = sorted(f"{module} imports {name}" for module, name in others if not {name_room(name), name} & {room, *ALLOWED[room]})
    assert not wrong, "\n".join(wrong)


def test_only_the_entrances_import_the_story_of_a_run() -> None:
    users = {name_room(module) for module, names in IMPORTS.items() if "llm_lightning.run" in names}
    assert users <= {"cli", "api", "sweep"}


@pytest.mark.parametrize("room", ["config", "runs"])
def test_a_package_is_read_without_torch(room: str) -> None:
    """A wrong command line is refused in a second, before torch and its friends are imported."""
    for module, path in MODULES.items():
        if name_room(module) == room:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            heavy = {name.partition(".")[0] for name in list_all(tree.body)} & {
                "torch",
                "lightning",
                "transformers",
                "datasets",
                "peft",
            }
            assert not heavy, f"{module} imports {heavy}"


def list_all(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names of the modules that are imported at the top level of a module."""
    for statement in body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
