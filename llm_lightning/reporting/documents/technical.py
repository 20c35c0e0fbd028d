"""Fill the technical documentation of a general-purpose AI model, by the fields of Annex XI of Regulation (EU) 2024/1689.

Headings follow the annex's numbering, in words of our own.
"""

from __future__ import annotations

from typing import Any

from llm_lightning.reporting.documents.document import Document, Section, answer, ask
from llm_lightning.reporting.documents.facts import Facts
from llm_lightning.reporting.intervals import intervals
from llm_lightning.reporting.robustness import describe_failures, read_record

LEGAL_SOURCE = (
    "Article 53(1)(a) and Annex XI of Regulation (EU) 2024/1689 (AI Act). Field names are paraphrased; the annex's own text is "
    "authoritative. Section 2 of the annex holds for models with systemic risk (Article 51) alone."
)
SYSTEMIC = 1e25
"""Operations of training from which a model is presumed to have systemic risk (Article 51(2))."""


def fill_technical_documentation(facts: Facts) -> Document:
    """Return the documentation as far as the run's record goes."""
    sections = [_general(facts), _process(facts), _data(facts), _resources(facts), _systemic(facts)]
    return Document("technical-documentation", "Technical documentation (Annex XI)", LEGAL_SOURCE, sections)


def _general(facts: Facts) -> Section:
    architecture = facts.shape
    size = f"{facts.summary['model']['parameters']:,} parameters" if facts.summary["model"]["parameters"] else None
    limit = facts.architecture.get("max_position_embeddings") or facts.architecture.get("n_positions")
    takes = f"text, up to {limit:,} tokens" if isinstance(limit, int) else "text"
    return Section(
        "1.1 General description",
        [
            answer("(a) Task", f"{facts.task} ({facts.objective})", "summary.json", "what the model is meant to do"),
            ask("(a) AI systems that it can be part of", "type and nature of the systems"),
            ask("(b) Acceptable use", "the policies that apply"),
            ask("(c) Release", "the date, and how the model is distributed"),
            answer(
                "(d) Architecture",
                ", ".join(filter(None, [architecture, size])),
                "hf/config.json, summary.json",
                "the architecture",
            ),
            answer("(e) Inputs and outputs", f"{takes}; {facts.output}", "hf/config.json, summary.json", "modalities and formats"),
            ask("(f) Licence", "the licence of the model" + (f", which that of {facts.origin} may bind" if facts.origin else "")),
        ],
    )


def _process(facts: Facts) -> Section:
    config, summary = facts.run.config, facts.summary
    monitor = summary.get("monitor") or {}
    goal = (
        f"{monitor['name']}, which is {'maximised' if monitor['maximize'] else 'minimised'} over the validations"
        if monitor
        else None
    )
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return Section(
        "1.2 Development: integration and design",
        [
            answer(
                "(a) Means of integration",
                f"a Hugging Face folder (hf/), loaded by transformers; {versions}",
                "summary.json",
                "tools",
            ),
            answer("(a) How to use it", "hf/README.md of the run", "the model card", "instructions of use"),
            answer("(b) Training", _describe_training(config, summary, facts.origin), "config.yaml, summary.json", "the method"),
            ask("(b) Choices and assumptions", "why the model and its training were designed so"),
            answer("(b) What is optimised", goal, "summary.json", "what the model is optimised for"),
        ],
    )


def _describe_training(config: dict[str, Any], summary: dict[str, Any], origin: str | None) -> str:
    optimizer, trainer = config.get("optimizer") or {}, config.get("trainer") or {}
    parts = [
        f"{summary['task']} with the objective {summary['objective']}",
        "from scratch" if origin is None else f"from {origin}",
        f"{summary['steps']:,} optimizer steps over {summary['tokens_seen']:,} tokens",
    ]
    if optimizer.get("_target_"):
        parts.append(f"{str(optimizer['_target_']).rpartition('.')[2]} at a rate of {optimizer.get('lr')}")
    if trainer.get("precision"):
        parts.append(f"precision {(summary['machine'] or {}).get('precision', trainer['precision'])}")
    return ", ".join([*parts, f"seed {summary['seed']}"])


