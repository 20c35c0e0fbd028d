"""Find names, places and more by presidio-analyzer (optional), whose language model reads each text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llm_lightning.inspection.personal_data import Finding

SURE = 0.5
"""Score from which on a finding counts."""
PERSONAL = (
    "PERSON",
    "LOCATION",
    "NRP",
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "CREDIT_CARD",
    "IBAN_CODE",
    "IP_ADDRESS",
    "MEDICAL_LICENSE",
)
"""Entities that are looked for."""


class Presidio:
    """An analyzer of English texts, which is loaded once."""

    def __init__(self) -> None:
        from presidio_analyzer import AnalyzerEngine

        self._analyzer = AnalyzerEngine()

    def __call__(self, texts: Sequence[str]) -> Iterator[tuple[int, list[Finding]]]:
        """Yield (number of a text, its findings) of the texts with personal data; kinds are named `presidio: person`."""
        for number, text in enumerate(texts):
            results = self._analyzer.analyze(text=text, language="en", entities=list(PERSONAL), score_threshold=SURE)
            findings = [Finding(f"presidio: {result.entity_type.lower()}", result.start, result.end) for result in results]
            if findings:
                yield number, sorted(findings, key=lambda finding: finding.start)
