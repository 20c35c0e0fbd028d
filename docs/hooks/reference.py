"""Write the reference of config keys and options into its pages while mkdocs builds the site, from the schema, signatures and option files.

The pages in `docs/reference/` hold a comment, `<!-- every key -->` or `<!-- every option -->`, in whose place the list is put. Nothing
generated is committed, so nothing can be out of date. Docstrings are read by griffe, without importing torch.
"""

from __future__ import annotations

import ast
import html
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import griffe
import yaml

from llm_lightning.config.schema import CONF, OPEN_GROUPS, Config
from llm_lightning.config.signatures import Choice, Range
from llm_lightning.runs.identity import kind_of

PACKAGE = "llm_lightning"
ANNOTATIONS = {"Annotated": Annotated, "Literal": Literal, "Range": Range, "Any": Any}
"""What the annotations of settings may name."""
DECIDES = "[{kind}](../resuming.md#what-each-key-decides)"


@dataclass(frozen=True)
class Key:
    """A config key as the reference shows it."""

    name: str
    values: str
    """The type and the allowed values, in words."""
    default: str
    """The default as YAML; empty if a chosen option sets the key."""
    meaning: str


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the comments of a page by the lists they name. mkdocs calls this for each page."""
    for name, write in LISTS.items():
        marker = f"<!-- {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(write()))
    return markdown


def write_keys() -> Iterator[str]:
    """Yield the Markdown of all keys: those without a group first, then a section for each group."""
    keys = list(list_keys(Config))
    yield "## The run"
    for key in keys:
        if "." not in key.name:
            yield from write_key(key)
    for group in (field.name for field in fields(Config)):
        if group in OPEN_GROUPS:
            yield from write_open_group(group)
        elif section := [key for key in keys if key.name.startswith(f"{group}.")]:
            yield f"\n## {group}"
            for key in section:
                yield from write_key(key)


def write_key(key: Key) -> Iterator[str]:
    """Yield a heading with the key's name, a line with its values, its default and what it decides, and its meaning."""
    kind = kind_of(key.name) or kind_of(f"{key.name}.*")
    decides = f"decides {DECIDES.format(kind=kind.value)}" if kind is not None else ""
    facts = [key.values, f"default `{key.default}`" if key.default else "set by the chosen option", decides]
    yield f"\n### `{key.name}` {{ #{key.name.rstrip('_')} }}\n"  # an id that ends in _ is no id for Markdown
    yield f"{' · '.join(fact for fact in facts if fact)}\n{{ .facts }}\n"
    yield escape(key.meaning)


def write_open_group(group: str) -> Iterator[str]:
    """Yield a section for a group whose options have settings of their own: the keyword parameters of each option's target."""
    yield f"\n## {group} {{ #{group} }}\n"
    yield f"Each option of `{group}=` has its own settings: the keyword parameters of the `_target_` in its file."
    yield f"They decide {DECIDES.format(kind='the weights')}."
    for option in list_options(group):
        content = yaml.safe_load(option.path.read_text(encoding="utf-8")) or {}
        content = content.get(group, content)
        yield f"\n### `{group}={option.name}` {{ #{group}.{option.name} }}\n"
        yield f"{escape(option.description)}\n"
        yield from write_target(group, content)


def write_target(group: str, content: dict[str, Any]) -> Iterator[str]:
    """Yield the description of an option's target and a list of its settings."""
    target = content["_target_"]
    definition = load_definition(target)
    constructor = definition.members.get("__init__", definition)
    texts = [read_docstring(definition), read_docstring(constructor) if constructor is not definition else ""]
    yield "\n\n".join(escape(text) for text in texts if text)
    yield f"\n`{target}`\n{{ .facts }}\n"
    for parameter in constructor.parameters:
        if parameter.kind is griffe.ParameterKind.keyword_only:
            values = describe_type(eval(str(parameter.annotation), dict(ANNOTATIONS)))
            default = content.get(parameter.name) if parameter.required else ast.literal_eval(str(parameter.default))
            yield f"- `{group}.{parameter.name}`: {values} · default `{spell(default)}`"


