"""Decide whether two configs describe the same run: what each config key affects, and which keys may change when a run is resumed.

Four callers use this table: the resume of a run, the test whether a run is finished, the leaderboard, which groups runs that differ by
their seed only, and the report, which lists settings that are not the default. `docs/resuming.md` shows it to users. Nothing here imports
torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from enum import Enum
from pathlib import Path
from typing import Any

import xxhash
import yaml
from omegaconf import OmegaConf

from llm_lightning.config.schema import Config, flat, plain, schema
from llm_lightning.errors import UserError
from llm_lightning.runs.versions import git_commit, package_versions

log = logging.getLogger(__name__)


class Kind(Enum):
    """The kinds of config keys, by the effect of a change."""

    WEIGHTS = "the weights"
    DATA = "which data"
    ORIGIN = "which pretrained weights"
    SEED = "which repetition"
    LENGTH = "how long it trains, and which weights are the best"
    EXECUTION = "where and how it runs"
    RECORD = "what is written and shown"
    OTHER_TASKS = "what other tasks do"


KEYS: dict[Kind, tuple[str, ...]] = {
    Kind.WEIGHTS: (
        *("task", "objective.*", "optimizer.*", "scheduler.*"),
        *(
            "model._target_",
            "model.arguments.*",
            "model.family",
            "model.architecture",
            "model.config.*",
            "model.freeze",
            "model.tokenizer.kind",
            "model.tokenizer.vocab_size",
        ),
        *("model.adapter.kind", "model.adapter.rank", "model.adapter.alpha", "model.adapter.dropout", "model.adapter.targets"),
        *("model.adapter.quantize", "data.packing", "data.streaming", "batch.sequences", "batch.tokens", "batch.length_window"),
        *("trainer.precision", "trainer.clip_norm", "data.tags"),
    ),
    Kind.DATA: (
        *(
            "data.source",
            "data._target_",
            "data.arguments.*",
            "data.dir",
            "data.name",
            "data.config",
            "data.train",
            "data.validation",
            "data.test",
        ),
        *(
            "data.columns.text",
            "data.columns.text_pair",
            "data.columns.label",
            "data.columns.sentence",
            "data.columns.words",
            "data.columns.tags",
            "data.column_names",
            "data.delimiter",
            "data.quotes",
            "data.encoding",
        ),
        *(
            "data.document",
            "data.labels",
            "data.labels.*",
            "data.roles.*",
            "data.languages.source",
            "data.languages.target",
            "data.prefix",
            "data.validation_fraction",
            "data.on_bad_row",
            "data.block_size",
            "data.overlap",
        ),
        *("data.share", "data.per_class", "data.fold"),
    ),
    Kind.ORIGIN: ("model.name_or_path", "model.init_from"),
    Kind.SEED: ("seed",),
    Kind.LENGTH: ("trainer.max_steps", "trainer.max_epochs", "trainer.validate_every_steps", "callbacks.patience"),
    Kind.EXECUTION: (
        *(
            "trainer.accelerator",
            "trainer.devices",
            "trainer.num_nodes",
            "trainer.strategy",
            "trainer.compile",
            "trainer.recompute",
            "trainer.flags.*",
            "callbacks.custom.*",
        ),
        *(
            "trainer.detect_anomaly",
            "trainer.hang_timeout",
            "batch.micro_sequences",
            "batch.micro_tokens",
            "data.workers",
            "model.trust_remote_code",
        ),
    ),
    Kind.RECORD: (
        *("run_dir", "resume", "cache_dir", "command", "debug", "choices.*", "trainer.progress", "trainer.log_every_steps"),
        *("checkpoint.every_steps", "checkpoint.keep", "callbacks.energy", "callbacks.country", "logger.name", "logger.project"),
        *(
            "logger.custom.*",
            "logger.entity",
            "logger.artifacts",
            "sweep.method",
            "sweep.choices",
            "sweep.space.*",
            "sweep.trials",
            "sweep.prune",
        ),
        *("sweep.jobs", "sweep.redo"),
    ),
    Kind.OTHER_TASKS: ("run", "prompt", "prompt_file", "out", "data.predict", "generate.*", "evaluate.*", "export.*"),
}
"""Kind -> its config keys; `a.*` stands for all keys below `a`.

