"""Check the files that task=audit reads, and the folder that it writes to."""

from __future__ import annotations

from collections.abc import Iterator

from llm_lightning.config.checks.files import write_error
from llm_lightning.config.schema import Config, expand_home
from llm_lightning.data import paths


def check_audit(config: Config) -> Iterator[str]:
    settings = config.audit
    for key in ("crows_pairs", "stereoset", "templates", "swap"):
        name = getattr(settings, key)
        if name is None:
            continue
        matches = paths.match(name)
        if not matches:
            yield paths.missing(f"audit.{key}", name)
        elif len(matches) > 1 or not matches[0].is_file():
            yield f"audit.{key}={name}: expected one file, and this is {'several' if len(matches) > 1 else 'a folder'}; name the file."
    if config.data.predict is not None and settings.swap is None:
        yield f"data.predict={config.data.predict}: task=audit reads rows for audit.swap=<csv of term pairs> only; give both."
    elif config.data.predict is not None and not paths.match(config.data.predict):
        yield paths.missing("data.predict", config.data.predict)
    folder = config.run_folder if config.out is None else expand_home(config.out)
    if folder is None:
        yield "out is not set: give out=<folder> for audit.html and audit.json, as run= is no run folder."
    elif folder.is_file():
        yield f"out={config.out}: this is a file; give a folder for audit.html and audit.json."
    elif reason := write_error(folder):
        yield f"{f'out={config.out}' if config.out else f'run={config.run}'}: cannot be written ({reason}); give out=<folder>."