def list_keys(kind: type[Any], prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a dataclass of the schema and of those inside it, except for the open groups."""
    hints = typing.get_type_hints(kind)
    documented = load_definition(f"{kind.__module__}.{kind.__name__}").members
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from list_keys(typing.cast("type[Any]", hints[field.name]), f"{prefix}{field.name}.")
        elif prefix or field.name not in OPEN_GROUPS:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            rule = field.metadata.get("rule")
            values = describe_type(Annotated[hints[field.name], rule] if rule is not None else hints[field.name])
            spelt = "" if default == "???" else spell(default)
            yield Key(f"{prefix}{field.name}", values, spelt, read_docstring(documented[field.name]))


def describe_type(kind: Any) -> str:
    """Return the values that a type allows, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return describe_bounds(arguments[0], arguments[1])
    if origin is Literal:
        return join(f"`{spell(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return join("null" if option is type(None) else describe_type(option) for option in arguments)
    if origin is tuple and ... not in arguments:
        return f"a list of {len(arguments)}: {describe_type(arguments[0])} each"
    if origin in (list, tuple):
        return f"a list: {describe_type(arguments[0])} each"
    if origin is dict:
        return "a mapping"
    return {bool: "true or false", str: "text", int: "a whole number", float: "a number"}.get(kind, "")


def describe_bounds(kind: Any, rule: Range | Choice) -> str:
    """Return the values that a type allows under a rule, in words."""
    if isinstance(rule, Choice):
        return join(f"`{spell(value)}`" for value in rule.values)
    bounds = str(rule).removeprefix("a number ")
    if kind is Any:  # a whole number or auto
        return f"a whole number {bounds}" if rule.auto else bounds
    words = describe_type(kind)
    number, null, rest = words.partition(" or null")
    return f"{number} {bounds}{null}{rest}"


def join(names: typing.Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def spell(value: Any) -> str:
    """Return a value as YAML has it on one line."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Option:
    """A file of a config group."""

    name: str
    path: Path

    @property
    def description(self) -> str:
        """The comment at the top of the file, up to the commands in it."""
        lines = [line for line in self.path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
        words = []
        for line in lines:
            if not line.startswith("# ") or line.startswith("#  "):
                break
            words.append(line.removeprefix("# "))
        return " ".join(words)


def list_options(group: str) -> list[Option]:
    """Return the options of a group, in the order of their names."""
    return [Option(path.stem, path) for path in sorted((CONF / group).glob("*.yaml"))]


def write_options() -> Iterator[str]:
    """Yield a table of options for each group of `conf/`."""
    groups = sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {"."})
    for group in groups:
        if group.startswith("hydra"):
            continue
        yield f"\n## `{group}=` {{ #{group.replace('/', '.')} }}\n"
        yield "| option | what it is |\n| --- | --- |"
        for option in list_options(group):
            description = escape(mark_settings(option.description)).replace("|", "\\|")
            yield f"| `{option.name}` | {description} |"


def mark_settings(text: str) -> str:
    """Return text with settings such as `data.train=<file>` in backticks."""
    return re.sub(r"'[^']+=[^']*'|[a-z][\w./]*=(<[^>]*>|[^\s<;,]*[^\s<;,:.])", r"`\g<0>`", text)


def escape(text: str) -> str:
    """Return text for Markdown with `<` and `*` taken as characters, outside of code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else html.escape(part, quote=False).replace("*", r"\*") for part in parts)


def load_definition(path: str) -> Any:
    """Return a class or function of the package, as griffe reads it from the source."""
    return load_package()[path.removeprefix(f"{PACKAGE}.")]


@cache
def load_package() -> Any:
    return griffe.load(PACKAGE)


def read_docstring(definition: Any) -> str:
    return definition.docstring.value if definition.docstring is not None else ""


LISTS: dict[str, Callable[[], Iterator[str]]] = {"every key": write_keys, "every option": write_options}
