"""Log a run to `train.log` in its folder and to the terminal; secrets are redacted in both."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from llm_lightning import distributed
from llm_lightning.config.redaction import redact
from llm_lightning.errors import escape_controls

log = logging.getLogger(__name__)


def start_log(folder: Path) -> None:
    """Send rank 0's messages to train.log and the terminal, messages marked `file_only` to the file alone; of other ranks, only errors."""
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
    """Write the traceback of the error that ends the run to its log, if the log has been started."""
    if logging.getLogger("llm_lightning").handlers:
        log.exception("the run failed", extra={"file_only": True})


class _Redacted(logging.Formatter):
    """Formatter that redacts secrets in messages and tracebacks, as a command line or an address may hold one, and escapes controls."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(str(redact(super().format(record))))


def close_log() -> None:
    """Close the log: this process may start another run."""
    logger = logging.getLogger("llm_lightning")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
