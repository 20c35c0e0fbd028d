"""Rate, recall and precision of the data audit, beside `datasketch` where it is installed: `python benchmarks/inspect_data.py`.

Near duplicates are copies of AG News rows, changed to a known similarity, among all rows; the exact similarity of the pairs is computed
with plain sets. Rates are of the process's own CPU time, so that other programs on the machine count little.
"""

from __future__ import annotations

import csv
import importlib.util
import random
import string
import time
from collections.abc import Callable
from typing import Any

from common import report
from settings import DATA, has_data, pick

from llm_lightning.data.row_texts import hash_text
from llm_lightning.inspection.near_duplicates import PERMUTATIONS, THRESHOLD, find_near_duplicates
from llm_lightning.inspection.personal_data import find_personal_data
from llm_lightning.inspection.shingles import WORDS

COPIES = pick(1000, 20)
Pairs = set[tuple[int, int]]


def cut_shingles(text: str) -> set[str]:
    """Return the word 5-grams of a text, in plain Python."""
    words = "".join(c.lower() if (c.isascii() and c.isalnum()) or ord(c) > 127 else " " for c in text).split()
    return {" ".join(words[i : i + WORDS]) for i in range(max(len(words) - WORDS + 1, 1))}


def change(text: str, similarity: float, rng: random.Random) -> str:
    """Add words at the ends of a text until its similarity to the text is just above the given one."""
    words, shingles = text.split(), cut_shingles(text)
    for _ in range(int(len(shingles) / similarity) - len(shingles)):
        word = "".join(rng.choices(string.ascii_lowercase, k=7))
        words = rng.choice([[word, *words], [*words, word]])
    return " ".join(words)


def find_all(sets: list[set[str]]) -> Pairs:
    """Return the pairs of sets with a Jaccard index of at least THRESHOLD, of all that share an item."""
    holders: dict[str, list[int]] = {}
    for number, shingles in enumerate(sets):
        for shingle in shingles:
            holders.setdefault(shingle, []).append(number)
    candidates = {(i, j) for numbers in holders.values() if len(numbers) < 200 for i in numbers for j in numbers if i < j}
    return {(i, j) for i, j in candidates if len(sets[i] & sets[j]) >= THRESHOLD * len(sets[i] | sets[j])}


def find_with_datasketch(texts: list[str]) -> Pairs:
    """Return the pairs that datasketch's MinHashLSH proposes with as many permutations, by its own choice of bands."""
    from datasketch import MinHash, MinHashLSH

    index, pairs = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS), set()
    for number, text in enumerate(texts):
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch([shingle.encode() for shingle in cut_shingles(text)])
        pairs |= {(other, number) for other in index.query(signature)}
        index.insert(number, signature)
    return pairs


def clock(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return (result, seconds of CPU) of a function, the shorter of two times."""
    seconds = []
    for _ in range(2):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return result, min(seconds)


def main() -> None:
    rng = random.Random(0)
    with (DATA / "ag_news" / "train.csv").open(encoding="utf-8") as file:
        rows = [f"{row['title']} {row['description']}" for row in csv.DictReader(file)][: pick(None, 200)]
    texts = rows + [change(text, rng.uniform(0.7, 1.0), rng) for text in rng.sample(rows, COPIES)]
    exact = find_all([cut_shingles(text) for text in texts])
    size = sum(len(text.encode()) for text in texts) / 1e6

    def rate(pairs: Pairs, seconds: float) -> list[Any]:
        found = len(pairs & exact)
        return [size / seconds, found / max(len(exact), 1), found / max(len(pairs), 1)]

    pairs, seconds = clock(lambda: find_near_duplicates(lambda numbers: [texts[i] for i in numbers], len(texts)))
    results = [["near duplicates", *rate({(pair.first, pair.second) for pair in pairs}, seconds)]]
    if importlib.util.find_spec("datasketch") is not None:
        results.append(["near duplicates, datasketch", *rate(*clock(lambda: find_with_datasketch(texts)))])
    alarms, seconds = clock(lambda: list(find_personal_data(texts)))
    results.append(["personal data", size / seconds, float("nan"), float("nan")])
    results.append(
        ["same texts, at the start of a run", size / clock(lambda: list(map(hash_text, texts)))[1], float("nan"), float("nan")]
    )
    facts = {"texts": len(texts), "megabytes": size, "pairs": len(exact), "texts with personal data": len(alarms)}
    report("inspect", ["what", "MB/s a core", "recall", "precision"], results, facts)


if __name__ == "__main__":
    if has_data("ag_news"):
        main()
