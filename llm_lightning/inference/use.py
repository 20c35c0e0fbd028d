"""Use a trained model: predict rows, continue prompts, chat, measure the likelihood of text, export."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from llm_lightning.config.checks.coverage import check_coverage
from llm_lightning.config.schema import ColumnsConfig, Config, ModelConfig, expand_home
from llm_lightning.config.targets import import_target, instantiate
from llm_lightning.data import encodings, tokenizers
from llm_lightning.data.paths import expand
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.data.rows import CONTINUES
from llm_lightning.data.sources import text
from llm_lightning.errors import UserError
from llm_lightning.inference import export as exports
from llm_lightning.inference.generate import Generator, plain_generation
from llm_lightning.inference.likelihood import Likelihood
from llm_lightning.inference.predict import Predict, Predictor, rows_of, without_label, write
from llm_lightning.inference.prediction_sets import load_sets
from llm_lightning.inference.text_rows import read_prompt
from llm_lightning.models import build
from llm_lightning.models.positions import positions_of
from llm_lightning.objectives.base import Objective
from llm_lightning.objectives.causal_lm import CausalLM
from llm_lightning.reporting.documents.write import write_documents
from llm_lightning.runs.folder import write_json
from llm_lightning.runs.versions import package_versions
from llm_lightning.training import trainer

WINDOW = 1024
"""Default of evaluate.window, in tokens, for models with at least as many positions."""


def predict(config: Config) -> dict[str, Any]:
    """Write the model's prediction for each row of data.predict, in the order of the rows."""
    model = predictor(config)
    result = _write_predictions(config, model)
    if (note := model.describe_cut()) is not None:
        print(note, file=sys.stderr)
    return result


def generate(config: Config) -> dict[str, Any]:
    """Generate text for a prompt or for each row of data.predict, or chat at the terminal."""
    prompt = _read_single_prompt(config) if config.task == "generate" else None  # first, as it may not be text
    generate = generator(config)
    if config.task == "chat":
        return {"messages": generate.chat()}
    if prompt is not None:
        return {"text": generate.say(prompt)}
    return _write_predictions(config, generate)


def _read_single_prompt(config: Config) -> str | None:
    """Return the text of prompt or prompt_file; None if the rows of data.predict are the prompts."""
    if config.prompt_file is not None:
        return read_prompt("prompt_file", config.prompt_file)
    return read_prompt("prompt", "-") if config.prompt == "-" else config.prompt


