"""Sort the keys that a command line or an option adds to a group: callbacks and loggers by name, arguments of a `_target_`, Trainer flags.

Any other key is refused, with the nearest valid name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llm_lightning.config import schema, signatures
from llm_lightning.config.checks.trainer_flags import TRAINER
from llm_lightning.config.schema import CONF, child_sections
from llm_lightning.errors import UserError, join_names, nearest


def sort_open_keys(node: DictConfig, find_file: Callable[[str], str | None] = lambda key: None) -> None:
    """Move the keys that the schema does not have to where the run reads them.

    `find_file` returns the option file that sets a key. Raises UserError, with that file, for a key that nothing reads.
    """
    for group in (node.callbacks, node.logger):
        _move(group, group.custom, lambda _, value: OmegaConf.is_dict(value) and "_target_" in value)
    for group in (node.data, node.model):
        if group._target_ is not None:
            _move(group, group.arguments, lambda *_: True)
    if node.data._target_ is not None:
        node.data.source = "package"
    if _list_added(node.trainer):  # reading the Trainer's source takes longer than the rest
        flags = signatures.parameters(TRAINER) or {}
        _move(node.trainer, node.trainer.flags, lambda name, _: name in flags)
    for key in _list_unknown(node):
        file = find_file(key)
        raise UserError(f"{file}: {unknown_key(key)}" if file else unknown_key(key))


def unknown_key(key: str) -> str:
    """Return the message for a key that the schema does not have."""
    node, prefix = schema.schema(), ""
    parts = key.split(".")
    for part in parts[:-1]:
        child = node.get(part)
        if not isinstance(child, DictConfig):
            break
        node, prefix = child, f"{prefix}{part}."
    unknown = parts[prefix.count(".")]
    valid = sorted(map(str, node)) + ([p.name for p in CONF.iterdir() if p.is_dir() and p.name != "hydra"] if not prefix else [])
    further = signatures.parameters(TRAINER) or {} if prefix == "trainer." else {}
    guess = nearest(unknown, [*valid, *further]).replace("'", f"'{prefix}", 1)
    more = "; further arguments of Lightning's Trainer are accepted too" if further else ""
    return (
        f"{key}: there is no such key; {prefix.rstrip('.') or 'the config'} has {join_names(sorted(set(valid)), 40)}{more}.{guess}"
    )


def _list_added(group: DictConfig) -> list[str]:
    """Return the keys of a group that its dataclass does not have."""
    kind: Any = OmegaConf.get_type(group)
    return [str(name) for name in group if str(name) not in {field.name for field in fields(kind)}]


def _move(group: DictConfig, place: DictConfig, belongs: Callable[[str, Any], bool]) -> None:
    """Move the added keys of a group for which `belongs(name, value)` is true into `place`."""
    for name in _list_added(group):
        if belongs(name, group[name]):
            place[name] = group.pop(name)


def _list_unknown(node: DictConfig, prefix: str = "") -> Iterator[str]:
    kind: Any = OmegaConf.get_type(node)
    field_names = {field.name for field in fields(kind)} if is_dataclass(kind) else None
    sections = dict(child_sections(node))
    for name in map(str, node):
        if field_names is not None and name not in field_names:
            yield f"{prefix}{name}"
        elif name in sections:
            yield from _list_unknown(sections[name], f"{prefix}{name}.")
