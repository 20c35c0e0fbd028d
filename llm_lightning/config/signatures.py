"""Read the schema of a `_target_` of the config from its source, without importing it.

A target is `<package>.<module>.<name>`, a function or a class of this package or of an installed one. Keyword-only parameters are its
configuration: their annotations are the types, their defaults the defaults, so neither is written down twice. Arguments that the run
passes are positional.
"""

from __future__ import annotations

import ast
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from llm_lightning.config.definitions import Definition, find_definition, is_installed, list_ancestry

PACKAGE = "llm_lightning"
OBJECTIVES = f"{PACKAGE}.objectives.base"
"""Module of the last base class with constants of ours: parsing Lightning's above it takes 40 ms."""


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


OF_HYDRA = ("_partial_", "_recursive_", "_convert_")
"""Keys that `hydra.utils.instantiate` takes beside the arguments of a target."""
_NAMES = {name: getattr(typing, name) for name in typing.__all__} | {"typing": typing, "Range": Range}
"""What annotations may name. An annotation with any other name stands for `Any`."""


def parameters(target: str, positions: int = 0) -> dict[str, Parameter] | None:
    """Return the parameters of a function or class by name; None if its source does not show them all.

    The first `positions` are left out: the run passes them, a model to an optimizer for example.
    """
    definition = find_definition(target)
    if definition is None:
        return None
    if isinstance(definition.node, ast.FunctionDef):
        return _read_parameters([definition.node], positions)
    return _read_parameters(_list_constructors(definition), positions)


def constants(target: str) -> dict[str, Any]:
    """Return the plain constants of a class and its bases, such as `labelled = True`; empty if there is no such class."""
    definition = find_definition(target)
    classes: list[ast.ClassDef] = []
    for ancestor in list_ancestry(definition) if definition is not None else []:
        if ancestor is not None and isinstance(ancestor.node, ast.ClassDef):
            classes.append(ancestor.node)
        if ancestor is not None and ancestor.module == OBJECTIVES:
            break
    values: dict[str, Any] = {}
    for ancestor_class in reversed(classes):
        for node in ancestor_class.body:
            name = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(name, ast.Name) and isinstance(node.value, ast.Constant):  # type: ignore[attr-defined]
                values[name.id] = node.value.value  # type: ignore[attr-defined]
    return values


def is_of_another_package(target: str) -> bool:
    """Return whether a target names something in an installed package, or a module of one file, other than this package."""
    package, _, path = target.partition(".")
    return bool(path) and package != PACKAGE and is_installed(package)


def _list_constructors(definition: Definition) -> list[ast.FunctionDef | None]:
    """Return the `__init__` of a class, and as far as each passes `**kwargs` on, those of its bases; None for one that cannot be read."""
    constructors: list[ast.FunctionDef | None] = []
    for ancestor in list_ancestry(definition):
        if ancestor is None:
            return [*constructors, None]
        body = ancestor.node.body
        if ancestor.node.decorator_list:  # such as @dataclass, which writes a constructor
            return [*constructors, None]
        constructor = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if constructor is not None:
            constructors.append(constructor)
            if constructor.args.kwarg is None:
                break
    return constructors


def _read_parameters(functions: Sequence[ast.FunctionDef | None], positions: int) -> dict[str, Parameter] | None:
    parameter_by_name: dict[str, Parameter] = {}
    for function in reversed(functions):
        if function is None or (function is functions[-1] and function.args.kwarg is not None):
            return None
        arguments = function.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
        by_position = [pair for pair in zip(positional, defaults, strict=True) if pair[0].arg != "self"]
        by_keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        for argument, default in [*by_position[positions:], *by_keyword]:
            parameter_by_name[argument.arg] = Parameter(_read_annotation(argument.annotation), required=default is None)
    return parameter_by_name


def _read_annotation(annotation: ast.expr | None) -> Any:
    try:
        return Any if annotation is None else eval(ast.unparse(annotation), dict(_NAMES))
    except Exception:  # a type of another package, or a string
        return Any


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
    kind = origin or kind
    return None if not isinstance(kind, type) or isinstance(value, kind) else _name(kind)


def _name(kind: Any) -> str:
    return {bool: "true or false", str: "text", float: "numbers", int: "whole numbers"}.get(kind, str(kind))
