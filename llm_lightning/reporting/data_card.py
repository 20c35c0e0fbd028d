"""Compute data.json of a run: statistics of its text, counted from the encoded splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

from llm_lightning.data.clean import count_reasons
from llm_lightning.data.encode import TokenizedSplit, label_counts
from llm_lightning.data.prepare import TokenizedDataset

COMPARED = 200_000  # sequences of a split that are searched for duplicates; hashing them takes a third of a second
BARS = 24


def data_card(dataset: TokenizedDataset) -> dict[str, dict[str, Any]]:
    """Return, for each split: rows, tokens, lengths, labels, windows, rows that are cut, skipped, repeated, or also in train."""
    hashes_by_split = {split: _hashes(part) for split, part in dataset.splits.items()}
    train = set(hashes_by_split.get("train") or ())
    cards = {}
    for split, part in dataset.splits.items():
        lengths, hashes = np.asarray(part.lengths), hashes_by_split[split]
        counts, edges = np.histogram(lengths, BARS)
        card: dict[str, Any] = {
            "rows": part.facts.rows,
            "sequences": len(part),
            "tokens": int(lengths.sum()),
            "truncated": part.facts.truncated,
            "dropped": part.facts.dropped,
            "skipped": part.facts.skipped,
            "skipped_first": part.facts.skipped_first,
            "lengths": {
                **{name: float(np.quantile(lengths, q)) for name, q in (("median", 0.5), ("p95", 0.95), ("longest", 1.0))},
                "mean": float(lengths.mean()),
                "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            },
        }
        if part.windows is not None:
            counts_of_windows = np.diff(part.windows)
            card["windows"] = {
                "rows": int((counts_of_windows > 1).sum()),
                "windows": int(counts_of_windows.sum()),
                "most": int(counts_of_windows.max()),
            }
        if dataset.label_names is not None:
            counted = label_counts(part, len(dataset.label_names))
            card["labels"] = dict(zip(dataset.label_names, map(int, counted), strict=True))
        if hashes is not None:
            card |= {"compared": len(hashes), "duplicates": len(hashes) - len(set(hashes))}
            card |= {} if split == "train" else {"in_train": sum(value in train for value in hashes)}
        if split == "train":
            card |= dataset.edits.counts
            if dataset.cleaned:
                card["left_out"] = count_reasons(dataset.cleaned)
        if split == "train" and dataset.stream is not None:
            card["sample"] = True  # from the start of the stream
        cards[split] = card
    return cards


def _hashes(part: TokenizedSplit) -> list[int] | None:
    """Return hashes of the first sequences; None for the blocks of one stream, which begin anywhere."""
    if part.rows is None:
        return None
    return [xxhash.xxh3_64_intdigest(part[i].tobytes()) for i in range(min(len(part), COMPARED))]
