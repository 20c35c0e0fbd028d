"""Quote the overrides of a command line for Hydra: values that are text (prompts, paths, names of columns) are taken as typed.

Hydra's grammar gives brackets, commas, colons, `=`, `#` and quotes a meaning, and refuses or rewrites text that holds them. So the value of
every key whose type in the schema is text, a list of texts, or files is quoted here before Hydra parses it. The rules, which
docs/configuration.md tells users:

- a value that is one quoted string ('…' or "…", from its first to its last character) stands for the text inside, as in Hydra;
- `null` leaves a key unset (a prompt may be the word "null");
- [a,b] is a list for keys that take lists, unless a file has this very name;
- ${…} is an interpolation of Hydra's, unless a file has this very name or the brackets do not close; in a prompt it is text;
- with -m, commas separate the values of a sweep, unless a file has this very name;
- {a: 1, b: 2} is a mapping for keys that take one; JSON's and Python's spelling work too, with keys of any characters.

Quoting twice changes nothing.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from llm_lightning.config.hydra_keys import is_multirun, translate_hydra_keys
from llm_lightning.config.schema import CONF, Config, expand_home
from llm_lightning.errors import UserError

FILES = ("data.train", "data.validation", "data.test")
"""Keys of one file or a list of files; their type in the schema is Any."""
COLUMNS = ("data.columns.label",)
"""Keys of one column or a list of columns."""
NAMES = ("data.labels",)
"""Keys of a list of texts, or a mapping."""
TEXT_MAPPINGS = ("data.labels", "data.roles", "data.languages")
"""Keys of a mapping of texts to texts."""
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_PLAIN = re.compile(r"(?:\.{0,2}/|\w)[\w./-]*", re.ASCII)
_WORDS = ("null", "true", "false", "inf", "nan")
_SWEEPS = re.compile(r"(?:choice|range|glob|shuffle|sort|tag|interval|int|float|str|bool)\(.*\)", re.DOTALL)
_KEY = re.compile(r"[\w./-]+( +[\w./-]+)*", re.ASCII)
"""Keys of a mapping that Hydra's grammar accepts without escapes."""
_INTERPOLATION = re.compile(r"(\\*)\$\{")


def quote_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line, or overrides from Python, quoted for Hydra's grammar; only key=value is changed."""
    arguments = translate_hydra_keys(arguments)
    sweeps = is_multirun(arguments)
    folder = next((argument.partition("=")[2] for argument in arguments if argument.startswith("data.dir=")), None)
    return [_quote_override(argument, sweeps, folder) for argument in arguments]


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Return key -> value of overrides, parsed as Hydra parses them. Raises Hydra's OverrideParseException."""
    return {parsed.key_or_group: parsed.value() for parsed in OverridesParser.create().parse_overrides(quote_overrides(arguments))}


def write_override(key: str, value: str) -> str:
    """Return the override that sets a key to any text."""
    return f"{key}={value if _is_plain(value) else _quote_text(_escape_interpolations(value, is_quoted=False))}"


def is_text(key: str) -> bool:
    """Return whether the values of a key are text, so that any value can be quoted."""
    return _kind(key) is not None


