"""A trained model put to use: predictions for rows, text that goes on with a prompt, a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object

from llm_lightning.config import Config
from llm_lightning.data import encodings, tokenizers
from llm_lightning.data.module import Text
from llm_lightning.inference.generate import Generator, plain_generation
from llm_lightning.inference.predict import Predictor, Row, without_label, write
from llm_lightning.models import build
from llm_lightning.objectives.base import Objective
from llm_lightning.signatures import made
from llm_lightning.training import trainer


def predict(config: Config) -> dict[str, Any]:
    """What a model says of each row of data.predict, written in the order of the rows."""
    weights, out = weights_of(config)
    objective_class: type[Objective] = get_object(config.objective["_target_"])
    encoding = encodings.named(objective_class.encoding)(tokenizers.load(weights), without_label(config.data))
    objective: Objective = made(config.objective, Text({}, {}, encoding))
    objective.model = build.reload(weights, objective.auto_class, config.model.trust_remote_code)
    engine = trainer.build(replace(config.trainer, devices=1), out.parent, 1, 1, [], [])
    device = engine.strategy.root_device
    engine.precision_plugin.convert_module(objective)
    objective.to(device).eval()
    predictor = Predictor(objective, encoding, config.batch, engine.precision_plugin.val_step_context, device)
    return written(config, predictor, weights, out)


def generate(config: Config) -> dict[str, Any]:
    """Text that goes on with a prompt or with each row of data.predict, or a conversation at the terminal."""
    weights, out = weights_of(config)
    torch.manual_seed(config.seed)
    model = build.reload(weights, "AutoModelForCausalLM", config.model.trust_remote_code).eval()
    plain_generation(model)
    generator = Generator(model, tokenizers.load(weights), config.generate, config.data)
    if config.task == "chat":
        return {"messages": generator.chat()}
    if config.prompt is not None:
        return {"text": generator.say(config.prompt)}
    return written(config, generator, weights, out)


def weights_of(config: Config) -> tuple[str, Path]:
    """(folder or name of the weights of config.run, where rows are written)."""
    trainer.quiet_libraries()
    folder = Path(str(config.run)).expanduser()
    weights = str(folder / "hf") if (folder / "config.yaml").is_file() else str(folder) if folder.is_dir() else str(config.run)
    return weights, Path(config.out).expanduser() if config.out else folder / "predictions.jsonl"


def written(config: Config, predict: Callable[[list[Row]], list[Row]], weights: str, out: Path) -> dict[str, Any]:
    """How many rows were predicted, and where they are."""
    data = without_label(config.data)
    rows = write(predict, data, out, f"{weights} {config.generate} {config.seed}", config.trainer.progress == "bar")
    print(f"{rows:,} rows: {out}", file=sys.stderr)
    return {"rows": rows, "out": str(out)}
