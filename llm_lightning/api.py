"""Use the program from Python: train with overrides, load a run, predict, generate, compute likelihoods."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_lightning.config import compose
from llm_lightning.config.saved_runs import load_saved_config
from llm_lightning.config.schema import Config
from llm_lightning.config.validation import check_generate
from llm_lightning.data.rows import take
from llm_lightning.data.surrogates import find_surrogate
from llm_lightning.errors import UserError, join_names
from llm_lightning.inference import use
from llm_lightning.inference.generate import Generator
from llm_lightning.inference.likelihood import Likelihood
from llm_lightning.inference.predict import Predictor
from llm_lightning.inference.text_rows import EMPTY
from llm_lightning.run import run
from llm_lightning.training import trainer

log = logging.getLogger(__name__)


def train(*overrides: str) -> dict[str, Any]:
    """Run `python train.py` with these overrides (`"task=finetune", "data=sst2"`) in this process. Return the run's summary.

    Raises UserError if they are wrong.
    """
    if wrong := [word for word in overrides if not isinstance(word, str)]:
        raise UserError(f"train: expected words of a command line, each a text ('task=finetune', …), and found {wrong[0]!r}.")
    return run(compose.load_config(list(overrides)))


def load(run: str | Path, *overrides: str) -> Model:
    """Return a trained model: `run` is a run folder, a Hugging Face folder or a hub name; `overrides` as for task=predict and generate."""
    return Model(str(run), overrides)


class Model:
    """A trained model for predictions and generation; the weights are loaded at the first use."""

    def __init__(self, run: str, overrides: tuple[str, ...] = ()) -> None:
        self.run, self.overrides = run, overrides

    def predict(self, rows: Iterable[str] | Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a prediction for each text, or for each row with the columns that the model was trained on.

        `rows` may be a pandas table too. The entry of a blank text has `error` instead, like a blank line of a file. Raises UserError for a
        bad row, and for an argument that is no ordered collection of rows.
        """
        if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # iterated, a table gives the names of its columns
            rows = rows.to_dict("records")
        if isinstance(rows, str | bytes | Mapping | Set) or not isinstance(rows, Iterable):
            raise UserError(
                "predict: expected a list of texts or of rows; one of them in a list: predict([…]). The rows of a file are predicted by "
                "task=predict data.predict=<file>."
            )
        rows = list(rows)  # type: ignore[assignment]  # a generator is read once
        for number, row in enumerate(rows):
            if not isinstance(row, str | Mapping):
                raise UserError(f"predict, row {number}: expected a text or a dictionary, and found {type(row).__name__}.")
        column = self._predictor.objective.dataset.encoding.data.columns.text
        for number, row in enumerate(rows):
            if isinstance(row, Mapping) and column not in row and take(row, column) is None:
                raise UserError(
                    f"predict, row {number}: there is no column '{column}'; the row has {join_names(row)}. Another column is named by "
                    f"load(run, 'data.columns.text=<column>')."
                )
        tables = [
            {column: row, EMPTY: not row.strip()} if isinstance(row, str) else {**row, column: take(row, column)} for row in rows
        ]
        truncated = self._predictor.objective.dataset.encoding.truncated
        predictions = self._predictor([{"where": f"row {number}", **row} for number, row in enumerate(tables)])
        if self._predictor.objective.dataset.encoding.truncated > truncated:
            log.warning("predict: %s", self._predictor.describe_cut())
        return predictions

    def generate(self, prompt: str | list[dict[str, str]], **settings: Any) -> str:
        """Continue a prompt, or a conversation of {"role", "content"} messages; `settings` are those of the config's `generate`.

        Raises UserError for an unknown setting or a wrong value, for an invalid conversation, and for text that is not valid Unicode.
        """
        if not isinstance(prompt, str | list):
            raise UserError(f"generate: expected a text or a list of messages, and found {type(prompt).__name__}.")
        if find_surrogate(prompt) is not None:
            raise UserError("the prompt holds half of a surrogate pair, which is no character.")
        default_settings = vars(self._generator.settings)
        if unknown := settings.keys() - default_settings.keys():
            raise UserError(f"generate.{min(unknown)}: there is no such setting; there are {', '.join(default_settings)}.")
        if isinstance(stop := settings.get("stop"), str):
            settings["stop"] = [stop]
        settled = replace(self._generator, settings=check_generate(default_settings | settings))
        return settled.say(prompt, show=False)

    def likelihood(self, contexts: list[str], texts: list[str]) -> list[float]:
        """Return log p(text | context) in nats for each pair."""
        weigh = self._likelihood
        return weigh.sums([weigh.join_choice(context, text) for context, text in zip(contexts, texts, strict=True)]).tolist()

    @cached_property
    def _predictor(self) -> Predictor:
        return use.predictor(self._config("predict"))

    @cached_property
    def _generator(self) -> Generator:
        return use.generator(self._config("generate"))

    @cached_property
    def _likelihood(self) -> Likelihood:
        return use.likelihoods(self._config("generate"))

    def _config(self, task: str) -> Config:
        trainer.quiet_libraries()
        return load_saved_config(task, self.run, list(self.overrides), checked=False)
