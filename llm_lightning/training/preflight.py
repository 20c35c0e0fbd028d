"""Check, in seconds, everything that could fail after hours.

Every training starts with these checks, and `task=check` runs nothing else. Each check is a function that returns its finding as text and
raises if it fails. A failed check stops the run; all are listed with their outcome.
"""

from __future__ import annotations

import copy
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from llm_lightning import distributed
from llm_lightning.config.redaction import redact
from llm_lightning.config.schema import Config, cache_folder
from llm_lightning.data.collate import EVALUATION, MicroBatch
from llm_lightning.data.datamodule import DataModule
from llm_lightning.data.encode import label_counts
from llm_lightning.data.row_texts import read_texts
from llm_lightning.data.same_texts import find_same_texts
from llm_lightning.errors import UserError
from llm_lightning.models import embedding
from llm_lightning.models.forward import token_logits
from llm_lightning.models.recompute import can_recompute, recompute_layers
from llm_lightning.objectives.base import Objective
from llm_lightning.objectives.evaluation import score_batches
from llm_lightning.training import batch_size, compilation, trial
from llm_lightning.training.advice import advise_on_row
from llm_lightning.training.checkpoint_io import AtomicCheckpointIO
from llm_lightning.training.memory import peak

log = logging.getLogger(__name__)

