"""Find the files that the config names, their splits, and a hash of their content. Nothing here imports torch."""

from __future__ import annotations

import glob
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from llm_lightning.config.schema import DataConfig, expand_home
from llm_lightning.data.compression import COMPRESSED, ending, open_file, stem
from llm_lightning.errors import UserError, join_names, nearest

__all__ = [
    "SPLITS",
    "content_hash",
    "ending",
    "expand",
    "match",
    "missing",
    "open_file",
    "resolve_path",
    "split_files",
    "stem",
    "with_compressed",
]

log = logging.getLogger(__name__)

FORMAT = 6  # of the cached rows, whose name is the content hash
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Names of the file or the folder of a split in data.dir."""
_WORDS = {word: split for split, words in SPLITS.items() for word in words}
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.|$)")
"""The hub's numbers of the parts of a split: train-00000-of-00002.parquet."""


def resolve_path(data: DataConfig, name: str) -> Path:
    """Return a file name of the config as a path. Relative names start at data.dir, if that is set."""
    path = expand_home(name)
    return expand_home(data.dir) / path if data.dir and not path.is_absolute() else path


def with_compressed(path: Path) -> Path:
    """Return a path, or, if it does not exist, the path of the same file compressed: train.en.gz for train.en."""
    if not path.exists():
        return next((packed for suffix in COMPRESSED if (packed := Path(f"{path}{suffix}")).is_file()), path)
    return path


def match(name: str | Path, folder: str | Path | None = None) -> list[Path]:
    """Return the paths that `name` stands for, sorted: the file or folder of this exact name, else all matches as a pattern; [] for none.

    A relative name starts at `folder`, if given; the folder is never a pattern. A name in another Unicode form than on the disk (macOS
    decomposes `é`) stands for the same file.
    """
    path = expand_home(name)
    base = None if folder is None or path.is_absolute() else expand_home(folder)
    for form in (str(path), unicodedata.normalize("NFC", str(path)), unicodedata.normalize("NFD", str(path))):
        literal = Path(form) if base is None else base / form
        if literal.exists():
            return [literal]
    pattern = str(path) if base is None else f"{glob.escape(str(base))}/{path}"
    return sorted(p for p in map(Path, glob.glob(pattern, recursive=True)) if p.exists())


def expand(
    key: str, name: str | Path, endings: tuple[str, ...] | None = None, folder: str | Path | None = None, log_notes: bool = False
) -> list[Path]:
    """Return the files that `name`, the value of the config's `key`, stands for, sorted.

    A folder stands for the files below it, only for files with one of `endings` if these are given. Hidden files and files of systems
    and editors are left out. With `log_notes` the log names the files left out. Raises UserError if no file is found.
    """
    matches = match(name, folder)
    if not matches:
        raise UserError(f"{key}={name}: {_no_file(str(name), folder)}.")
    if len(matches) == 1 and matches[0].is_dir():
        return _files_below(matches[0], endings, key, log_notes)
    for path in matches:
        if not path.is_file() and not path.is_dir():
            raise UserError(
                f"{key}={name}: this is no file but a pipe or a device, which cannot be read twice; write it to a file first."
            )
        if path.is_file() and not os.access(path, os.R_OK):
            raise UserError(f"{key}={name}: {path} may not be read (its permissions).")
    files = [path for path in matches if path.is_file() and (len(matches) == 1 or not _is_of_system(Path(path.name)))]
    if not files:
        raise UserError(f"{key}={name}: only folders match this pattern, and no file.")
    if log_notes and len(files) < len(matches):
        others = [path for path in matches if path not in files]
        log.warning(
            "%s=%s: %s files are read; not read are %s", key, name, len(files), join_names((path.name for path in others), 4)
        )
    return files


def missing(key: str, name: str) -> str:
    """Return the message for a value of `key` that stands for no file."""
    return f"{key}={name}: {_no_file(name, None)}."


def _no_file(name: str, folder: str | Path | None) -> str:
    """Return a clause on why the file does not exist, with the nearest name."""
    if re.match(r"[a-z][a-z0-9+]*://", name):
        return "this is an address; download the file, and give its path"
    path = expand_home(name) if folder is None else expand_home(folder) / expand_home(name)
    if not path.parent.is_dir():
        has_pattern = glob.has_magic(str(path.parent))
        return "no such file" if has_pattern else f"no such file (the folder {path.parent} does not exist)"
    hint = nearest(path.name, [p.name for p in path.parent.iterdir()])
    return "no such file" + hint.rstrip("?").replace(" Did", "; did")


def _files_below(folder: Path, endings: tuple[str, ...] | None, key: str, log_notes: bool) -> list[Path]:
    """Return the files below a folder. Raises UserError if none has one of `endings`, or if train's folder holds several splits."""
    files: list[Path] = []
    others: list[Path] = []
    for path in sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()):
        is_read = not _is_of_system(path) and (endings is None or ending(path) in endings)
        (files if is_read else others).append(path)
    if not files:
        present = f"; there are {_count_endings(others)}" if others else ""
        raise UserError(f"{key}={folder}: there is no {join_names(endings or ('file',))} file in this folder{present}.")
    if key == "data.train":
        splits = Counter(split for path in files if (split := split_of(path)) is not None)
        if "train" in splits and len(splits) > 1:
            held_out = next(path for path in files if split_of(path) not in (None, "train"))
            raise UserError(
                f"{key}={folder}: the folder holds files of other splits too ({held_out}); data.dir={folder} "
                f"takes each file for its split, or name the files of train."
            )
    if others and log_notes:
        log.warning("%s=%s: %s files are read; not read are %s", key, folder, len(files), _count_endings(others))
    return [folder / path for path in files]


