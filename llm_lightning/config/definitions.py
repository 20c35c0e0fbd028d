"""Find the definition of a class or function in the source of an installed package, without importing it.

Names that a package re-exports, and base classes, are followed across files. Parsing a file takes milliseconds; importing the package would
take as long as torch does, seconds.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MAX_STEPS = 10  # re-exports or bases that are followed; packages that import each other end here


@dataclass(frozen=True)
class Definition:
    """A class or function, and the module that defines it."""

    node: ast.FunctionDef | ast.ClassDef
    module: str


def find_definition(target: str, steps: int = MAX_STEPS) -> Definition | None:
    """Return the definition of `<package>.<module>.<name>`; None if its source cannot be found."""
    module, _, name = target.rpartition(".")
    source = find_source(module)
    if source is None or not steps:
        return None
    tree = _parse(source)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return Definition(node, module)
    origin = _imported_names(tree, module, source).get(name)
    return None if origin is None else find_definition(origin, steps - 1)


def list_ancestry(definition: Definition, steps: int = MAX_STEPS) -> Iterator[Definition | None]:
    """Yield a class and its bases, depth first; None for a base whose source cannot be found."""
    yield definition
    if not isinstance(definition.node, ast.ClassDef) or not steps:
        return
    source = find_source(definition.module)
    assert source is not None
    imported = _imported_names(_parse(source), definition.module, source)
    for base in definition.node.bases:
        first, _, rest = ast.unparse(base).partition("[")[0].partition(".")
        path = imported.get(first, f"{definition.module}.{first}")
        if path == "builtins.object" or first in ("object", "Generic", "ABC", "Protocol"):
            continue
        parent = find_definition(f"{path}.{rest}" if rest else path)
        if parent is None:
            yield None
        else:
            yield from list_ancestry(parent, steps - 1)


def is_installed(package: str) -> bool:
    """Return whether a package, or a module that is one file, can be imported."""
    return _find_top(package) is not None


def find_source(module: str) -> Path | None:
    """Return the file of a module; None if there is none, or if it is not Python."""
    package, *rest = module.split(".")
    top = _find_top(package)
    if top is None:
        return None
    if not rest and top.suffix == ".py":
        return top
    path = top.joinpath(*rest)
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


@cache
def _find_top(package: str) -> Path | None:
    """Return the folder of a top-level package, or the file of a top-level module; None if it is not installed."""
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [])
    return Path(places[0]) if places else Path(str(spec.origin))


@cache
def _parse(source: Path) -> ast.Module:
    try:
        return ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # its import will say what is wrong with it
        return ast.Module([], [])


def _imported_names(tree: ast.Module, module: str, source: Path) -> dict[str, str]:
    """Return name in a module -> the dotted path that it was imported from."""
    names: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {
                alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else alias.name.partition(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if source.name == "__init__.py" else module.split(".")[:-1]
            above = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
    return names
