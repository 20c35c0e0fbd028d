"""Decide whether two runs are the same, in each of four senses, from one table of what every config key affects.

| same …        | function                   | compares the kinds            | data    | weights | asked by |
| ------------- | -------------------------- | ----------------------------- | ------- | ------- | -------- |
| result        | `load_finished_by_name`    | RESULT                        | name    | name    | a run before it reads data; a sweep |
| result        | `load_finished_by_content` | RESULT less DATA and ORIGIN   | content | content | a run that has read its data |
| run           | `require_same_run`         | WEIGHTS and SEED              | content | content | the resume of a checkpoint |
| configuration | `configuration_hash`       | COMPARED less DATA            | content | name    | the leaderboard, which groups seeds |

`require_same_run` permits and notes changes of LENGTH, and of EXTENSIONS while steps are left. The versions of the program and of
libraries are recorded and never compared: after a change of code, give another run_dir. `KEYS` says of which kind a key is; a report
lists the keys of the kinds LISTED. `docs/resuming.md` shows `KEYS` to users. Nothing here imports torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import xxhash
import yaml
from omegaconf import OmegaConf

from llm_lightning.config.schema import Config, flat, plain, schema
from llm_lightning.errors import UserError

log = logging.getLogger(__name__)


class Kind(Enum):
    """The kinds of config keys, by the effect of a change."""

    WEIGHTS = "the weights"
    DATA = "which data"
    ORIGIN = "which pretrained weights"
    SEED = "which repetition"
    LENGTH = "how long it trains, and which weights are the best"
    EXTENSIONS = "what callbacks and Trainer flags of the user's choice do"
    EXECUTION = "where and how it runs"
    RECORD = "what is written and shown"
    OTHER_TASKS = "what other tasks do"


KEYS: dict[str, Kind] = {
    # the weights
    "task": Kind.WEIGHTS,
    "objective.*": Kind.WEIGHTS,
    "optimizer.*": Kind.WEIGHTS,
    "scheduler.*": Kind.WEIGHTS,
    "privacy.*": Kind.WEIGHTS,
    "model._target_": Kind.WEIGHTS,
    "model.arguments.*": Kind.WEIGHTS,
    "model.family": Kind.WEIGHTS,
    "model.architecture": Kind.WEIGHTS,
    "model.config.*": Kind.WEIGHTS,
    "model.freeze": Kind.WEIGHTS,
    "model.tokenizer.kind": Kind.WEIGHTS,
    "model.tokenizer.vocab_size": Kind.WEIGHTS,
    "model.adapter.kind": Kind.WEIGHTS,
    "model.adapter.rank": Kind.WEIGHTS,
    "model.adapter.alpha": Kind.WEIGHTS,
    "model.adapter.dropout": Kind.WEIGHTS,
    "model.adapter.targets": Kind.WEIGHTS,
    "model.adapter.quantize": Kind.WEIGHTS,
    "data.packing": Kind.WEIGHTS,
    "data.streaming": Kind.WEIGHTS,
    "batch.sequences": Kind.WEIGHTS,
    "batch.tokens": Kind.WEIGHTS,
    "batch.length_window": Kind.WEIGHTS,
    "trainer.precision": Kind.WEIGHTS,
    "trainer.clip_norm": Kind.WEIGHTS,
    "data.tags": Kind.WEIGHTS,
    # which data
    "data._target_": Kind.DATA,
    "data.arguments.*": Kind.DATA,
    "data.source": Kind.DATA,
    "data.dir": Kind.DATA,
    "data.name": Kind.DATA,
    "data.config": Kind.DATA,
    "data.train": Kind.DATA,
    "data.validation": Kind.DATA,
    "data.test": Kind.DATA,
    "data.columns.text": Kind.DATA,
    "data.columns.text_pair": Kind.DATA,
    "data.columns.label": Kind.DATA,
    "data.columns.sentence": Kind.DATA,
    "data.columns.words": Kind.DATA,
    "data.columns.tags": Kind.DATA,
    "data.column_names": Kind.DATA,
    "data.delimiter": Kind.DATA,
    "data.quotes": Kind.DATA,
    "data.encoding": Kind.DATA,
    "data.document": Kind.DATA,
    "data.labels": Kind.DATA,
    "data.labels.*": Kind.DATA,
    "data.roles.*": Kind.DATA,
    "data.languages.source": Kind.DATA,
    "data.languages.target": Kind.DATA,
    "data.prefix": Kind.DATA,
    "data.validation_fraction": Kind.DATA,
    "data.on_bad_row": Kind.DATA,
    "data.block_size": Kind.DATA,
    "data.overlap": Kind.DATA,
    "data.long": Kind.DATA,
    "data.share": Kind.DATA,
    "data.per_class": Kind.DATA,
    "data.fold": Kind.DATA,
    "data.left_out": Kind.DATA,
    "data.drop": Kind.DATA,
    "data.relabel": Kind.DATA,
    "data.clean": Kind.DATA,
    # which pretrained weights
    "model.name_or_path": Kind.ORIGIN,
    "model.init_from": Kind.ORIGIN,
    # which repetition
    "seed": Kind.SEED,
    # how long it trains, and which weights are the best
    "trainer.max_steps": Kind.LENGTH,
    "trainer.max_epochs": Kind.LENGTH,
    "trainer.validate_every_steps": Kind.LENGTH,
    "callbacks.patience": Kind.LENGTH,
    # what callbacks and Trainer flags of the user's choice do
    "trainer.flags.*": Kind.EXTENSIONS,
    "callbacks.custom.*": Kind.EXTENSIONS,
    # where and how it runs
    "trainer.accelerator": Kind.EXECUTION,
    "trainer.devices": Kind.EXECUTION,
    "trainer.num_nodes": Kind.EXECUTION,
    "trainer.strategy": Kind.EXECUTION,
    "trainer.compile": Kind.EXECUTION,
    "trainer.recompute": Kind.EXECUTION,
    "trainer.detect_anomaly": Kind.EXECUTION,
    "trainer.hang_timeout": Kind.EXECUTION,
    "batch.micro_sequences": Kind.EXECUTION,
    "batch.micro_tokens": Kind.EXECUTION,
    "data.workers": Kind.EXECUTION,
    "model.trust_remote_code": Kind.EXECUTION,
    "trust": Kind.EXECUTION,
    "privacy.public_tokenizer": Kind.EXECUTION,
    # what is written and shown
    "run_dir": Kind.RECORD,
    "resume": Kind.RECORD,
    "cache_dir": Kind.RECORD,
    "command": Kind.RECORD,
    "debug": Kind.RECORD,
    "choices.*": Kind.RECORD,
    "trainer.progress": Kind.RECORD,
    "trainer.log_every_steps": Kind.RECORD,
    "checkpoint.every_steps": Kind.RECORD,
    "checkpoint.keep": Kind.RECORD,
    "callbacks.energy": Kind.RECORD,
    "callbacks.country": Kind.RECORD,
    "logger.name": Kind.RECORD,
    "logger.project": Kind.RECORD,
    "logger.custom.*": Kind.RECORD,
    "logger.entity": Kind.RECORD,
    "logger.artifacts": Kind.RECORD,
    "sweep.method": Kind.RECORD,
    "sweep.choices": Kind.RECORD,
    "sweep.space.*": Kind.RECORD,
    "sweep.trials": Kind.RECORD,
    "sweep.prune": Kind.RECORD,
    "sweep.jobs": Kind.RECORD,
    "sweep.redo": Kind.RECORD,
    "evaluate.slices": Kind.RECORD,
    "evaluate.invariance": Kind.RECORD,
    "evaluate.invariance_rows": Kind.RECORD,
    "data.folds": Kind.RECORD,
    # what other tasks do
    "run": Kind.OTHER_TASKS,
    "prompt": Kind.OTHER_TASKS,
    "prompt_file": Kind.OTHER_TASKS,
    "out": Kind.OTHER_TASKS,
    "data.predict": Kind.OTHER_TASKS,
    "generate.*": Kind.OTHER_TASKS,
    "evaluate.text": Kind.OTHER_TASKS,
    "evaluate.choices": Kind.OTHER_TASKS,
    "evaluate.window": Kind.OTHER_TASKS,
    "evaluate.stride": Kind.OTHER_TASKS,
    "export.*": Kind.OTHER_TASKS,
    "inspect.*": Kind.OTHER_TASKS,
    "predict.*": Kind.OTHER_TASKS,
    "audit.*": Kind.OTHER_TASKS,
}
"""Config key -> its kind; `a.*` stands for all keys below `a`.