def _data(facts: Facts) -> Section:
    rows = "; ".join(
        f"{split} {count:,} rows, {facts.summary['data']['tokens'].get(split, 0):,} tokens"
        for split, count in facts.summary["data"]["rows"].items()
    )
    cards = facts.run.data()
    counted = [
        f"{split}: of {card['compared']:,} sequences, {card['duplicates']:,} repeat one before them"
        + (f", {card['in_train']:,} occur in train too" if "in_train" in card else "")
        for split, card in cards.items()
        if card.get("compared")
    ]
    left_out = facts.rows_left_out
    cleaned = None if left_out is None else f"{left_out:,} training rows were left out (data_cleaned.csv)"
    hub = f"{facts.hub_data} of the Hugging Face hub" if facts.hub_data else None
    measured = read_record(facts.run, "slices") or read_record(facts.run, "invariance")
    return Section(
        "1.2 Development: data",
        [
            answer(
                "(c) Kind and number",
                f"{facts.summary['data']['name']}: {rows}" if rows else None,
                "summary.json",
                "type and number",
            ),
            answer("(c) Provenance", hub, "config.yaml", "where the data comes from, and how it was obtained and selected"),
            answer("(c) Curation", cleaned, "data_cleaned.csv", "cleaning and filtering before and in this run"),
            answer("(c) Unsuitable data", "; ".join(counted), "data.json", "how unsuitable sources were found"),
            answer(
                "(c) Biases",
                describe_failures(facts.run) if measured else None,
                "summary.json, evaluate.json",
                "methods to detect identifiable biases, and their results (evaluate.slices, evaluate.invariance)",
            ),
        ],
    )


def _resources(facts: Facts) -> Section:
    summary = facts.summary
    flops, seconds, energy, machine = facts.training_flops, summary["seconds"], summary["energy"], summary["machine"]
    operations = f"{flops:.3g} floating-point operations in matrix products (Chowdhery et al. 2022, appendix B)" if flops else None
    hardware = f"{machine['devices']} × {machine['device']}, {machine.get('cpu', '')}" if machine.get("device") else None
    used = None
    if energy.get("kwh") is not None:
        how = ", ".join(f"{part} {source}" for part, source in (energy.get("sources") or {}).items()) or "codecarbon"
        mix = f"for the mix of {energy.get('country', '?')}"
        used = f"{energy['kwh']:.5g} kWh, {1000 * energy['co2eq_kg']:.4g} g CO2eq {mix}; {how}"
    before = f" of this run alone; that of {facts.origin} is not in it" if facts.origin else ""
    return Section(
        "1.2 Development: resources",
        [
            answer("(d) Operations", operations and operations + before, "summary.json", "the operations of training"),
            answer(
                "(d) Time", f"{seconds['total']:,.0f} s" if seconds.get("total") else None, "summary.json", "the time of training"
            ),
            answer("(d) Hardware", hardware, "summary.json", "the hardware"),
            answer("(e) Energy", used and used + before, "summary.json", "the energy, or an estimate"),
        ],
    )


def _systemic(facts: Facts) -> Section:
    bounds = intervals(facts.run)
    results = [
        f"{name} {value:.4g}" + (f" [{bounds[name][0]:.4g}, {bounds[name][1]:.4g}]" if name in bounds else "")
        for name, value in facts.run.metrics.items()
        if name.startswith("test/") or not any(key.startswith("test/") for key in facts.run.metrics)
    ]
    flops = facts.training_flops
    compared = (
        "" if not flops else f" This run took {flops:.3g}" + (", without the model that it starts from." if facts.origin else ".")
    )
    return Section(
        "2. Models with systemic risk",
        [
            answer("1. Evaluation", ", ".join(results), "summary.json", "strategies, criteria and results"),
            ask("2. Adversarial testing", "internal and external tests, and adaptations of the model; only with systemic risk"),
            ask("3. System architecture", "how components build on each other; only with systemic risk"),
        ],
        f"Required of models with systemic risk alone, which is presumed from {SYSTEMIC:.0e} operations of training on.{compared}",
    )
