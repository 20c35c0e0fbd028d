"""From the command line to a run: compose, check, run; what ends a run early becomes one message and an exit code.

Exit codes: 0 done; 1 failed; 2 the user's input or configuration is wrong; 3 stopped by a signal after saving.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm_lightning import checks, config, distributed
from llm_lightning.config import CONF
from llm_lightning.errors import OtherRankFailed, RunError, Stopped, UserError
from llm_lightning.explain import explain
from llm_lightning.model_settings import resolve_settings
from llm_lightning.overrides import quote_overrides
from llm_lightning.redact import redacted
from llm_lightning.stored import STORED, stored


def main() -> None:
    """Compose the config from `conf/` and the command line, and run it."""
    register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through: we word them ourselves
    if distributed.is_launched():  # torch warns, with a C++ stack, of each connection that a rank's end breaks
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _use_utf8()
    with worded():
        sys.argv[1:] = quote_overrides(sys.argv[1:])
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(_job)()


def _use_utf8() -> None:
    """Read and write names and text as UTF-8 also where LC_ALL=C says ASCII; a byte that is none becomes U+FFFD, and no error in mid-chat.

    The mode of an interpreter is fixed at its start, so that it starts anew, in this process: libraries cannot write to a folder `données`
    whose name is no text to Python.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = "utf-8" if codecs.lookup(stream.encoding).name == "ascii" else None
            with contextlib.suppress(io.UnsupportedOperation):  # what calls us may have read standard input already
                stream.reconfigure(encoding=encoding, errors="replace" if stream is sys.stdin else "backslashreplace")


def register() -> None:
    """Give Hydra the schema, and what the files of conf/ compute with."""
    ConfigStore.instance().store(name="schema", node=config.schema())
    OmegaConf.register_new_resolver("unless_pretrained", _unless_pretrained, replace=True)
    OmegaConf.register_new_resolver("json", json.loads, replace=True)  # of mappings whose keys Hydra's grammar does not have


def _unless_pretrained(fresh: float, pretrained: float, *, _root_: DictConfig) -> float:
    """A learning rate that trains a model from scratch would wreck pretrained weights."""
    return fresh if _root_.model.name_or_path is None else pretrained


def _job(node: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    elsewhere = hydra_config.mode is RunMode.MULTIRUN  # a job on another machine, whose launcher tells the sweep of its errors
    with contextlib.nullcontext() if elsewhere else worded():  # here too, or Hydra prints its own line before ours
        overrides = list(hydra_config.overrides.task)
        if node.task in STORED:
            chosen = stored(node.task, node.run, overrides)
        else:
            chosen = compose(node, dict(hydra_config.runtime.choices), overrides)
            checks.check(chosen)
        sweep = None
        if elsewhere and chosen.run_dir is not None:
            sweep = Path(chosen.run_dir).parent.name
        elif chosen.sweep != config.SweepConfig():
            raise UserError(f"sweep={chosen.choices.get('sweep')}: a sweep is started with -m: python train.py -m …")
        for chatty in ("torchao", "torch.utils._pytree"):  # transformers imports torchao where it is; it says what does not fit
            logging.getLogger(chatty).setLevel(logging.ERROR)
        from llm_lightning.run import run  # torch and its friends: only once the config is known to be good

        run(chosen, sweep)


@contextlib.contextmanager
def worded() -> Iterator[None]:
    """Turn the user's mistakes, and what else ends a run for a known reason, into one message; debug=true keeps the traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted; where a state was saved before, the command with the same run_dir goes on from it", file=sys.stderr)
        sys.exit(RunError.exit_code)
    except Exception as error:
        if not isinstance(error, RunError | HydraException | OmegaConfBaseException) and not _from_hydra(error):
            raise
        if "debug=true" in (argument.lower() for argument in sys.argv[1:]):
            traceback.print_exc()
        same_elsewhere = (
            distributed.local_rank() > 0 and not distributed.has_met()
        )  # every process of a machine sees the same mistake
        if isinstance(error, OtherRankFailed) or (same_elsewhere and not isinstance(error, Stopped)):
            sys.exit(error.exit_code if isinstance(error, RunError) else UserError.exit_code)
        if isinstance(error, Stopped):
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)
        print(f"\nerror: {redacted(explain(error))}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, RunError) else UserError.exit_code)


def work() -> None:
    """Be one rank of a run that another process has started: it says on standard input what to do."""
    register()
    with worded():
        from llm_lightning.launch import read_task
        from llm_lightning.run import run

        run(*read_task())


def _from_hydra(error: Exception) -> bool:
    """Whether Hydra raised it over the command line; it has plain ValueErrors among its refusals."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(part in frames[-1].filename.replace(os.sep, "/") for part in ("/hydra/", "/omegaconf/")) if frames else False


def load(overrides: list[str]) -> config.Config:
    """Return the checked config of a command line, for use from Python: `load(["task=finetune", "data=sst2"])`.

    Raises UserError where the command line is wrong.
    """
    register()
    overrides = quote_overrides(overrides)
    outer = GlobalHydra.instance().hydra  # of a sweep, which loads the configs of its jobs
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            node = hydra.compose("config", overrides, return_hydra_config=True)
            choices = dict(node.hydra.runtime.choices)
            OmegaConf.set_struct(node, False)
            del node["hydra"]
            if node.task in STORED:
                return stored(node.task, node.run, overrides)
            chosen = compose(node, choices, overrides)
    except Exception as error:
        if not isinstance(error, HydraException | OmegaConfBaseException) and (
            isinstance(error, RunError) or not _from_hydra(error)
        ):
            raise
        raise UserError(explain(error, in_shell=False)) from error
    finally:
        GlobalHydra.instance().hydra = outer
    checks.check(chosen)
    return chosen


def compose(node: DictConfig, choices: dict[str, str], overrides: list[str]) -> config.Config:
    """Return the node as typed dataclasses, with what only the program knows, and the model's settings without those of another model."""
    OmegaConf.set_struct(node, False)
    node.model.config, node.model.family = resolve_settings(GlobalHydra.instance().config_loader(), "config", overrides)
    node.choices = {group: option for group, option in choices.items() if not group.startswith("hydra/") and option}
    node.command = shlex.join(["python", *sys.argv]) if sys.argv[0].endswith(".py") else shlex.join(sys.argv)
    return config.typed(node)
