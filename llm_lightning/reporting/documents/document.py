"""A document of sections and fields: what the run recorded, and what only its provider can say, which is listed as open."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """A field of a document: its value and where that comes from, or None and what has to be filled in."""

    title: str
    value: str | None
    source: str
    """The file of the run that the value comes from; of an open field what it asks for."""


@dataclass(frozen=True)
class Section:
    title: str
    fields: list[Field]
    note: str = ""


@dataclass(frozen=True)
class Document:
    """A document for people, written as Markdown."""

    name: str
    """The name of its file, without its ending."""
    title: str
    legal_source: str
    sections: list[Section]

    def open_fields(self) -> list[str]:
        """Return the fields that the run does not answer, by section."""
        return [f"{section.title}: {entry.title}" for section in self.sections for entry in section.fields if entry.value is None]

    def render(self) -> str:
        """Return the document as Markdown. Open fields stand at their places, and in a list at the end."""
        lines = [f"# {self.title}", "", f"Legal source: {self.legal_source}", ""]
        lines += [
            "Written by llm_lightning from the record of a training run. A value has its file behind it; a field that the record does not "
            "answer is marked **open** and left to the provider. This is no legal advice.",
            "",
        ]
        for section in self.sections:
            lines += [f"## {section.title}", ""]
            lines += [section.note, ""] if section.note else []
            for entry in section.fields:
                answer = f"**open** ({entry.source})" if entry.value is None else f"{entry.value} ({entry.source})"
                lines += [f"- **{entry.title}**: {answer}"]
            lines.append("")
        lines += ["## Open fields", "", *(f"- {name}" for name in self.open_fields())]
        return "\n".join(lines).rstrip() + "\n"


def answer(title: str, value: object, source: str, asks: str) -> Field:
    """Return a field with a value, or an open one that asks for something if there is no value (None, or an empty text)."""
    return Field(title, None, asks) if value is None or value == "" else Field(title, str(value), source)


def ask(title: str, asks: str) -> Field:
    """Return an open field."""
    return Field(title, None, asks)
