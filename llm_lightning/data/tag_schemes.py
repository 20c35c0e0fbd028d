"""Recognise tag schemes, which define how the tags of words mark spans, from the tags themselves.

A tag joins a letter and a type: `B-PER`, `PER-B`, `B_PER`, `B`. The letters differ by scheme, and each has one of five roles: a span's
beginning (B), inside (I), end (E), a span of one word (S), and outside (O). Spans are read as CoNLL's scorer and seqeval's default mode
read them: a tag that cannot continue the span before it begins a new one, so that every tag of a type counts.

seqeval 1.2.2 finds the same spans (tests/data/test_tag_schemes.py). We do not use it: it takes three times as long, reads neither
B_PER nor bare types, brings scikit-learn along, and has had no release since 2020. torchmetrics 1.9 scores no spans.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_lightning.errors import UserError, join_names

Span = tuple[str, int, int]
"""A span: its type, its first word, and its last word + 1."""
Parsed = tuple[str, str]
"""The letter and the type of a tag."""

ROLES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S", "O": "O"}
"""The role of each letter, in all schemes."""
LETTERS = {
    "iob1": "BI",
    "iob2": "BI",
    "ioe1": "IE",
    "ioe2": "IE",
    "iobes": "BIES",
    "bilou": "BILU",
    "bmes": "BMES",
    "bmewo": "BMEW",
    "io": "I",
}
"""The letters of each scheme, without O."""
ALIASES = {"bio": "iob2", "bioes": "iobes", "brackets": "iob2"}  # brackets.py converts brackets to IOB2
TITLES = {"iobes": "IOBES (BIOES)", "iob2": "IOB2 (BIO)"}

OUTSIDE = ("O", "o", "0", "OUT", "OTHER", "NONE", "_", "-")
"""Names of the tag outside of spans, the most likely first."""
PARTS_OF_SPEECH = frozenset(
    (
        "ADJ",
        "ADP",
        "ADV",
        "AUX",
        "CCONJ",
        "DET",
        "NOUN",
        "PRON",
        "PROPN",
        "PUNCT",
        "SCONJ",
        "VERB",
        "NN",
        "VB",
        "DT",
        "IN",
        "JJ",
        "PRP",
    )
)
"""Tags of Universal Dependencies and of the Penn Treebank that name no entity type."""

_PREFIX = re.compile(r"([BIESMLUW])([-_.:/|~+#=@])(.+)", re.IGNORECASE)
_SUFFIX = re.compile(r"(.+)([-_.:/|~+#=@])([BIESMLUW])", re.IGNORECASE)
_BARE = re.compile(r"[BIESMLUW]", re.IGNORECASE)
_CONTEXT = re.compile(r"(?:BB|MM|EE|WW)[-_]O(?:[-_].+)?")
"""BMEWO+ distinguishes words outside of spans by their neighbours: BB_O_PER, MM_O, EE_O_LOC, WW_O_BOS."""


@dataclass(frozen=True)
class TagScheme:
    """The notation of spans in tags."""

    name: str
    """A key of LETTERS."""
    separator: str = "-"
    """The character between letter and type; empty without one, or if tags are types alone (io)."""
    is_suffix: bool = False
    """Whether the letter follows the type: PER-B."""
    outside: str = "O"
    """The tag of words outside of spans."""

    @property
    def title(self) -> str:
        name = TITLES.get(self.name, self.name.upper())
        form = f"PER{self.separator}B" if self.is_suffix else f"B{self.separator}PER"
        is_usual = self.name == "io" or (self.separator == "-" and not self.is_suffix)
        return name if is_usual or not self.separator else f"{name}, written {form}"

    def parse(self, tag: str) -> Parsed | None:
        """Return the letter (upper case) and the type of a tag; None for a tag that neither has the scheme's form nor is outside."""
        if tag == self.outside or _CONTEXT.fullmatch(tag):
            return "O", ""
        if self.name == "io":
            match = _PREFIX.fullmatch(tag) if self.separator else None
            return ("I", match[3]) if match else None if self.separator else ("I", tag)
        if not self.separator:
            letter, kind = tag[:1].upper(), tag[1:]
            return (letter, kind) if letter in LETTERS[self.name] else None
        if self.is_suffix:
            kind, _, letter = tag.rpartition(self.separator)
        else:
            letter, _, kind = tag.partition(self.separator)
        return (letter.upper(), kind) if kind and letter.upper() in LETTERS[self.name] else None

    def roles(self, tags: Iterable[str]) -> list[Parsed]:
        """Return (role, type) of each tag; tags of another form are outside."""
        parsed = (self.parse(tag) or ("O", "") for tag in tags)
        return [(ROLES[letter], kind) for letter, kind in parsed]

    def spans(self, tags: Sequence[str]) -> set[Span]:
        """Return the spans of a sentence's tags."""
        spans: set[Span] = set()
        open_type, start, before = "", 0, "O"
        for i, (role, kind) in enumerate([*self.roles(tags), ("O", "")]):
            is_open = before != "O"
            if is_open and (role not in "IE" or kind != open_type or before in "ES"):
                spans.add((open_type, start, i))
                is_open = False
            if not is_open:
                open_type, start = kind, i
            before = role
        return spans

    def complete(self, tags: set[str]) -> set[str]:
        """Return the tags with all other tags of the scheme for their types: train may hold only spans of one word."""
        if self.name == "io":
            return tags
        parsed = [pair for tag in tags if (pair := self.parse(tag)) and pair[0] != "O"]
        is_lower = bool(parsed) and all(self._join(letter.lower(), kind) in tags for letter, kind in parsed)
        letters = LETTERS[self.name].lower() if is_lower else LETTERS[self.name]
        return tags | {self._join(letter, kind) for _, kind in parsed for letter in letters}

    def _join(self, letter: str, kind: str) -> str:
        return f"{kind}{self.separator}{letter}" if self.is_suffix else f"{letter}{self.separator}{kind}"

    def types(self, tags: Iterable[str]) -> list[str]:
        return sorted({kind for role, kind in self.roles(tags) if role != "O"})