def evaluate(config: Config) -> dict[str, Any]:
    """Measure the likelihood of the files of evaluate.text and of the choices of evaluate.choices under a causal model."""
    likelihood, settings = likelihoods(config), config.evaluate
    positions = positions_of(likelihood.objective.model.config) or settings.window or WINDOW
    window = settings.window or min(positions, WINDOW)
    if window > positions:
        raise UserError(f"evaluate.window={window}: the model has {positions} positions; lower it.")
    metrics: dict[str, float] = {}
    if settings.text:

        def pieces() -> Iterator[tuple[str, bool]]:
            for path in expand("evaluate.text", str(settings.text)):
                for piece in text.documents(path, config.data):
                    yield piece["text"], piece[CONTINUES]

        of_text = likelihood.of_text(pieces(), window, min(settings.stride or -(-window // 2), window))
        metrics |= {f"text/{name}": value for name, value in of_text.items()}
    if settings.choices:
        data = replace(config.data, columns=ColumnsConfig(text="text", text_pair="choices", label="label"))
        rows = (row for path in expand("evaluate.choices", settings.choices) for row in rows_of(path, data))
        metrics |= {f"choices/{name}": value for name, value in likelihood.of_choices(rows, data).items()}
    print("\n".join(f"  {name:<28} {value:.6g}" for name, value in metrics.items()), file=sys.stderr)
    if config.out or config.run_folder:
        out = _out(config, "likelihood.json")
        description = {"text": settings.text, "choices": settings.choices, "window": window, "stride": settings.stride}
        write_json(out, {"metrics": metrics, **description, "run": config.run, "versions": package_versions()})
    return {"metrics": metrics}


def export(config: Config) -> dict[str, Any]:
    """Export the weights in the format of export.format, or the documents about them."""
    if config.export.format == "documents":
        return _export_documents(config)
    weights, out = weights_of(config), _out(config, f"export-{config.export.format}")
    if config.export.format == "adapter":
        assert config.run_folder is not None
        exports.copy_adapter(config.run_folder, out)
    else:
        model = build.reload(weights, auto_class(weights, config.model), config.model)
        tokenizer = tokenizers.load(weights, config.model.trust_remote_code)
        with tempfile.TemporaryDirectory() as scratch:  # if the export fails, no folder is left
            if config.export.format == "onnx":
                from llm_lightning.inference import onnx

                onnx.export(model, tokenizer, Path(scratch))
            exports.export(model, tokenizer, out)
            for file in Path(scratch).iterdir():  # two if the weights are large
                shutil.move(file, out / file.name)
        for file in (Path(weights) / name for name in exports.BESIDE):
            if file.is_file():
                (out / file.name).write_bytes(file.read_bytes())
    print(f"{config.export.format}: {out}", file=sys.stderr)
    return {"export": str(out)}


def _export_documents(config: Config) -> dict[str, Any]:
    """Write the documents about the run's model, and list the fields that its record does not answer."""
    assert config.run_folder is not None
    out = _out(config, "export-documents")
    open_fields = write_documents(config.run_folder, config.data, out)
    print("\n".join([f"documents: {out}", "open fields:", *(f"  {name}" for name in open_fields)]), file=sys.stderr)
    return {"export": str(out), "open": open_fields}


TASKS = {"predict": predict, "generate": generate, "chat": generate, "evaluate": evaluate, "export": export}


def predictor(config: Config) -> Predictor:
    """Load the objective of config.run for predictions. Raises UserError for an objective without predictions of rows."""
    weights = weights_of(config)
    objective_class: type[Objective] = import_target(config.objective["_target_"])
    if objective_class.predict is Objective.predict:
        way = (
            "; text is written by task=generate data.predict=<file>" if objective_class.auto_class == "AutoModelForCausalLM" else ""
        )
        raise UserError(f"run={config.run}: objective={config.choices.get('objective')} makes no predictions of rows{way}.")
    encoding = encodings.get_encoder(objective_class.encoding)(
        tokenizers.load(weights, config.model.trust_remote_code), without_label(config.data)
    )
    objective: Objective = instantiate("objective", config.objective, TokenizedDataset({}, {}, encoding))
    if mistakes := list(check_coverage(config)):  # before the weights are loaded
        raise UserError("\n".join(mistakes))
    precision, device = load_model(config, objective, weights)
    names = list((objective.model.config.id2label or {}).values())
    return Predictor(objective, config.batch, precision, device, load_sets(config, names))


def generator(config: Config) -> Generator:
    """Load the causal model of config.run for generation."""
    weights = weights_of(config)
    _require_causal(weights, config)
    torch.manual_seed(config.seed)
    model = build.reload(weights, "AutoModelForCausalLM", config.model).eval()
    plain_generation(model)
    return Generator(model, tokenizers.load(weights, config.model.trust_remote_code), config.generate, config.data)


def likelihoods(config: Config) -> Likelihood:
    """Load the causal model of config.run for likelihoods of text."""
    weights = weights_of(config)
    _require_causal(weights, config)
    tokenizer = tokenizers.load(weights, config.model.trust_remote_code)
    objective = CausalLM(TokenizedDataset({}, {}, encodings.get_encoder(CausalLM.encoding)(tokenizer, config.data)))
    return Likelihood(objective, config.batch, *load_model(config, objective, weights))


def weights_of(config: Config) -> str:
    """Return the folder, or the name on the hub, of the weights of config.run."""
    if config.run_folder is not None:
        return str(config.run_folder / "hf")
    folder = expand_home(str(config.run))
    return str(folder) if folder.is_dir() else str(config.run)


def auto_class(weights: str, config: ModelConfig) -> str:
    """Return the Hugging Face auto class of a checkpoint's head, by the end of the name of its own class."""
    build.register_classes(config)
    architecture = (AutoConfig.from_pretrained(weights, trust_remote_code=config.trust_remote_code).architectures or ["?"])[0]
    for end, auto in exports.HEADS.items():
        if architecture.endswith(end):
            return auto
    return "AutoModel"


def _require_causal(weights: str, config: Config) -> None:
    """Raise UserError if the model is not causal: an encoder would see the tokens that it should predict."""
    if (kind := auto_class(weights, config.model)) != "AutoModelForCausalLM":
        raise UserError(
            f"run={config.run}: an {kind} is no causal language model; it cannot continue text (task=predict writes its predictions)."
        )


def load_model(
    config: Config, objective: Objective, weights: str
) -> tuple[Callable[[], AbstractContextManager[Any]], torch.device]:
    """Load the objective's model by the config's hardware settings; return (its precision context, its device)."""
    objective.model = build.reload(weights, objective.auto_class, config.model)
    objective.adapt(objective.model)
    engine = trainer.build_trainer(replace(config.trainer, devices=1), Path.cwd(), 1, 1, [], [])
    engine.precision_plugin.convert_module(objective)
    objective.to(engine.strategy.root_device).eval()
    return engine.precision_plugin.val_step_context, engine.strategy.root_device


def _write_predictions(config: Config, predict: Predict) -> dict[str, Any]:
    """Write the predictions; return the number of rows, the number of errors, and the path."""
    out = _out(config, "predictions.jsonl")
    identity = f"{weights_of(config)} {config.generate} {config.predict} {config.seed}"
    rows, errors = write(predict, without_label(config.data), out, identity, config.trainer.progress == "bar")
    print(
        f"{rows:,} row{'s' if rows != 1 else ''}{f', {errors:,} of them with an error' if errors else ''}: {out}", file=sys.stderr
    )
    return {"rows": rows, "errors": errors, "out": str(out)}


def _out(config: Config, name: str) -> Path:
    """Return the path of a result: config.out, or a file of this name in the run folder."""
    return expand_home(config.out) if config.out else expand_home(str(config.run)) / name
