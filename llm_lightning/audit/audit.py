"""Run an audit: choose the measures that fit the model's head and the given files, and write audit.html, audit.json and the model card."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_lightning.audit import crows_pairs, generations, stereoset, swap, templates
from llm_lightning.audit.page import write_audit_page
from llm_lightning.audit.results import Measure
from llm_lightning.audit.sentences import CausalScorer, MaskedScorer
from llm_lightning.config.saved_runs import load_saved_config
from llm_lightning.config.schema import Config, expand_home
from llm_lightning.config.targets import import_target
from llm_lightning.data import encodings, tokenizers
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.errors import UserError
from llm_lightning.inference import use
from llm_lightning.inference.predict import Predictor
from llm_lightning.objectives.base import Objective
from llm_lightning.objectives.classification import Classification
from llm_lightning.objectives.masked_lm import MaskedLM
from llm_lightning.objectives.multi_label import MultiLabel
from llm_lightning.reporting.audit_card import list_headlines
from llm_lightning.reporting.card import write_card
from llm_lightning.runs.folder import write_json
from llm_lightning.runs.versions import package_versions
from llm_lightning.runs.weights import fingerprint_weights

SEQUENCES = 512
"""Sequences of a batch, at most: the logits of their targets are in memory together, half a GB for a vocabulary of 250,000."""
MASKED, CAUSAL, CLASSIFIER = "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForSequenceClassification"
HEADS = {MASKED: "a masked language model", CAUSAL: "a causal language model", CLASSIFIER: "a classifier"}
LIMITS = (
    "A gap that is measured is evidence of bias; no gap is no evidence of its absence. Each measure sees the groups, the sentences and the "
    "language of its list alone (ours are few, and English), says nothing of harm in a use of the model, and can disagree with the others. "
    "Some pairs of CrowS-Pairs and StereoSet do not show the stereotype that they are meant to, or differ in more than the group "
    "(Blodgett et al. 2021), so that a share near 50% is no proof, and two models a few points apart are not told apart."
)


@dataclass(frozen=True)
class Kind:
    """A measure that the audit offers."""

    key: str
    title: str
    heads: tuple[str, ...]
    argument: str
    """The argument of the command line that asks for it; empty if the measure needs none."""


KINDS = (
    Kind(crows_pairs.KEY, "CrowS-Pairs", (MASKED, CAUSAL), f"{crows_pairs.KEY}=<csv>"),
    Kind(stereoset.KEY, "StereoSet", (MASKED, CAUSAL), f"{stereoset.KEY}=<json>"),
    Kind(generations.KEY, "Continuations", (CAUSAL,), f"{generations.KEY}=<run of a classifier>"),
    Kind(templates.KEY, "Sentences about groups", (CLASSIFIER,), ""),
    Kind(swap.KEY, "Swapped terms", (CLASSIFIER,), f"{swap.KEY}=<csv of term pairs>"),
)


def audit(config: Config) -> dict[str, Any]:
    """Run the measures that the config asks for. Return the record that audit.json holds.

    Weights are read in fp32, as the measures compare small differences, and sentences go through the model in large batches.
    """
    batch = replace(config.batch, sequences=SEQUENCES, tokens=None)
    config = replace(config, trainer=replace(config.trainer, precision="32-true"), batch=batch)
    weights = use.weights_of(config)
    head = use.auto_class(weights, config.model)
    require_measures(config, head)
    measures = [run().to_record() for run in list_measures(config, head)]
    folder = expand_home(config.out) if config.out else Path(str(config.run_folder))
    record = {
        "run": config.run,
        "head": HEADS[head],
        "weights": fingerprint_weights(weights),
        "seed": config.seed,
        "measures": measures,
        "not_measured": list_not_measured(config, head, [measure["key"] for measure in measures]),
        "limits": LIMITS,
        "versions": package_versions(),
    }
    write_json(folder / "audit.json", record)
    page = write_audit_page(folder / "audit.html", record)
    if config.run_folder is not None and folder == config.run_folder and (folder / "summary.json").is_file():
        write_card(folder)
    print("\n".join(f"  {line}" for line in list_headlines(record)), file=sys.stderr)
    print(f"audit: {page}", file=sys.stderr)
    return record


def require_measures(config: Config, head: str) -> None:
    """Raise UserError for a head without measures, a measure that needs another head, and a language model without any measure."""
    if head not in HEADS:
        raise UserError(f"run={config.run}: an audit needs {', '.join(HEADS.values())}; this model's head is {head}.")
    requested = [kind for kind in KINDS if _value(config, kind) is not None]
    for kind in requested:
        if head not in kind.heads:
            needed = " or ".join(HEADS[name] for name in kind.heads)
            raise UserError(
                f"{kind.key}={_value(config, kind)}: run={config.run} is {HEADS[head]}, and this needs {needed}; leave it out."
            )
    if head == CLASSIFIER and not gives_probabilities(config):
        raise UserError(f"run={config.run}: its answers are no classes, and the audit compares probabilities of classes.")
    if head == CLASSIFIER and reads_pairs(config) and config.audit.templates:
        raise UserError(f"{templates.KEY}={config.audit.templates}: run={config.run} reads pairs of texts; leave it out.")
    if head == CLASSIFIER and reads_pairs(config) and not config.audit.swap:
        raise UserError(f"run={config.run} reads pairs of texts, for which there is {swap.KEY}=<csv of term pairs> alone; give it.")
    if head != CLASSIFIER and not requested:
        offered = ", ".join(kind.argument for kind in KINDS if head in kind.heads)
        raise UserError(f"run={config.run} is {HEADS[head]}: say what to measure, by one or several of {offered}.")


def gives_probabilities(config: Config) -> bool:
    """Return whether an objective predicts classes with their probabilities."""
    objective: type[Objective] = import_target(str(config.objective.get("_target_")))
    return issubclass(objective, Classification | MultiLabel)


def reads_pairs(config: Config) -> bool:
    return config.data.columns.text_pair is not None


def list_measures(config: Config, head: str) -> list[Callable[[], Measure]]:
    """Return functions that each run a measure that the config asks for. They share the loaded model."""
    settings = config.audit
    runs: list[Callable[[], Measure]] = []
    if head == CLASSIFIER:
        predictor = use.predictor(config)
        if not reads_pairs(config):
            runs.append(partial(templates.measure, predictor, settings.templates))
        if settings.swap:
            runs.append(partial(swap.measure, predictor, config))
        return runs
    # first what may be refused, before minutes of scoring
    pairs = crows_pairs.read_pairs(settings.crows_pairs) if settings.crows_pairs else None
    items = stereoset.read_items(settings.stereoset) if settings.stereoset else None
    classifier = load_classifier(config) if settings.classifier else None
    if pairs or items:
        scorer = load_masked(config) if head == MASKED else load_causal(config)
        if pairs:
            runs.append(partial(crows_pairs.measure, scorer, str(settings.crows_pairs), pairs))
        if items:
            runs.append(partial(stereoset.measure, scorer, str(settings.stereoset), items))
    if classifier is not None:
        generator = use.generator(config)
        generator.model.to(classifier.device)  # type: ignore[arg-type]
        runs.append(partial(generations.measure, generator, classifier, config))
    return runs


def load_masked(config: Config) -> MaskedScorer:
    """Load the masked language model of config.run."""
    tokenizer = tokenizers.load(use.weights_of(config), config.model.trust_remote_code)
    if tokenizer.mask_token_id is None:
        raise UserError(f"run={config.run}: its tokenizer has no mask token, so that no token can be masked.")
    encoding = encodings.get_encoder(MaskedLM.encoding)(tokenizer, config.data)
    objective = MaskedLM(TokenizedDataset({}, {}, encoding))
    return MaskedScorer(
        objective, config.batch, *use.load_model(config, objective, use.weights_of(config)), config.trainer.progress == "bar"
    )


def load_causal(config: Config) -> CausalScorer:
    """Load the causal language model of config.run."""
    likelihood = use.likelihoods(config)
    return CausalScorer(**vars(likelihood))


def load_classifier(config: Config) -> Predictor:
    """Load the classifier of audit.classifier, on the hardware of the audit. Raises UserError for a model of another kind."""
    name = str(config.audit.classifier)
    other = load_saved_config("predict", name, [], checked=False)
    if not gives_probabilities(other) or reads_pairs(other):
        raise UserError(f"{generations.KEY}={name}: this is no classifier of single texts; give a run of objective=classification.")
    return use.predictor(replace(other, trainer=config.trainer))


def list_not_measured(config: Config, head: str, measured: list[str]) -> list[dict[str, str]]:
    """Return title, reason and command of each measure that was not run; the command repeats the others too."""
    arguments = ["python", "train.py", "task=audit", f"run={config.run}"]
    arguments += [f"{kind.key}={value}" for kind in KINDS if (value := _value(config, kind)) is not None]
    arguments += [f"{key}={value}" for key, value in (("data.predict", config.data.predict), ("out", config.out)) if value]
    entries = []
    for kind in KINDS:
        if kind.key in measured:
            continue
        entry = {"key": kind.key, "title": kind.title, "reason": "not asked for", "command": ""}
        if head not in kind.heads:
            entry["reason"] = f"needs {' or '.join(HEADS[name] for name in kind.heads)}"
        elif not kind.argument:
            entry["reason"] = "needs a classifier of single texts, and this one reads pairs"
        else:
            entry["command"] = f"{shlex.join(arguments)} {kind.argument}"
        entries.append(entry)
    return entries


def _value(config: Config, kind: Kind) -> str | None:
    """Return the value of the config key of a measure."""
    value: str | None = getattr(config.audit, kind.key.rpartition(".")[2])
    return value
