"""Write weights, tokenizer and label names as a Hugging Face folder that plain `transformers` loads."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from llm_lightning import distributed
from llm_lightning.config.checks.coverage import SCORES
from llm_lightning.models import adapter
from llm_lightning.models.build import quiet_transformers
from llm_lightning.training.checkpoint_io import flush

HEADS = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "MTModel": "AutoModelForSeq2SeqLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
}
"""The end of a model class's name -> the auto class that gives a model such a head."""


BESIDE = ("README.md", SCORES)
"""Files of a finished run's export beside the model and the tokenizer: its card, and scores for prediction sets."""


def export(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write the model into a new folder, then replace the old one by it: a kill or a power cut leaves a complete export.

    Call it on every rank: a sharded model is gathered from all ranks, and rank 0 writes.
    """
    if isinstance(model, FSDPModule):
        model = _gather_weights(model)
    if not distributed.is_rank_zero():
        return
    with _in_place_of(folder) as partial, quiet_transformers():
        model.save_pretrained(partial)
        if tokenizer.is_fast:  # the settings of our last call do not belong to the tokenizer
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(partial)


@dataclass(frozen=True)
class BestExport:
    """The export of a run's best weights, in `hf/`. An adapter is small: training writes it alone, to `adapter/`."""

    run_folder: Path
    model: PreTrainedModel
    tokenizer: Any
    adapter_base: str | None
    """The folder or hub name of the pretrained model that an adapter is for; None without an adapter."""

    @property
    def folder(self) -> Path:
        return self.run_folder / ("hf" if self.adapter_base is None else "adapter")

    def write(self) -> None:
        """Write the current weights, as `export` does."""
        if self.adapter_base is None:
            export(self.model, self.tokenizer, self.folder)
            return
        state = adapter.state(self.model)
        if not distributed.is_rank_zero():
            return
        with _in_place_of(self.folder) as partial:
            adapter.save(self.model, state, self.adapter_base, partial)

    def divide_parameters(self, parameters: list[str], divisor: float, settings: dict[str, Any]) -> bool:
        """Divide parameters of the best weights, as `divide_parameters` does; `complete` then merges an adapter anew. Only on rank 0."""
        prefix = "" if self.adapter_base is None else adapter.PREFIX
        return divide_parameters(self.folder, [prefix + name for name in parameters], divisor, settings)

    def complete(self, build_plain: Callable[[], PreTrainedModel]) -> None:
        """Merge the adapter into the model that `build_plain` returns, and export it to `hf/`.

        Only on rank 0, whose disk has the adapter.
        """
        if self.adapter_base is not None and distributed.is_rank_zero():
            export(adapter.merge_adapter(build_plain(), self.folder), self.tokenizer, self.run_folder / "hf")


def divide_parameters(folder: Path, parameters: list[str], divisor: float, settings: dict[str, Any]) -> bool:
    """Divide parameters of an export, and change entries of its config.json, in one step: a kill leaves the old or the new folder.

    Files without one of the parameters are linked, not copied. A quotient is stored in fp32, also of bf16. Return whether the export has
    all of the parameters; otherwise nothing changes.
    """
    names_by_file = {file.name: set(parameters) & _list_tensors(file) for file in folder.glob("*.safetensors")}
    if set().union(*names_by_file.values()) != set(parameters):
        return False
    with _in_place_of(folder) as partial:
        shutil.copytree(folder, partial, copy_function=_link_or_copy, dirs_exist_ok=True)
        for file_name, names in names_by_file.items():
            if names:
                tensors = load_file(folder / file_name)
                tensors |= {name: tensors[name].float() / divisor for name in names}
                (partial / file_name).unlink()  # the link, or the old file would change
                save_file(tensors, partial / file_name, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | settings
        (partial / "config.json").unlink()
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return True


def _list_tensors(file: Path) -> set[str]:
    with safe_open(file, "pt") as tensors:
        return set(tensors.keys())


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def copy_adapter(run_folder: Path, folder: Path) -> None:
    """Copy a run's adapter to a peft folder, with the tokenizer, the model card and the scores for prediction sets."""
    beside = [*(run_folder / "hf").glob("tokenizer*"), *(run_folder / "hf" / name for name in BESIDE)]
    with _in_place_of(folder) as partial:
        for file in [*(run_folder / "adapter").iterdir(), *beside]:
            if file.is_file():
                shutil.copy(file, partial)


def recover(folder: Path) -> None:
    """Restore the old export after a kill between the two renames of `_in_place_of`."""
    old = _previous_folder(folder)
    if old.is_dir() and not folder.exists():
        old.rename(folder)


@contextlib.contextmanager
def _in_place_of(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which replaces `folder` at the end.

    All of it is on the disk before it has the name: a kill or a power cut leaves the complete old or the complete new folder, the old one
    perhaps under its temporary name, from which `recover` restores it.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), _previous_folder(folder)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for file in partial.iterdir():  # safetensors writes files that only their owner can read
        file.chmod((partial / "config.json").stat().st_mode)
    for path in (*partial.rglob("*"), partial):
        flush(path)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _previous_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _gather_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a sharded model as a plain one, with all weights on rank 0 alone. transformers cannot save a sharded model."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    plain: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.device("meta"):
        plain_model = plain(model.config)
    if state:
        plain_model.load_state_dict(state, assign=True)
        plain_model.tie_weights()
    return plain_model