def _is_of_system(path: Path) -> bool:
    """Return whether a file, by its path in the folder, is hidden or left by a system or an editor: .DS_Store, ~$x.csv, …"""
    return any(part.startswith((".", "~$", "__MACOSX")) for part in path.parts) or path.name.lower() in ("thumbs.db", "desktop.ini")


def _count_endings(paths: list[Path]) -> str:
    """Return names of a few files, or the counts of their endings."""
    if len(paths) <= 3:
        return join_names(map(str, paths))
    kinds = ("hidden or system files" if _is_of_system(path) else path.suffix or "without an ending" for path in paths)
    counts = Counter(kinds)
    return join_names(f"{count} {name}" for name, count in counts.most_common())


def split_of(path: Path) -> str | None:
    """Return the split that a file's name gives, else the split that the closest folder's name gives; None if neither does.

    A name gives its split by a word between signs: train.csv, data/test-00000-of-00001.parquet, my_dev.jsonl, train/part1.txt.
    """
    for name in (stem(path), *reversed(path.parent.parts)):
        splits = {_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS}
        if len(splits) == 1:
            return splits.pop()
    return None


def split_files(data: DataConfig, endings: Iterable[str]) -> dict[str, list[Path]]:
    """Return the files of each split: the files that the config names, else the files below data.dir named after the split.

    A folder stands for all files below it with one of `endings`; endings of compression do not count. Raises UserError if a name
    matches no file, or if the files of a split in data.dir are ambiguous.
    """
    endings = tuple(endings)
    splits = {}
    for split in SPLITS:
        setting = getattr(data, split)
        if setting is not None:
            names = setting if isinstance(setting, list) else [setting]
            folder = data.dir or None
            files = [path for name in names for path in expand(f"data.{split}", str(name), endings, folder, log_notes=True)]
            twice = [str(path) for path, count in Counter(path.resolve() for path in files).items() if count > 1]
            if twice:
                log.warning("data.%s: files that are named twice are read twice: %s", split, join_names(twice, 3))
            splits[split] = files
        elif data.dir is not None and (files := _files_of(split, expand_home(data.dir), endings)):
            splits[split] = files
    if "train" not in splits:
        raise UserError(
            f"data.dir={data.dir}: there is no train file in it (train{endings[0]}, data/train-00000-of-00001{endings[0]}, …); name it "
            f"with data.train=<file>."
        )
    if data.dir is not None and any(getattr(data, split) is None for split in splits):
        _name_others(expand_home(data.dir), endings, {path for files in splits.values() for path in files})
    return splits


def _name_others(folder: Path, endings: tuple[str, ...], read: set[Path]) -> None:
    """Log the readable files in data.dir that belong to no split."""
    others = [Path(p.name) for p in sorted(folder.glob("*")) if p.is_file() and ending(p) in endings and p not in read]
    if shown := [path for path in others if not _is_of_system(path)]:
        log.warning("data.dir=%s: not read, as no split is looked for under these names: %s", folder, _count_endings(shown))


def _files_of(split: str, folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Return the files of a split in data.dir: <split>.*, else parts named after the split there or below."""
    direct = [p for word in SPLITS[split] for p in sorted(folder.glob(f"{word}.*")) if p.is_file() and ending(p) in endings]
    if len(direct) == 1:
        return direct
    files = direct or [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and ending(path) in endings
        and not _is_of_system(path.relative_to(folder))
        and split_of(path.relative_to(folder)) == split
    ]
    if len(files) > 1 and not _are_parts(files):
        several = join_names(str(path.relative_to(folder)) for path in files)
        raise UserError(f"data.dir={folder}: several files could be {split} ({several}); name it with data.{split}=<file>.")
    for path in files:
        if shard := _SHARD.search(path.name):
            absent = int(shard[2]) - len({p.name for p in files if (m := _SHARD.search(p.name)) and m[2] == shard[2]})
            if absent > 0:
                raise UserError(f"{path}: {absent} of the {int(shard[2])} parts of {split} are missing beside it.")
    if len(files) > 1:
        log.info("data.dir=%s: %s is made of %s files, %s to %s", folder, split, len(files), files[0].name, files[-1].name)
    return files


def _are_parts(files: list[Path]) -> bool:
    """Return whether files are parts of a split, in one folder and of one kind: named alike but for numbers, or in the split's folder."""
    if len({(path.parent, ending(path)) for path in files}) > 1:
        return False
    alike = len({re.sub(r"\d+", "#", stem(path)) for path in files}) == 1
    return alike or (split_of(Path(stem(files[0]))) is None and len({split_of(Path(stem(path))) for path in files}) == 1)


def content_hash(paths: Iterable[Path], *settings: object) -> str:
    """Return a hash of the files' bytes and kinds, and of the settings for reading them; their names and places do not count."""
    digest = xxhash.xxh3_128(repr((FORMAT, *settings)).encode())
    for path in paths:
        digest.update(f"{ending(path)}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        digest.update(b"\0")
    return digest.hexdigest()


def has_split(folder: Path, split: str) -> bool:
    """Return whether a file below a folder is named after a split, with any ending."""
    return any(split_of(path.relative_to(folder)) == split for path in folder.rglob("*") if path.is_file())


def mistakes(data: DataConfig) -> Iterator[str]:
    """Yield a message for every file name in the config that stands for no file."""
    for split in SPLITS:
        value = getattr(data, split)
        for name in value if isinstance(value, list) else [value] if value is not None else []:
            file = f"{name}.{data.columns.text}" if data.source == "parallel" else str(name)
            if not (with_compressed(resolve_path(data, file)).exists() if data.source == "parallel" else match(file, data.dir)):
                yield f"data.{split}={file}: {_no_file(file, data.dir)}."
