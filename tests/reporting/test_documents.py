"""Documents about a model hold what its run recorded, list what it did not as open, and invent nothing."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llm_lightning.config.compose import load_config
from llm_lightning.errors import UserError
from llm_lightning.reporting.documents.facts import hide_folders
from llm_lightning.reporting.runs import load

from ..conftest import QUIET, TINY_BERT

FILES = ["bom.cdx.json", "technical-documentation.md", "training-content-summary.md"]
COMPONENT_KEYS = {
    *("type", "bom-ref", "name", "version", "description", "purl", "hashes", "licenses", "components", "data", "modelCard"),
    *("properties", "externalReferences"),
}
"""Those of the specification that are used here: it allows no others."""


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory, reviews: Path, cache: Path) -> Path:
    """A run whose documents are written."""
    from llm_lightning.run import run

    place = tmp_path_factory.mktemp("documented")
    train = place / "reviews.csv"
    train.write_bytes(reviews.read_bytes())
    data = ["data=files", f"data.train={train}", "data.columns.text=body", "data.columns.label=stars", "evaluate.slices=[length]"]
    data += ["data.validation_fraction=0.5"]
    settings = [*QUIET, f"cache_dir={cache}", "trainer.max_steps=5", "trainer.max_epochs=null", *TINY_BERT]
    run(load_config(["task=finetune", "objective=classification", *data, *settings, f"run_dir={place}/run"]))
    run(load_config(["task=export", f"run={place}/run", "export.format=documents"]))
    return place / "run"


def export(run_folder: Path, out: Path) -> dict[str, Any]:
    from llm_lightning.run import run

    return run(load_config(["task=export", f"run={run_folder}", "export.format=documents", f"out={out}"]))


def walk(component: dict[str, Any]) -> list[dict[str, Any]]:
    return [component, *(inner for part in component.get("components", []) for inner in walk(part))]


def test_the_bill_of_materials_has_the_structure_of_cyclonedx(documented: Path) -> None:
    """The required fields and the types of CycloneDX 1.6, as far as they are used."""
    bom = json.loads((documented / "export-documents" / "bom.cdx.json").read_text())
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bom["serialNumber"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", bom["metadata"]["timestamp"])
    components = [part for component in bom["components"] for part in walk(component)]
    references = [part["bom-ref"] for part in components]
    assert len(references) == len(set(references))
    for part in components:
        assert part.keys() <= COMPONENT_KEYS
        assert {"type", "name"} <= part.keys()
        assert part["type"] in ("machine-learning-model", "data", "library", "file")
        assert all(item["alg"] == "SHA-256" and re.fullmatch(r"[0-9a-f]{64}", item["content"]) for item in part.get("hashes", []))
        assert all(len(licence) == 1 and licence.keys() <= {"expression", "license"} for licence in part.get("licenses", []))
        assert all(item.keys() == {"name", "value"} and isinstance(item["value"], str) for item in part.get("properties", []))
        assert all(item["type"] == "dataset" for item in part.get("data", []))
    (model,) = (part for part in components if part["type"] == "machine-learning-model")
    card = model["modelCard"]
    assert card.keys() <= {"bom-ref", "modelParameters", "quantitativeAnalysis", "considerations", "properties"}
    parameters = card["modelParameters"]
    assert parameters["approach"] == {"type": "supervised"}
    assert {dataset["ref"] for dataset in parameters["datasets"]} == {"data/train", "data/validation"} <= set(references)
    for metric in card["quantitativeAnalysis"]["performanceMetrics"]:
        assert metric.keys() <= {"type", "value", "slice", "confidenceInterval"}
        assert isinstance(metric["value"], str)
        assert all(isinstance(bound, str) for bound in metric.get("confidenceInterval", {}).values())
    for dependency in bom["dependencies"]:
        assert {dependency["ref"], *dependency["dependsOn"]} <= set(references)


def test_the_bill_of_materials_tells_what_the_run_recorded(documented: Path) -> None:
    bom = json.loads((documented / "export-documents" / "bom.cdx.json").read_text())
    run, parts = load(documented), {part["bom-ref"]: part for part in bom["components"]}
    assert parts["library/torch"]["version"] == run.summary["versions"]["torch"]
    assert parts["library/torch"]["purl"] == f"pkg:pypi/torch@{run.summary['versions']['torch'].replace('+', '%2B')}"
    file = documented.parent / "reviews.csv"
    assert parts["data/train"]["hashes"][0]["content"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "hashes" not in parts["data/validation"]  # cut from train
    weights = documented / "hf" / "model.safetensors"
    assert parts["model"]["hashes"][0]["content"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    properties = {item["name"].partition(":")[2]: item["value"] for item in parts["model"]["properties"]}
    assert int(properties["parameters"]) == sum(weight.numel() for weight in load_file(weights).values())
    metrics = {
        (m["slice"], m["type"]): float(m["value"])
        for m in parts["model"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    }
    for name, value in run.metrics.items():
        assert metrics[tuple(name.split("/"))] == pytest.approx(value, rel=1e-5)
    assert any("tokens" in split for split, _ in metrics)  # slices by length


def test_every_document_tells_its_law_and_its_open_fields(documented: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = documented / "export-documents"
    assert sorted(file.name for file in folder.iterdir()) == FILES
    result = export(documented, documented.parent / "elsewhere")
    told = capsys.readouterr().err
    for name in FILES[1:]:
        text = (folder / name).read_text()
        assert (documented.parent / "elsewhere" / name).read_text() == text
        assert "Regulation (EU) 2024/1689" in text.partition("##")[0]
        marked = re.findall(r"^- \*\*(.+)\*\*: \*\*open\*\*", text, re.MULTILINE)
        listed = text.partition("## Open fields")[2].strip().splitlines()
        assert len(listed) == len(marked) > 5
        assert all(line.endswith(f": {title}") for line, title in zip(listed, marked, strict=True))
        for line in listed:
            assert f"  {name}: {line.removeprefix('- ')}" in told
    assert len(result["open"]) == told.count("\n  ")
    content = (folder / "training-content-summary.md").read_text()
    summary = load(documented).summary
    assert f"less than 1 billion tokens ({summary['data']['tokens']['train']:,} tokens" in content
    assert "**1.1 Provider: name and contact**: **open**" in content
    assert str(documented.parent) not in content  # folders are no one's business
    technical = (folder / "technical-documentation.md").read_text()
    assert f"{summary['model']['parameters']:,} parameters" in technical
    assert "**(e) Energy**: **open**" in technical  # it was not measured
    assert f"5 optimizer steps over {summary['tokens_seen']:,} tokens" in technical


def test_a_file_that_changed_after_the_run_has_no_hash(documented: Path, tmp_path: Path) -> None:
    file = documented.parent / "reviews.csv"
    content = file.read_bytes()
    file.write_bytes(content + b"x,good\n")
    try:
        result = export(documented, tmp_path)
    finally:
        file.write_bytes(content)
    parts = {part["bom-ref"]: part for part in json.loads((tmp_path / "bom.cdx.json").read_text())["components"]}
    assert "hashes" not in parts["data/train"]
    assert "bom.cdx.json: hash of reviews, train" in result["open"]


def test_an_export_alone_has_no_record(documented: Path) -> None:
    with pytest.raises(UserError, match=r"export.format=documents: run=.*hf is no finished run"):
        load_config(["task=export", f"run={documented}/hf", "export.format=documents", "out=elsewhere"])


def test_folders_of_models_are_not_told(tmp_path: Path) -> None:
    assert hide_folders("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    for name in (str(tmp_path), "runs/2026-01-01/first", "~/models/first", "/gone/first"):
        assert hide_folders(name) == f"{Path(name).name} (a local folder)"
