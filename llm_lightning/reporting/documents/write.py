"""Write the documents about a trained model from the record of its run, and tell which fields are open."""

from __future__ import annotations

from pathlib import Path

from llm_lightning.atomic_files import write_atomically
from llm_lightning.config.schema import DataConfig
from llm_lightning.reporting.documents.bom import NAME, build_bom
from llm_lightning.reporting.documents.facts import read_facts
from llm_lightning.reporting.documents.technical import fill_technical_documentation
from llm_lightning.reporting.documents.training_content import fill_training_content
from llm_lightning.runs.folder import write_json


def write_documents(run: Path, data: DataConfig, out: Path) -> list[str]:
    """Write the summary of training content, the technical documentation and the bill of materials; return the open fields of each.

    `data` names the files that are hashed. Raises UserError if the run is not finished.
    """
    facts = read_facts(run, data)
    out.mkdir(parents=True, exist_ok=True)
    open_fields = []
    for document in (fill_training_content(facts), fill_technical_documentation(facts)):
        file = out / f"{document.name}.md"
        with write_atomically(file) as partial:
            partial.write_text(document.render(), encoding="utf-8")
        open_fields += [f"{file.name}: {name}" for name in document.open_fields()]
    bom, missing = build_bom(facts)
    write_json(out / NAME, bom)
    return open_fields + [f"{NAME}: {name}" for name in missing]
