"""Create the folder of a run, lock it for one process, and write `config.yaml` and JSON files to it atomically."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import xxhash
import yaml

from llm_lightning import distributed
from llm_lightning.atomic_files import write_atomically
from llm_lightning.config.redaction import redact
from llm_lightning.config.schema import Config, expand_home, plain
from llm_lightning.errors import UserError

LAUNCHES = Path("runs") / ".launches"
"""Notes of the folder that each launcher's job uses, for its restarts: a file for each job that has not ended."""


def open_folder(config: Config) -> Path:
    """Return the run's folder on this machine, a new one unless `run_dir` names one. A collective.

    Rank 0 chooses the path and locks the folder. A machine with another disk uses the same path, or the one that `run_dir` names there.
    Raises UserError if the named folder holds a run already and `resume=never`.
    """
    folder = open_folder_alone(config) if distributed.is_rank_zero() else None
    place = distributed.broadcast(None if folder is None else str(folder.absolute()))
    if folder is None:
        folder = expand_home(place if config.run_dir is None else config.run_dir)
        if distributed.local_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_folder_alone(config: Config) -> Path:
    """Return the run's folder, locked, for a task that one process does."""
    return _open_named_folder(config) if config.run_dir is not None else _open_unnamed_folder(config)


def _open_named_folder(config: Config) -> Path:
    """Return the folder of `run_dir`, locked."""
    folder = expand_home(str(config.run_dir))
    if config.resume == "never" and (folder / "config.yaml").is_file():
        raise UserError(f"run_dir={config.run_dir}: this folder holds a run already; give another, or resume=auto to continue it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.log").open("a").close()
    except OSError as error:
        raise UserError(f"run_dir={config.run_dir}: the folder cannot be written ({error.strerror}); give another.") from error
    _lock_for_training(folder)
    return folder


def _open_unnamed_folder(config: Config) -> Path:
    """Return a new folder; after a restart by the launcher, the folder that the job took first."""
    note = _launch_note(config)
    if note is not None and distributed.read_launch().restarts and note.is_file():
        folder = Path(note.read_text(encoding="utf-8"))
    else:
        folder = _create_folder(config)
        if note is not None:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(str(folder.absolute()), encoding="utf-8")
    _lock_for_training(folder)
    return folder


@contextlib.contextmanager
def scratch_folder(config: Config) -> Iterator[Path]:
    """Create a folder on the disk that the run would use, and remove it afterwards."""
    place = expand_home(config.run_dir or "runs")
    while not place.is_dir():
        place = place.parent
    with tempfile.TemporaryDirectory(dir=place, prefix=".check-") as folder:
        yield Path(folder)


def resume_command(config: Config, folder: Path) -> str:
    """Return the command line that continues a run."""
    started = str(redact(config.command or "the same command"))
    return started if "run_dir=" in started else f"{started} run_dir={shlex.quote(str(folder))}"


def _lock_for_training(folder: Path) -> None:
    """Lock the folder for this process until it ends in any way. Raises UserError if another process trains in it."""
    handle = lock(folder)
    if handle is None:
        raise UserError(f"run_dir={folder}: another process is training in this folder; wait for it, or give another.")
    _locks.append(handle)


def lock(path: Path) -> int | None:
    """Return a handle that locks a file or a folder until it is closed or the process ends; None if another process has the lock."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


_locks: list[int] = []


def release_folder() -> None:
    """Unlock the folders that this process holds: it may train in another."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=release_folder)  # or loader workers would hold on to the folder for some seconds after a kill


def _create_folder(config: Config) -> Path:
    """Create a folder that no other run has, even one started in the same second."""
    now, names = datetime.now(), [config.choices.get(group, "") for group in ("task", "data", "model")]
    names = names[:2] if config.task == "inspect" else names  # which trains none
    parent = Path("runs") / f"{now:%Y-%m-%d}"
    parent.mkdir(parents=True, exist_ok=True)
    base = f"{now:%H-%M-%S}-" + "-".join(filter(None, names))
    for attempt in range(1, 10_000):
        folder = parent / (base if attempt == 1 else f"{base}-{attempt}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise UserError(f"{parent}: no free name for a run folder.")


def write_config(folder: Path, config: Config) -> None:
    """Write config.yaml of a run that starts or resumes, and remove the summary of an earlier run in the folder."""
    (folder / "summary.json").unlink(missing_ok=True)
    text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)  # not OmegaConf's: a path may hold ${
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write plain containers as JSON; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _launch_note(config: Config) -> Path | None:
    """Return the file that notes the folder of the launcher's job, one for each command of a job's script; None without a job."""
    job = distributed.read_launch().job
    return None if job is None else LAUNCHES / f"{job}-{xxhash.xxh3_64_hexdigest(str(config.command).encode())}"


def forget_launch(config: Config) -> None:
    """Remove the note of the run's folder: the run has ended, and a restart has nothing to continue."""
    if (note := _launch_note(config)) is not None:
        note.unlink(missing_ok=True)
