"""Scores of texts in any script: a right text has the best score, English ones are those of the libraries, others hand-computed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import corpus_bleu, corpus_chrf
from torchmetrics.functional.text import rouge_score, squad

from llm_lightning.metrics.text import CorpusScores, answer_agreements, count_common, rouge_l
from llm_lightning.metrics.words import describe_words, split_words

SENTENCES = {
    "Chinese": "巴黎是法国的首都。",
    "Japanese": "パリはフランスの首都です。",
    "Thai": "ปารีสเป็นเมืองหลวงของฝรั่งเศส",
    "Lao": "ປາຣີແມ່ນນະຄອນຫຼວງຂອງຝຣັ່ງ",
    "Khmer": "ប៉ារីសជារដ្ឋធានីនៃប្រទេសបារាំង",
    "Burmese": "ပဲရစ်သည် ပြင်သစ်နိုင်ငံ၏ မြို့တော်ဖြစ်သည်။",
    "Arabic": "باريس هي عاصمة فرنسا؟",
    "Hindi": "पेरिस फ़्रांस की राजधानी है।",
    "Russian": "Париж — столица Франции.",
    "Greek": "Το Παρίσι είναι η πρωτεύουσα;",
    "Korean": "파리는 프랑스의 수도입니다.",
    "Hebrew": "פריז היא בירת צרפת.",
    "symbols": "👍🏽 → ∑",
}
ENGLISH = st.text(st.sampled_from("aAbc the1_.,'- \n"), max_size=40)


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_a_right_text_has_the_best_scores_in_every_script(sentence: str) -> None:
    assert rouge_l(sentence, sentence) == 1
    assert answer_agreements([sentence], [[sentence]]) == {"f1": [1.0], "exact_match": [1.0]}
    for reference in (sentence, sentence[:1]):  # BLEU has no score for texts that are shorter than its longest n-gram
        scores = CorpusScores([reference])
        scores.update([reference], [reference])
        assert scores.scores() == pytest.approx({"bleu": 100, "chrf": 100})
    assert rouge_l(sentence, "Q") == rouge_l("", sentence) == 0


def test_tokens_by_script() -> None:
    assert split_words("Das café_No. 2, x²!") == ["das", "café", "no", "2", "x²"]
    assert split_words("我用GPU训练3次") == ["我", "用", "gpu", "训", "练", "3", "次"]
    assert split_words("की राजधानी है।") == ["की", "राजधानी", "है"]
    assert split_words("ที่นี่") == ["ที่", "นี่"]  # a letter with its vowel and tone marks
    assert split_words("서울은 수도다.") == ["서울은", "수도다"]
    assert describe_words(["a 巴", "かな"]) == "characters of Han, Kana, and words"


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("法国的首都", "巴黎是法国的首都", 2 * 5 / (5 + 8)),
        ("столица Москва", "Столица — Москва, Россия", 2 * 2 / (2 + 3)),
        ("राजधानी दिल्ली", "दिल्ली राजधानी है", 2 * 1 / (2 + 3)),
        ("東京タワー", "東京都", 2 * 2 / (5 + 3)),
    ],
)
def test_rouge_l_by_hand(text: str, reference: str, expected: float) -> None:
    assert rouge_l(text, reference) == pytest.approx(expected)


@given(ENGLISH, ENGLISH)
def test_english_figures_are_those_of_rouge_and_squad(text: str, reference: str) -> None:
    if split_words(reference):
        theirs = rouge_score([text], [[reference]], rouge_keys="rougeL")["rougeL_fmeasure"]
        assert rouge_l(text, reference) == pytest.approx(float(theirs), abs=1e-6)
    if text and reference:
        for known in ([reference], [reference, "the cat"]):
            ours = answer_agreements([text], [known])
            answers = {"answer_start": [0] * len(known), "text": known}
            scores = squad([{"prediction_text": text, "id": "0"}], [{"answers": answers, "id": "0"}])
            assert 100 * ours["f1"][0] == pytest.approx(float(scores["f1"]), abs=1e-4)
            assert 100 * ours["exact_match"][0] == float(scores["exact_match"])


@given(st.text(st.sampled_from("abc")), st.text(st.sampled_from("abc")))
def test_the_longest_common_subsequence_is_that_of_its_recurrence(first: str, second: str) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert count_common(list(first), list(second)) == table[-1][-1]


@pytest.mark.parametrize(
    ("answer", "references", "f1", "exact"),
    [
        ("法国巴黎。", ["巴黎"], 2 * 2 / (4 + 2), 0),  # the rule of CMRC 2018: characters, no punctuation
        ("《红楼梦》", ["红楼梦"], 1, 1),
        ("1932年,在", ["1932年"], 2 * 2 / (3 + 2), 0),
        ("在 GPU 上", ["在GPU上"], 1, 1),
        ("باريس؟", ["باريس"], 1, 1),
        ("दिल्ली।", ["मुंबई", "दिल्ली"], 1, 1),
        ("в Париже, Франция", ["Париже"], 2 * 1 / (3 + 1), 0),
        ("東京", [], 0, 0),
        ("", ["東京"], 0, 0),
        ("", [], 1, 1),
        ("“Paris”", ["Paris"], 0, 0),  # SQuAD's own rule has ASCII punctuation alone
    ],
)
def test_agreement_of_answers_by_hand(answer: str, references: list[str], f1: float, exact: float) -> None:
    scores = answer_agreements([answer], [references])
    assert scores["f1"] == [pytest.approx(f1)]
    assert scores["exact_match"] == [exact]


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        (["这只猫很小 1", "the 猫在这里 ok"], "zh"),
        (["この猫は小さい", "漢字とかな"], "char"),
        (["ปารีสเป็นเมืองหลวง"], "char"),
        (["파리는 프랑스의 수도입니다", "the cat sat on it"], "13a"),
        (["the cat is on the mat 猫"], "13a"),
        (["Москва столица великой страны"], "13a"),
    ],
)
def test_bleu_is_sacrebleus_with_the_tokenizer_of_the_script(references: list[str], tokenizer: str) -> None:
    rng = random.Random(0)
    references = [*references, *references[::-1]] * 3
    texts = ["".join(c for c in reference if rng.random() < 0.9) for reference in references]
    scores = CorpusScores(references)
    for i in range(0, len(texts), 2):
        scores.update(texts[i : i + 2], references[i : i + 2])
    assert scores.tokenizer == tokenizer
    assert tokenizer in scores.describe()
    assert scores.scores()["bleu"] == pytest.approx(corpus_bleu(texts, [references], tokenize=tokenizer).score)
    assert scores.scores()["chrf"] == pytest.approx(corpus_chrf(texts, [references]).score)
