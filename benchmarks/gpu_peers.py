"""The peers of `gpu.py`: their text, their clock, and how each of them trains."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import math
import os
import re
import signal
import statistics
import sysconfig
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
import transformers
from lightning.pytorch.callbacks import Callback
from settings import DATA, TINY, pick
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import AdapterConfig, Config, cache_folder
from llm_lightning.data.datamodule import DataModule
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.machine import bf16_unit
from llm_lightning.objectives.base import Objective
from llm_lightning.run import build_and_connect, prepare
from llm_lightning.tracking import loggers
from llm_lightning.training import meter as training_meter
from llm_lightning.training import preflight, trainer
from llm_lightning.training.throughput import Flops, Peak

if TYPE_CHECKING:
    from gpu import Case

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
BF16 = bf16_unit(DEVICE.type) is not None
COMPILER = pick("inductor", "eager")
RUN_STEPS = 10_000
"""Steps of the run that ours plans for, and is stopped in the middle of: preflight decides by a run's length what pays."""
EPOCH_STEPS = pick(8, 2)
"""Steps of an epoch, where the text is made for the case."""
FEW = 5
"""Steps that a measurement has at least where time runs out."""
SENTENCES = pick(6920, 64)
SENTENCE_WORDS = [1, 5, 7, 8, 10, 11, 13, 14, 15, 17, 18, 19, 20, 22, 23, 25, 27, 29, 31, 35, 51]
"""Words of SST-2's training sentences: the shortest, then every twentieth part of them, up to the longest."""
PIECES = pick(8000, 400)
"""Entries of the WordPiece vocabulary that is trained on the sentences, in a second."""
RANK = 16
"""Of the adapters."""


# ---- the clock ----


class OutOfTime(BaseException):
    """A peer has used up its time. No Exception: compilers and trainers catch those and go on."""


@contextlib.contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in this thread after so many seconds, also inside of a compiler, and again ten seconds later."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1), 10.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


@dataclass
class Meter:
    """Counts a peer's steps, and times those behind the warm-up. Nothing waits for the device between the two ends."""

    warm_up: int
    steps: int
    until: float
    """When the measurement ends with the steps that it has, by `time.perf_counter`."""
    flops: Flops = field(default_factory=lambda: Flops(0.0, 0.0))
    note: str = ""
    _count: int = 0
    _tokens: list[Any] = field(default_factory=list)
    _targets: list[Any] = field(default_factory=list)
    _marks: list[Any] = field(default_factory=list)
    _started: float = 0.0
    _seconds: float = math.nan

    def begin(self) -> None:
        """Take note that training begins: the peak of memory counts from here on."""
        if CUDA:
            torch.cuda.reset_peak_memory_stats()

    def add(self, tokens: Any, targets: Any) -> None:
        """Count real tokens and targets of the current step: numbers, or tensors on the device, which are read at the end."""
        self._tokens.append(tokens)
        self._targets.append(targets)

    def step(self) -> bool:
        """Count a step. Returns whether the measurement is complete."""
        self._count += 1
        if self._count == self.warm_up:
            synchronise()
            self._tokens, self._targets = [], []
            self._marks, self._started = [self._mark()], time.perf_counter()
        elif self._count > self.warm_up:
            self._marks.append(self._mark())
            timed = self._count - self.warm_up
            if timed == self.steps or (timed >= FEW and time.perf_counter() > self.until):
                synchronise()
                self._seconds = time.perf_counter() - self._started
                return True
        return False

    def _mark(self) -> Any:
        """Return a place in time: on a GPU an event that the device records when it comes to it."""
        if not CUDA:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> dict[str, float]:
        """Return tokens/s, milliseconds of the median step, GiB and FLOP/s. Raises RuntimeError where the measurement is incomplete."""
        if math.isnan(self._seconds):
            raise RuntimeError(f"training ended after {self._count} steps")
        tokens, targets = (sum(map(int, counts)) for counts in (self._tokens, self._targets))
        pairs = itertools.pairwise(self._marks)
        milliseconds = [a.elapsed_time(b) if CUDA else 1000 * (b - a) for a, b in pairs]
        peak = torch.cuda.max_memory_allocated() if CUDA else 1024 * getrusage(RUSAGE_SELF).ru_maxrss
        return {
            "tokens/s": tokens / self._seconds,
            "ms": statistics.median(milliseconds),
            "gib": peak / 2**30,
            "flops": self.flops(tokens, targets) / self._seconds,
        }


