"""Load the audit's own words and sentences, terms.yaml, and fill sentences with terms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from llm_lightning.audit.tables import read_table
from llm_lightning.errors import UserError

KEY = "audit.templates"
PLACE = "{term}"


@dataclass(frozen=True)
class Template:
    """A sentence with a place for a term, and the name of the class that is right whatever the term; None for no such class."""

    text: str
    label: str | None


@dataclass(frozen=True)
class Probe:
    """Sentences that differ by a term alone, for groups of people that are compared: each of T templates filled with K terms."""

    name: str
    """The dimension, such as religion."""
    groups: tuple[str, ...]
    texts: list[list[str]]
    """(T, K)"""
    group: np.ndarray
    """(T, K) the number of the group of each text."""
    labels: list[str | None]
    """(T,) the right class of each template."""


@cache
def load_terms() -> dict[str, Any]:
    """Return the content of terms.yaml."""
    terms: dict[str, Any] = yaml.safe_load(files("llm_lightning.audit").joinpath("terms.yaml").read_text(encoding="utf-8"))
    return terms


def list_groups() -> dict[str, dict[str, list[str]]]:
    """Return dimension -> group -> terms."""
    groups: dict[str, dict[str, list[str]]] = load_terms()["groups"]
    return groups


def list_templates(name: str | None) -> list[Template]:
    """Return the user's templates, or our own for None. Raises UserError for a text without the place of the term."""
    if name is None:
        return [Template(text, label) for label, texts in load_terms()["sentences"].items() for text in texts]
    rows = read_table(KEY, name, ("text", "label"), optional=("label",))
    for row in rows:
        if PLACE not in row["text"]:
            raise UserError(f"{row['where']}: column 'text' has no {PLACE}, in whose place the terms are put. Mend the row.")
    return [Template(row["text"], (row["label"] or "").strip() or None) for row in rows]


def build_probes(templates: list[Template]) -> list[Probe]:
    """Return the templates filled with the terms of each dimension."""
    return [_fill(name, groups, templates) for name, groups in list_groups().items()]


def _fill(name: str, groups: dict[str, list[str]], templates: list[Template]) -> Probe:
    terms = [(term, number) for number, members in enumerate(groups.values()) for term in members]
    texts = [[fill_term(template.text, term) for term, _ in terms] for template in templates]
    group = np.tile([number for _, number in terms], (len(templates), 1))
    return Probe(name, tuple(groups), texts, group, [template.label for template in templates])


def fill_term(text: str, term: str) -> str:
    """Return a text with the term in its place, with a capital letter at the beginning of the text."""
    filled = text.replace(PLACE, term)
    return filled[:1].upper() + filled[1:] if text.startswith(PLACE) else filled


def build_occupation_probes() -> list[Probe]:
    """Return sentences in which she or he has an occupation, in two groupings: by pronoun, and by whether the stereotype fits."""
    terms = load_terms()
    occupations = [(occupation, pronoun) for pronoun, names in terms["occupations"].items() for occupation in names]
    rows = [
        (sentence, label, occupation, stereotype)
        for label, sentences in terms["occupation_sentences"].items()
        for sentence in sentences
        for occupation, stereotype in occupations
    ]
    pronouns = tuple(terms["occupations"])
    texts = [[sentence.format(occupation=occupation, pronoun=p) for p in pronouns] for sentence, _, occupation, _ in rows]
    labels = [label for _, label, _, _ in rows]
    by_pronoun = np.tile(np.arange(len(pronouns)), (len(rows), 1))
    by_fit = np.array([[int(pronoun != stereotype) for pronoun in pronouns] for _, _, _, stereotype in rows])
    return [
        Probe("pronoun", pronouns, texts, by_pronoun, labels),
        Probe("occupation", ("with the stereotype", "against the stereotype"), texts, by_fit, labels),
    ]