def escape_interpolations(settings: Any) -> Any:
    """Return plain containers whose texts OmegaConf reads literally."""
    if isinstance(settings, dict):
        return {key: escape_interpolations(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [escape_interpolations(value) for value in settings]
    return _escape_interpolations(settings, is_quoted=False) if isinstance(settings, str) else settings


def _quote_override(argument: str, sweeps: bool, folder: str | None) -> str:
    plus, key, value = re.fullmatch(r"(\+{0,2})([\w.]*)=(.*)|.*", argument, re.DOTALL).groups()  # type: ignore[union-attr]
    kind = None if key is None else _kind(key)
    if kind == "texts" and unquote(value).startswith("${json:"):  # quoted before
        return argument
    if kind != "text" and key is not None and value.startswith("{") and value.endswith("}"):
        return f"{plus}{key}={_write_mapping(key, value)}"
    if kind is None:
        return argument
    if key == "prompt":
        value = _decode(value)
    if sweeps and not _is_file(value, None) and not _is_file(value, folder):
        if _SWEEPS.fullmatch(value):
            return argument
        value = ",".join(_quote_value(key, kind, element, folder) for element in _split(value))
    else:
        value = _quote_value(key, kind, value, folder)
    return f"{plus}{key}={value}"


def _quote_value(key: str, kind: str, value: str, folder: str | None) -> str:
    if value.lower() == "null" and key != "prompt":
        return value
    is_file = key != "prompt" and (_is_file(value, None) or (key.startswith("data.") and _is_file(value, folder)))
    if kind != "text" and not is_file and (elements := _elements(value)) is not None:
        return f"[{','.join(_quote_element(element, kind, folder) for element in elements)}]"
    if kind == "texts":
        return value if value.startswith("{") else f"[{_quote_element(value, kind, folder)}]"  # a list of one text
    text = value if is_file else unquote(value)
    if key == "prompt" or is_file or not _interpolates(text):
        text = _escape_interpolations(text, is_quoted=text != value)
    return text if _is_plain(text) else _quote_text(text)


def _quote_element(element: str, kind: str, folder: str | None) -> str:
    """Quote an element of a list. In lists of texts, double quotes have JSON's meaning, so "\\n" is a newline."""
    text = unquote(element)
    if kind == "texts" and element.startswith('"') and text != element:
        with contextlib.suppress(json.JSONDecodeError):
            text = json.loads(element)
    if not _interpolates(text) or (kind == "files" and (_is_file(text, None) or _is_file(text, folder))):
        text = _escape_interpolations(text, is_quoted=text != element)
    return text if _is_plain(text) else QuotedString(text, Quote.single).with_quotes()


def _write_mapping(key: str, value: str) -> str:
    """Rewrite a mapping in JSON, Python or YAML for Hydra's grammar. Text that Hydra can read, or that no parser can, stays as it is."""
    try:
        OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        mapping = _read_mapping(value, is_text=key in TEXT_MAPPINGS)
    else:
        return value
    if mapping is None:
        return value
    if (text := _write_node(mapping)) is not None:
        return text
    return _quote_text(f"${{json:'{json.dumps(mapping).replace(chr(39), chr(92) + 'u0027').replace('$', chr(92) + 'u0024')}'}}")


def _read_mapping(value: str, is_text: bool) -> dict[Any, Any] | None:
    """Parse a mapping in JSON or Python; for texts (`is_text`) in YAML's flow style too. Return None if it is no mapping."""
    readers: list[Any] = [json.loads, ast.literal_eval]
    if is_text:
        readers.append(lambda text: yaml.load(text, yaml.BaseLoader))
    for read in readers:
        try:
            mapping = read(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, yaml.YAMLError):
            continue
        if isinstance(mapping, dict) and "" not in map(str, mapping.values()):  # YAML reads {a,b} as two keys without values
            return mapping
    return None


def _write_node(node: Any) -> str | None:
    """Return plain containers in Hydra's grammar; None if a key holds a character that its keys cannot have."""
    if isinstance(node, str):
        return QuotedString(_escape_interpolations(node, is_quoted=False), Quote.single).with_quotes()
    if isinstance(node, list | tuple):
        parts = [_write_node(item) for item in node]
        return None if None in parts else f"[{', '.join(map(str, parts))}]"
    if not isinstance(node, dict):
        return {None: "null", True: "true", False: "false"}[node] if node is None or isinstance(node, bool) else str(node)
    pairs = [(str(key), _write_node(value)) for key, value in node.items()]
    if any(value is None or not _KEY.fullmatch(key) for key, value in pairs):
        return None
    return f"{{{', '.join(f'{key}: {value}' for key, value in pairs)}}}"


def unquote(value: str) -> str:
    """Return the text inside a value that is one quoted string; any other value unchanged."""
    if not re.fullmatch(_QUOTED, value, re.DOTALL):
        return value
    return str(OverridesParser.create().parse_override(f"key={value}").value())


def _quote_text(text: str) -> str:
    return QuotedString(text, Quote.single if '"' in text and "'" not in text else Quote.double).with_quotes()


def _is_plain(text: str) -> bool:
    """Return whether Hydra reads the text literally without quotes."""
    starts_as_number = text[:1].isdigit() or re.match(r"[./]*\d", text) is not None
    return _PLAIN.fullmatch(text) is not None and not starts_as_number and text.lower() not in _WORDS


def _interpolates(text: str) -> bool:
    """Return whether OmegaConf can parse the `${…}` of a text."""
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_parser import parse

    if "${" not in text:
        return False
    try:
        parse(text)
    except GrammarParseError:
        return False
    return True


def _escape_interpolations(text: str, is_quoted: bool) -> str:
    r"""Return the text with every `${` as `\${`, which OmegaConf reads as `${`; backslashes before are doubled.

    In a quoted text, `\${` is the user's own escape (or ours, of a first pass) and stays.
    """

    def escape(match: re.Match[str]) -> str:
        count = len(match[1])
        return match[0] if is_quoted and count % 2 else "\\" * (2 * count + 1) + "${"

    return _INTERPOLATION.sub(escape, text)


def _split(value: str) -> list[str]:
    """Return the parts of a value between commas outside of quotes and brackets; quotes and brackets count at the start of a part."""
    parts: list[str] = []
    rest = value
    whole_element = re.compile(rf"\s*(?:{_QUOTED}|\[[^\]]*\])\s*(?=,|$)", re.DOTALL)
    while True:
        match = whole_element.match(rest)
        end = match.end() if match is not None else rest.find(",") if "," in rest else len(rest)
        parts.append(rest[:end].strip() if match is not None or parts or end < len(rest) else rest[:end])
        if end == len(rest):
            return parts
        rest = rest[end + 1 :]


def _elements(value: str) -> list[str] | None:
    """Return the elements of a list [a,b]; None for a value that is no list, such as the name `[NLP] files/[1]`."""
    if not (value.startswith("[") and value.endswith("]")):
        return None
    inner = value[1:-1]
    depth = 0
    for character in re.sub(_QUOTED, "", inner, flags=re.DOTALL):
        depth += (character == "[") - (character == "]")
        if depth < 0:
            return None
    return [part.strip() for part in _split(inner)] if inner.strip() else []


def _is_file(value: str, folder: str | None) -> bool:
    place = expand_home(unquote(folder)) if folder else Path()
    return bool(value) and (place / expand_home(value)).exists()


def _decode(prompt: str) -> str:
    """Decode a prompt whose bytes Python could not read in the locale of the process. Raises UserError if they are not UTF-8."""
    if not any("\ud800" <= character <= "\udfff" for character in prompt):
        return prompt
    try:
        return prompt.encode(sys.getfilesystemencoding(), "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UserError("prompt: this is not UTF-8 (or holds half of a surrogate pair), so that no model can read it.") from None


def _kind(key: str) -> str | None:
    """Return the kind of a key's values: "text", "texts" (a list of texts), "files" (one or a list), or None for all else."""
    return _kinds().get(key)


@cache
def _kinds() -> dict[str, str]:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    kinds = {"str": "text", "str | None": "text", "list[str]": "texts", "list[str] | None": "texts"}
    types = {key: kinds[kind] for key, kind in _types(Config, "") if kind in kinds and key not in groups}
    return types | dict.fromkeys((*FILES, *COLUMNS), "files") | dict.fromkeys(NAMES, "texts")


def _types(group: Any, prefix: str) -> Iterable[tuple[str, str]]:
    for field in fields(group):
        default: Any = field.default_factory
        if is_dataclass(default):
            yield from _types(default, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", str(field.type)