def recognize(tags: Collection[str], setting: str = "auto") -> TagScheme | None:
    """Return the scheme of a set of tags; None for tags that mark no spans, such as parts of speech.

    `setting` is data.tags. Under `auto` tags have a scheme if
    - all but the one outside (O, or a tag that alone has no letter) are a letter, a sign and a type, or a type, a sign and a letter, the
      sign the same for all; beside an O some tags, fewer than half, may be of another form, and count as outside;
    - all but O are bare letters of one scheme (B, I or B, M, E, S), or letters directly before a type, each type with both B and I;
    - O is among them and the others are types (scheme io). Parts of speech are recognised by a missing O, by their common names, or as
      single characters.

    IOB1 and IOB2, IOE1 and IOE2 have the same tags: `refine` chooses between them. Raises UserError if `setting` does not fit.
    """
    name = ALIASES.get(setting, setting)
    if name == "none":
        return None
    tags = [tag for tag in tags if tag]
    if name == "auto":
        return _with_separator(tags) or _without_separator(tags) or _of_types(tags)
    if name == "io":
        form = _with_separator(tags)
        is_prefixed = form is not None and not form.is_suffix and {letter for letter, _ in map(form.parse, tags)} <= {"I", "O"}  # type: ignore[misc]
        return replace(form, name="io") if form and is_prefixed else TagScheme("io", "", outside=_name_outside(tags))
    scheme = _with_separator(tags, name) or _without_separator(tags, name)
    if scheme is None:
        raise UserError(
            f"data.tags={setting}: the tags ({join_names(sorted(tags), 8)}) are not of this scheme, which has "
            f"{join_names(LETTERS[name])} and O; leave data.tags out, and it is recognised."
        )
    return scheme


def _name_outside(tags: Collection[str]) -> str:
    return next((tag for tag in OUTSIDE if tag in tags), "O")


def _with_separator(tags: list[str], name: str = "auto") -> TagScheme | None:
    """Return the scheme of tags that join letter and type by a sign."""
    for is_suffix, form in ((False, _PREFIX), (True, _SUFFIX)):
        matches = {tag: match for tag in tags if (match := form.fullmatch(tag)) and not _CONTEXT.fullmatch(tag)}
        others = [tag for tag in tags if tag not in matches and not _CONTEXT.fullmatch(tag)]
        outside = "O" if "O" in others else others[0] if len(others) == 1 else _name_outside(others)
        has_outside = outside in (set(others) & set(OUTSIDE)) or any(map(_CONTEXT.fullmatch, tags))
        signs = Counter(match[2] for match in matches.values())
        letters = {match[3 if is_suffix else 1].upper() for match in matches.values()}
        strange = len(others) - (outside in others)
        if not matches or len(signs) > 1 or strange >= len(matches) or (strange and not has_outside):
            continue
        if not has_outside and (not letters & {"B", "I"} or (others and len(matches) < 2)):
            continue
        if (scheme_name := _scheme_of(letters, name)) is not None:
            return TagScheme(scheme_name, next(iter(signs)), is_suffix, outside)
    return None


