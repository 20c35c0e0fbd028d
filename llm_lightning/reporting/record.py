"""What a run leaves in its folder: config.yaml, train.log, metrics.csv, summary.json, report.html, evaluation/, hf/ and so on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash
import yaml

from llm_lightning import distributed
from llm_lightning.config import Config, expand_home, plain
from llm_lightning.errors import UserError
from llm_lightning.redact import redacted
from llm_lightning.reporting.card import write_card
from llm_lightning.reporting.report import write_report
from llm_lightning.runs.identity import has_same_contents, has_same_result

log = logging.getLogger(__name__)

PACKAGES = (
    "llm_lightning",
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "datasets",
    "torchmetrics",
    "hydra-core",
    "numpy",
)
LAUNCHES = Path("runs") / ".launches"
"""Which folder a launcher's job has taken, for its restarts: a file for each job that has not ended."""


def open_folder(config: Config) -> Path:
    """Return the run's folder on this machine, made for this run alone unless `run_dir` names one. A collective.

    Rank 0 decides where it is and locks it. On a machine with another disk it is at the same place, or where `run_dir` says there.
    Raises UserError where the named folder holds a run already and `resume=never`.
    """
    folder: Path | None = None
    if distributed.is_rank_zero():
        folder = _named_folder(config) if config.run_dir is not None else _own_folder(config)
    place = distributed.broadcast(None if folder is None else str(folder.absolute()))
    if folder is None:
        folder = expand_home(place if config.run_dir is None else config.run_dir)
        if distributed.local_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
    return folder


def _named_folder(config: Config) -> Path:
    """The folder of `run_dir`, locked."""
    folder = expand_home(str(config.run_dir))
    if config.resume == "never" and (folder / "config.yaml").is_file():
        raise UserError(f"run_dir={config.run_dir}: this folder holds a run already; give another, or resume=auto to continue it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.log").open("a").close()
    except OSError as error:
        raise UserError(f"run_dir={config.run_dir}: the folder cannot be written ({error.strerror}); give another.") from error
    _claim(folder)
    return folder


def _own_folder(config: Config) -> Path:
    """A new folder; after a restart by the launcher, the one that the job took first."""
    note = _launch_note(config)
    if note is not None and distributed.read_launch().restarts and note.is_file():
        folder = Path(note.read_text(encoding="utf-8"))
    else:
        folder = _new_folder(config)
        if note is not None:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(str(folder.absolute()), encoding="utf-8")
    _claim(folder)
    return folder


@contextlib.contextmanager
def scratch_folder(config: Config) -> Iterator[Path]:
    """A folder on the disk that the run would use, gone afterwards."""
    place = expand_home(config.run_dir or "runs")
    while not place.is_dir():
        place = place.parent
    with tempfile.TemporaryDirectory(dir=place, prefix=".check-") as folder:
        yield Path(folder)


def finished(folder: Path, config: Config, run: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The summary of the run in the folder where it is done and the config is the same; None where there is something to do.

    Where `run`, its identity, is given, its data and its pretrained weights are compared by content, wherever they are.
    """
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        stored: Any = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    is_same = has_same_result(stored, plain(config)) if run is None else has_same_contents(summary, stored, run)
    return summary if is_same else None


def identity(config: Config) -> dict[str, Any]:
    """What of a run goes into its checkpoints, as plain containers."""
    return {"config": plain(config), "versions": versions(), "git": git_commit()}


def command(config: Config, folder: Path) -> str:
    """The command line that continues a run."""
    started = str(redacted(config.command or "the same command"))
    return started if "run_dir=" in started else f"{started} run_dir={shlex.quote(str(folder))}"


def _claim(folder: Path) -> None:
    """Hold the folder for this process until its end, however that comes. Raises UserError where another process trains in it."""
    handle = locked(folder)
    if handle is None:
        raise UserError(f"run_dir={folder}: another process is training in this folder; wait for it, or give another.")
    _claims.append(handle)


def locked(path: Path) -> int | None:
    """A handle that holds a file or a folder until it is closed or the process ends; None where another has it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


_claims: list[int] = []


def _let_go() -> None:
    while _claims:
        os.close(_claims.pop())


os.register_at_fork(after_in_child=_let_go)  # or loader workers would hold on to the folder for some seconds after a kill


def _new_folder(config: Config) -> Path:
    """A folder that no other run has, also not one that was started in the same second."""
    now, names = datetime.now(), [config.choices.get(g, "") for g in ("task", "data", "model")]
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
    """config.yaml of a run that begins or goes on; a summary from before it is not its own any more."""
    (folder / "summary.json").unlink(missing_ok=True)
    text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)  # not OmegaConf's: a path may hold ${
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write plain containers; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def start_log(folder: Path) -> None:
    """Messages of rank 0 go to train.log and to the terminal, those marked `file_only` to the file alone; of other ranks, errors do."""
    logger = logging.getLogger("llm_lightning")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    rank = distributed.rank()
    file = logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace", delay=rank > 0)
    file.setFormatter(_Redacted("%(asctime)s %(levelname)s " + (f"rank {rank}: " if rank else "") + "%(message)s"))
    file.setLevel(logging.ERROR if rank else logging.INFO)
    logger.addHandler(file)
    if rank == 0:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setFormatter(_Redacted("%(message)s"))
        terminal.addFilter(lambda record: not getattr(record, "file_only", False))
        logger.addHandler(terminal)


def log_failure() -> None:
    """Write the traceback of the error that ends the run to its log, if that was begun."""
    if logging.getLogger("llm_lightning").handlers:
        log.exception("the run failed", extra={"file_only": True})


class _Redacted(logging.Formatter):
    """Messages and tracebacks without their secrets: a command line or an address may hold one."""

    def format(self, record: logging.LogRecord) -> str:
        return str(redacted(super().format(record)))


def close() -> None:
    """Let go of the folder: this process may start another run."""
    _let_go()
    logger = logging.getLogger("llm_lightning")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def _launch_note(config: Config) -> Path | None:
    """Return the file for the folder of the launcher's job, one for each command of a job's script; None without a job."""
    job = distributed.read_launch().job
    return None if job is None else LAUNCHES / f"{job}-{xxhash.xxh3_64_hexdigest(str(config.command).encode())}"


def forget_launch(config: Config) -> None:
    """Remove the note of the run's folder: the run has ended, and a restart has nothing to continue."""
    if (note := _launch_note(config)) is not None:
        note.unlink(missing_ok=True)


def finish(folder: Path, summary: dict[str, Any], details: dict[str, Any]) -> None:
    """Write what the run came to, and show it."""
    for split, tables in details.items():
        if tables:
            write_json(folder / "evaluation" / f"{split}.json", tables)
    write_json(folder / "summary.json", summary)
    page = publish(folder)
    log.info("%s", "\n".join(f"  {name:<32} {value:.4f}" for name, value in summary["metrics"].items()))
    log.info("weights: %s · report: %s", summary["export"], page)


def publish(folder: Path) -> Path:
    """Write the report of a finished run and the card of its model, from what the folder holds; returns the report."""
    write_card(folder)
    return write_report(folder)


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the code, with `-dirty` where files differ from it; None outside a checkout."""
    root = Path(__file__).parents[2]
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
