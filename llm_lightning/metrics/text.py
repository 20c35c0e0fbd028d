"""Scores of texts against references: BLEU and chrF of a corpus, ROUGE-L, and SQuAD's agreement of answers.

A right text has the best score in every script: metrics/words.py splits texts into the units that scores compare. Figures of English
equal those of sacrebleu's defaults, of ROUGE on [a-z0-9] and of SQuAD's own rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_lightning.metrics.counts import Sums
from llm_lightning.metrics.words import is_latin, name_bleu_tokenizer, split_answer, split_words

SAMPLE = 1000
"""References that decide which tokens BLEU compares."""


class CorpusScores(Sums):
    """sacrebleu's BLEU (Papineni et al. 2002) and chrF (Popović 2015) of a corpus, from sums of sacrebleu's own counts.

    The methods whose names begin with `_` were read in sacrebleu 2.6; a test compares the scores with `corpus_score`.
    """

    def __init__(self, references: Sequence[str] = ()) -> None:
        """Keep the first `references` of the corpus, the same on every rank: they decide how BLEU cuts texts into tokens.

        If all are shorter than four tokens, BLEU counts n-grams up to the longest: with longer n-grams every score would be 0.
        """
        from sacrebleu.metrics import BLEU, CHRF

        self.tokenizer = name_bleu_tokenizer(references)
        bleu_tokenizer = BLEU(tokenize=self.tokenizer).tokenizer
        self.order = max(1, min(4, max((len(bleu_tokenizer(text).split()) for text in references), default=4)))
        self.metrics: dict[str, Any] = {"bleu": BLEU(tokenize=self.tokenizer, max_ngram_order=self.order), "chrf": CHRF()}
        super().__init__(**{name: self._statistics(name, ["a"], ["a"]).shape[1] for name in self.metrics})

    def _statistics(self, name: str, texts: list[str], references: list[str]) -> np.ndarray:
        """Return (texts, counts) sacrebleu's counts of each text."""
        # private, as is `_aggregate_and_compute`; read in sacrebleu 2.6, whose public scores need all texts
        return np.array(self.metrics[name]._extract_corpus_statistics(texts, [references]), dtype=np.int64)

    def update(self, texts: list[str], references: list[str]) -> np.ndarray:
        """Add texts, and return (texts,) the chrF of each."""
        statistics = {name: self._statistics(name, texts, references) for name in self.metrics}
        for name, counts in statistics.items():
            self[name][...] += counts.sum(0)
        return np.array([self._score("chrf", counts) for counts in statistics["chrf"]])

    def _score(self, name: str, counts: np.ndarray) -> float:
        return float(self.metrics[name]._aggregate_and_compute([counts.tolist()]).score)

    def scores(self) -> dict[str, float]:
        """Return `bleu` and `chrf`, from 0 to 100."""
        return {name: self._score(name, self[name]) for name in self.metrics}

    def describe(self) -> str:
        """Return a description of the units that BLEU compares."""
        units = {"13a": "words", "zh": "Chinese characters and words", "char": "characters"}[self.tokenizer]
        shorter = "" if self.order == 4 else f", n-grams up to {self.order}, as no reference has more tokens"
        return f"{units} (sacrebleu's tokenizer {self.tokenizer}{shorter})"


def rouge_l(text: str, reference: str) -> float:
    """Return ROUGE-L, the F1 of the longest common subsequence of words (Lin 2004), from 0 to 1.

    A reference without any word, such as an emoji, is compared character by character.
    """
    words, reference_words = split_words(text), split_words(reference)
    if not reference_words:
        words, reference_words = ([c for c in string if not c.isspace()] for string in (text, reference))
    if not words or not reference_words:
        return 0.0
    common = count_common(words, reference_words)
    return 2 * common / (len(words) + len(reference_words))


def count_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by the bits of one number (Hyyrö 2004): quick for long texts too."""
    places: dict[str, int] = {}
    for i, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << i
    everything = rows = (1 << len(first)) - 1
    for item in second:
        matched = rows & places.get(item, 0)
        rows = ((rows + matched) | (rows - matched)) & everything
    return len(first) - rows.bit_count()


def answer_agreements(answers: list[str], references: list[list[str]]) -> dict[str, list[float]]:
    """Return SQuAD's `f1` and `exact_match` of each answer, as shares, against the reference that the answer agrees with most.

    A question without an answer agrees with an empty answer alone (Rajpurkar et al. 2018).
    """
    exact, f1 = [], []
    for answer, accepted in zip(answers, references, strict=True):
        if not accepted or not answer:
            exact.append(float(not accepted and not answer))
            f1.append(exact[-1])
            continue
        latin = is_latin([answer, *accepted])
        answer_words = split_answer(answer, latin)
        pairs = [(answer_words, split_answer(reference, latin)) for reference in accepted]
        exact.append(float(any(answer_words == reference_words for answer_words, reference_words in pairs)))
        f1.append(max(_f1(answer_words, reference_words) for answer_words, reference_words in pairs))
    return {"f1": f1, "exact_match": exact}


def _f1(words: list[str], reference_words: list[str]) -> float:
    """Return the F1 of two bags of words; if one is empty, 1 if both are, else 0."""
    if not words or not reference_words:
        return float(words == reference_words)
    return 2 * (Counter(words) & Counter(reference_words)).total() / (len(words) + len(reference_words))
