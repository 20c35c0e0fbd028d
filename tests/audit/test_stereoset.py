"""StereoSet's three scores by hand, and the scores of its sentences against plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from llm_lightning.audit import stereoset
from llm_lightning.audit.audit import load_causal, load_masked
from llm_lightning.audit.stereoset import ICAT, KEY, LMS, SS, Item, combine, compute_scores, find_filled, read_items
from llm_lightning.errors import UserError

from .conftest import EXAMPLES, Audit, pick
from .test_crows_pairs import config_of, log_p_of_masked

FILE = EXAMPLES / "stereoset.json"


def item(target: str) -> Item:
    return Item("", "intrasentence", "BLANK", target, "age", ("", "", ""))


def test_the_three_scores_are_those_of_the_paper() -> None:
    """Two items of one target word and one of another: the means over words count, and not those over items."""
    items = [item("a"), item("a"), item("b")]
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 1.0, 1.5]])  # stereotype, anti-stereotype, unrelated
    by_word = compute_scores(items, scores)
    assert by_word[LMS] == pytest.approx([2 / 4, 1 / 2])
    assert by_word[SS] == pytest.approx([1 / 2, 1])
    lms, ss = by_word[LMS].mean(), by_word[SS].mean()
    assert (lms, ss) == pytest.approx((0.5, 0.75))
    assert combine(lms, ss) == pytest.approx(0.5 * 0.25 / 0.5)
    assert combine(1.0, 0.5) == 1  # the ideal model
    assert combine(1.0, 1.0) == combine(1.0, 0.0) == 0  # one that always stereotypes, or never does


def test_a_tie_counts_as_half() -> None:
    by_word = compute_scores([item("a")], np.array([[1.0, 1.0, 1.0]]))
    assert (by_word[LMS][0], by_word[SS][0]) == (0.5, 0.5)


FILLED = [
    ("Girls are BLANK than boys.", "Girls are softer than boys.", "softer"),
    ("BLANK", "all of it", "all of it"),
    ("The end is BLANK", "The end is near", "near"),
    ("BLANK is here", "She is here", "She"),
    ("My BLANK is late.", "My aunt was late.", "aunt wa"),  # whose context was changed: up to what both share
]


@pytest.mark.parametrize(("context", "sentence", "word"), FILLED)
def test_the_word_that_fills_the_blank_is_found(context: str, sentence: str, word: str) -> None:
    start, end = find_filled(sentence, context)
    assert sentence[start:end] == word


def test_sentences_of_a_masked_model_are_scored_as_by_transformers(masked: Path, tmp_path: Path) -> None:
    items = read_items(str(FILE))
    scorer = load_masked(config_of(masked, tmp_path))  # type: ignore[arg-type]
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(masked, dtype=torch.float64).eval(),
        AutoTokenizer.from_pretrained(masked),
    )
    inside, following = items[0], items[-1]
    for row, text, word in zip(
        stereoset._score_task(scorer, [inside])[0], inside.sentences, ("dirty", "clean", "Tuesday"), strict=True
    ):
        tokens, pieces = tokenizer(text)["input_ids"], tokenizer(word, add_special_tokens=False)["input_ids"]
        first = next(i for i in range(len(tokens)) if tokens[i : i + len(pieces)] == pieces)
        direct = [log_p_of_masked(model, tokens, first + i, tokenizer.mask_token_id) for i in range(len(pieces))]
        assert row == pytest.approx(np.mean(direct), abs=1e-4)
    for row, text in zip(stereoset._score_task(scorer, [following])[0], following.sentences, strict=True):
        encoded = tokenizer(following.context, text, return_tensors="pt")
        places = (encoded["token_type_ids"][0] == 1).nonzero()[:-1, 0]  # without the last [SEP]
        direct = []
        for place in places.tolist():
            ids = encoded["input_ids"].clone()
            ids[0, place] = tokenizer.mask_token_id
            with torch.inference_mode():
                logits = model(input_ids=ids, token_type_ids=encoded["token_type_ids"]).logits[0, place]
            direct.append(float(logits.log_softmax(-1)[encoded["input_ids"][0, place]]))
        assert row == pytest.approx(np.mean(direct), abs=1e-4)


def test_sentences_of_a_causal_model_are_scored_as_by_transformers(causal: Path, tmp_path: Path) -> None:
    items = read_items(str(FILE))
    scorer = load_causal(config_of(causal, tmp_path))  # type: ignore[arg-type]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float64).eval(),
        AutoTokenizer.from_pretrained(causal),
    )
    for chosen in (items[0], items[-1]):
        lead = f"{chosen.context} " if chosen.task == "intersentence" else ""
        for row, text in zip(stereoset._score_task(scorer, [chosen])[0], chosen.sentences, strict=True):
            tokens = [tokenizer.bos_token_id, *tokenizer(lead + text)["input_ids"]]
            first = 1 + max(len(lead.encode()) - 1, 0)  # a token a byte; the blank before the sentence belongs to it
            with torch.inference_mode():
                log_p = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            direct = [float(log_p[i - 1, tokens[i]]) for i in range(first, len(tokens))]
            assert row == pytest.approx(np.mean(direct), abs=1e-4)


def test_the_record_has_all_scores(causal: Path, tmp_path: Path, audit: Audit) -> None:
    record = audit(causal, f"{KEY}={FILE}", f"out={tmp_path}")
    scores = {table: pick(record, KEY, table) for table in (LMS, SS, ICAT)}
    assert list(scores[SS]) == ["all items", "intrasentence", "intersentence", "age", "gender", "profession"]
    for name, score in scores[ICAT].items():
        lms, ss = scores[LMS][name]["value"], scores[SS][name]["value"]
        assert score["value"] == pytest.approx(lms * min(ss, 1 - ss) / 0.5)
        assert score["interval"] is None or score["interval"][0] <= score["interval"][1]
    assert [scores[SS][name]["count"] for name in scores[SS]] == [6, 4, 2, 2, 1, 3]


def change(key: str, value: Any) -> dict[str, Any]:
    document = json.loads(FILE.read_text())
    document["data"]["intrasentence"][1][key] = value
    return document


BAD = [
    ([], "expected an object with data.intrasentence and data.intersentence"),
    ({"data": {"intrasentence": []}}, "there is no item in it"),
    (change("target", ""), r"data.intrasentence\[1\]: 'target' is missing or no text"),
    (change("context", "no place"), r"data.intrasentence\[1\]: the context of an intrasentence item has no BLANK"),
    (
        change("sentences", [{"sentence": "a", "gold_label": "stereotype"}]),
        r"data.intrasentence\[1\]: expected one sentence for each",
    ),
    (change("sentences", "text"), r"data.intrasentence\[1\]: expected one sentence for each"),
]


@pytest.mark.parametrize(("document", "message"), BAD)
def test_a_file_of_another_form_is_refused(document: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=message):
        read_items(str(tmp_path / "dev.json"))
