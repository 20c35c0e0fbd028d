"""Check a composed config before anything heavy is imported.

Every check yields messages with the mistake, its key, and the remedy; `check` raises them together, so that one run shows all mistakes.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm_lightning import distributed
from llm_lightning.config import signatures
from llm_lightning.config.overrides import escape_interpolations
from llm_lightning.config.schema import (
    CONF,
    OPEN_GROUPS,
    AdapterConfig,
    Config,
    DataConfig,
    GenerateConfig,
    SweepConfig,
    cache_folder,
    expand_home,
)
from llm_lightning.data import paths
from llm_lightning.errors import UserError, join_names, nearest
from llm_lightning.machine import cores

SOURCES = Path(__file__).parents[1] / "data" / "sources"
OUT = (".jsonl", ".parquet")
"""Suffixes of a file of predictions."""
OF_FILES = ("files", "text", "conll", "squad", "parallel", "self_instruct")
"""Sources that need the names of files to read. A source that you add raises this error itself, when it reads its rows."""
ROLES = ("system", "user", "assistant", "tool")
"""Roles of a conversation's messages."""


def check(config: Config) -> None:
    """Raise a `UserError` that names every mistake in the config."""
    mistakes = [*_values(config), *_encoding(config.data.encoding)]
    if not mistakes:
        weighs = config.task == "evaluate" and config.evaluate.weighs
        checks = OF_STORED.get(
            "weigh" if weighs else config.task, [_groups, _model, _data, _fit, _labels, _trainer, _flags, _resume, _folders]
        )
        mistakes = [mistake for find in checks for mistake in find(config)]
    if mistakes:
        raise UserError("\n".join(mistakes))


def _encoding(name: str | None) -> Iterator[str]:
    try:
        b" ".decode(name or "utf-8")  # raises for rot13 and base64, which are no text encodings
    except (LookupError, ValueError):
        yield (
            f"data.encoding={name}: there is no such encoding; usual ones are utf-8, cp1252 (Western Europe, ANSI in Windows), utf-16, "
            f"gb18030 (Chinese), cp932 (Japanese), cp1251 (Cyrillic)."
        )


def check_generate(settings: dict[str, Any]) -> GenerateConfig:
    """Return settings of `generate`, given from Python, as a config. Raises UserError for a wrong type or value."""
    node = OmegaConf.structured(GenerateConfig)
    OmegaConf.set_readonly(node, None)
    for key, value in settings.items():
        try:
            OmegaConf.update(node, key, escape_interpolations(value))
        except OmegaConfBaseException as error:
            raise UserError(f"generate.{key}={value!r}: {str(error).splitlines()[0].rstrip('.')}.") from error
    config: Any = OmegaConf.to_object(node)
    if mistakes := [*_values(config, "generate."), *_stops(config)]:
        raise UserError("\n".join(mistakes))
    return config


def _stops(settings: GenerateConfig) -> Iterator[str]:
    if "" in (settings.stop or []):
        yield "generate.stop: an empty text is in every text; leave it out."


def check_sweep(settings: SweepConfig) -> None:
    """Raise a `UserError` that names every mistake in the settings of a sweep."""
    if mistakes := list(_values(settings, "sweep.")):
        raise UserError("\n".join(mistakes))