`model.adapter.*` is spelled out, like every group that may get keys of two kinds: so a new key needs a decision.
"""
_KINDS = {key: kind for kind, keys in KEYS.items() for key in keys}

RESULT = frozenset({Kind.WEIGHTS, Kind.DATA, Kind.ORIGIN, Kind.SEED, Kind.LENGTH})
"""Kinds that a finished run depends on: if none of their keys changed, there is nothing left to do."""
COMPARED = frozenset({Kind.WEIGHTS, Kind.DATA, Kind.ORIGIN, Kind.LENGTH, Kind.EXECUTION})
"""Kinds that distinguish configurations on a leaderboard; EXECUTION is one of them, as it decides the cost of a run."""
LISTED = COMPARED | {Kind.SEED}
"""Kinds whose settings a report lists if they are not the default."""


def kind_of(key: str) -> Kind | None:
    """Return the kind of a key, written as `a.b.c`; None for a key that the schema does not have (any more)."""
    while key not in _KINDS and "." in key.removesuffix(".*"):
        key = f"{key.removesuffix('.*').rpartition('.')[0]}.*"
    return _KINDS.get(key)


def select(config: dict[str, Any], kinds: Collection[Kind]) -> dict[str, Any]:
    """Return the settings of a nested config that are of one of the kinds, as `a.b.c` -> value; unknown keys included."""
    return {key: value for key, value in flat(config).items() if kind_of(key) is None or kind_of(key) in kinds}


def run_identity(config: Config) -> dict[str, Any]:
    """Return what identifies a run in its checkpoints, as plain containers: config, versions and commit."""
    return {"config": plain(config), "versions": package_versions(), "git": git_commit()}


def load_finished(folder: Path, config: Config, run: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Return the summary of the finished run in a folder, if it has the same config; None if there is something to do.

    With `run`, the identity of the new run, data and pretrained weights are compared by content, wherever their files are.
    """
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        stored: Any = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    is_same = has_same_result(stored, plain(config)) if run is None else has_same_contents(summary, stored, run)
    return summary if is_same else None