`model.adapter.*` is spelled out, like every group that may get keys of two kinds: so a new key needs a decision.
"""

RESULT = frozenset({Kind.WEIGHTS, Kind.DATA, Kind.ORIGIN, Kind.SEED, Kind.LENGTH, Kind.EXTENSIONS})
"""Kinds that a finished run depends on: if none of their keys changed, there is nothing left to do."""
COMPARED = frozenset({Kind.WEIGHTS, Kind.DATA, Kind.ORIGIN, Kind.LENGTH, Kind.EXTENSIONS, Kind.EXECUTION})
"""Kinds that distinguish configurations on a leaderboard; EXECUTION is one of them, as it decides the cost of a run."""
LISTED = COMPARED | {Kind.SEED}
"""Kinds whose settings a report lists if they are not the default."""


def kind_of(key: str) -> Kind | None:
    """Return the kind of a key, written as `a.b.c`; None for a key that the schema does not have (any more)."""
    while key not in KEYS and "." in key.removesuffix(".*"):
        key = f"{key.removesuffix('.*').rpartition('.')[0]}.*"
    return KEYS.get(key)


def select(config: dict[str, Any], kinds: Collection[Kind]) -> dict[str, Any]:
    """Return the settings of a nested config that are of one of the kinds, as `a.b.c` -> value; unknown keys included."""
    return {key: value for key, value in flat(config).items() if kind_of(key) is None or kind_of(key) in kinds}


@dataclass(frozen=True)
class RunIdentity:
    """The facts by which two runs are compared. Every checkpoint holds those of its run, under `run`."""

    config: dict[str, Any]
    """The nested config."""
    data: dict[str, str] | str
    """Split -> the fingerprint of its content; in checkpoints of early versions the fingerprint of the training data only."""
    weights: str | None
    """The fingerprint of the pretrained weights; None if there are none, or if the version that wrote the checkpoint recorded none."""
    precision: str | None
    """`trainer.precision` as it resolved on the hardware; None if that is not recorded."""
    total_steps: int

    def to_record(self) -> dict[str, Any]:
        """Return the identity as plain containers."""
        return dict(vars(self))

    @staticmethod
    def from_record(record: dict[str, Any]) -> RunIdentity:
        """Read the identity in a checkpoint; versions before recorded less."""
        config = record["config"]
        configured = config["trainer"]["precision"]
        precision = record.get("precision", None if configured == "auto" else configured)
        return RunIdentity(config, record["data"], record.get("weights"), precision, record["total_steps"])


def load_finished_by_name(folder: Path, config: Config) -> dict[str, Any] | None:
    """Return the summary of the finished run in a folder if its config has the same result, with files of the same names; else None."""
    summary, stored_config = _load_finished(folder)
    if summary is None or _find_changes(stored_config, plain(config), RESULT):
        return None
    return summary


def load_finished_by_content(folder: Path, identity: RunIdentity) -> dict[str, Any] | None:
    """Return the summary of the finished run in a folder if it has the result of `identity`, whatever its file names are; else None."""
    summary, stored_config = _load_finished(folder)
    if summary is None:
        return None
    contents = (summary.get("data") or {}).get("fingerprints"), summary.get("weights")
    if contents != (identity.data, identity.weights):
        return None
    return None if _find_changes(stored_config, identity.config, RESULT - {Kind.DATA, Kind.ORIGIN}) else summary


def _load_finished(folder: Path) -> tuple[dict[str, Any] | None, Any]:
    """Return (summary, nested config) of the finished run in a folder; the summary is None if no finished run can be read there."""
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return summary, yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None, None


def configuration_hash(config: dict[str, Any], fingerprints: dict[str, str] | str) -> str:
    """Return a hash of configuration and data, 12 hexadecimal digits; runs that differ by their seed only have the same.

    `fingerprints` are those of the splits. Older runs recorded only that of the training data: for them the keys that name data count too.
    """
    kinds = COMPARED - {Kind.DATA} if isinstance(fingerprints, dict) else COMPARED
    compared = json.dumps([select(config, kinds), fingerprints], sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(compared.encode())[:12]


def require_same_run(state: Path, record: dict[str, Any], step: int, now: RunIdentity) -> None:
    """Raise UserError unless the run that wrote the checkpoint `state`, with this `record` of itself at a `step`, is the run `now`.

    Permitted changes are logged. Data and pretrained weights are compared by content: at another path they are the same, and other
    content at the same path is another run. Checkpoints of versions that recorded less are compared by the entries they have, and entries
    that could not be compared are logged.
    """
    before = RunIdentity.from_record(record)
    changed = _find_changes(before.config, now.config, {Kind.WEIGHTS, Kind.SEED}, but="trainer.precision")
    changed += _find_precision_change(before, now)
    changed += _find_origin_change(before, now)
    training, evaluation = _find_data_changes(before, now)
    hint = ""
    if evaluation and not changed:
        hint = f" To score its weights on other data: task=evaluate run={state.parent.parent}, with data.validation or data.test."
    if before.total_steps != now.total_steps and now.config.get("privacy", {}).get("kind") == "dp":
        changed.append(_change("the number of steps, for which the noise was solved,", before.total_steps, now.total_steps))
    if changed := [*changed, *training, *evaluation]:
        raise UserError(
            f"{state} belongs to a run with other settings: {'; '.join(changed)}. Repeat that run's command to continue "
            f"it, or give another run_dir to start a new one.{hint}"
        )
    if step >= now.total_steps and (changed := _find_changes(before.config, now.config, {Kind.EXTENSIONS})):
        raise UserError(
            f"{state}: no step is left, so that this would change nothing: {'; '.join(changed)}. Give another run_dir to train with it."
        )
    noted = _find_changes(before.config, now.config, {Kind.LENGTH, Kind.EXTENSIONS})
    if noted := [change for change in noted if not change.startswith("trainer.max_")]:
        log.warning("resume: %s; from here on the new value holds", "; ".join(noted))
    if before.total_steps != now.total_steps:
        log.warning(
            "resume: the run was to have %s steps and now has %s; the learning rate goes on along the schedule of the new length",
            f"{before.total_steps:,}",
            f"{now.total_steps:,}",
        )


def _find_changes(before: dict[str, Any], now: dict[str, Any], kinds: Collection[Kind], but: str | None = None) -> list[str]:
    """Describe each setting of the kinds that differs. A key that did not exist when `before` was written had its default value then."""
    defaults = flat(OmegaConf.to_container(schema()))  # type: ignore[arg-type]
    old, new = ({**defaults, **flat(config)} for config in (before, now))
    keys = [key for key in {**old, **new} if kind_of(key) in kinds and key != but]
    return [_change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _change(key: str, before: Any, now: Any) -> str:
    return f"{key} was {before} and is {now}"


def _find_precision_change(before: RunIdentity, now: RunIdentity) -> list[str]:
    """Describe a changed precision. One that `auto` chose on other hardware is only logged, not refused."""
    if before.precision == now.precision:
        return []
    old, new = before.config["trainer"]["precision"], now.config["trainer"]["precision"]
    if old == new:
        if before.precision is not None:
            log.warning(
                "resume: trainer.precision=auto was %s on the hardware that the run began on and is %s here; the figures will not be "
                "quite those of a run on one kind of hardware",
                before.precision,
                now.precision,
            )
        return []
    if before.precision is None:
        log.warning("resume: the checkpoint does not say which precision auto was; the run goes on in %s", now.precision)
        return []
    return [_change("trainer.precision", f"{old} ({before.precision})" if old != before.precision else old, new)]


def _find_origin_change(before: RunIdentity, now: RunIdentity) -> list[str]:
    """Describe changed pretrained weights: other content, or another name if a content is unknown."""
    names = _find_changes(before.config, now.config, {Kind.ORIGIN})
    if before.weights is None or now.weights is None:
        if now.weights is not None and not names:
            log.warning("resume: the checkpoint does not say what was in the pretrained weights; they are taken for the same")
        return names
    if before.weights == now.weights:
        return []
    return [f"the pretrained weights are not the same ({'; '.join(names) or 'their files changed'})"]


def _find_data_changes(before: RunIdentity, now: RunIdentity) -> tuple[list[str], list[str]]:
    """Describe the splits with other content: (those for training, those for evaluation)."""
    assert isinstance(now.data, dict)
    old = before.data
    if isinstance(old, str):  # of a version that recorded the training data's only
        log.warning("resume: the checkpoint does not say what was in the validation and test data; they are taken for the same")
        old = {split: old if split == "train" else fingerprint for split, fingerprint in now.data.items()}
    renamed = _find_changes(before.config, now.config, {Kind.DATA})
    names = "; ".join(renamed) or "its content changed, or that of the tokenizer"
    splits = dict.fromkeys(TITLES[split] for split in {**old, **now.data} if old.get(split) != now.data.get(split))
    changed = [f"the {' and '.join(splits)} data is not the same ({names})"] if splits else []
    return (changed, []) if "training" in splits else ([], changed)


TITLES = {"train": "training", "stream": "training", "validation": "validation", "test": "test", "left_out": "left-out"}
"""Split -> its name in messages; `stream` is streamed training text, `left_out` the part of train that `data.left_out` names."""