def _values(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield values outside the range or the choices that their field declares."""
    for f in fields(config):
        value, key = getattr(config, f.name), f"{prefix}{f.name}"
        rule = f.metadata.get("rule")
        if value == "":
            yield f"{key} is empty; leave it out{'' if key == 'prompt' else f', or give {key}=null'}."
            continue
        if is_dataclass(value):
            yield from _values(value, key + ".")
        elif rule is not None and not rule.allows(value):
            hint = nearest(str(value), map(str, rule.values)) if isinstance(rule, signatures.Choice) else ""
            yield f"{key}={value}: expected {rule}.{hint}"


def _groups(config: Config) -> Iterator[str]:
    """Yield keys and values of the open groups that their target's signature does not have."""
    for group in OPEN_GROUPS if config.task != "predict" else ("objective",):
        settings = dict(getattr(config, group))
        target = settings.pop("_target_", None)
        allowed = signatures.parameters(str(target))
        if allowed is None and signatures.is_of_another_package(str(target)):
            continue  # its source does not show the signature: it is checked when it is imported
        if allowed is None:
            yield (
                f"{group}._target_={target}: there is no such function or class in llm_lightning or an installed package; "
                f"choose {group}=<option>."
            )
            continue
        for key, value in settings.items():
            if key not in allowed:
                yield (
                    f"{group}.{key}: {config.choices.get(group, target)} has no such setting; "
                    f"it has {join_names(allowed) or 'none'}.{nearest(key, allowed)}"
                )
            elif wrong := signatures.mismatch(value, allowed[key].type):
                yield f"{group}.{key}={value}: expected {wrong}."
        for key, parameter in allowed.items():
            if parameter.required and key not in settings:
                yield f"{group}.{key} is not set, and has no default."


def _model(config: Config) -> Iterator[str]:
    model = config.model
    if model.init_from and model.name_or_path:
        yield "model.init_from and model.name_or_path are both set: give one of them."
    elif model.init_from:
        folder = expand_home(model.init_from)
        if not (folder / "hf" / "config.json").is_file():
            is_model = (folder / "config.json").is_file()
            yield f"model.init_from={model.init_from}: " + (
                f"this is a folder of a model and not of a run; give model.name_or_path={model.init_from}."
                if is_model
                else "not a finished run (it has no hf/config.json); give a run folder such as runs/<date>/<time>-pretrain-docs-gpt_tiny."
            )
    elif model.name_or_path:
        yield from _checkpoint(model.name_or_path)
    elif not model.architecture:
        yield "model: one of model.architecture (from scratch), model.name_or_path or model.init_from is needed."
    yield from _adapter(config)
    encoding = signatures.constants(str(config.objective.get("_target_"))).get("encoding")
    if encoding != "translation" and (config.data.prefix is not None or any(vars(config.data.languages).values())):
        key = "data.prefix" if config.data.prefix is not None else "data.languages"
        yield f"{key}: only objective=translation has such a setting; leave it out."


REFUSED_FLAGS = {
    "accumulate_grad_batches": "batch.micro_sequences says how many sequences are on a device at once",
    "gradient_clip_val": "trainer.clip_norm clips the gradient of the whole step",
    "gradient_clip_algorithm": "trainer.clip_norm clips the norm",
    "use_distributed_sampler": "the plan of batches deals each step to the ranks",
    "reload_dataloaders_every_n_epochs": "the plan of batches says what each step reads",
    "val_check_interval": "trainer.validate_every_steps says when to validate",
    "check_val_every_n_epoch": "trainer.validate_every_steps says when to validate",
    "log_every_n_steps": "trainer.log_every_steps says when to log",
    "max_time": "the schedule depends on the number of steps; trainer.max_steps sets it",
    "min_steps": "the schedule depends on the number of steps; trainer.max_steps sets it",
    "min_epochs": "the schedule depends on the number of steps; trainer.max_epochs sets it",
    "limit_train_batches": "trainer.max_steps says how many steps to train",
    "overfit_batches": "data.share=0.01 trains on a part of the data; validation is never training data",
    "fast_dev_run": "trainer=debug runs a few steps, and task=check tries everything",
    "enable_checkpointing": "checkpoint.every_steps and checkpoint.keep say what is saved",
    "enable_progress_bar": "trainer.progress=none hides the bar",
    "enable_model_summary": "the log names the model and its size",
    "default_root_dir": "run_dir names the folder",
    "logger": "logger=csv or logger=wandb chooses it",
    "num_sanity_val_steps": "preflight tries a validation batch",
    "inference_mode": "it follows from trainer.strategy",
    **dict.fromkeys(("accelerator", "devices", "num_nodes", "strategy", "precision"), "it is a key of trainer"),
    **dict.fromkeys(("max_steps", "max_epochs", "detect_anomaly"), "it is a key of trainer"),
}
"""Arguments of Lightning's Trainer that contradict the plan of a run or have a key of their own, and what to use."""


def _flags(config: Config) -> Iterator[str]:
    """Arguments of Lightning's Trainer that have another way here."""
    for name in config.trainer.flags:
        if name in REFUSED_FLAGS:
            yield f"trainer.flags.{name}: {REFUSED_FLAGS[name]}."


OTHER_FORMATS = {
    ".gguf": "GGUF is llama.cpp's format of quantised weights; give the Hugging Face folder that it was made from",
    ".ckpt": "this is a training state; give the folder of a model, for a run of ours model.init_from=<run folder>",
    ".pth": "these are weights without a config; save the model with save_pretrained(<folder>)",
    ".pt": "these are weights without a config; save the model with save_pretrained(<folder>)",
    ".bin": "these are weights without their config; give the folder that has config.json",
    ".safetensors": "these are weights without their config; give the folder that has config.json",
    ".onnx": "ONNX files cannot be trained; give the Hugging Face folder that it was made from",
    ".h5": "these are TensorFlow's weights; give a folder with model.safetensors or pytorch_model.bin",
    ".msgpack": "these are Flax's weights; give a folder with model.safetensors or pytorch_model.bin",
}
"""Suffix of a file that people have for a model -> how to use it."""


def _has_weights(file: Path) -> bool:
    """Return whether a file of a folder holds weights of a model, or lists them, and not those of an adapter."""
    return file.name.startswith(("model", "pytorch_model")) and any(kind in file.name for kind in (".safetensors", ".bin"))


def _checkpoint(name: str) -> Iterator[str]:
    """Yield the problem of a `model.name_or_path` that is a path, but no Hugging Face folder."""
    path, key = expand_home(name), f"model.name_or_path={name}"
    if path.is_file():
        yield f"{key}: {OTHER_FORMATS.get(path.suffix, 'this is a file; give the folder that has config.json')}."
    elif (path / "adapter_config.json").is_file() and not any(_has_weights(file) for file in path.iterdir()):
        base = (
            json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
            or "its base model"
        )
        yield (
            f"{key}: this is an adapter for {base}, without that model's weights. Merge the two (peft's merge_and_unload, then "
            f"save_pretrained) and give that folder; the hf/ folder of a run of ours is merged already."
        )
    elif path.is_dir() and not (path / "config.json").is_file():
        if (path / "hf" / "config.json").is_file():
            yield f"{key}: this is a run of ours; give model.init_from={name}."
            return
        endings = {file.suffix for file in path.iterdir()} & {".gguf", ".ckpt", ".pth", ".pt", ".onnx", ".msgpack", ".h5"}
        reason = f" ({OTHER_FORMATS[min(endings)]})" if endings else ""
        yield f"{key}: the folder has no config.json{reason}; give a Hugging Face folder or a hub name."
    elif not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        yield f"{key}: the folder does not exist; give a Hugging Face folder or a hub name."


def _adapter(config: Config) -> Iterator[str]:
    adapter = config.model.adapter
    if adapter.kind == "none":
        if changed := [key for key, value in vars(adapter).items() if value != getattr(AdapterConfig(), key)]:
            yield f"model.adapter.{changed[0]}: there is no adapter; choose model/adapter=lora."
        return
    if not (config.model.name_or_path or config.model.init_from):
        yield (
            f"model/adapter={adapter.kind}: weights from scratch have to be trained themselves; give model.name_or_path or "
            f"model.init_from."
        )
    if config.trainer.precision == "fp8":
        yield "trainer.precision=fp8: not together with an adapter, whose matrices are too narrow; use bf16-mixed."
    if adapter.quantize and adapter.kind == "dora":
        yield "model.adapter.quantize: with lora only; choose model/adapter=qlora."
    if adapter.quantize and importlib.util.find_spec("bitsandbytes") is None:
        yield "model.adapter.quantize: needs bitsandbytes; pip install 'llm_lightning[qlora]'."


def _data(config: Config) -> Iterator[str]:
    data = config.data
    sources = sorted(p.stem for p in SOURCES.glob("*.py") if p.stem != "__init__")
    if "." in data.source and signatures.is_of_another_package(f"{data.source}.load"):
        return  # which reads what it is made for
    if data.source not in sources:
        yield f"data.source={data.source}: there is no such source; there are {join_names(sources)}.{nearest(data.source, sources)}"
    if data.dir is not None and not (folder := expand_home(data.dir)).is_dir():
        yield f"data.dir={data.dir}: no such folder."
    elif data.dir is not None and data.train is None and not paths.has_split(folder, "train"):
        yield f"data.dir={data.dir}: there is no file named train.* in it; name it with data.train=<file>."
    elif data.source in OF_FILES or (data.source == "hub" and data.dir is not None):
        if data.train is None and data.dir is None:
            chosen = config.choices.get("data", data.source)
            yield f"data.train is not set: data={chosen} reads files; give data.train=<file, glob or folder> or data.dir=<folder>."
        yield from paths.mistakes(data)
    elif data.source == "hub" and data.name is None:
        yield "data.name is not set: data=hub needs data.name=<data set on the hub>, such as data.name=glue data.config=sst2."
    for key, owner in {"share": "docs", "per_class": "docs_topics", "document": "text", "fold": "squad"}.items():
        if getattr(data, key) != getattr(DataConfig(), key) and data.source != owner:
            yield f"data.{key}={getattr(data, key)}: only data={owner} has such a setting; leave it out."
    for key, reads in (
        ("words", data.source == "conll"),
        ("tags", data.source == "conll"),
        ("sentence", data.source in ("files", "hub")),
    ):
        if getattr(data.columns, key) is not None and not reads:
            owner = "data=files or data=hub" if key == "sentence" else "data=conll"
            yield f"data.columns.{key}={getattr(data.columns, key)}: only {owner} has such a setting; leave it out."
    if data.source.startswith("docs"):
        for key in ("train", "validation", "test", "dir"):
            if getattr(data, key) is not None:
                yield (
                    f"data.{key}={getattr(data, key)}: data={data.source} is built in and reads no files; "
                    f"choose data=text or data=files."
                )
    for name, role in data.roles.items():
        if role not in ROLES:
            yield f"data.roles={{{name}: {role}}}: expected one of {join_names(ROLES)}.{nearest(role, ROLES)}"
    if data.delimiter is not None and len(data.delimiter.replace("\\t", "\t")) != 1:
        yield f"data.delimiter={data.delimiter}: expected one character (a tab is '\\t')."
    if not (config.model.name_or_path or config.model.init_from):
        for key in ("n_positions", "max_position_embeddings"):
            positions = config.model.config.get(key)
            if isinstance(positions, int) and 0 < positions < data.block_size:
                yield f"data.block_size={data.block_size}: the model has {positions} positions (model.config.{key}); change one of the two."
    if isinstance(config.batch.micro_tokens, int) and config.batch.micro_tokens < data.block_size:
        yield (
            f"batch.micro_tokens={config.batch.micro_tokens}: a sequence may have data.block_size={data.block_size} tokens "
            f"and has to fit; raise the one or lower the other."
        )


def _predict(config: Config) -> Iterator[str]:
    source = config.data.predict
    if source is None:
        yield "data.predict is not set: task=predict needs data.predict=<file, glob or - for standard input>."
    elif source != "-" and not paths.match(source):
        yield paths.missing("data.predict", source)
    if config.out is None and config.run_folder is None:
        yield "out is not set: give out=<file.jsonl or file.parquet>."
    elif config.out is not None and Path(config.out).suffix not in OUT:
        yield f"out={config.out}: expected a name that ends in {join_names(OUT)}."
    else:
        yield from _result(config, "predictions.jsonl")


def _generate(config: Config) -> Iterator[str]:
    yield from _stops(config.generate)
    sources = {"prompt": config.prompt, "prompt_file": config.prompt_file, "data.predict": config.data.predict}
    present = [key for key, value in sources.items() if value is not None]
    if not present:
        yield (
            'prompt is not set: task=generate needs prompt="…", prompt_file=<file> (- for standard input), or data.predict=<file> with '
            "a prompt a row."
        )
    elif len(present) > 1:
        yield f"{' and '.join(present)} are both set: give one of them."
    elif config.data.predict is not None:
        yield from _predict(config)
    elif config.out is not None:
        yield f"out={config.out}: what goes on with one prompt is written to the terminal; leave it out (> <file> keeps it)."
    elif config.prompt_file not in (None, "-"):
        file = expand_home(str(config.prompt_file))
        if not file.exists() or file.is_dir():
            yield (
                paths.missing("prompt_file", str(config.prompt_file))
                if not file.exists()
                else (f"prompt_file={config.prompt_file}: this is a folder; give a file.")
            )


def _folders(config: Config) -> Iterator[str]:
    """Yield the folders of the run that cannot be written to."""
    if config.task == "evaluate":
        folder = config.run_folder
        if folder is not None and (reason := write_error(folder)):
            yield f"run={config.run}: the folder cannot be written ({reason}), and task=evaluate puts its result there; copy the run."
    elif config.run_dir is None:
        if reason := write_error(Path("runs")):
            yield f"run_dir is not set, and runs/ cannot be written here ({reason}); give run_dir=<folder>."
    elif not expand_home(config.run_dir).is_file() and (reason := write_error(expand_home(config.run_dir))):
        yield f"run_dir={config.run_dir}: the folder cannot be written ({reason}); give another."
    try:
        reason = write_error(cache_folder(config))
    except RuntimeError:  # of expand_home: a user of a container has no home
        reason = "there is no home folder"
    if reason:
        yield f"cache_dir={config.cache_dir}: the folder cannot be written ({reason}); give another with cache_dir=<folder>."


def _result(config: Config, name: str) -> Iterator[str]:
    """Yield an error if the file that `out` names, or `name` in the run folder, cannot be written."""
    if config.out is None:
        if config.run_folder is not None and (reason := write_error(config.run_folder)):
            yield f"run={config.run}: the folder cannot be written ({reason}); give out=<file> for {name}."
        return
    file = expand_home(config.out)
    if file.is_dir():
        yield f"out={config.out}: this is a folder; give a file, {file / name} for example."
    elif reason := write_error(file.parent):
        yield f"out={config.out}: its folder cannot be written ({reason}); give another."


def write_error(folder: Path) -> str | None:
    """Return why no file can be written to a folder, or to the first existing one above it; None if one can.

    A file without a name is created there for a moment: the mode of a folder does not show a read-only disk, and means nothing to root.
    """
    try:
        while not folder.exists():
            folder = folder.absolute().parent
        if not folder.is_dir():
            return f"{folder} is a file"
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder}: {error.strerror}"


