"""Check the source, its files and columns, and the names of labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llm_lightning.config import signatures
from llm_lightning.config.schema import (
    Config,
    DataConfig,
    expand_home,
)
from llm_lightning.data import paths
from llm_lightning.errors import join_names, nearest

SOURCES = Path(__file__).parents[2] / "data" / "sources"


OF_FILES = ("files", "text", "conll", "squad", "parallel", "self_instruct")
"""Sources that need the names of files to read. A source that you add raises this error itself, when it reads its rows."""


CLEAN = ("near_duplicates", "leaks", "conflicts", "pii")
"""What data.clean may leave out of train."""


LABELLED = ("texts", "label_sets", "words", "scores")
"""Encodings whose labels are values that can be compared."""


ROLES = ("system", "user", "assistant", "tool")
"""Roles of a conversation's messages."""


def check_encoding(name: str | None) -> Iterator[str]:
    try:
        b" ".decode(name or "utf-8")  # raises for rot13 and base64, which are no text encodings
    except (LookupError, ValueError):
        yield (
            f"data.encoding={name}: there is no such encoding; usual ones are utf-8, cp1252 (Western Europe, ANSI in Windows), utf-16, "
            f"gb18030 (Chinese), cp932 (Japanese), cp1251 (Cyrillic)."
        )


def check_data(config: Config) -> Iterator[str]:
    data = config.data
    sources = sorted(p.stem for p in SOURCES.glob("*.py") if p.stem != "__init__")
    if data._target_ is not None:
        return  # which reads what it is made for
    if data.source not in sources:
        yield f"data.source={data.source}: there is no such source; there are {join_names(sources)}.{nearest(data.source, sources)}"
    if data.dir is not None and not (folder := expand_home(data.dir)).is_dir():
        yield f"data.dir={data.dir}: no such folder."
    elif data.dir is not None and data.train is None and not paths.has_split(folder, "train"):
        yield f"data.dir={data.dir}: there is no file named train.* in it; name it with data.train=<file>."
    elif data.source in OF_FILES or (data.source == "hub" and data.dir is not None):
        if data.train is None and data.dir is None:
            chosen = config.choices.get("data", data.source)
            yield f"data.train is not set: data={chosen} reads files; give data.train=<file, glob or folder> or data.dir=<folder>."
        yield from paths.mistakes(data)
    elif data.source == "hub" and data.name is None:
        yield "data.name is not set: data=hub needs data.name=<data set on the hub>, such as data.name=glue data.config=sst2."
    for key, owner in {"share": "docs", "per_class": "docs_topics", "document": "text", "fold": "squad"}.items():
        if getattr(data, key) != getattr(DataConfig(), key) and data.source != owner:
            yield f"data.{key}={getattr(data, key)}: only data={owner} has such a setting; leave it out."
    for key, reads in (
        ("words", data.source == "conll"),
        ("tags", data.source == "conll"),
        ("sentence", data.source in ("files", "hub")),
    ):
        if getattr(data.columns, key) is not None and not reads:
            owner = "data=files or data=hub" if key == "sentence" else "data=conll"
            yield f"data.columns.{key}={getattr(data.columns, key)}: only {owner} has such a setting; leave it out."
    if data.source.startswith("docs"):
        for key in ("train", "validation", "test", "dir"):
            if getattr(data, key) is not None:
                yield (
                    f"data.{key}={getattr(data, key)}: data={data.source} is built in and reads no files; "
                    f"choose data=text or data=files."
                )
    yield from _check_clean(config)
    for name, role in data.roles.items():
        if role not in ROLES:
            yield f"data.roles={{{name}: {role}}}: expected one of {join_names(ROLES)}.{nearest(role, ROLES)}"
    if data.delimiter is not None and len(data.delimiter.replace("\\t", "\t")) != 1:
        yield f"data.delimiter={data.delimiter}: expected one character (a tab is '\\t')."
    if not (config.model.name_or_path or config.model.init_from):
        for key in ("n_positions", "max_position_embeddings"):
            positions = config.model.config.get(key)
            if isinstance(positions, int) and 0 < positions < data.block_size:
                yield f"data.block_size={data.block_size}: the model has {positions} positions (model.config.{key}); change one of the two."
    if isinstance(config.batch.micro_tokens, int) and config.batch.micro_tokens < data.block_size:
        yield (
            f"batch.micro_tokens={config.batch.micro_tokens}: a sequence may have data.block_size={data.block_size} tokens "
            f"and has to fit; raise the one or lower the other."
        )


def _check_clean(config: Config) -> Iterator[str]:
    clean = config.data.clean
    for name in clean:
        if name not in CLEAN:
            yield f"data.clean={list(clean)}: expected any of {join_names(CLEAN)}.{nearest(str(name), CLEAN)}"
    if clean and config.data.streaming:
        yield (
            f"data.clean={list(clean)}: not with data.streaming=true, which never has all rows to compare; leave one of the two out, or "
            f"clean the files beforehand (task=inspect lists the rows)."
        )
    encoding = signatures.constants(str(config.objective.get("_target_"))).get("encoding")
    if "conflicts" in clean and (encoding not in LABELLED or config.data.columns.label is None):
        yield (
            f"data.clean={list(clean)}: conflicts are texts with two labels, and objective={config.choices.get('objective')} learns "
            f"none that could be compared; leave conflicts out."
        )


def check_labels(config: Config) -> Iterator[str]:
    """Yield errors in the types of the label's columns and names."""
    label, names = config.data.columns.label, config.data.labels
    encoding = signatures.constants(str(config.objective.get("_target_"))).get("encoding")
    if isinstance(label, list):
        if encoding != "label_sets":
            yield f"data.columns.label={label}: only objective=multi_label learns from a column for each label; name one column."
        elif len(label) < 2 or len(set(map(str, label))) < len(label):
            yield f"data.columns.label={label}: give at least two different columns, or one column and objective=classification."
        elif config.data.source not in ("files", "hub") and config.data._target_ is None:
            yield f"data.columns.label={label}: only data=files and hub have a column for each label."
    elif label is not None and not isinstance(label, str | int):
        yield f"data.columns.label={label}: expected the name of a column, or for objective=multi_label a list of them."
    if names is None:
        return
    if encoding == "scores":
        yield f"data.labels={names}: objective=regression learns numbers, which have no names; leave it out."
    items = [*names, *names.values()] if isinstance(names, dict) else names
    if not isinstance(items, list) or not all(isinstance(name, str | int | float) for name in items):
        yield f"data.labels={names}: expected a list, [negative,positive], or a name for each value, {{neg: Negative, pos: Positive}}."
