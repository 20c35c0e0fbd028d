"""Read the schema of a `_target_` of the config from its source, without importing it.

A target is `<package>.<module>.<name>`, a function or a class of this package or of an installed one. Its keyword-only parameters are
its configuration: their annotations are the types, their defaults the defaults, so neither is written down twice. Arguments
that run.py passes at run time are positional. Parsing takes a millisecond; importing the module would take as long as torch does, seconds.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from llm_lightning.errors import UserError

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `open`."""

    low: float | None = None
    high: float | None = None
    open: bool = False
    open_low: bool = False
    open_high: bool = False
    auto: bool = False
    """Whether the value is a whole number or the word `auto`."""

    def allows(self, value: Any) -> bool:
        if value is None or (self.auto and value == "auto"):
            return True
        if not isinstance(value, int if self.auto else int | float) or not math.isfinite(value):
            return False
        above = self.low is None or (value > self.low if self.open or self.open_low else value >= self.low)
        below = self.high is None or (value < self.high if self.open or self.open_high else value <= self.high)
        return above and below

    def __str__(self) -> str:
        low_open, high_open = self.open or self.open_low, self.open or self.open_high
        parts = []
        if self.low is not None:
            parts.append(f"{'above' if low_open else 'at least'} {self.low:.10g}")
        if self.high is not None:
            parts.append(f"{'below' if high_open else 'at most'} {self.high:.10g}")
        return "a number " + " and ".join(parts) + (", or auto" if self.auto else "")


class Choice:
    """One of the named values."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def allows(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        spelt = {None: "null", True: "true", False: "false"}  # as YAML has them
        return "one of " + ", ".join(spelt.get(v, str(v)) for v in self.values)


@dataclass(frozen=True)
class Parameter:
    """One setting of a target: its type, and whether it must be given."""

    type: Any
    required: bool


_NAMES = {"Annotated": Annotated, "Literal": Literal, "Range": Range, "Any": Any}


def parameters(target: str) -> dict[str, Parameter] | None:
    """Return the keyword-only parameters of a target, or None if no such function or class exists."""
    node = _definition(target)
    if node is None:
        return None
    return _keyword_only(_constructor(node) if isinstance(node, ast.ClassDef) else node)


def constants(target: str) -> dict[str, Any]:
    """Return the plain constants of a target's class body, such as `labelled = True`; empty if no such class exists."""
    node = _definition(target)
    assigned = [n for n in node.body if isinstance(n, ast.Assign)] if isinstance(node, ast.ClassDef) else []
    return {
        n.targets[0].id: n.value.value for n in assigned if isinstance(n.targets[0], ast.Name) and isinstance(n.value, ast.Constant)
    }


def _definition(target: str) -> ast.FunctionDef | ast.ClassDef | None:
    package, _, path = target.partition(".")
    module, _, name = path.rpartition(".")
    folder = PACKAGE if package == PACKAGE.name else _folder_of(package)
    if folder is None:
        return None
    file = folder / module.replace(".", "/")
    source = next((path for path in (file.with_name(f"{file.name}.py"), file / "__init__.py") if path.is_file()), None)
    body = [] if source is None else ast.parse(source.read_text(encoding="utf-8")).body
    return next((n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name), None)


def is_of_another_package(target: str) -> bool:
    """Return whether a target names something in an installed package other than this one."""
    package, _, path = target.partition(".")
    return bool(path) and package != PACKAGE.name and _folder_of(package) is not None


def _folder_of(package: str) -> Path | None:
    """Return the folder of an installed package, without importing it."""
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(places[0]) if places else None


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)


def _keyword_only(function: ast.FunctionDef | None) -> dict[str, Parameter]:
    if function is None:
        return {}
    parameter_by_name = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        annotation = ast.unparse(argument.annotation) if argument.annotation else "Any"
        parameter_by_name[argument.arg] = Parameter(eval(annotation, dict(_NAMES)), required=default is None)
    return parameter_by_name


def mismatch(value: Any, kind: Any) -> str | None:
    """Return the values that `kind` allows, in words, if `value` is not one of them; None if it is."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return None
    if origin is Annotated:
        wrong = mismatch(value, arguments[0])
        return wrong or next((str(rule) for rule in arguments[1:] if not rule.allows(value)), None)
    if origin is Literal:
        return None if value in arguments else str(Choice(*arguments))
    if origin in (Union, types.UnionType):
        wrongs = [mismatch(value, option) for option in arguments]
        return None if None in wrongs else " or ".join(w for w in wrongs if w)
    if origin is tuple and ... not in arguments:
        fits = isinstance(value, list | tuple) and len(value) == len(arguments)
        wrong = next((w for item, k in zip(value, arguments, strict=False) if (w := mismatch(item, k))), None) if fits else None
        return f"a list of {len(arguments)} values" if not fits else wrong and f"a list, each {wrong}"
    if origin in (list, tuple):
        items = arguments[0] if arguments else Any
        wrongs = [mismatch(item, items) for item in value] if isinstance(value, list | tuple) else [mismatch("", items)]
        wrong = next((w for w in wrongs if w), None)
        return None if wrong is None and isinstance(value, list | tuple) else f"a list, each {wrong or 'of any kind'}"
    if kind is float:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if kind is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if kind is type(None):
        return None if value is None else "null"
    return None if isinstance(value, kind) else _name(kind)


def _name(kind: Any) -> str:
    return {bool: "true or false", str: "text", float: "numbers", int: "whole numbers"}.get(kind, str(kind))


def instantiate(settings: dict[str, Any], argument: Any) -> Any:
    """Call the `_target_` of an open group with the run's argument and the group's settings. Return the result.

    Raises UserError if it cannot be imported, or is of another package and does not take them.
    """
    target, settings = str(settings["_target_"]), {name: value for name, value in settings.items() if name != "_target_"}
    make = import_target(target)
    if not is_of_another_package(target):
        return make(argument, **settings)
    try:
        return make(argument, **settings)
    except TypeError as error:
        kind = type(argument).__name__
        raise UserError(f"_target_={target}: cannot be called with a {kind} and {list(settings)} ({error}).") from error


def import_target(target: str) -> Any:
    """Import the function or class that a `_target_` names. Raises UserError if it cannot be imported."""
    from hydra.utils import get_object

    try:
        return get_object(target)
    except Exception as error:  # whatever a module raises when it is imported
        reason = " ".join(str(error).split()).partition(" Are you sure")[0]
        raise UserError(f"{target}: cannot be imported ({reason}).") from error