def _likelihood(config: Config) -> Iterator[str]:
    settings = config.evaluate
    for key in ("text", "choices"):
        files = getattr(settings, key)
        if files is not None and not paths.match(files):
            yield paths.missing(f"evaluate.{key}", files)
    if settings.window and settings.stride and settings.stride > settings.window:
        yield f"evaluate.stride={settings.stride}: windows of evaluate.window={settings.window} tokens would leave some out; lower it."
    yield from _result(config, "likelihood.json")


def _export(config: Config) -> Iterator[str]:
    run = config.run_folder
    if config.out is None and run is None:
        yield "out is not set: give out=<folder>."
    else:
        folder = expand_home(config.out) if config.out else Path(str(run))
        if folder.is_file():
            yield f"out={config.out}: this is a file; give a folder."
        elif reason := write_error(folder):
            yield f"{f'out={config.out}' if config.out else f'run={config.run}'}: cannot be written ({reason}); give out=<folder>."
    if config.export.format == "adapter" and (run is None or not (run / "adapter" / "adapter_config.json").is_file()):
        yield f"export.format=adapter: run={config.run} has no adapter; it was trained without (model/adapter=none)."
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if config.export.format == "onnx" and missing:
        yield f"export.format=onnx: needs {join_names(missing)}; pip install 'llm_lightning[onnx]'."


