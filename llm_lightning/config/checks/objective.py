"""Check whether the objective fits the task, the data and the model."""

from __future__ import annotations

from collections.abc import Iterator

from llm_lightning.config import signatures
from llm_lightning.config.schema import (
    CONF,
    Config,
)
from llm_lightning.errors import join_names

PLAIN_TEXT = ("stream", "documents")
"""Encodings of text without targets of its own."""
WINDOWED = ("texts", "label_sets", "scores")
"""Encodings that data.long=windows applies to."""


def check_objective(config: Config) -> Iterator[str]:
    """Yield the reasons why the objective does not fit the data or the model."""
    facts = signatures.constants(str(config.objective.get("_target_")))
    if config.task == "pretrain" and (facts.get("labelled") or facts.get("encoding") not in (*PLAIN_TEXT, None)):
        objective = config.choices.get("objective")
        yield f"task=pretrain: objective={objective} learns from labelled rows; the command is task=finetune objective={objective}."
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


def check_long(config: Config) -> Iterator[str]:
    """Yield the reasons why texts cannot be read in windows."""
    data = config.data
    encoding = str(signatures.constants(str(config.objective.get("_target_"))).get("encoding"))
    if data.long != "windows":
        return
    if encoding not in WINDOWED and "." not in encoding:
        hint = " (it reads long contexts in windows in any case)" if encoding == "spans" else ""
        yield (
            f"data.long=windows: only classification, multi_label and regression pool the windows of a text, and "
            f"objective={config.choices.get('objective', config.objective.get('_target_'))} does not{hint}; leave it out."
        )
    elif (data.overlap or 0) >= data.block_size:
        yield f"data.overlap={data.overlap}: windows of data.block_size={data.block_size} tokens share fewer; lower it."


def _streaming(config: Config, encoding: str, objective: str) -> Iterator[str]:
    if encoding != "stream" or config.data.packing != "best_fit":
        yield f"data.streaming=true: needs objective=causal_lm and data.packing=best_fit; {objective} and {config.data.packing} found."
    if config.data._target_ is not None:
        yield f"data.streaming=true: {config.data._target_} returns its rows whole; leave data.streaming out."
    elif config.data.source not in ("text", "files", "hub"):
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