# ---- text ----


def read_words(count: int) -> list[str]:
    """Return words and marks of the standard library's sources, from its beginning again where they are too few."""
    library = Path(sysconfig.get_paths()["stdlib"])
    words: list[str] = []
    for file in sorted(library.rglob("*.py")):
        if "site-packages" not in file.parts:
            words += re.findall(r"[A-Za-z0-9_]+|[!-~]", file.read_text(encoding="ascii", errors="ignore"))
        if len(words) >= count:
            break
    return (words * (count // len(words) + 1))[:count]


def build_word_tokenizer(words: list[str], entries: int) -> transformers.PreTrainedTokenizerFast:
    """Build a tokenizer with a token for each of the most frequent words, and with unused entries up to `entries`. It is not trained."""
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "eos": "[END]", "bos": "[END]"}
    first = list(dict.fromkeys(special.values()))
    frequent = [word for word, _ in Counter(words).most_common(entries - len(first))]
    unused = (f"[unused {i}]" for i in itertools.count())
    vocabulary = {word: i for i, word in zip(range(entries), itertools.chain(first, frequent, unused), strict=False)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    names = {f"{name}_token": token for name, token in special.items()}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def widen(tokenizer: Any, entries: int) -> transformers.PreTrainedTokenizerFast:
    """Return the tokenizer with unused entries up to `entries`, as the model's embeddings are to be of a usual size."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"[unused {i}]": i for i in range(len(vocabulary), entries)}
    backend = Tokenizer.from_str(json.dumps(state))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **tokenizer.special_tokens_map)


def write_table(path: Path, lines: list[str]) -> None:
    """Write lines with the labels 0 and 1 in turns, laid out as SST-2's files."""
    path.write_text("".join(f"{line}\t{i % 2}\n" for i, line in enumerate(lines)))


def write_text(case: Case, folder: Path) -> str:
    """Write training and validation text for a case, and say what it is.

    A word is a token of `build_word_tokenizer`, so that every sequence has `case.length` tokens: a block of a stream begins with the last
    token of the block before, and a row of an encoder has two special tokens.
    """
    if case.length is None:
        drawn = np.random.default_rng(0).random(SENTENCES)
        counts = np.interp(drawn, np.linspace(0, 1, len(SENTENCE_WORDS)), SENTENCE_WORDS).round().astype(int)
        words = [word.lower() for word in read_words(4 * int(counts.sum())) if word.isalpha()]
        ends = np.cumsum(counts)
        words *= int(ends[-1]) // len(words) + 1
        lines = [" ".join(words[end - count : end]) for count, end in zip(counts, ends, strict=True)]
        note = "words of the Python library, with the lengths of SST-2's sentences"
    else:
        room = case.length - (1 if case.is_causal else 2)
        number = case.rows * EPOCH_STEPS
        words = read_words(number * room + 1)
        first = room + 1 if case.is_causal else room
        bounds = [0, *(first + room * i for i in range(number))]
        lines = [" ".join(words[start:end]) for start, end in itertools.pairwise(bounds)]
        note = f"{number} sequences of {case.length} words of the Python library's sources"
    if case.is_classification:
        write_table(folder / "train.tsv", lines)
        write_table(folder / "dev.tsv", lines[:16])
    else:
        (folder / "train.txt").write_text("\n".join(lines))
        (folder / "validation.txt").write_text("\n".join(lines[:4]))
    return note


@dataclass(frozen=True)
class Prepared:
    """What the peers of a case share."""

    case: Case
    config: Config
    tokenizer: Any
    dataset: TokenizedDataset
    source: str
    """What the text is."""


def prepare_case(case: Case, folder: Path) -> Prepared:
    """Make or find the text of a case and encode it; a tokenizer is trained for sentences alone, here, before anything is timed."""
    has_sentences = case.length is None and (DATA / "sst2").is_dir() and not TINY
    source = "SST-2" if has_sentences else write_text(case, folder)
    config = load_config(list_arguments(case, DATA / "sst2" if has_sentences else folder))
    if case.has_adapter:  # which a checked config has over a checkpoint's weights alone: these are drawn
        adapter = AdapterConfig(kind="lora", rank=RANK, alpha=2 * RANK)
        config = replace(config, model=replace(config.model, adapter=adapter))
    if case.length is None:
        tokenizer = widen(prepare(config)[0].tokenizer, case.vocabulary)
    else:
        words = (folder / ("train.tsv" if case.is_classification else "train.txt")).read_text().split()
        tokenizer = build_word_tokenizer(words, case.vocabulary)
    return Prepared(case, config, tokenizer, prepare(config, tokenizer)[0], source)


def list_arguments(case: Case, folder: Path) -> list[str]:
    """Return the command line of `train.py` for a case."""
    settings = ", ".join(f"{name}: {value}" for name, value in case.settings.items())
    arguments = [
        f"model={'gpt_tiny' if case.is_causal else 'bert_tiny'}",
        f"model.architecture={case.architecture}",
        f"++model.config={{{settings}}}",
        f"batch.sequences={case.rows}",
        f"data.block_size={case.length or 128}",
        "optimizer.lr=1e-4",
        f"trainer={'gpu' if CUDA else 'cpu'}",
        f"trainer.max_steps={RUN_STEPS}",
        "trainer.max_epochs=null",
        f"trainer.validate_every_steps={RUN_STEPS}",
        "trainer.progress=none",
        "logger=csv",
        "callbacks.energy=false",
    ]
    if case.micro_batches > 1:
        arguments.append(f"batch.micro_sequences={case.rows // case.micro_batches}")
    if case.is_classification:
        tokenizer = ["model.tokenizer.kind=wordpiece", f"model.tokenizer.vocab_size={PIECES}"]
        return ["task=finetune", "data=sst2", f"data.dir={folder}", *tokenizer, *arguments]
    kind = ["data.packing=concat"] if case.is_causal else ["objective=masked_lm"]
    files = [f"data.train={folder}/train.txt", f"data.validation={folder}/validation.txt", "data.document=line"]
    return ["task=pretrain", "data=text", *kind, *files, *arguments]


# ---- ours ----


DECIDING = ("one step on the longest batch", "fastest step", "compile")
"""The checks of preflight that decide how steps are computed."""


def tuned(folder: Path, data: DataModule, objective: Objective, engine: Any) -> str:
    """Have preflight decide how steps are computed, as it does before each run, and return what it decided by trial."""
    checks = preflight.Preflight(folder, data, objective, engine, thorough=False)
    engine.precision_plugin.convert_module(objective)
    decided = {name: check() for name, check in checks.checks() if name in DECIDING}
    return decided.get("fastest step", "")


def train_ours(shared: Prepared, meter: Meter, **settings: Any) -> None:
    """Train as `train.py` does, the default logging included. The settings are those of `trainer`."""

    class Timing(Callback):
        def on_train_start(self, *_: Any) -> None:
            meter.begin()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            meter.add(batch.tokens, batch.targets)
            trainer.should_stop = meter.step()

    config = replace(shared.config, trainer=replace(shared.config.trainer, **settings))
    dataset, objective, data = prepare(config, shared.tokenizer)
    kind = find_auto_class(shared.case)
    draw = kind.from_config
    with mock.patch.object(kind, "from_config", lambda settings, **_: draw_model(shared.case, settings, draw)):
        model = build_and_connect(config, dataset, objective, data)
    meter.flops = Flops.of(model, dataset.splits["train"].inputs)
    with tempfile.TemporaryDirectory() as folder:
        throughput = training_meter.Meter(config.trainer.log_every_steps, data.total_steps, cache_folder(config))
        sinks = loggers.build_loggers(config.logger, Path(folder), {}, [], None, objective.monitor, objective.maximize)
        engine = trainer.build_trainer(
            config.trainer, Path(folder), data.total_steps, data.total_steps, sinks, [throughput, Timing()]
        )
        engine.limit_val_batches = 0  # Lightning would validate when it is stopped
        meter.note = tuned(Path(folder), data, objective, engine)
        engine.fit(objective, data)


# ---- the others ----


def find_auto_class(case: Case) -> Any:
    return getattr(transformers, f"AutoModelFor{case.head}")


def draw_model(case: Case, config: Any, draw: Callable[..., Any]) -> Any:
    """Return what `draw`, transformers' `from_config`, makes of a config, on the device: a CPU takes ten seconds for a billion weights."""
    with torch.device(DEVICE):
        return draw(config, dtype=torch.bfloat16 if case.has_adapter else torch.float32)


def build_model(shared: Prepared, meter: Meter) -> Any:
    """Return the model as transformers makes it, ready to be trained."""
    case, tokenizer = shared.case, shared.tokenizer
    # without a padding token no model looks for padding in each batch, which waits for the device
    padding = {"pad_token_id": None if case.is_causal else tokenizer.pad_token_id}
    config = transformers.AutoConfig.for_model(case.architecture, vocab_size=len(tokenizer), **case.settings, **padding)
    model = draw_model(case, config, find_auto_class(case).from_config)
    model.config.use_cache = False
    trained = model
    if case.has_adapter:
        import peft

        kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        settings = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=kinds, task_type="CAUSAL_LM")
        trained = peft.get_peft_model(model, settings)
    meter.flops = Flops.of(model, shared.dataset.splits["train"].inputs)
    return trained.train()


def list_sequences(shared: Prepared) -> list[dict[str, Any]]:
    """Return the training sequences, with the class of each where it has one."""
    case, split = shared.case, shared.dataset.splits["train"]
    if case.length is None:
        assert split.labels is not None
        return [{"input_ids": split[i].tolist(), "labels": int(split.labels[i])} for i in range(len(split))]
    rows = [{"input_ids": torch.from_numpy(split[i][: case.length].astype("int64"))} for i in range(len(split))]
    if split.labels is None:
        return rows
    return [row | {"labels": torch.tensor(int(label))} for row, label in zip(rows, split.labels, strict=True)]


def build_collator(shared: Prepared) -> Callable[[list[dict[str, Any]]], Any]:
    """Return what makes a batch of sequences: padded with a mask, or, where all are as long, stacked without one, the quicker way."""
    case, tokenizer = shared.case, shared.tokenizer
    if case.length is None:
        return transformers.DataCollatorWithPadding(tokenizer)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        ids = batch["input_ids"]
        if case.is_causal:
            return batch | {"labels": ids}
        if case.is_classification:
            return batch
        chosen = torch.rand(ids.shape) < 0.15
        inputs = torch.where(chosen & (torch.rand(ids.shape) < 0.8), tokenizer.mask_token_id, ids)
        return {"input_ids": inputs, "labels": torch.where(chosen, ids, -100)}

    return collate


def count(case: Case, batch: Any) -> tuple[Any, Any]:
    """Return (real tokens, targets) of a batch, as tensors where they have to be computed."""
    tokens = batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()
    labels = batch["labels"]
    return tokens, labels.numel() if case.is_classification or case.is_causal else (labels != -100).sum()


def train_hugging_face(shared: Prepared, meter: Meter, **options: Any) -> None:
    """Train with Hugging Face's Trainer; options are TrainingArguments'."""
    case = shared.case

    class Timing(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = meter.step()

    class Counting(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            meter.add(*count(case, inputs))
            return super().training_step(model, inputs, *more, **named)

    workers = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True} if CUDA else {"use_cpu": True}
    lengths = {"train_sampling_strategy": "group_by_length"} if case.length is None else {}
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": RUN_STEPS,
            "per_device_train_batch_size": case.rows // case.micro_batches,
            "gradient_accumulation_steps": case.micro_batches,
            "learning_rate": 1e-4,
            "weight_decay": 0.01,
            "bf16": BF16,
            "optim": "adamw_torch_fused",
            "logging_nan_inf_filter": False,  # which waits for the device at each step
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        arguments = transformers.TrainingArguments(**settings | workers | lengths | options)
        model, collate = build_model(shared, meter), build_collator(shared)
        rows = list_sequences(shared)
        engine = Counting(model, arguments, data_collator=collate, train_dataset=rows, callbacks=[Timing()])
        engine.remove_callback(transformers.PrinterCallback)
        engine.train()


def train_without_cudnn(shared: Prepared, meter: Meter) -> None:
    """Train with Hugging Face's Trainer, without cuDNN's attention."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    train_hugging_face(shared, meter)


def train_compiled(shared: Prepared, meter: Meter) -> None:
    """Train with Hugging Face's Trainer, the model compiled."""
    train_hugging_face(shared, meter, torch_compile=True, torch_compile_backend=COMPILER)


def train_loop(shared: Prepared, meter: Meter) -> None:
    """Train in a plain loop, the model compiled with its loss. The batches are on the device beforehand."""
    case = shared.case
    model = build_model(shared, meter)
    compiled = torch.compile(model, backend=COMPILER)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, fused=True)
    rows, collate, size = list_sequences(shared), build_collator(shared), case.rows // case.micro_batches
    starts = range(0, len(rows) - size + 1, size)
    batches = [{name: value.to(DEVICE) for name, value in collate(rows[i : i + size]).items()} for i in starts]
    stream = itertools.cycle(batches)
    meter.begin()
    while True:
        for batch in itertools.islice(stream, case.micro_batches):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=BF16):
                loss = compiled(**batch).loss / case.micro_batches
            loss.backward()
            meter.add(*count(case, batch))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if meter.step():
            return


