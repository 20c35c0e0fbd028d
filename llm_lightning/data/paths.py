"""Which files a split is made of, and what their content is called."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

import xxhash

from llm_lightning.checks import SPLITS, located
from llm_lightning.config import DataConfig
from llm_lightning.errors import UserError, listed

FORMAT = 3  # of the rows that are kept under such a hash


def split_files(data: DataConfig, endings: Iterable[str]) -> dict[str, list[Path]]:
    """Files of each split: those the config names, else those of data.dir that are named after the split.

    A folder stands for all files below it with one of `endings`. Raises UserError where a name matches nothing, or where
    data.dir holds several files for a split.
    """
    splits = {}
    for split, stems in SPLITS.items():
        named = getattr(data, split)
        if named is not None:
            names = named if isinstance(named, list) else [named]
            splits[split] = [path for name in names for path in _expand(located(data, str(name)), split, tuple(endings))]
        elif data.dir is not None:
            folder = Path(data.dir).expanduser()
            found = [p for stem in stems for p in sorted(folder.glob(f"{stem}.*")) if p.suffix.lower() in endings]
            if len(found) > 1:
                several = listed(path.name for path in found)
                raise UserError(
                    f"data.dir={data.dir}: several files could be {split} ({several}); name it with data.{split}=<file>."
                )
            if found:
                splits[split] = found
    if "train" not in splits:
        raise UserError(
            f"data.dir={data.dir}: there is no train file in it (train.csv, train.tsv, …); name it with data.train=<file>."
        )
    return splits


def _expand(path: Path, split: str, endings: tuple[str, ...]) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings)
        if not found:
            raise UserError(f"data.{split}={path}: there is no {listed(endings)} file in this folder.")
        return found
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not found:
        raise UserError(f"data.{split}={path}: no such file.")
    return found


def content_hash(paths: Iterable[Path], *settings: object) -> str:
    """Identity of the files' bytes and of the settings they are read with; the files' names and places do not count."""
    digest = xxhash.xxh3_128(repr((FORMAT, *settings)).encode())
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        digest.update(b"\0")
    return digest.hexdigest()
