"""Add the notebooks to the site, as pages below the tutorials: their Markdown, their code, and what the code printed.

A notebook is JSON, so no converter is needed. Its links to `../docs/` are made links inside the site.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).parents[2] / "notebooks"
SECTION = "Tutorials"


def on_config(config: MkDocsConfig) -> None:
    """List the notebooks in the navigation. mkdocs calls this first."""
    section = next(entry[SECTION] for entry in config.nav or [] if SECTION in entry)
    section += [name_page(notebook) for notebook in list_notebooks()]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add a page for each notebook. mkdocs calls this before it reads any page."""
    for notebook in list_notebooks():
        content = json.loads(notebook.read_text(encoding="utf-8"))
        files.append(File.generated(config, name_page(notebook), content=convert(content)))


def list_notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def name_page(notebook: Path) -> str:
    return f"notebooks/{notebook.stem}.md"


def convert(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown."""
    return "\n\n".join(part for cell in notebook["cells"] for part in convert_cell(cell) if part.strip()) + "\n"


def convert_cell(cell: dict[str, Any]) -> list[str]:
    """Return the parts of a cell as Markdown: its text, or its code and the text that it printed."""
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return [source.replace("](../docs/", "](../")]
    printed = "".join(read_text(output) for output in cell["outputs"]).rstrip()
    return [f"```python\n{source}\n```" if source else "", f"```text\n{printed}\n```" if printed else ""]


def read_text(output: dict[str, Any]) -> str:
    """Return the plain text of an output: what was printed, or a result's representation."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", []))