TRAIN: dict[str, Callable[[Prepared, Meter], None]] = {
    "ours": train_ours,
    "ours_eager": functools.partial(train_ours, compile=False),
    "ours_recomputed": functools.partial(train_ours, compile=False, recompute="layers"),
    "hf": train_hugging_face,
    "hf_no_cudnn": train_without_cudnn,
    "hf_compiled": train_compiled,
    "loop": train_loop,
}


# ---- all of them ----


def name_card() -> str:
    """Return a short name of the GPU for the name of a file, `h200`."""
    words = torch.cuda.get_device_name().replace("NVIDIA", "").split() if CUDA else ["cpu"]
    return "_".join(word.lower() for word in words if not re.match(r"\d+GB|HBM", word))


def measure_peak() -> float:
    """Return the FLOP/s of the fastest matrix product of the device."""
    flops = Peak.measure(DEVICE, "bf16" if BF16 else "fp32", pick(0.5, 0.1)).flops
    release_memory()
    return flops or math.nan


def run_peer(peer: str, shared: Prepared, seconds: float) -> tuple[dict[str, float], str]:
    """Train a peer for at most so many seconds, and free what it took. Returns its numbers, none where it failed, and a note."""
    environment, cudnn = dict(os.environ), torch.backends.cuda.cudnn_sdp_enabled()
    captures = shared.case.captures if peer == "ours" else 0
    meter = Meter(captures + shared.case.warm_up, shared.case.steps, time.perf_counter() + 0.9 * seconds)
    try:
        with limit_time(seconds):
            torch.manual_seed(0)
            TRAIN[peer](shared, meter)
            return meter.read(), meter.note
    except OutOfTime:
        return {}, f"not done after {seconds:.0f} s"
    except Exception as error:
        traceback.print_exc()
        return {}, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        os.environ.clear()
        os.environ.update(environment)  # accelerate keeps in it what the Trainer is to compile with
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        release_memory()


def release_memory() -> None:
    """Free what a peer leaves behind: its compiled code, its objects, its memory on the device."""
    torch._dynamo.reset()
    gc.collect()
    if is_alive() and CUDA:
        torch.cuda.empty_cache()


def is_alive() -> bool:
    """Return whether the device still works: after an illegal access nothing does in this process."""
    try:
        synchronise()
    except RuntimeError:
        return False
    return True
