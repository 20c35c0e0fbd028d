"""Weights, tokenizer and label names as a Hugging Face folder that plain `transformers` loads."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from llm_lightning import distributed
from llm_lightning.models import adapter
from llm_lightning.models.build import quiet_transformers

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
"""By the end of a model class's name, the class that gives any model such a head."""


def export(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write beside the folder, then put it in place of the old one: a kill leaves a whole export.

    To be called on every rank: a sharded model is gathered from all of them, and rank 0 writes.
    """
    if isinstance(model, FSDPModule):
        model = _gather_weights(model)
    if not distributed.is_rank_zero():
        return
    with _in_place_of(folder) as partial, quiet_transformers():
        model.save_pretrained(partial)
        if tokenizer.is_fast:  # the settings of our last call are not the tokenizer's
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(partial)


@dataclass(frozen=True)
class Best:
    """The best weights of a run, in `hf/`. An adapter is small: while it is trained it is kept by itself, in `adapter/`."""

    run: Path
    model: PreTrainedModel
    tokenizer: Any
    origin: str | None
    """The checkpoint that an adapter is for; None where there is no adapter."""

    @property
    def folder(self) -> Path:
        return self.run / ("hf" if self.origin is None else "adapter")

    def keep(self) -> None:
        """Write the current weights, as `export` does."""
        if self.origin is None:
            export(self.model, self.tokenizer, self.folder)
            return
        state = adapter.state(self.model)
        if not distributed.is_rank_zero():
            return
        with _in_place_of(self.folder) as partial:
            adapter.save(self.model, state, self.origin, partial)

    def complete(self, plain: Callable[[], PreTrainedModel]) -> None:
        """Make `hf/` of an adapter and of the model that `plain` gives, which has none yet: on rank 0, whose disk has the adapter."""
        if self.origin is not None and distributed.is_rank_zero():
            export(adapter.merge_adapter(plain(), self.folder), self.tokenizer, self.run / "hf")


def copy_adapter(run: Path, folder: Path) -> None:
    """A run's adapter as a peft folder with all that it takes to use it: the tokenizer, and the card."""
    with _in_place_of(folder) as partial:
        for file in [*(run / "adapter").iterdir(), *(run / "hf").glob("tokenizer*"), run / "hf" / "README.md"]:
            if file.is_file():
                shutil.copy(file, partial)


def recover(folder: Path) -> None:
    """Put the old export back where a kill came between the two renames of `_in_place_of`."""
    old = _previous_folder(folder)
    if old.is_dir() and not folder.exists():
        old.rename(folder)


@contextlib.contextmanager
def _in_place_of(folder: Path) -> Iterator[Path]:
    """A folder to write into, which then is the folder."""
    partial, old = folder.with_name(f".{folder.name}.partial"), _previous_folder(folder)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for file in partial.iterdir():  # safetensors makes files that their owner alone can read
        file.chmod((partial / "config.json").stat().st_mode)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _previous_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _gather_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A sharded model as a plain one; its weights are whole on rank 0 alone. transformers cannot save the sharded one itself."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    plain: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.device("meta"):
        whole = plain(model.config)
    if state:
        whole.load_state_dict(state, assign=True)
        whole.tie_weights()
    return whole
