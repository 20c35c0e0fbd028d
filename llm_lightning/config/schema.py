"""Define the typed schema of everything under `conf/`.

Each config group is a frozen dataclass; the line under a field gives its unit and the effect of a change. `objective`, `optimizer` and
`scheduler` are open groups: their schema is the signature of their `_target_` (see `signatures.py`), so that a new one is one
file and one yaml. Nothing here imports torch: a wrong config is refused before the seconds that imports cost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from llm_lightning.config.redaction import redact
from llm_lightning.config.signatures import Choice, Range

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""Folder of the option files: inside an installed package, beside the package in a checkout."""


def bound_field(default: Any, rule: Range | Choice) -> Any:
    """Return a dataclass field whose value `validation.py` checks by `rule`."""
    return field(default=default, metadata={"rule": rule})


POSITIVE = Range(1)
PERTURBATIONS = ("typos", "case", "punctuation", "names", "negation")
TAG_SCHEMES = ("auto", "iob1", "iob2", "bio", "iobes", "bioes", "bilou", "bmes", "bmewo", "ioe1", "ioe2", "io", "brackets", "none")


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    text: str = "text"
    """Column that holds the text (the first text of a pair)."""
    text_pair: str | None = None
    """Column of the second text of a pair, for tasks on two texts."""
    label: Any = None
    """Column that holds the label; needed by every labelled objective. For multi_label also a list of columns, each with 0 or 1 for the
    label that it is named after."""
    sentence: str | None = None
    """Column that tells sentences apart in tables with a word a row (tagging): a value in each row, or one in a sentence's first row."""
    words: Any = None
    """Column of the words in CoNLL files: its number from 1, or from -1 (the last) down, or its name where columns have names (CoNLL-U)."""
    tags: Any = None
    """The same for the tags; in CoNLL-U also a key of MISC. By default both are found by what the columns hold."""


