"""Write a CycloneDX 1.6 bill of materials of a trained model (ML-BOM): the model, its data sets, and the libraries that trained it.

The structure is that of the specification (Ecma-424, 1st edition), https://cyclonedx.org/docs/1.6/json/.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any
from urllib.parse import quote

from llm_lightning.reporting.documents.facts import Facts
from llm_lightning.reporting.intervals import intervals
from llm_lightning.reporting.robustness import describe_failures, name_slice, read_record

NAME = "bom.cdx.json"
NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562's for addresses
SELF_SUPERVISED = ("causal_lm", "masked_lm")
"""Objectives that learn from text alone; all others learn from labels or answers."""

Bom = dict[str, Any]


def build_bom(facts: Facts) -> tuple[Bom, list[str]]:
    """Return (the bill of materials, the fields that the run does not answer)."""
    model, datasets, libraries = _describe_model(facts), _describe_data(facts), _list_libraries(facts)
    open_fields = [
        "model licence",
        "model version",
        "supplier",
        *([] if facts.weights else ["hashes of the weights"]),
        *([f"licence and hashes of {facts.origin}"] if facts.origin else []),
        *(f"licence of {dataset['name']}" for dataset in datasets),
        *(f"hash of {dataset['name']}" for dataset in datasets if not {"hashes", "components"} & dataset.keys()),
        *(f"licence of {library['name']} {library['version']}" for library in libraries if "licenses" not in library),
        *([] if facts.summary["energy"].get("kwh") is None else ["provider and source of the energy (its amount is a property)"]),
    ]
    model["properties"] += [_property("open", name) for name in open_fields]
    origin = [] if facts.origin is None else [_describe_origin(facts.origin)]
    parts = [*origin, *datasets, *libraries]
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, repr((facts.name, facts.weights, facts.summary['data'])))}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [_library("llm_lightning", facts.summary["versions"].get("llm_lightning"), "application")]},
        },
        "components": [model, *parts],
        "dependencies": [{"ref": "model", "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    return bom, open_fields


def _describe_model(facts: Facts) -> Bom:
    summary = facts.summary
    config = facts.architecture
    component: Bom = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": facts.name,
        "description": f"{facts.objective} on {summary['data']['name']}, trained by llm_lightning",
        "modelCard": {
            "bom-ref": "model-card",
            "modelParameters": {
                "approach": {"type": "self-supervised" if facts.objective in SELF_SUPERVISED else "supervised"},
                "task": facts.task,
                **({"architectureFamily": config["model_type"]} if config.get("model_type") else {}),
                **({"modelArchitecture": config["architectures"][0]} if config.get("architectures") else {}),
                "datasets": [{"ref": reference} for reference in _name_datasets(facts)],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": facts.output}],
            },
            "quantitativeAnalysis": {"performanceMetrics": _list_metrics(facts)},
            "considerations": {"technicalLimitations": _list_limits(facts)},
        },
        "properties": [_property(name, value) for name, value in _list_figures(facts).items() if value is not None],
    }
    if len(facts.weights) == 1:
        component["hashes"] = [_hash(next(iter(facts.weights.values())))]
    elif facts.weights:
        component["components"] = [_file(f"weights/{name}", name, digest) for name, digest in facts.weights.items()]
    return component


def _list_figures(facts: Facts) -> dict[str, Any]:
    """Return the figures of the run that the specification has no field for."""
    summary = facts.summary
    return {
        "parameters": summary["model"]["parameters"] or None,
        "optimizer_steps": summary["steps"],
        "tokens_seen": summary["tokens_seen"],
        "training_flops": facts.training_flops,
        "seconds": summary["seconds"].get("total"),
        "kwh": summary["energy"].get("kwh"),
        "co2eq_kg": summary["energy"].get("co2eq_kg"),
        "seed": summary["seed"],
        "commit": summary["git"],
        "device": summary["machine"].get("device"),
    }


def _list_metrics(facts: Facts) -> list[Bom]:
    """Return the metrics with their intervals, and the scores of slices."""
    bounds = intervals(facts.run)
    metrics = []
    for name, value in facts.run.metrics.items():
        split, _, metric = name.partition("/")
        entry: Bom = {"type": metric, "value": f"{value:.6g}", "slice": split}
        if name in bounds:
            low, high = bounds[name]
            entry["confidenceInterval"] = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
        metrics.append(entry)
    record = read_record(facts.run, "slices") or {"parts": [], "score": "", "split": ""}
    metrics += [
        {
            "type": record["score"],
            "value": f"{part['score']:.6g}",
            "slice": f"{record['split']}, {name_slice(part)}",
            "confidenceInterval": {"lowerBound": f"{part['low']:.6g}", "upperBound": f"{part['high']:.6g}"},
        }
        for part in record["parts"]
        if part["score"] is not None
    ]
    return metrics


def _list_limits(facts: Facts) -> list[str]:
    return [f"The metrics are of {facts.summary['data']['name']} alone.", describe_failures(facts.run)]


def _name_datasets(facts: Facts) -> list[str]:
    return [dataset["bom-ref"] for dataset in _describe_data(facts)]


def _describe_data(facts: Facts) -> list[Bom]:
    """Return a component for each split, with the SHA-256 of its file; a split of several files has the files inside."""
    data = facts.summary["data"]
    fingerprints = data.get("fingerprints") or {}
    components = []
    for split in data["rows"]:
        files = [file for file in facts.files if file.split == split]
        name = f"{data['name']}, {split}"
        component: Bom = {"type": "data", "bom-ref": f"data/{split}", "name": name}
        component["data"] = [{"type": "dataset", "name": name, "description": f"{data['rows'][split]:,} rows"}]
        figures = {"rows": data["rows"][split], "tokens": data["tokens"].get(split), "fingerprint_xxh3": fingerprints.get(split)}
        component["properties"] = [_property(key, value) for key, value in figures.items() if value]
        if len(files) == 1 and files[0].sha256:
            component["hashes"] = [_hash(files[0].sha256)]
        elif files and all(file.sha256 for file in files):
            component["components"] = [
                _file(f"data/{split}/{number}", file.name, str(file.sha256)) for number, file in enumerate(files, 1)
            ]
        if facts.hub_data is not None:
            component["externalReferences"] = [{"type": "distribution", "url": f"https://huggingface.co/datasets/{facts.hub_data}"}]
        components.append(component)
    return components


def _describe_origin(origin: str) -> Bom:
    description = "the model that training started from"
    return {"type": "machine-learning-model", "bom-ref": "pretrained", "name": origin, "description": description}


def _list_libraries(facts: Facts) -> list[Bom]:
    return [_library(name, version, "library") for name, version in facts.summary["versions"].items() if name != "python"]


def _library(name: str, version: str | None, kind: str) -> Bom:
    """Return the component of a package of Python; its licence is known if the same version is installed here and names it."""
    component: Bom = {"type": kind, "bom-ref": f"{kind}/{name}", "name": name}
    if version is None:
        return component
    component |= {"version": version, "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version, safe='')}"}
    try:
        installed: Any = metadata(name)
    except PackageNotFoundError:
        return component
    if installed["Version"] != version:
        return component
    if installed.get("License-Expression"):
        component["licenses"] = [{"expression": installed["License-Expression"]}]
    elif (text := (installed.get("License") or "").strip()) and "\n" not in text and len(text) < 80:
        component["licenses"] = [{"license": {"name": text}}]
    return component


def _file(reference: str, name: str, digest: str) -> Bom:
    return {"type": "file", "bom-ref": reference, "name": name, "hashes": [_hash(digest)]}


def _hash(digest: str) -> Bom:
    return {"alg": "SHA-256", "content": digest}


def _property(name: str, value: Any) -> Bom:
    return {"name": f"llm_lightning:{name}", "value": str(value)}
