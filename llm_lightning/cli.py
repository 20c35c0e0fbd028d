"""Run the command line: compose the config, check it, run it; turn known errors into one message and an exit code.

Exit codes: 0 done; 1 failed; 2 the user's input or configuration is wrong; 3 stopped by a signal after saving.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from llm_lightning import distributed
from llm_lightning.config import compose, validation
from llm_lightning.config.hydra_keys import put_flags_first
from llm_lightning.config.messages import explain, is_from_hydra
from llm_lightning.config.overrides import quote_overrides
from llm_lightning.config.redaction import redact
from llm_lightning.config.saved_runs import STORED, load_saved_config
from llm_lightning.config.schema import CONF, SweepConfig
from llm_lightning.errors import OtherRankFailed, RunError, Stopped, UserError, escape_controls


def main() -> None:
    """Compose the config from `conf/` and the command line, and run it."""
    compose.register_schema()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through: we word them ourselves
    if distributed.is_launched():  # torch warns, with a C++ stack, of each connection that a rank's end breaks
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _use_utf8()
    with report_errors():
        sys.argv[1:] = quote_overrides(put_flags_first(sys.argv[1:]))
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(_job)()


def _use_utf8() -> None:
    """Read and write names and text as UTF-8 even if LC_ALL=C means ASCII. An invalid byte becomes U+FFFD, not an error in mid-chat.

    An interpreter's UTF-8 mode is fixed at its start, so the interpreter restarts in this process: otherwise libraries cannot write to a
    folder `données`, whose name Python cannot decode.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = "utf-8" if codecs.lookup(stream.encoding).name == "ascii" else None
            with contextlib.suppress(io.UnsupportedOperation):  # the caller may have read standard input already
                stream.reconfigure(encoding=encoding, errors="replace" if stream is sys.stdin else "backslashreplace")


def _job(node: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    is_sweep_job = hydra_config.mode is RunMode.MULTIRUN  # on another machine: its launcher reports errors to the sweep
    with contextlib.nullcontext() if is_sweep_job else report_errors():  # here too, or Hydra prints its own line before ours
        overrides = list(hydra_config.overrides.task)
        if node.task in STORED:
            config = load_saved_config(node.task, node.run, overrides)
        else:
            config = compose.build_config(node, dict(hydra_config.runtime.choices), overrides)
            validation.check(config)
        sweep = None
        if is_sweep_job and config.run_dir is not None:
            sweep = Path(config.run_dir).parent.name
        elif config.sweep != SweepConfig():
            raise UserError(f"sweep={config.choices.get('sweep')}: a sweep is started with -m: python train.py -m …")
        # transformers imports an installed torchao, which logs its incompatibilities
        for chatty in ("torchao", "torch.utils._pytree"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        from llm_lightning.run import run  # torch and its friends: only once the config is known to be good

        run(config, sweep)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Turn the user's mistakes, and other errors with a known reason, into one message; debug=true keeps the traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted; where a state was saved before, the command with the same run_dir goes on from it", file=sys.stderr)
        sys.exit(RunError.exit_code)
    except Exception as error:
        if not isinstance(error, RunError | HydraException | OmegaConfBaseException | MarkedYAMLError) and not is_from_hydra(error):
            raise
        if "debug=true" in (argument.lower() for argument in sys.argv[1:]):
            traceback.print_exc()
        exit_code = error.exit_code if isinstance(error, RunError) else UserError.exit_code
        # before the ranks meet, every process of a machine sees the same mistake: the first one reports it
        is_reported_elsewhere = distributed.local_rank() > 0 and not distributed.has_met()
        if isinstance(error, Stopped):
            print(error, file=sys.stderr)
        elif not isinstance(error, OtherRankFailed) and not is_reported_elsewhere:
            print(f"\nerror: {escape_controls(redact(explain(error)))}", file=sys.stderr)
        sys.exit(exit_code)


def work() -> None:
    """Run one rank of a run that another process has started; that process sends the task on standard input."""
    compose.register_schema()
    with report_errors():
        from llm_lightning.launch import read_task
        from llm_lightning.run import run

        run(*read_task())