def _fit(config: Config) -> Iterator[str]:
    """Yield the reasons why the objective does not fit the data or the model."""
    facts = signatures.constants(str(config.objective.get("_target_")))
    objective, chosen = config.choices.get("objective", "the objective"), config.choices.get("data", config.data.source)
    if facts.get("labelled") and config.data.columns.label is None:
        yield (
            f"data={chosen} has no labels, and objective={objective} needs them: name the column with data.columns.label=<column>, "
            f"or choose labelled data ({join_names(_options('data', 'label: '))})."
        )
    family = facts.get("family")
    if family and config.model.family and family != config.model.family and not config.model.init_from:
        yield (
            f"model={config.choices.get('model')} is {_article(config.model.family)}, and objective={objective} needs "
            f"{_article(family)}: choose one of {join_names(_options('model', f'family: {family}'))}."
        )
    if config.data.tags != "auto" and facts.get("encoding") != "words":
        yield f"data.tags={config.data.tags}: only objective=tagging has tags; leave it out."
    if config.data.streaming:
        yield from _streaming(config, str(facts.get("encoding")), objective)
    if facts.get("whole_sequences") and config.data.packing != "none":
        yield f"data.packing={config.data.packing}: objective={objective} works on whole texts; use data.packing=none."


def _labels(config: Config) -> Iterator[str]:
    """Yield errors in the types of the label's columns and names."""
    label, names = config.data.columns.label, config.data.labels
    encoding = signatures.constants(str(config.objective.get("_target_"))).get("encoding")
    if isinstance(label, list):
        if encoding != "label_sets":
            yield f"data.columns.label={label}: only objective=multi_label learns from a column for each label; name one column."
        elif len(label) < 2 or len(set(map(str, label))) < len(label):
            yield f"data.columns.label={label}: give at least two different columns, or one column and objective=classification."
        elif config.data.source not in ("files", "hub"):
            yield f"data.columns.label={label}: only data=files and hub have a column for each label."
    elif label is not None and not isinstance(label, str | int):
        yield f"data.columns.label={label}: expected the name of a column, or for objective=multi_label a list of them."
    if names is None:
        return
    if encoding == "scores":
        yield f"data.labels={names}: objective=regression learns numbers, which have no names; leave it out."
    items = [*names, *names.values()] if isinstance(names, dict) else names
    if not isinstance(items, list) or not all(isinstance(name, str | int | float) for name in items):
        yield f"data.labels={names}: expected a list, [negative,positive], or a name for each value, {{neg: Negative, pos: Positive}}."


