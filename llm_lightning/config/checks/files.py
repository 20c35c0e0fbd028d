"""Check that the folders and files of a run or a task can be written."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llm_lightning.config.schema import (
    Config,
    GenerateConfig,
    cache_folder,
    expand_home,
)
from llm_lightning.data import paths
from llm_lightning.errors import join_names

OUT = (".jsonl", ".parquet")
"""Suffixes of a file of predictions."""


def check_folders(config: Config) -> Iterator[str]:
    """Yield the folders of the run that cannot be written to."""
    if config.task == "evaluate":
        folder = config.run_folder
        if folder is not None and (reason := write_error(folder)):
            yield f"run={config.run}: the folder cannot be written ({reason}), and task=evaluate puts its result there; copy the run."
    elif config.run_dir is None:
        if reason := write_error(Path("runs")):
            yield f"run_dir is not set, and runs/ cannot be written here ({reason}); give run_dir=<folder>."
    elif not expand_home(config.run_dir).is_file() and (reason := write_error(expand_home(config.run_dir))):
        yield f"run_dir={config.run_dir}: the folder cannot be written ({reason}); give another."
    try:
        reason = write_error(cache_folder(config))
    except RuntimeError:  # of expand_home: a user of a container has no home
        reason = "there is no home folder"
    if reason:
        yield f"cache_dir={config.cache_dir}: the folder cannot be written ({reason}); give another with cache_dir=<folder>."


def check_output_file(config: Config, name: str) -> Iterator[str]:
    """Yield an error if the file that `out` names, or `name` in the run folder, cannot be written."""
    if config.out is None:
        if config.run_folder is not None and (reason := write_error(config.run_folder)):
            yield f"run={config.run}: the folder cannot be written ({reason}); give out=<file> for {name}."
        return
    file = expand_home(config.out)
    if file.is_dir():
        yield f"out={config.out}: this is a folder; give a file, {file / name} for example."
    elif reason := write_error(file.parent):
        yield f"out={config.out}: its folder cannot be written ({reason}); give another."


def write_error(folder: Path) -> str | None:
    """Return why no file can be written to a folder, or to the first existing one above it; None if one can.

    A file without a name is created there for a moment: the mode of a folder does not show a read-only disk, and means nothing to root.
    """
    try:
        while not folder.exists():
            folder = folder.absolute().parent
        if not folder.is_dir():
            return f"{folder} is a file"
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder}: {error.strerror}"


def check_predict(config: Config) -> Iterator[str]:
    source = config.data.predict
    if source is None:
        yield "data.predict is not set: task=predict needs data.predict=<file, glob or - for standard input>."
    elif source != "-" and not paths.match(source):
        yield paths.missing("data.predict", source)
    if config.out is None and config.run_folder is None:
        yield "out is not set: give out=<file.jsonl or file.parquet>."
    elif config.out is not None and Path(config.out).suffix not in OUT:
        yield f"out={config.out}: expected a name that ends in {join_names(OUT)}."
    else:
        yield from check_output_file(config, "predictions.jsonl")


def check_prompt(config: Config) -> Iterator[str]:
    yield from check_stops(config.generate)
    sources = {"prompt": config.prompt, "prompt_file": config.prompt_file, "data.predict": config.data.predict}
    present = [key for key, value in sources.items() if value is not None]
    if not present:
        yield (
            'prompt is not set: task=generate needs prompt="…", prompt_file=<file> (- for standard input), or data.predict=<file> with '
            "a prompt a row."
        )
    elif len(present) > 1:
        yield f"{' and '.join(present)} are both set: give one of them."
    elif config.data.predict is not None:
        yield from check_predict(config)
    elif config.out is not None:
        yield f"out={config.out}: what goes on with one prompt is written to the terminal; leave it out (> <file> keeps it)."
    elif config.prompt_file not in (None, "-"):
        file = expand_home(str(config.prompt_file))
        if not file.exists() or file.is_dir():
            yield (
                paths.missing("prompt_file", str(config.prompt_file))
                if not file.exists()
                else (f"prompt_file={config.prompt_file}: this is a folder; give a file.")
            )


def check_stops(settings: GenerateConfig) -> Iterator[str]:
    if "" in (settings.stop or []):
        yield "generate.stop: an empty text is in every text; leave it out."


def check_likelihood(config: Config) -> Iterator[str]:
    settings = config.evaluate
    for key in ("text", "choices"):
        files = getattr(settings, key)
        if files is not None and not paths.match(files):
            yield paths.missing(f"evaluate.{key}", files)
    if settings.window and settings.stride and settings.stride > settings.window:
        yield f"evaluate.stride={settings.stride}: windows of evaluate.window={settings.window} tokens would leave some out; lower it."
    yield from check_output_file(config, "likelihood.json")


def check_inspect(config: Config) -> Iterator[str]:
    against = config.inspect.against
    if against is not None and not paths.match(against):
        yield paths.missing("inspect.against", against)
    if config.inspect.presidio and importlib.util.find_spec("presidio_analyzer") is None:
        yield (
            "inspect.presidio=true: needs presidio_analyzer; pip install presidio-analyzer, and a language model of spaCy's for it "
            "(python -m spacy download en_core_web_lg)."
        )
    if config.run is not None:
        yield f"run={config.run}: task=inspect reads data, and no run; leave it out, and give data=, data.train= and data.columns.*."
    if config.data.streaming:
        yield "data.streaming=true: task=inspect compares all rows, and a stream never has them; leave it out."


def check_export(config: Config) -> Iterator[str]:
    run = config.run_folder
    if config.out is None and run is None:
        yield "out is not set: give out=<folder>."
    else:
        folder = expand_home(config.out) if config.out else Path(str(run))
        if folder.is_file():
            yield f"out={config.out}: this is a file; give a folder."
        elif reason := write_error(folder):
            yield f"{f'out={config.out}' if config.out else f'run={config.run}'}: cannot be written ({reason}); give out=<folder>."
    if config.export.format == "adapter" and (run is None or not (run / "adapter" / "adapter_config.json").is_file()):
        yield f"export.format=adapter: run={config.run} has no adapter; it was trained without (model/adapter=none)."
    if config.export.format == "documents" and (run is None or not (run / "summary.json").is_file()):
        yield f"export.format=documents: run={config.run} is no finished run (it has no summary.json), whose record fills the documents."
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if config.export.format == "onnx" and missing:
        yield f"export.format=onnx: needs {join_names(missing)}; pip install 'llm_lightning[onnx]'."
