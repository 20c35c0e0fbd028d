"""The result of one measure of an audit: its scores with their intervals, how they were computed, and examples."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from llm_lightning.reporting.intervals import Interval
from llm_lightning.reporting.table import Table


@dataclass(frozen=True)
class Score:
    """One figure of a measure."""

    table: str
    """The heading of the table that it stands in."""
    name: str
    value: float
    interval: Interval | None
    """95% interval; None if there are too few examples for one."""
    count: int
    """Number of examples that it was computed from: pairs, sentences, rows or texts."""
    detail: str = ""
    """The class and the groups that the score is of, if it was chosen among several."""
    neutral: float | None = None
    """The value of a model without a preference; None if the score has none."""
    is_share: bool = True
    """Whether it is a share, shown in percent; else a difference of probabilities."""
    is_headline: bool = False
    """Whether it stands at the top of the report and in the model card."""


@dataclass(frozen=True)
class Example:
    """A row whose prediction depends on a term."""

    where: str
    before: str
    after: str
    change: str
    """Both predictions, in words."""


@dataclass(frozen=True)
class Measure:
    """The result of one measure."""

    key: str
    """The config key that asks for it, such as `audit.crows_pairs`."""
    title: str
    method: str
    """How the scores are computed, from which paper, and which value means no preference."""
    scores: list[Score]
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and settings for audit.json."""
    tables: list[Table] = field(default_factory=list)
    """Tables without intervals, such as the mean of each group."""
    examples: list[Example] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        """Return the measure as plain containers."""
        return asdict(self)
