"""Scores of texts against references: BLEU and chrF of a corpus, ROUGE-L, and SQuAD's agreement of answers.

A right text has the best score in every script: what the scores compare comes from metrics/words.py. Figures of English are those of
sacrebleu's defaults, of ROUGE on [a-z0-9] and of SQuAD's own rule.
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
    """sacrebleu's BLEU (Papineni et al. 2002) and chrF (Popović 2015), as it sums them up itself.

    The methods whose names begin with `_` were read in sacrebleu 2.6; a test compares the scores with `corpus_score`.
    """

    def __init__(self, references: Sequence[str] = ()) -> None:
        """`references` are the first of those to come, the same on every rank: they decide how BLEU cuts texts into tokens.

        Where all are shorter than four tokens, BLEU counts n-grams up to the longest: there are no others, and every score would be 0.
        """
        from sacrebleu.metrics import BLEU, CHRF

        self.tokenizer = name_bleu_tokenizer(references)
        cut = BLEU(tokenize=self.tokenizer).tokenizer
        self.order = max(1, min(4, max((len(cut(text).split()) for text in references), default=4)))
        self.metrics: dict[str, Any] = {"bleu": BLEU(tokenize=self.tokenizer, max_ngram_order=self.order), "chrf": CHRF()}
        super().__init__(**{name: self._statistics(name, ["a"], ["a"]).shape[1] for name in self.metrics})

    def _statistics(self, name: str, texts: list[str], references: list[str]) -> np.ndarray:
        """Return (texts, counts) what sacrebleu counts of each text."""
        return np.array(self.metrics[name]._extract_corpus_statistics(texts, [references]), dtype=np.int64)

    def update(self, texts: list[str], references: list[str]) -> np.ndarray:
        """Take in some texts, and return (texts,) the chrF of each."""
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
        """Return what BLEU compares, for people."""
        units = {"13a": "words", "zh": "Chinese characters and words", "char": "characters"}[self.tokenizer]
        shorter = "" if self.order == 4 else f", n-grams up to {self.order}, as no reference has more tokens"
        return f"{units} (sacrebleu's tokenizer {self.tokenizer}{shorter})"


def rouge_l(text: str, reference: str) -> float:
    """Return ROUGE-L, the F1 of the longest common subsequence of words (Lin 2004), from 0 to 1.

    A reference without any word, such as an emoji, is compared character by character.
    """
    words, known = split_words(text), split_words(reference)
    if not known:
        words, known = ([c for c in whole if not c.isspace()] for whole in (text, reference))
    if not words or not known:
        return 0.0
    common = count_common(words, known)
    return 2 * common / (len(words) + len(known))


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
    """Return SQuAD's `f1` and `exact_match` of each answer, as shares, with the reference that it agrees with most.

    A question without an answer agrees with an empty answer alone (Rajpurkar et al. 2018).
    """
    exact, f1 = [], []
    for answer, known in zip(answers, references, strict=True):
        if not known or not answer:
            exact.append(float(not known and not answer))
            f1.append(exact[-1])
            continue
        latin = is_latin([answer, *known])
        words = split_answer(answer, latin)
        pairs = [(words, split_answer(reference, latin)) for reference in known]
        exact.append(float(any(mine == theirs for mine, theirs in pairs)))
        f1.append(max(_f1(mine, theirs) for mine, theirs in pairs))
    return {"f1": f1, "exact_match": exact}


def _f1(words: list[str], known: list[str]) -> float:
    """Return the F1 of two bags of words; of an empty one whether both are."""
    if not words or not known:
        return float(words == known)
    return 2 * (Counter(words) & Counter(known)).total() / (len(words) + len(known))
