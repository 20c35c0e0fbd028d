"""Cross-checks of a composed config, before anything heavy is imported.

Every check yields what is wrong, where (the key), and what to do; `check` raises them together, so that one run shows all
mistakes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from llm_lightning import distributed, signatures
from llm_lightning.config import CONF, OPEN_GROUPS, AdapterConfig, Config, DataConfig, SweepConfig
from llm_lightning.data import paths
from llm_lightning.errors import UserError, listed, nearest
from llm_lightning.machine import cores

SOURCES = Path(__file__).parent / "data" / "sources"
OF_FILES = ("files", "text", "conll", "squad", "parallel", "self_instruct")
"""Sources that need to be told what to read; one that you add says so by itself, when it is asked for its rows."""


def check(config: Config) -> None:
    """Raise a `UserError` that names every mistake in the config."""
    mistakes = list(_values(config))
    if not mistakes:
        weighs = config.task == "evaluate" and config.evaluate.weighs
        checks = OF_STORED.get("weigh" if weighs else config.task, [_groups, _model, _data, _fit, _trainer, _resume])
        mistakes = [mistake for find in checks for mistake in find(config)]
    if mistakes:
        raise UserError("\n".join(mistakes))


def check_sweep(settings: SweepConfig) -> None:
    """The same for how a sweep is done."""
    if mistakes := list(_values(settings, "sweep.")):
        raise UserError("\n".join(mistakes))


def _values(config: Any, prefix: str = "") -> Iterator[str]:
    """Values outside the range or the choices that their field declares."""
    for f in fields(config):
        value, key = getattr(config, f.name), f"{prefix}{f.name}"
        rule = f.metadata.get("rule")
        if value == "":
            yield f"{key} is empty; leave it out, or give {key}=null."
            continue
        if is_dataclass(value):
            yield from _values(value, key + ".")
        elif rule is not None and not rule.allows(value):
            hint = nearest(str(value), map(str, rule.values)) if isinstance(rule, signatures.Choice) else ""
            yield f"{key}={value}: expected {rule}.{hint}"


def _groups(config: Config) -> Iterator[str]:
    """Keys and values of the open groups that their target's signature does not have."""
    for group in OPEN_GROUPS if config.task != "predict" else ("objective",):
        settings = dict(getattr(config, group))
        target = settings.pop("_target_", None)
        allowed = signatures.parameters(str(target))
        if allowed is None:
            yield f"{group}._target_={target}: there is no such function or class in llm_lightning; choose {group}=<option>."
            continue
        for key, value in settings.items():
            if key not in allowed:
                yield (
                    f"{group}.{key}: {config.choices.get(group, target)} has no such setting; "
                    f"it has {listed(allowed) or 'none'}.{nearest(key, allowed)}"
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
        folder = Path(model.init_from).expanduser()
        if not (folder / "hf" / "config.json").is_file():
            yield (
                f"model.init_from={model.init_from}: not a finished run (it has no hf/config.json); "
                f"give a run folder such as runs/<date>/<time>-pretrain-docs-gpt_tiny."
            )
    elif model.name_or_path:
        path = Path(model.name_or_path).expanduser()
        is_path = model.name_or_path.startswith((".", "/", "~")) or model.name_or_path.count("/") > 1
        if is_path and not (path / "config.json").is_file():
            found = "has no config.json" if path.is_dir() else "does not exist"
            yield f"model.name_or_path={model.name_or_path}: the folder {found}; give a Hugging Face folder or a hub name."
    elif not model.architecture:
        yield "model: one of model.architecture (from scratch), model.name_or_path or model.init_from is needed."
    yield from _adapter(config)


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


def _is_text_encoding(name: str) -> bool:
    try:
        "a".encode(name)
    except LookupError:  # of a codec that is no text encoding too
        return False
    return True


def _data(config: Config) -> Iterator[str]:
    data = config.data
    sources = sorted(p.stem for p in SOURCES.glob("*.py") if p.stem != "__init__")
    if data.source not in sources:
        yield f"data.source={data.source}: there is no such source; there are {listed(sources)}.{nearest(data.source, sources)}"
    if data.dir is not None and not (folder := Path(data.dir).expanduser()).is_dir():
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
    if data.source.startswith("docs"):
        for key in ("train", "validation", "test", "dir"):
            if getattr(data, key) is not None:
                yield (
                    f"data.{key}={getattr(data, key)}: data={data.source} is built in and reads no files; "
                    f"choose data=text or data=files."
                )
    if data.encoding is not None and not _is_text_encoding(data.encoding):
        yield f"data.encoding={data.encoding}: there is no such encoding; such names are cp1252, cp1251, gb18030, big5, cp932, utf-16-le."
    if data.delimiter is not None and len(data.delimiter.replace("\\t", "\t")) != 1:
        yield f"data.delimiter={data.delimiter}: expected one character (a tab is '\\t')."
    if not (config.model.name_or_path or config.model.init_from):
        for key in ("n_positions", "max_position_embeddings"):
            positions = config.model.config.get(key)
            if isinstance(positions, int) and data.block_size > positions:
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
        yield f"data.predict={source}: no such file."
    if config.out is None and config.run_folder is None:
        yield "out is not set: give out=<file.jsonl or file.parquet>."


def _generate(config: Config) -> Iterator[str]:
    if (config.prompt is None) == (config.data.predict is None):
        yield 'prompt is not set: task=generate needs prompt="…", or data.predict=<file> with a prompt a row.'
    elif config.prompt is None:
        yield from _predict(config)


def _likelihood(config: Config) -> Iterator[str]:
    wanted = config.evaluate
    for key in ("text", "choices"):
        files = getattr(wanted, key)
        if files is not None and not paths.match(files):
            yield f"evaluate.{key}={files}: no such file."
    if wanted.window and wanted.stride and wanted.stride > wanted.window:
        yield f"evaluate.stride={wanted.stride}: windows of evaluate.window={wanted.window} tokens would leave some out; lower it."


def _export(config: Config) -> Iterator[str]:
    run = config.run_folder
    if config.out is None and run is None:
        yield "out is not set: give out=<folder>."
    if config.export.format == "adapter" and (run is None or not (run / "adapter" / "adapter_config.json").is_file()):
        yield f"export.format=adapter: run={config.run} has no adapter; it was trained without (model/adapter=none)."
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if config.export.format == "onnx" and missing:
        yield f"export.format=onnx: needs {listed(missing)}; pip install 'llm_lightning[onnx]'."


def _fit(config: Config) -> Iterator[str]:
    """Does the objective fit the data and the model?"""
    facts = signatures.constants(str(config.objective.get("_target_")))
    objective, chosen = config.choices.get("objective", "the objective"), config.choices.get("data", config.data.source)
    if facts.get("labelled") and config.data.columns.label is None:
        yield (
            f"data={chosen} has no labels, and objective={objective} needs them: name the column with data.columns.label=<column>, "
            f"or choose labelled data ({listed(_options('data', 'label: '))})."
        )
    family = facts.get("family")
    if family and config.model.family and family != config.model.family and not config.model.init_from:
        yield (
            f"model={config.choices.get('model')} is {_article(config.model.family)}, and objective={objective} needs "
            f"{_article(family)}: choose one of {listed(_options('model', f'family: {family}'))}."
        )
    if config.data.streaming:
        yield from _streaming(config, str(facts.get("encoding")), objective)
    if facts.get("whole_sequences") and config.data.packing != "none":
        yield f"data.packing={config.data.packing}: objective={objective} works on whole texts; use data.packing=none."


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
    """The options of a group whose file holds `text`."""
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
    is_missing = config.resume not in ("auto", "never") and not Path(config.resume).expanduser().is_file()
    if is_missing and distributed.is_rank_zero():  # which sends the file to machines that do not have it
        hint = nearest(config.resume, ["auto", "never"])
        yield f"resume={config.resume}: expected auto, never, or a checkpoint file that exists.{hint}"
    if config.run is not None and config.task != "evaluate":
        yield (
            f"run={config.run}: only task=evaluate, predict, generate, chat and export read a run; to start from its weights, give "
            f"model.init_from={config.run}."
        )
    if config.run_dir is not None and Path(config.run_dir).expanduser().is_file():
        yield f"run_dir={config.run_dir}: this is a file; give a folder."


OF_STORED = {
    "predict": [_groups, _model, _predict],
    "generate": [_model, _generate],
    "chat": [_model],
    "weigh": [_model, _likelihood],
    "export": [_model, _export],
}
"""What is looked at for tasks that train nothing."""
