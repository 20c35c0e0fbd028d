"""The model card: README.md of the export, written from the run's summary."""

from __future__ import annotations

from pathlib import Path

import yaml

from llm_lightning.reporting.runs import load

USES = {
    "classification": 'from transformers import pipeline\n\nclassify = pipeline("text-classification", model="<this folder>")\n'
    'classify("some text")',
    "masked_lm": 'from transformers import pipeline\n\nfill = pipeline("fill-mask", model="<this folder>")\nfill("some [MASK] text")',
    "causal_lm": 'from transformers import pipeline\n\nwrite = pipeline("text-generation", model="<this folder>")\nwrite("Once")',
}


def write_card(folder: Path) -> None:
    """hf/README.md of a finished run: what the model is, what it was trained on, how well it does, what it cost."""
    run = load(folder)
    summary = run.summary
    data, seconds, energy = summary["data"], summary["seconds"], summary["energy"]
    head = yaml.safe_dump({"library_name": "transformers", "tags": ["llm_lightning", summary["objective"]]}, sort_keys=False)
    sizes = ", ".join(f"{split} {count:,} rows ({data['tokens'][split]:,} tokens)" for split, count in data["rows"].items())
    cost = "not measured" if energy.get("kwh") is None else f"{energy['kwh']:.5f} kWh, {energy['co2eq_kg'] * 1000:.2f} g CO2eq"
    use = USES.get(summary["objective"])
    parts = [
        f"---\n{head}---",
        f"# {summary['objective']} on {data['name']}",
        f"{summary['model']['name']}, {summary['model']['parameters']:,} parameters, trained by llm_lightning.",
        *([f"```python\n{use}\n```"] if use else []),
        f"**Data.** {data['name']}: {sizes}.",
        f"**Training.** {summary['steps']:,} optimizer steps, {summary['tokens_seen']:,} tokens, best at step {summary['best_step']}; "
        f"{seconds['total']:.0f} s; {cost}; seed {summary['seed']}.",
        "| metric | value |\n| --- | --- |\n" + "\n".join(f"| {name} | {value:.5g} |" for name, value in run.metrics.items()),
    ]
    (folder / "hf" / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
