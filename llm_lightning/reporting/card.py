"""Write the model card, README.md of the export, from the run's summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llm_lightning.config.schema import expand_home
from llm_lightning.reporting.audit_card import describe_audit
from llm_lightning.reporting.robustness import describe_failures
from llm_lightning.reporting.runs import load

PIPELINES = {
    "classification": ("text-classification", '"some text"'),
    "multi_label": ("text-classification", '"some text", top_k=None'),
    "regression": ("text-classification", '"some text", function_to_apply="none"'),
    "tagging": ("token-classification", '"some text", aggregation_strategy="simple"'),
    "masked_lm": ("fill-mask", '"some [MASK] text"'),
    "causal_lm": ("text-generation", '"Once"'),
    "instruction": ("text-generation", '[{"role": "user", "content": "a question"}]'),
}
"""Objective -> the task of transformers' pipeline that runs its model, and the arguments of a call."""
CLASSES = {
    "question_answering": ("question-answering", "AutoModelForQuestionAnswering"),
    "translation": ("translation", "AutoModelForSeq2SeqLM"),
}
"""Objective -> its task, and the class that loads its model, if transformers 5 has no pipeline for the task."""


def write_card(folder: Path) -> None:
    """Write hf/README.md of a finished run: the model, its training data, its metrics and its cost."""
    run = load(folder)
    summary = run.summary
    data, seconds, energy = summary["data"], summary["seconds"], summary["energy"]
    objective, origin = summary["objective"], run.config["model"]["name_or_path"] or run.config["model"]["init_from"]
    pipeline, facts = (PIPELINES | CLASSES).get(objective), {"library_name": "transformers"}
    facts |= {"pipeline_tag": pipeline[0]} if pipeline else {}
    facts |= {"base_model": origin} if origin and not expand_home(origin).is_dir() else {}
    head = yaml.safe_dump(facts | {"tags": ["llm_lightning", objective]}, sort_keys=False)
    sizes = ", ".join(f"{split} {count:,} rows ({data['tokens'][split]:,} tokens)" for split, count in data["rows"].items())
    cost = "not measured" if energy.get("kwh") is None else f"{energy['kwh']:.5f} kWh, {energy['co2eq_kg'] * 1000:.2f} g CO2eq"
    seed = "" if "privacy" in summary else f"; seed {summary['seed']}"
    parts = [
        f"---\n{head}---",
        f"# {objective} on {data['name']}",
        f"{summary['model']['name']}, {summary['model']['parameters']:,} parameters, trained by llm_lightning.",
        *([_use_windows(objective, run.config)] if run.config["data"].get("long") == "windows" else []),
        # an objective of the user's own is not known here
        *([f"```python\n{_use(objective)}\n```"] if pipeline and run.config["data"].get("long") != "windows" else []),
        f"**Data.** {data['name']}: {sizes}.",
        f"**Training.** {summary['steps']:,} optimizer steps, {summary['tokens_seen']:,} tokens, best at step {summary['best_step']}; "
        f"{seconds['total']:.0f} s; {cost}{seed}.",
        *([_describe_privacy(summary["privacy"])] if "privacy" in summary else []),
        "| metric | value |\n| --- | --- |\n" + "\n".join(f"| {name} | {value:.5g} |" for name, value in run.metrics.items()),
        f"**Where it fails.** {describe_failures(run)}",
        *_describe_probabilities(summary.get("calibration")),
        *describe_audit(folder),
        f"**Limits.** The figures above are of {data['name']} alone: on other text, expect less, and measure it. The model has what is "
        f"wrong with its data{' and with the model that it comes from' if origin else ''}; nothing was looked at but what is said above.",
    ]
    (folder / "hf" / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _describe_probabilities(calibration: dict[str, Any] | None) -> list[str]:
    """Return a paragraph on the temperature of the probabilities; none without one."""
    if not calibration:
        return []
    before, after = calibration["ece_before"], calibration["ece"]
    split = next((name for name in ("test", "validation") if name in before and name in after), None)
    errors = "" if split is None else f" ECE on {split}: {before[split]:.4f} before, {after[split]:.4f} after."
    return [
        f"**Probabilities.** They are calibrated: the weights hold logits divided by {calibration['temperature']:.4f}, fitted on "
        f"{calibration['rows']:,} rows of {calibration['of']}.{errors}"
    ]


POOLINGS = {
    "multi_label": (
        "of each label, the mean weighted by the softmax of those logits over the windows",
        "logits = (logits.softmax(0) * logits).sum(0)",
    ),
    "regression": ("the plain mean", "logits = logits.mean(0)"),
}
"""Objective -> how it pools the logits of windows (models/windows.py), in words and in Python."""
BY_LEVEL = (
    "the mean weighted by the softmax over the windows of the sum of a window's logits, divided by the root of their number",
    "logits = ((logits.sum(1, keepdim=True) / logits.shape[1] ** 0.5).softmax(0) * logits).sum(0)",
)


def _use_windows(objective: str, config: dict[str, Any]) -> str:
    """Return the rule by which the windows of a text are pooled, and lines of Python that apply it without llm_lightning."""
    data = config["data"]
    size, overlap = data["block_size"], data["block_size"] // 4 if data["overlap"] is None else data["overlap"]
    paired = data["columns"]["text_pair"] is not None
    texts = '"a text", "a long second text"' if paired else '"a long text"'
    cut = '"only_second"' if paired else "True"
    rule, line = POOLINGS.get(objective, BY_LEVEL)
    how = " Of a pair the second text is cut, and each window begins with the first." if paired else ""
    return (
        f"**Long texts.** The model classifies windows of {size} tokens. A longer text becomes windows that share {overlap} tokens, and "
        f"its logits are pooled from those of its windows: {rule}.{how} With transformers alone:\n\n"
        f"```python\n"
        f"from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f'model = AutoModelForSequenceClassification.from_pretrained("<this folder>").eval()\n'
        f'tokenizer = AutoTokenizer.from_pretrained("<this folder>")\n'
        f"windows = tokenizer({texts}, truncation={cut}, max_length={size}, stride={overlap}, padding=True,\n"
        f'                    return_overflowing_tokens=True, return_tensors="pt")\n'
        f'del windows["overflow_to_sample_mapping"]\n'
        f"logits = model(**windows).logits\n{line}\n```"
    )


def _describe_privacy(privacy: dict[str, Any]) -> str:
    """Return what differential privacy promises of the weights, and what it does not cover. The seed is left out: it tells the samples."""
    return (
        f"**Privacy.** Trained by DP-SGD: the weights are differentially private for each training {privacy['unit']}, with epsilon "
        f"{privacy['epsilon']:.4g} at delta {privacy['delta']:g} (noise multiplier {privacy['noise_multiplier']:.4g}, sampling rate "
        f"{privacy['sampling_rate']:.4g}, {privacy['steps']:,} steps; {privacy['accountant']}). Not covered: the choice of the best step "
        f"by validation rows, which are not training rows; the figures above and the files of the run folder besides the weights, which "
        f"were computed from the rows; the seed of the run, which has to stay secret."
    )


def _use(objective: str) -> str:
    """Return lines of Python that run an objective's model without llm_lightning."""
    if objective in CLASSES:
        auto = CLASSES[objective][1]
        return (
            f'from transformers import {auto}, AutoTokenizer\n\nmodel = {auto}.from_pretrained("<this folder>")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("<this folder>")'
        )
    task, arguments = PIPELINES[objective]
    return f'from transformers import pipeline\n\nrun = pipeline("{task}", model="<this folder>")\nrun({arguments})'
