"""Check the settings that find and correct wrong labels: `data.folds`, `data.left_out`, `data.drop` and `data.relabel`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llm_lightning.config import signatures
from llm_lightning.config.schema import Config, expand_home
from llm_lightning.data import paths

WITH_LABELS = ("texts", "label_sets", "words")
"""Encodings whose labels are names, which can be wrong and can be corrected by name."""


def check_label_errors(config: Config) -> Iterator[str]:
    data = config.data
    settings = {name: getattr(data, name) for name in ("folds", "left_out", "drop", "relabel")}
    present = {name: value for name, value in settings.items() if value is not None}
    encoding = signatures.constants(str(config.objective.get("_target_"))).get("encoding")
    if encoding not in WITH_LABELS:
        for name, value in present.items():
            yield f"data.{name}={value}: only objective=classification, multi_label and tagging have labels to correct; leave it out."
        return
    if data.left_out is not None and data.folds is not None:
        yield f"data.left_out={data.left_out}: a run of one part of data.folds; leave data.folds={data.folds} out, or data.left_out."
    if data.left_out is not None and not is_part(data.left_out):
        yield f"data.left_out={data.left_out}: expected a part and the number of parts, 2/5 for the second of five."
    if present and config.trainer.flags.get("overfit_batches"):
        yield f"data.{next(iter(present))}: not together with trainer.overfit_batches, which trains on a few rows of train alone."
    for name in ("drop", "relabel"):
        file = settings[name]
        if file is not None and not expand_home(file).exists():
            yield paths.missing(f"data.{name}", file)
        elif file is not None and expand_home(file).is_dir():
            yield f"data.{name}={file}: this is a folder; give a csv file."


def is_part(text: str) -> bool:
    """Return whether a text names a part of at least two: from 1/2 and 2/2 upwards."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    return match is not None and 1 <= int(match[1]) <= int(match[2]) and int(match[2]) >= 2