def has_same_result(stored: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether a finished run with the nested config `stored` has the result of the config `now`, with files of the same names."""
    return not _find_changes(stored, now, RESULT)


def has_same_contents(summary: dict[str, Any], stored: dict[str, Any], run: dict[str, Any]) -> bool:
    """Return whether a finished run has the result of `run` (`config`, and by content `data` and `weights`), whatever its file names."""
    contents = [(summary.get("data") or {}).get("fingerprints"), summary.get("weights")]
    return contents == [run["data"], run["weights"]] and not _find_changes(stored, run["config"], RESULT - {Kind.DATA, Kind.ORIGIN})


def configuration(config: dict[str, Any], fingerprints: dict[str, str] | str) -> str:
    """Return a hash of configuration and data, 12 hexadecimal digits; runs that differ by their seed only have the same.

    `fingerprints` are those of the splits. Older runs recorded only that of the training data: for them the keys that name data count too.
    """
    kinds = COMPARED - {Kind.DATA} if isinstance(fingerprints, dict) else COMPARED
    identity = json.dumps([select(config, kinds), fingerprints], sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(identity.encode())[:12]


def require_same_run(state: Path, stored: dict[str, Any], run: dict[str, Any]) -> None:
    """Raise UserError unless the run that wrote a checkpoint is the run that `run` describes; log permitted changes.

    Both hold `config` (nested), `data` (the fingerprint of each split), `weights` (that of the pretrained weights, or None), `precision`
    (as `trainer.precision` resolved on the hardware) and `total_steps`. Data and pretrained weights are compared by content: at another
    path they are the same, and other content at the same path is another run. Checkpoints of versions that recorded less are compared by
    the entries they have, and entries that could not be compared are logged.
    """
    before, now = stored["config"], run["config"]
    changed = _find_changes(before, now, {Kind.WEIGHTS, Kind.SEED}, but="trainer.precision")
    changed += _find_precision_change(stored, run)
    changed += _find_origin_change(stored, run)
    training, evaluation = _find_data_changes(stored, run)
    hint = ""
    if evaluation and not changed:
        hint = f" To score its weights on other data: task=evaluate run={state.parent.parent}, with data.validation or data.test."
    if changed := [*changed, *training, *evaluation]:
        raise UserError(
            f"{state} belongs to a run with other settings: {'; '.join(changed)}. Repeat that run's command to continue "
            f"it, or give another run_dir to start a new one.{hint}"
        )
    if lengths := [change for change in _find_changes(before, now, {Kind.LENGTH}) if not change.startswith("trainer.max_")]:
        log.warning("resume: %s; from here on the new value holds", "; ".join(lengths))
    if stored["total_steps"] != run["total_steps"]:
        log.warning(
            "resume: the run was to have %s steps and now has %s; the learning rate goes on along the schedule of the new length",
            f"{stored['total_steps']:,}",
            f"{run['total_steps']:,}",
        )


def _find_changes(before: dict[str, Any], now: dict[str, Any], kinds: Collection[Kind], but: str | None = None) -> list[str]:
    """Describe each setting of the kinds that differs. A key that did not exist when `before` was written had its default value then."""
    defaults = flat(OmegaConf.to_container(schema()))  # type: ignore[arg-type]
    old, new = ({**defaults, **flat(config)} for config in (before, now))
    keys = [key for key in {**old, **new} if kind_of(key) in kinds and key != but]
    return [_change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _change(key: str, before: Any, now: Any) -> str:
    return f"{key} was {before} and is {now}"


def _find_precision_change(stored: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """Describe a changed precision. One that `auto` chose on other hardware is only logged, not refused."""
    old, new = (settings["config"]["trainer"]["precision"] for settings in (stored, run))
    resolved = stored.get("precision", None if old == "auto" else old)
    if resolved == run["precision"]:
        return []
    if old == new:
        if resolved is not None:
            log.warning(
                "resume: trainer.precision=auto was %s on the hardware that the run began on and is %s here; the figures will not be "
                "quite those of a run on one kind of hardware",
                resolved,
                run["precision"],
            )
        return []
    if resolved is None:
        log.warning("resume: the checkpoint does not say which precision auto was; the run goes on in %s", run["precision"])
        return []
    return [_change("trainer.precision", f"{old} ({resolved})" if old != resolved else old, new)]


def _find_origin_change(stored: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """Describe changed pretrained weights: other content, or another name if a content is unknown."""
    names = _find_changes(stored["config"], run["config"], {Kind.ORIGIN})
    before, now = stored.get("weights"), run["weights"]
    if before is None or now is None:
        if now is not None and not names:
            log.warning("resume: the checkpoint does not say what was in the pretrained weights; they are taken for the same")
        return names
    return [] if before == now else [f"the pretrained weights are not the same ({'; '.join(names) or 'their files changed'})"]


def _find_data_changes(stored: dict[str, Any], run: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Describe the splits with other content: (those for training, those for evaluation)."""
    before, now = stored["data"], run["data"]
    if isinstance(before, str):  # of a version that recorded the training data's only
        log.warning("resume: the checkpoint does not say what was in the validation and test data; they are taken for the same")
        before = {split: before if split == "train" else fingerprint for split, fingerprint in now.items()}
    names = (
        "; ".join(_find_changes(stored["config"], run["config"], {Kind.DATA})) or "its content changed, or that of the tokenizer"
    )
    splits = dict.fromkeys(TITLES[split] for split in {**before, **now} if before.get(split) != now.get(split))
    changed = [f"the {' and '.join(splits)} data is not the same ({names})"] if splits else []
    return (changed, []) if "training" in splits else ([], changed)


TITLES = {"train": "training", "stream": "training", "validation": "validation", "test": "test"}
"""Split -> its name in messages; `stream` is streamed training text."""