@dataclass(frozen=True, kw_only=True)
class LanguagesConfig:
    source: str | None = None
    """Language of the source, as the tokenizer of a multilingual translator names it (`en_XX`, `eng_Latn`), or short (`en`)."""
    target: str | None = None
    """Language of the translation."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str = MISSING
    """Module of `llm_lightning/data/sources/` that reads the rows."""
    _target_: str | None = None
    """A function of another package that reads the rows instead: `load(data, cache_dir, extra_columns, *, …) -> dict[str, Rows]`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of that function; `data.<name>=` sets one too."""
    dir: str | None = None
    """Folder with files named train.*, validation.* (or valid, val, dev) and test.*; relative file names start here."""
    name: str | None = None
    """Data set on the Hugging Face hub."""
    config: str | None = None
    """Configuration of that hub data set, `sst2` of `glue` for example."""
    train: Any = None
    """File, glob, folder or list of them (hub: the split's name)."""
    validation: Any = None
    """The same for validation; without it, validation is split off from train."""
    test: Any = None
    """The same for test; without it, there is no test evaluation."""
    predict: str | None = None
    """Input of task=predict, and of task=generate without a prompt: a file, a glob, or - for standard input (a pipe works too);
    tables, or plain text with a row a line."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    column_names: list[str] | None = None
    """Names of the columns of files without a header."""
    delimiter: str | None = None
    """Field separator of csv and tsv files; by default from the file's ending."""
    quotes: bool = True
    """Whether double quotes enclose fields in csv and tsv files; `false` reads them as plain characters."""
    encoding: str | None = None
    """Encoding of text files that are not UTF-8 and have no byte order mark: `cp1252`, `gb18030`, … Files that are UTF-8 are read so."""
    document: str = bound_field("file", Choice("file", "blank_line", "line"))
    """The unit that is one document of a plain-text file."""
    labels: Any = None
    """Label names: a list in the order of the label values, or a mapping from value to name, `{neg: Negative, pos: Positive}`. By default
    the values themselves, sorted."""
    tags: str = bound_field("auto", Choice(*TAG_SCHEMES))
    """How tags mark spans (tagging): `auto` recognises the scheme from the tags, `none` scores words alone, as for parts of speech;
    `brackets` is the scheme of (PERSON*, * and *)."""
    roles: dict[str, str] = field(default_factory=dict)
    """Roles of conversations by their names in the data, `{function_call: assistant, observation: tool}`; the usual names are known."""
    validation_fraction: float = bound_field(0.1, Range(0, 1, open=True))
    """Share of train that becomes validation if there is no validation split."""
    on_bad_row: str = bound_field("error", Choice("error", "skip"))
    """`error` stops at the first unusable row; `skip` leaves such rows out, counts them and says so."""
    languages: LanguagesConfig = field(default_factory=LanguagesConfig)
    """Languages of a translation by mBART, M2M100 or NLLB, which mark each text with its own."""
    prefix: str | None = None
    """Text before each source of a translation, such as T5's `translate English to German: `."""
    block_size: int = bound_field(512, Range(8))
    """Longest sequence, in tokens; memory of a micro-batch grows with it."""
    overlap: int | None = bound_field(None, Range(0))
    """Tokens that neighbouring windows of a long context share (question_answering, and `long=windows`), so that an answer up to that long
    is whole in one; null is a quarter of `block_size`."""
    packing: str = bound_field("none", Choice("none", "best_fit", "concat"))
    """`none`: a document is a row; `best_fit`: documents share rows of `block_size` and do not see each other; `concat`: one stream
    of documents cut to blocks, attention reaches across. Longer documents than a block are cut in any case."""
    streaming: bool = False
    """Read, tokenise and pack while training, for text larger than the disk (causal_lm with packing=best_fit)."""
    share: float = bound_field(1.0, Range(0, 1, open_low=True))
    """Fraction of the built-in corpus that is used."""
    per_class: int | None = bound_field(None, POSITIVE)
    """Training rows a class in built-in labelled data; null takes as many as the smallest class has."""
    fold: int | None = bound_field(None, Range(0, 4))
    """Which fifth of the articles of one SQuAD file is the test, the next one validation, and the others train."""
    clean: list[str] = field(default_factory=list)
    """Rows of train that are left out: any of `near_duplicates`, `leaks` (of validation and test), `conflicts` (one text, two labels) and
    `pii` (personal data). `data_cleaned.csv` in the run folder lists them."""
    long: str = bound_field("cut", Choice("cut", "windows"))
    """A text longer than `block_size` (classification, multi_label, regression): `cut` keeps its beginning; `windows` reads all of it, in
    windows whose logits are pooled."""
    workers: Any = bound_field("auto", Range(0, auto=True))  # noqa: RUF009
    """Processes a device that assemble batches; 0 does it in the training process. `auto` is that on a CPU, and up to 2 for a GPU."""
    folds: int | None = bound_field(None, Range(2))
    """Find wrong labels of train: as many further runs, each of which scores a part of train that it was not trained on, come before the
    run itself (classification, multi_label, tagging). `evaluation/label_issues.csv` then lists the labels that are probably wrong."""
    left_out: str | None = None
    """The part of train that this run scores and does not train on: `2/5` is the second of five. The runs of `data.folds` set it."""
    drop: str | None = None
    """A csv with the columns file, row and label, such as `evaluation/label_issues.csv` of a run: train is used without these rows."""
    relabel: str | None = None
    """The same with the column suggested_label: these rows of train get that label."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    kind: str = bound_field("bpe", Choice("bpe", "wordpiece"))
    """Byte-level BPE (decoders) or lower-cased WordPiece (encoders), trained on the training split."""
    vocab_size: int = bound_field(8192, Range(300))
    """Entries; a larger vocabulary makes shorter sequences and a larger embedding."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    kind: str = bound_field("none", Choice("none", "lora", "dora"))
    """`lora` trains two narrow matrices beside each linear layer, `dora` the lengths of its columns too; `none` trains the weights."""
    rank: int = bound_field(8, POSITIVE)
    """Width of the narrow matrices; more can learn more, and takes more memory."""
    alpha: int = bound_field(16, POSITIVE)
    """What the adapter adds is scaled by alpha / rank."""
    dropout: float = bound_field(0.0, Range(0, 1, open_high=True))
    """Dropout of the adapter's inputs."""
    targets: list[str] | None = None
    """Name endings of the linear layers that get an adapter, `[query, value]` for example; null takes all of the transformer's layers."""
    quantize: str | None = bound_field(None, Choice("nf4", None))
    """`nf4` keeps the weights below the adapter in four bits (QLoRA, Dettmers et al. 2023; needs bitsandbytes)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    _target_: str | None = None
    """A function of another package that builds the model: `build(config, auto_class, tokenizer, longest_input, head, *, …)`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of that function; `model.<name>=` sets one too."""
    name_or_path: str | None = None
    """A hub name or a local Hugging Face folder to start from."""
    init_from: str | None = None
    """A run folder of this program to start from, with its tokenizer."""
    family: str | None = bound_field(None, Choice("encoder", "decoder", "encoder-decoder", None))
    """Kind of the model, if the preset sets it: encoders fill in masks, decoders continue text, encoder-decoders rewrite it."""
    architecture: str | None = None
    """Hugging Face model type that is built from scratch: `gpt2`, `llama`, `bert`, …"""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings of that architecture's Hugging Face config; all others keep the library's default."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    trust_remote_code: bool = False
    """Whether code that comes with a hub model may run."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    freeze: list[str] = field(default_factory=list)
    """Parameters that stay as they are, by patterns of their names: `["*.embeddings.*", "*.layer.[0-3].*"]`."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    sequences: int = bound_field(32, POSITIVE)
    """Sequences (rows, where they are packed) an optimizer step, over all devices and micro-batches."""
    tokens: int | None = bound_field(None, POSITIVE)
    """Tokens an optimizer step, at most; replaces `sequences` if given."""
    micro_sequences: int | None = bound_field(None, POSITIVE)
    """Sequences on a device at once; lower it when memory runs out, the result stays the same."""
    micro_tokens: Any = bound_field(None, Range(1, auto=True))  # noqa: RUF009
    """Tokens on a device at once, as if padded to the longest; accumulation follows from it. `auto` finds as many as fit."""
    length_window: int = bound_field(32, POSITIVE)
    """Steps inside which sequences are sorted by length; 1 is a plain shuffle, more means less padding."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    max_steps: int | None = bound_field(None, POSITIVE)
    """Optimizer steps; training ends at this or at `max_epochs`, whichever is first."""
    max_epochs: float | None = bound_field(None, Range(0, open_low=True))
    """Passes over the training data; fractions are allowed."""
    accelerator: str = bound_field("auto", Choice("auto", "cpu", "gpu", "cuda", "mps"))
    """Hardware that trains; `auto` takes a GPU if there is one."""
    devices: Any = "auto"
    """How many devices of this machine, or `auto` for all."""
    num_nodes: int = bound_field(1, POSITIVE)
    """Machines; under torchrun and srun the launcher's own number, also where this is 1."""
    strategy: str = bound_field("auto", Choice("auto", "ddp", "fsdp"))
    """How several devices share the work: `ddp` copies the model to each, `fsdp` cuts it up."""
    precision: str = bound_field("auto", Choice("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "fp8"))
    """`auto` is bf16-mixed if the hardware multiplies bf16, else 32-true; `fp8` is bf16-mixed with the layers' products in fp8."""
    compile: Any = bound_field("auto", Choice("auto", True, False))  # noqa: RUF009
    """Whether torch.compile compiles the layers, a minute or more at the start. `auto` tries on a GPU whether CUDA graphs are
    faster, and compiled layers if the run is long enough."""
    recompute: str = bound_field("auto", Choice("auto", "none", "layers"))
    """Whether layers keep only their inputs and run again in the backward pass: a quarter of the memory for a third more time. `auto`
    does so if memory would not hold a single row otherwise."""
    clip_norm: float | None = bound_field(1.0, Range(0, open_low=True))
    """Largest gradient norm of a step; null does not clip."""
    validate_every_steps: int | None = bound_field(None, POSITIVE)
    """Steps between validations; null validates once an epoch, and at the end."""
    log_every_steps: int = bound_field(10, POSITIVE)
    """Optimizer steps between rows of `metrics.csv` and of the logger."""
    progress: str = bound_field("bar", Choice("bar", "none"))
    """Whether rank 0 shows a progress bar on the terminal."""
    hang_timeout: float = bound_field(600.0, Range(0, open_low=True))
    """Seconds without progress after which a rank counts as hung: the run ends and names it. Large enough for the slowest step."""
    detect_anomaly: bool = False
    """Stop at the operation that made a NaN; slow, for debugging."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Further arguments of Lightning's Trainer, such as `limit_val_batches`, `profiler` or `deterministic`; `trainer.<name>=` sets one
    too."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int | None = bound_field(None, POSITIVE)
    """Steps between full states (model, optimizer, position); null saves one after each validation."""
    keep: int = bound_field(2, POSITIVE)
    """Full states kept, each about three times the weights; with two, an intact one remains if the newest is damaged."""


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    name: str = bound_field("csv", Choice("csv", "wandb"))
    """`wandb` logs to Weights & Biases beside metrics.csv: online where a key is configured, else offline."""
    project: str = "llm_lightning"
    """Project of the run at W&B."""
    entity: str | None = None
    """User or team at W&B that the project belongs to; null takes the key's default."""
    artifacts: str = bound_field("best", Choice("none", "best", "all"))
    """Files of a run that W&B records, by reference and checksum, never by copy: `best` is the data's fingerprint and the export,
    `all` the full states as well."""
    custom: dict[str, Any] = field(default_factory=dict)
    """Lightning loggers by name, each with its `_target_` and its arguments; `logger.<name>._target_=…` adds one."""


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig:
    patience: int | None = bound_field(None, POSITIVE)
    """Validations without improvement after which training stops; null never stops early."""
    energy: bool = True
    """Measure or estimate kWh and CO2 with codecarbon."""
    country: str = "USA"
    """ISO 3166 alpha-3 code of the country whose electricity mix the CO2 figure assumes."""
    custom: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks by name, each with its `_target_` and its arguments; `callbacks.<name>._target_=…` adds one."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    max_new_tokens: int = bound_field(200, POSITIVE)
    """Largest number of tokens that are generated."""
    temperature: float = bound_field(0.8, Range(0))
    """How freely tokens are drawn; 0 always takes the likeliest."""
    top_k: int | None = bound_field(None, POSITIVE)
    """Draw among this many of the likeliest tokens; null draws among all."""
    top_p: float = bound_field(1.0, Range(0, 1, open_low=True))
    """Draw among the likeliest tokens that together have this share of the probability."""
    min_p: float | None = bound_field(None, Range(0, 1))
    """Draw among tokens that are at least this share as likely as the likeliest."""
    repetition_penalty: float = bound_field(1.0, Range(0, open_low=True))
    """Above 1, tokens of the text so far are less likely to recur."""
    stop: list[str] = field(default_factory=list)
    """Texts at which generation ends; they are not shown."""
    raw: bool = False
    """Continue a prompt literally, even if the model has a chat template."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    text: str | None = None
    """Plain-text files (a glob) whose likelihood under a causal model is computed; `data.document` sets the unit that is one text."""
    choices: str | None = None
    """Tables (a glob) of texts with several continuations, in the columns text, choices and label: is the right one likeliest?"""
    window: int | None = bound_field(None, Range(2))
    """Tokens that the model reads at once; null is the number of its positions, at most 1,024."""
    stride: int | None = bound_field(None, POSITIVE)
    """Tokens by which windows move; the more they overlap, the more context each token has. null is half a window."""
    slices: Any = None
    """Parts of the test split (of validation without one) whose scores are compared with the rest: a list of `length`, `language`, and
    columns of the data."""
    invariance: Any = False
    """Changes of the texts that should not change a prediction: a list of `typos`, `case`, `punctuation`, `names` and `negation`, or
    true for all."""
    invariance_rows: int = bound_field(1000, POSITIVE)
    """Rows that each of these changes is tried on, at most; more make the rates surer and the evaluation longer."""

    @property
    def slice_names(self) -> list[str]:
        """Return the names in `slices`; a single name may stand without brackets."""
        names = self.slices if isinstance(self.slices, list | tuple) else [self.slices]
        return [str(name) for name in names if name is not None]

    @property
    def perturbations(self) -> list[str]:
        """Return the names in `invariance`: all for true, none for false."""
        if isinstance(self.invariance, bool) or self.invariance is None:
            return list(PERTURBATIONS) if self.invariance else []
        return [str(name) for name in (self.invariance if isinstance(self.invariance, list | tuple) else [self.invariance])]

    @property
    def weighs(self) -> bool:
        """Return whether the likelihood of other text is computed, instead of repeating a run's own evaluation."""
        return self.text is not None or self.choices is not None


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    against: str | None = None
    """Tables or plain-text files (a glob) with texts of an evaluation, which are searched for in the rows by their word 13-grams."""
    against_column: str | None = None
    """Column of the texts in those tables; null takes `data.columns.text`."""
    presidio: bool = False
    """Look for names and places too, by presidio-analyzer, which has to be installed; some milliseconds a row."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    coverage: float | None = bound_field(None, Range(0, 1, open=True))
    """Probability with which the set of labels that a prediction gets holds the true one (classification); null adds no set."""
    conditional: str | None = bound_field(None, Choice("class", None))
    """`class`: the probability holds for the rows of each class, and not only on the average of all rows."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    format: str = bound_field("hf", Choice("hf", "onnx", "adapter", "documents"))
    """`hf` is a Hugging Face folder, `onnx` the model for other runtimes (checked against torch), `adapter` only the LoRA weights,
    `documents` what the AI Act asks for and a bill of materials, filled from the run's record."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    crows_pairs: str | None = None
    """The csv of CrowS-Pairs, with the columns sent_more, sent_less, stereo_antistereo and bias_type: which sentence of each pair is
    likelier? For masked and causal language models."""
    stereoset: str | None = None
    """The JSON of StereoSet, as in its dev.json: language-model score, stereotype score and ICAT. For masked and causal language models."""
    templates: str | None = None
    """A csv with your own sentences for classifiers, in place of ours: the columns text, which holds {term}, and label, the right class or
    nothing."""
    swap: str | None = None
    """A csv with the columns term and swap: every row of the test split, or of `data.predict`, that has a term is copied with its
    counterpart, and a classifier's predictions of both are compared."""
    classifier: str | None = None
    """Run folder, Hugging Face folder or hub name of a classifier, of toxicity or sentiment for example, that scores what a causal
    language model writes about each group."""
    generations: int = bound_field(25, POSITIVE)
    """Number of texts that the model writes about each group, for `audit.classifier`."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    method: str = bound_field("grid", Choice("grid", "random", "optuna"))
    """`grid` runs every combination of the values; `random` draws, and `optuna` draws near earlier good results."""
    choices: list[str] = field(default_factory=list)
    """Alternatives that differ in more than one key, each the overrides of one in one text: `["model=bert_tiny", "recipe=sst2_minilm"]`."""
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task -> the keys that `random` and `optuna` vary, each with its values or its range in Hydra's notation."""
    trials: int = bound_field(20, POSITIVE)
    """Total number of runs that are drawn, including those of earlier starts and other processes."""
    prune: bool = True
    """End a drawn run whose best validation so far is worse than the median of the others' when they were as far (on one device)."""
    jobs: Any = bound_field(1, Range(1, auto=True))  # noqa: RUF009
    """Concurrent runs: at most one a GPU, or one a core without GPUs; `auto` is that maximum."""
    redo: bool = False
    """Run everything again, in a new folder; by default finished runs are not repeated."""


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    kind: str = bound_field("none", Choice("none", "dp"))
    """`dp` trains with differential privacy: the gradient of each training row is clipped, and noise is added to their sum."""
    epsilon: float = bound_field(8.0, Range(0, open_low=True))
    """The most that training may cost: the smaller, the less the weights can tell of any one row, and the more noise is added."""
    delta: float = bound_field(1e-5, Range(0, 1, open=True))
    """Probability with which more than epsilon may be told; below 1 / training rows."""
    clipping: str = bound_field("automatic", Choice("automatic", "flat"))
    """`automatic` divides each row's gradient by its norm (Bu et al. 2022); `flat` cuts norms above `threshold`."""
    threshold: float = bound_field(1.0, Range(0, open_low=True))
    """The norm that a row's gradient has at most. With automatic clipping and Adam it changes nothing."""
    noise_multiplier: float | None = bound_field(None, Range(0))
    """Standard deviation of the noise, in thresholds; null solves it for epsilon. With one, training ends when epsilon is used up."""
    secure_noise: bool = True
    """Draw noise from the system's cryptographic generator. `false` draws it from `seed`, for tests: whoever knows it can undo it."""
    public_tokenizer: bool = False
    """Whether a tokenizer that is trained on the training text may tell of it: it is not covered by epsilon."""


@dataclass(frozen=True, kw_only=True)
class Config:
    task: str = bound_field(
        MISSING, Choice("pretrain", "finetune", "evaluate", "predict", "generate", "chat", "export", "check", "inspect", "audit")
    )
    """What the command does; `task=` chooses it, with the objective and the schedule that go with it."""
    objective: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = bound_field(0, Range(0, 2**32 - 1))
    """Seed of everything random: initial weights, the order of the data, dropout, masks, generated text."""
    run_dir: str | None = None
    """The run's folder; by default runs/<date>/<time>-<task>-<data>-<model>."""
    resume: str = "auto"
    """`auto` continues what run_dir holds, `never` refuses to touch a used folder, else a checkpoint file."""
    run: str | None = None
    """The run folder that task=evaluate, predict, generate, chat, export and audit read. A Hugging Face folder or a hub name works too,
    except for repeating a run's own evaluation."""
    trust: list[str] = field(default_factory=list)
    """Packages whose code the config of a stored run may name with `_target_`; by default llm_lightning alone."""
    prompt: str | None = None
    """The prompt that task=generate continues, character for character; - reads standard input."""
    prompt_file: str | None = None
    """A file that holds the prompt, all of it, line ends and blanks included; - for standard input."""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    inspect: InspectConfig = field(default_factory=InspectConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """How -m sweeps."""
    out: str | None = None
    """The file for rows with their predictions or generated texts, a name that ends in .jsonl or .parquet, by default
    predictions.jsonl in the run folder; for task=export a folder, by default export-<format> there; for task=audit the folder of
    audit.html and audit.json, by default the run folder."""
    cache_dir: str = "~/.cache/llm_lightning"
    """Folder that keeps encoded data and the built-in corpus between runs."""
    debug: bool = False
    """Show tracebacks for the user's mistakes too."""
    choices: dict[str, str] = field(default_factory=dict)
    """Which option of each group was chosen; filled in by the program."""
    command: str | None = None
    """The command that started the run; filled in by the program."""

    @property
    def run_folder(self) -> Path | None:
        """Return the run folder that `run` names; None if `run` is another folder, or a name on the hub."""
        folder = expand_home(str(self.run))
        return folder if (folder / "config.yaml").is_file() else None


OPEN_GROUPS = ("objective", "optimizer", "scheduler")


def schema() -> DictConfig:
    """Return `Config` as an OmegaConf node that Hydra can merge into.

    Frozen dataclasses become read-only nodes, which cannot be merged into: the flag is lifted for composing. The open groups take any key
    here; `validation.py` checks them by their target's signature.
    """
    node = OmegaConf.structured(Config)
    _lift_readonly(node)
    for group in OPEN_GROUPS:
        OmegaConf.set_struct(node[group], False)
    OmegaConf.set_struct(node.model.config, False)
    OmegaConf.set_struct(node.sweep.space, False)
    OmegaConf.set_struct(node.data.roles, False)
    for group in (node.callbacks, node.logger, node.data, node.model, node.trainer):
        OmegaConf.set_struct(group, False)  # `open_keys.py` sorts what is added
    return node


def _lift_readonly(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for _, child in child_sections(node):
        _lift_readonly(child)


def child_sections(node: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield the name and the node of each child that has keys of its own. Interpolations, which may not resolve yet, are left out."""
    for name in map(str, node):
        child = node._get_node(name)  # private; read in OmegaConf 2.3.1, whose public access resolves interpolations
        if isinstance(child, DictConfig) and not child._is_none():
            yield name, child


def to_dataclass(node: DictConfig) -> Config:
    """Return the composed node as the frozen dataclasses that the rest of the code reads."""
    config = OmegaConf.to_object(node)
    assert isinstance(config, Config)
    label = config.data.columns.label
    names = [str(name) for name in label] if isinstance(label, list) else str(label) if isinstance(label, int | float) else label
    columns = replace(config.data.columns, label=names)  # a column may be called 2
    return replace(config, data=replace(config.data, columns=columns))


def plain(config: Config) -> dict[str, Any]:
    """Return the config as plain containers without its secrets, for `config.yaml`, checkpoints and W&B."""

    def unpack(value: Any) -> Any:
        if is_dataclass(value):
            return {f.name: unpack(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, dict):
            return {key: unpack(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [unpack(item) for item in value]
        return value

    return redact(unpack(config))


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as `a.b.c` -> value."""
    flat_settings: dict[str, Any] = {}
    for name, value in settings.items():
        flat_settings |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat_settings


def expand_home(path: str | Path) -> Path:
    """Return a path with `~` replaced by the home folder. A name such as `~old.csv`, which is no user's, stays as it is.

    Raises RuntimeError for `~` if the user has no home folder, as in some containers.
    """
    return Path(path).expanduser() if Path(path).parts[:1] == ("~",) else Path(os.path.expanduser(path))


def cache_folder(config: Config) -> Path:
    return expand_home(config.cache_dir)