def _streaming(config: Config, encoding: str, objective: str) -> Iterator[str]:
    if encoding != "stream" or config.data.packing != "best_fit":
        yield f"data.streaming=true: needs objective=causal_lm and data.packing=best_fit; {objective} and {config.data.packing} found."
    if config.data.source not in ("text", "files", "hub"):
        yield f"data.streaming=true: data={config.data.source} is built in and small; choose data=text, files or hub."
    if config.data.test is not None:
        yield f"data.test={config.data.test}: a run on a stream has no test split; leave it out, and evaluate the run by task=evaluate."
    if config.trainer.max_steps is None:
        yield "trainer.max_steps is not set: a stream has no known end, so data.streaming=true needs it."


def _options(group: str, text: str) -> list[str]:
    """Return the options of a group whose file holds `text`."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml") if text in file.read_text(encoding="utf-8"))


def _article(family: str) -> str:
    return f"an {family}" if family[0] in "aeiou" else f"a {family}"


def _trainer(config: Config) -> Iterator[str]:
    trainer = config.trainer
    if trainer.num_nodes > 1 and not distributed.is_launched():
        yield f"trainer.num_nodes={trainer.num_nodes}: start it on every node with torchrun or SLURM's srun, or it waits for ever."
    if trainer.accelerator == "cpu" and isinstance(trainer.devices, int) and trainer.devices > max(8, cores()):
        yield f"trainer.devices={trainer.devices}: there are {cores()} cores here."
    if trainer.strategy == "fsdp" and trainer.precision == "fp8":
        yield "trainer.precision=fp8: not together with trainer=fsdp, which gathers weights in bf16; use trainer=ddp, or bf16-mixed."
    if trainer.strategy == "fsdp" and trainer.precision == "16-mixed":
        yield "trainer.precision=16-mixed: not together with trainer=fsdp; use bf16-mixed, or 32-true where nothing multiplies bf16."
    if trainer.strategy == "fsdp" and config.batch.micro_tokens == "auto":
        yield (
            "batch.micro_tokens=auto: a model that trainer=fsdp cuts up is whole on no device where it could be tried before training; "
            "give batch.micro_tokens a number."
        )
    if trainer.max_steps is None and trainer.max_epochs is None:
        yield "trainer.max_steps and trainer.max_epochs are both null: set one, or training would never end."
    if not (trainer.devices == "auto" or (signatures.mismatch(trainer.devices, int) is None and trainer.devices > 0)):
        yield f"trainer.devices={trainer.devices}: expected auto, or a whole number of at least 1."


def _resume(config: Config) -> Iterator[str]:
    is_missing = config.resume not in ("auto", "never") and not expand_home(config.resume).is_file()
    if is_missing and distributed.is_rank_zero():  # rank 0 sends the file to machines that lack it
        hint = nearest(config.resume, ["auto", "never"])
        yield f"resume={config.resume}: expected auto, never, or a checkpoint file that exists.{hint}"
    if config.run is not None and config.task != "evaluate":
        yield (
            f"run={config.run}: only task=evaluate, predict, generate, chat and export read a run; to start from its weights, give "
            f"{shlex.quote(f'model.init_from={config.run}')}."
        )
    if config.run_dir is not None and expand_home(config.run_dir).is_file():
        yield f"run_dir={config.run_dir}: this is a file; give a folder."


OF_STORED = {
    "predict": [_groups, _model, _predict],
    "generate": [_model, _generate],
    "chat": [_model],
    "weigh": [_model, _likelihood],
    "export": [_model, _export],
}
"""Checks for tasks that train nothing."""