def _without_separator(tags: list[str], name: str = "auto") -> TagScheme | None:
    """Return the scheme of bare letters, or of letters directly before a type."""
    outside = _name_outside(tags)
    marked = [tag for tag in tags if tag != outside and not _CONTEXT.fullmatch(tag)]
    letters = {tag[0].upper() for tag in marked}
    if marked and all(map(_BARE.fullmatch, marked)) and "B" in letters:
        scheme_name = _scheme_of(letters, name)
        return None if scheme_name is None else TagScheme(scheme_name, "", outside=outside)
    kinds = {letter: {tag[1:] for tag in marked if tag[0] == letter} for letter in "BI"}
    is_joined = len(marked) == len(kinds["B"]) + len(kinds["I"]) and kinds["I"] == kinds["B"] and all(kinds["B"])
    if is_joined and kinds["B"] and outside in tags and name in ("auto", "iob1", "iob2"):
        return TagScheme("iob2" if name == "auto" else name, "", outside=outside)
    return None


def _of_types(tags: list[str]) -> TagScheme | None:
    """Return scheme io if the tags are types and an O; else None."""
    outside = next((tag for tag in ("O", "o") if tag in tags), None)
    types = [tag for tag in tags if tag != outside]
    if outside is None or not types or all(len(tag) == 1 for tag in types) or PARTS_OF_SPEECH & {tag.upper() for tag in types}:
        return None
    if any(form.fullmatch(tag) for form in (_PREFIX, _SUFFIX) for tag in types):  # of a scheme, but mixed or misspelt
        return None
    return TagScheme("io", "", outside=outside)


def _scheme_of(letters: set[str], name: str) -> str | None:
    """Return the scheme that has the letters: `name`, or under auto the first that fits; None if none fits."""
    if name != "auto":
        return name if letters <= set(LETTERS[name]) else None
    order = ("iob2", "ioe2", "iobes", "bilou", "bmes", "bmewo")
    return next((scheme for scheme in order if letters <= set(LETTERS[scheme])), None)


# ---- neighbours ----

ROLE_ORDER = "OBIES"


@dataclass(frozen=True)
class Transitions:
    """How often a role follows another one: `counts[before, after, same]`; `same` is 1 if both have one type.

    A sentence's first word follows an O, and an O follows its last.
    """

    counts: np.ndarray
    """(5, 5, 2) int64, roles in ROLE_ORDER"""

    def count(self, before: str, after: str, same: tuple[int, ...] = (0, 1)) -> int:
        return sum(int(self.counts[ROLE_ORDER.index(a), ROLE_ORDER.index(b), k]) for a in before for b in after for k in same)

    def count_invalid(self, name: str) -> int:
        """Return the number of transitions that scheme `name` does not allow."""
        inside_begins = self.count("O", "I") + self.count("BIES", "I", (0,)) + self.count("ES", "I", (1,))
        if name == "iob2":
            return inside_begins
        if name == "iob1":  # B only between two spans of a type
            return self.count("O", "B") + self.count("BIES", "B", (0,))
        if name == "ioe2":  # I is followed by I or E
            return self.count("I", "OBS") + self.count("I", "IE", (0,))
        if name == "ioe1":  # E only between two spans of a type
            return self.count("E", "OBS") + self.count("E", "IE", (0,))
        if name == "io":
            return 0
        left_open = self.count("BI", "OBIES") - self.count("BI", "IE", (1,))
        return left_open + self.count("OES", "IE")


def count_transitions(scheme: TagScheme, names: Sequence[str], tags: np.ndarray, sentences: np.ndarray) -> Transitions:
    """Count which tags follow each other.

    `tags` (words,) are indices of `names`, `sentences` (words,) the number of each word's sentence, which words of one sentence share.
    """
    parsed = scheme.roles(names)
    role = np.array([ROLE_ORDER.index(letter) for letter, _ in parsed], np.int64)
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(kind for _, kind in parsed))}
    kind = np.array([kinds[name] for _, name in parsed], np.int64)
    counts = np.zeros(50, np.int64)
    if len(tags):
        breaks = sentences[1:] != sentences[:-1]
        before, after = tags[:-1][~breaks], tags[1:][~breaks]
        codes = (role[before] * 5 + role[after]) * 2 + (kind[before] == kind[after])
        counts += np.bincount(codes, minlength=50)
        first, last = np.append(True, breaks), np.append(breaks, True)
        counts += np.bincount(role[tags[first]] * 2, minlength=50)
        counts += np.bincount(role[tags[last]] * 10, minlength=50)
    return Transitions(counts.reshape(5, 5, 2))


def refine(scheme: TagScheme, transitions: Transitions) -> TagScheme:
    """Return the one of IOB1 and IOB2 (IOE1 and IOE2) that the sentences violate least often; in a tie the second."""
    pairs = {"iob2": "iob1", "ioe2": "ioe1"}
    other = pairs.get(scheme.name)
    if other is None or transitions.count_invalid(scheme.name) <= transitions.count_invalid(other):
        return scheme
    return replace(scheme, name=other)