WIDE = 400  # characters of a message
SAMPLE = 100_000  # tokens that are searched for unknown ones
UNKNOWN = 0.01  # share of unknown tokens above which the run warns
SAME = 0.01  # share of an evaluated split's texts that are in train, above which the run warns of texts without labels
LARGE = 2 << 30  # bytes of weights above which only task=check writes and reads a whole checkpoint


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check."""

    name: str
    passed: bool
    message: str
    seconds: float


@dataclass(frozen=True)
class Preflight:
    """The checks of one run; `thorough` for `task=check`, which does nothing else."""

    folder: Path
    data: DataModule
    objective: Objective
    trainer: lightning.Trainer
    thorough: bool

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Yield name and function of each check: on rank 0 all; on other ranks those of their own device, and scores, a collective."""
        yield from self.data_checks() if distributed.is_rank_zero() else ()
        yield "one step on the longest batch", self.step
        if self.data.config.trainer.compile == "auto" and self.alone_on_gpu():
            yield "fastest step", self.fastest
        elif self.data.config.trainer.compile is not False:
            yield "compile", self.compile
        yield from self.model_checks() if distributed.is_rank_zero() else ()
        yield "monitored metric", self.monitor

    def data_checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "tokenizer", self.tokenizer
        for split in self.data.dataset.splits:
            yield f"{split} batch", lambda split=split: self.batch(split)  # type: ignore[misc]
            if self.data.dataset.label_names is not None:
                yield f"{split} labels", lambda split=split: self.labels(split)  # type: ignore[misc]
        if self.data.dataset.stream is None and not self.data.config.trainer.flags.get("overfit_batches"):
            yield "same texts", self.same_texts
        yield "disk", self.disk
        yield "optimizer", self.optimizer

    def model_checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        if self.objective.auto_class == "AutoModelForCausalLM":
            yield "no look ahead", self.causality
        if type(self.objective).describe_writing is not Objective.describe_writing:
            yield "texts to be written", self.writing
        yield "checkpoint written and read", self.checkpoint

    def writing(self) -> str:
        """Check that the model has positions for the texts that evaluations will write."""
        return self.objective.describe_writing() or "nothing is written"

    def tokenizer(self) -> str:
        """Check that every token id in the data is in the model's vocabulary."""
        tokenizer = self.data.dataset.tokenizer
        largest = max(int(split.tokens.max()) for split in self.data.dataset.splits.values())
        rows = embedding.count_rows(self.objective.model)
        if rows is not None and largest >= rows:
            raise UserError(f"the data holds token {largest}, and the model has embeddings for {rows}")
        unknown = 0.0
        if tokenizer.unk_token_id is not None:
            unknown = float((self.data.dataset.splits["train"].tokens[:SAMPLE] == tokenizer.unk_token_id).mean())
        if unknown > 0.5:
            raise UserError(
                f"{unknown:.0%} of the tokens are unknown to it: its files are missing, or it belongs to another language"
            )
        if unknown > UNKNOWN:
            log.warning(
                "tokenizer: %s of the training tokens are %s, text that it cannot spell%s; choose a model of the texts' language, or where "
                "it is trained here model.tokenizer.kind=bpe",
                f"{unknown:.1%}",
                tokenizer.unk_token,
                self.unknown_examples(),
            )
        return f"{len(tokenizer):,} entries, embeddings for {'any' if rows is None else f'{rows:,}'}, {unknown:.2%} of the tokens unknown"

    def unknown_examples(self) -> str:
        """Return a few words of the training texts with unknown tokens, worded for a message."""
        split, tokenizer = self.data.dataset.splits["train"], self.data.dataset.tokenizer
        words: dict[str, None] = {}
        if split.rows is not None:
            places = np.flatnonzero(split.tokens[:SAMPLE] == tokenizer.unk_token_id)
            sequences = np.unique(np.searchsorted(split.starts, places, side="right") - 1)[:20]
            for row in np.unique(np.asarray(split.rows)[sequences]):
                text = self.data.dataset.show_row("train", int(row))
                words |= dict.fromkeys(
                    word
                    for word in text.split()
                    if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False)["input_ids"]
                )
        return f" ({', '.join(repr(shorten(word)) for word in list(words)[:3])})" if words else ""

    def batch(self, split: str) -> str:
        """Check that a batch of the split has targets."""
        encoded = self.data.dataset.splits[split]
        batch = self.data.collator(encoded, list(np.arange(min(4, len(encoded)))[:, None]), 0)
        if batch.target_count == 0:
            raise UserError(f"the first sequences of {split} have no target")
        windows = "" if batch.window_rows is None else f" in {len(batch.window_rows)} windows"
        return f"{len(batch.indices)} sequences of {len(batch.input_ids)} tokens{windows} with {batch.target_count} targets"

    def labels(self, split: str) -> str:
        """Check that labels are in range, and return how they are distributed."""
        names = self.data.dataset.label_names
        assert names is not None
        counts = label_counts(self.data.dataset.splits[split], len(names))
        missing = [name for name, count in zip(names, counts, strict=True) if count == 0]
        if split == "train" and missing and self.data.dataset.encoding.one_label:
            raise UserError(f"no training row has the label {', '.join(missing)}")
        spread = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
        return spread if len(names) <= 12 else f"{len(names)} labels, {counts.min():,} to {counts.max():,} times"

    def same_texts(self) -> str:
        """Count the texts of train that are in validation or test too, and those with two labels; warn of them.

        Of texts without labels some copies are usual: the run warns if they make up SAME of an evaluated split.
        """
        dataset, columns = self.data.dataset, self.data.config.data.columns
        encoder = type(dataset.encoding)
        has_labels = dataset.encoding.labels is not None
        is_compared = has_labels and not encoder.shares_contexts  # an answer is a part of the context
        texts = read_texts(dataset.rows, columns if is_compared else replace(columns, label=None), encoder)
        same = find_same_texts(texts)
        description = same.describe()
        least = 0.0 if has_labels and not encoder.label_is_text else SAME
        if same.conflicts or any(number > least * len(dataset.rows[split]) for split, number in same.leaks.items()):
            part = "" if same.compared == len(texts["train"]) else f"the first {same.compared:,} rows of "
            log.warning("data: of %strain, %s; to see them: %s", part, description, inspect_command(self.data.config))
        return description or f"none of {same.compared:,} rows"

    def disk(self) -> str:
        """Check the disk for room: the weights, and one state more than is kept, as a new one is written before the oldest is deleted."""
        weights = 4 * sum(p.numel() for p in self.objective.model.parameters())
        trained = 4 * sum(p.numel() for p in self.objective.model.parameters() if p.requires_grad)
        keep = self.data.config.checkpoint.keep
        needed = 2 * weights + (keep + 1) * 3 * trained
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"{self.folder} has {gib(free)} free, and the run needs {gib(needed)}; lower checkpoint.keep or give run_dir"
            )
        return f"{gib(needed)} at the most for weights and checkpoints, {gib(free)} free"

    def optimizer(self) -> str:
        """Check that optimizer and scheduler accept their settings."""
        (optimizer,), (scheduler,) = self.objective.configure_optimizers()
        groups = [(sum(p.numel() for p in group["params"]), group.get("weight_decay", 0.0)) for group in optimizer.param_groups]
        decays = ", ".join(f"{count:,} parameters with weight decay {decay:g}" for count, decay in groups if count)
        tokens = int(self.data.plan.lengths.sum()) // max(1, len(self.data.plan.epoch_plan(0)))
        if (hint := getattr(optimizer, "hint", lambda tokens: None)(tokens)) is not None:
            log.info("optimizer: %s", hint)
        return f"{decays}; learning rate {scheduler.get_last_lr()[0]:.2e} at the first step"

    def causality(self) -> str:
        """Check that a token changes no prediction before it, and none in another sequence.

        An encoder under a language-modelling head would see the token it predicts, and learn nothing, at a loss near zero.
        """
        objective = self.objective
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            return "left out: the model is cut up over the devices only when training starts"
        batch = self.data.collator(self.data.dataset.splits["train"], self.data.plan.epoch_plan(0)[0][:1], 0)
        batch = objective.transfer_batch_to_device(batch, objective.model.device, 0)
        batch = replace(batch, target_places=None)  # every token's prediction is compared
        place, end = batch.longest // 2, batch.longest  # the middle of the first sequence, which is the longest
        positions = torch.arange(len(batch.input_ids), device=batch.input_ids.device)
        unseen = (positions < place) | (positions >= end)
        changed = copy.copy(batch)
        changed.input_ids = batch.input_ids.clone()
        changed.input_ids[place] = (batch.input_ids[place] + 1) % len(self.data.dataset.tokenizer)
        objective.eval()
        with torch.no_grad(), self.trainer.precision_plugin.val_step_context():
            before, after = (token_logits(objective.model, b).float() for b in (batch, changed))
        objective.train()
        moved = (before - after).abs().amax(-1)
        if not bool((moved[~unseen] > 0).any()):
            raise UserError("the logits do not depend on the tokens")
        if bool((moved[unseen] > 1e-3 * before.abs().max()).any()):
            raise UserError(
                f"a token changes predictions that must not see it: {objective.model.config.model_type} is no decoder, or its "
                f"attention does not keep packed documents apart; choose a decoder (model=gpt_tiny), or data.packing=concat"
            )
        return f"{len(positions)} tokens: one changes predictions behind it in its own sequence alone"

    def step(self) -> str:
        """Run forward and backward on the batch that takes the most memory, and undo their effects."""
        objective, device = self.objective, self.trainer.strategy.root_device
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            return "left out: the model is cut up over the devices only when training starts"
        if self.data.config.trainer.recompute == "auto" and can_recompute(objective.model):
            try:
                return self._fit(device)
            except batch_size.NoRoom:
                log.info("step: no memory for a single row; layers run again in the backward pass (trainer.recompute=layers)")
                objective.model.zero_grad()
                recompute_layers(objective.model)
        return self._fit(device)

    def _fit(self, device: torch.device) -> str:
        """Try the batch that takes the most memory; with `batch.micro_tokens=auto`, halve it until it fits.

        Raises NoRoom if not even one row fits.
        """
        objective, auto = self.objective, self.data.config.batch.micro_tokens == "auto"
        if auto:
            self.data.limit(batch_size.plan(objective, self.data, self.trainer))
        while True:
            try:
                return self._try_batch(device, self.data.longest(self.trainer.world_size))
            except torch.OutOfMemoryError as error:
                size, row = len(self.data.longest(self.trainer.world_size).input_ids), self.data.longest_rows(1)
                longest = len(row.input_ids)
                if size // 2 < longest or not auto:
                    advice = advise_on_row(row)[1] if size < 2 * longest else "set batch.micro_tokens=auto"
                    kind = batch_size.NoRoom if size < 2 * longest else UserError
                    raise kind(f"the device has no memory for {size:,} tokens at once: {advice}.") from error
            self.data.limit(size // 2)
            objective.model.zero_grad()
            torch.cuda.empty_cache()

    def alone_on_gpu(self) -> bool:
        """Return whether one process trains on one GPU, with weights that can be cast and gradients that need no loss scaling."""
        return (
            self.trainer.strategy.root_device.type == "cuda"
            and self.trainer.world_size == 1
            and str(self.trainer.precision) != "16-mixed"
        )

    def fastest(self) -> str:
        """Time the ways to run forward and backward, and take the fastest; layers are compiled only in runs long enough to gain from it."""
        model, device = self.objective.model, self.trainer.strategy.root_device
        compilation.keep_compiled_kernels(cache_folder(self.data.config) / "kernels")
        state, gpu_state = torch.get_rng_state(), torch.cuda.get_rng_state(device)
        try:
            description = trial.take_fastest(self.objective, self.data, self.trainer, compilation.pays(model, self.data, device))
        finally:
            torch.set_rng_state(state)
            torch.cuda.set_rng_state(gpu_state, device)
        log.info("step: %s", description)
        return description

    def compile(self) -> str:
        """Compile the layers for batches of any shape if it pays: all compile time is spent here."""
        model, device = self.objective.model, self.trainer.strategy.root_device
        auto = self.data.config.trainer.compile == "auto"
        if auto and not compilation.pays(model, self.data, device):
            return "left out: it would not pay (trainer.compile=true does it all the same)"
        log.info("compile: the layers, which takes a minute or more")
        compilation.keep_compiled_kernels(cache_folder(self.data.config) / "kernels")
        compilation.start(model)
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            return "when training starts"
        longest = self.data.longest(self.trainer.world_size)
        try:
            for count in {len(longest.indices), len(longest.indices) // 2, 1} - {0}:
                self._try_batch(device, self.data.longest_rows(count))
        except RuntimeError as error:  # no compiler, or a model that it cannot compile
            compilation.stop(model)
            if not auto:
                raise UserError(f"trainer.compile=true is not possible here: {shorten(str(error))}") from error
            return f"left out: {shorten(str(error))}"
        return "layers compiled, for batches of any shape"

    def _try_batch(self, device: torch.device, batch: MicroBatch) -> str:
        objective, model = self.objective, self.objective.model
        state = torch.get_rng_state()
        buffers = copy.deepcopy(dict(model.named_buffers()))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        objective.to(device).train()
        with self.trainer.precision_plugin.forward_context():
            loss = objective.loss_sum(objective.transfer_batch_to_device(batch, device, 0))
            loss.backward()  # in the context too: layers may run again
        missing = [
            name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None and not p.grad.isfinite().all()
        ]
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        torch.set_rng_state(state)
        mean = float(loss.detach()) / max(batch.target_count, 1)
        if missing or not np.isfinite(mean):
            raise UserError(f"the loss is {mean:.4g} and {len(missing)} gradients are not finite (first: {missing[:1]})")
        states, most = gib(batch_size.states(model)), gib(peak(device))
        return f"{len(batch.input_ids)} tokens, loss {mean:.3f}; weights, gradients and optimizer take {states}, peak so far {most}"

    def checkpoint(self) -> str:
        """Check that the weights survive a round trip through the checkpoint file."""
        state = {name: p.detach() for name, p in self.objective.model.named_parameters() if p.requires_grad}
        size = sum(t.numel() * t.element_size() for t in state.values())
        if size > LARGE and not self.thorough:
            return f"left out, weights of {gib(size)} take long to write (task=check does it)"
        path = self.folder / "checkpoints" / f".preflight-{self.trainer.global_rank}.ckpt"
        try:
            AtomicCheckpointIO().save_checkpoint({"state_dict": state}, path)
            back = torch.load(path, weights_only=True, mmap=True, map_location="cpu")["state_dict"]
            wrong = [name for name, tensor in state.items() if not torch.equal(tensor.cpu(), back[name])]
            if wrong:
                raise UserError(f"{wrong[0]} came back changed from {path}")
            return f"{gib(path.stat().st_size)} of weights"
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error}") from error
        finally:
            path.unlink(missing_ok=True)

    def monitor(self) -> str:
        """Check that one validation batch produces the metric that decides which weights are kept."""
        objective = self.objective
        objective.eval()
        batch = self._validation_batch()
        with torch.no_grad(), self.trainer.precision_plugin.val_step_context():
            batch = objective.transfer_batch_to_device(batch, objective.model.device, 0)
            produced = score_batches(objective, [batch])
        objective.train()
        name = objective.monitor.split("/", 1)[1]
        if name not in produced:
            raise UserError(f"{objective.monitor} is not produced; there are {', '.join(produced)}")
        return f"{objective.monitor}, {'higher' if objective.maximize else 'lower'} is better; computed on {len(batch.input_ids):,} tokens"

    def _validation_batch(self) -> MicroBatch:
        """Return the batch with the longest sequences; under FSDP2, the shortest sequence alone.

        Until training starts, FSDP2 leaves the whole model on every rank's CPU, where a batch takes seconds. The metric is the same.
        """
        if not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return self.data.evaluation_batches("validation")[0]
        encoded = self.data.dataset.splits["validation"]
        return self.data.collator(encoded, [np.array([int(encoded.inputs.argmin())])], EVALUATION)


def run(folder: Path, data: DataModule, objective: Objective, trainer: lightning.Trainer, thorough: bool) -> list[Outcome]:
    """Run every check and list the outcomes. Raises UserError if one failed."""
    outcomes = []
    trainer.precision_plugin.convert_module(objective)  # as training will do before its first step
    for name, check in Preflight(folder, data, objective, trainer, thorough).checks():
        started = time.perf_counter()
        try:
            message, passed = check(), True
        except (UserError, RuntimeError, ValueError, IndexError) as error:
            message, passed = str(error), False
        outcomes.append(Outcome(name, passed, message, time.perf_counter() - started))
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if thorough or failed:
        log.info("%s", table(outcomes))
    else:
        log.info("preflight: %s checks passed", len(outcomes))
        log.info("%s", table(outcomes), extra={"file_only": True})
    if failed:
        raise UserError(
            f"preflight: {len(failed)} of {len(outcomes)} checks failed: {'; '.join(f'{o.name}: {o.message}' for o in failed)}"
        )
    return outcomes


def inspect_command(config: Config) -> str:
    """Return the command that inspects the data of a run."""
    words = shlex.split(str(redact(config.command or "")))
    data = [word for word in words if word.startswith(("data=", "data.", "recipe=")) and not word.startswith("data.clean")]
    return shlex.join(["python", "train.py", "task=inspect", *data])


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a table for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = Table("", "check", "found", "s", show_lines=True)
    for outcome in outcomes:
        mark = Text("pass", "green") if outcome.passed else Text("FAIL", "bold red")
        rows.add_row(mark, Text(outcome.name), Text(outcome.message), f"{outcome.seconds:.1f}")
    console = Console(width=140)
    with console.capture() as captured:
        console.print(rows)
    return captured.get()


def shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= WIDE else f"{text[: WIDE // 2]} … {text[-WIDE // 2 :]}"


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
