"""Log the origin and the outputs of a run's weights as W&B's lineage: data (and the run that it started from) -> run -> export, states.

Files are `file://` references with their checksums: nothing is copied or uploaded. The data artifact holds only the fingerprint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_lightning.config.redaction import redact
from llm_lightning.config.schema import expand_home


def log(run: Any, which: str, summary: dict[str, Any], settings: dict[str, Any]) -> None:
    """Log the artifacts of a run: `which` is none, best (the export) or all (full states as well)."""
    if which == "none":
        return
    _log_input(run, _data(summary["data"]))
    origin = settings["model"]["init_from"]
    if origin is not None and (run_id_file := expand_home(origin) / "wandb" / "run-id.txt").is_file():
        _log_input(run, _export(run_id_file.read_text().strip(), expand_home(origin) / "hf", {}))
    run.log_artifact(_export(run.id, Path(summary["export"]), {"metrics": summary["metrics"]}), aliases=["best"])
    if which == "all":
        run.log_artifact(_files(f"states-{run.id}", "checkpoint", Path(summary["checkpoint"]).parent, {"steps": summary["steps"]}))


def _log_input(run: Any, artifact: Any) -> None:
    """Log an input of the run. The public `use_artifact` refuses offline runs, and waits for the server in others."""
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)  # private; read in wandb 0.31


def _data(facts: dict[str, Any]) -> Any:
    import wandb

    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in str(facts["name"]))
    artifact = wandb.Artifact(f"data-{name}"[:128], type="dataset", metadata=facts)
    with artifact.new_file("data.json", encoding="utf-8") as file:  # so that W&B makes a new version for other content
        json.dump(redact(facts), file, indent=2)
    return artifact


def _export(run_id: str, folder: Path, metadata: dict[str, Any]) -> Any:
    return _files(f"export-{run_id}", "model", folder, metadata)


def _files(name: str, kind: str, folder: Path, metadata: dict[str, Any]) -> Any:
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata=metadata)
    artifact.add_reference(folder.resolve().as_uri())
    return artifact
