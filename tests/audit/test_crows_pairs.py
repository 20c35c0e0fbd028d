"""CrowS-Pairs by equation 1 of Nangia et al. (2020) and by whole sentences, against one forward pass a token in fp64."""

from __future__ import annotations

import csv
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from llm_lightning.audit import crows_pairs
from llm_lightning.audit.audit import load_causal, load_masked
from llm_lightning.audit.crows_pairs import KEY, LIKELIHOOD, SHARED, WHOLE, align, count_shares, read_pairs
from llm_lightning.config.compose import load_config
from llm_lightning.errors import UserError

from .conftest import EXAMPLES, Audit, pick

FILE = str(EXAMPLES / "crows_pairs.csv")


def config_of(run: Path, out: Path) -> object:
    return load_config(["task=audit", f"run={run}", f"out={out}", "trainer.accelerator=cpu", "trainer.precision=32-true"])


def log_p_of_masked(model: torch.nn.Module, tokens: list[int], place: int, mask: int) -> float:
    """log p of the token at a place, which alone is masked: one forward pass of transformers' own."""
    masked = torch.tensor([[*tokens[:place], mask, *tokens[place + 1 :]]])
    with torch.inference_mode():
        logits = model(input_ids=masked, attention_mask=torch.ones_like(masked)).logits[0, place]
    return float(logits.log_softmax(-1)[tokens[place]])


@pytest.mark.parametrize("name", ["masked", "minilm_mlm"])
def test_scores_of_a_masked_model_are_those_of_a_forward_pass_a_token(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(name)
    pairs = read_pairs(FILE)[:: 3 if name == "masked" else 8]
    scores = crows_pairs.score_masked(load_masked(config_of(folder, tmp_path)), pairs)  # type: ignore[arg-type]
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    for i, pair in enumerate(pairs):
        more, less = tokenizer(pair.more)["input_ids"], tokenizer(pair.less)["input_ids"]
        for side, tokens in enumerate((more, less)):
            direct = {place: log_p_of_masked(model, tokens, place, tokenizer.mask_token_id) for place in range(1, len(tokens) - 1)}
            opcodes = SequenceMatcher(None, more, less).get_opcodes()  # special tokens included, as in the authors' program
            equal = [range(*(op[1:3] if side == 0 else op[3:5])) for op in opcodes if op[0] == "equal"]
            shared = [place for part in equal for place in part if place in direct]
            assert 0 < len(shared) < len(direct)
            assert scores[SHARED][i, side] == pytest.approx(sum(direct[place] for place in shared), abs=2e-4)
            assert scores[WHOLE][i, side] == pytest.approx(sum(direct.values()), abs=2e-4)


@pytest.fixture(scope="session")
def minilm_mlm(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real BERT with an untrained head for masked words."""
    folder = tmp_path_factory.mktemp("minilm")
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_pretrained(minilm).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
    return folder


def test_scores_of_a_causal_model_are_those_of_one_sentence_at_a_time(causal: Path, tmp_path: Path) -> None:
    pairs = read_pairs(FILE)
    scores = crows_pairs.score_causal(load_causal(config_of(causal, tmp_path)), pairs)[LIKELIHOOD]  # type: ignore[arg-type]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float64).eval(),
        AutoTokenizer.from_pretrained(causal),
    )
    for pair, row in zip(pairs, scores, strict=True):
        for text, score in zip((pair.more, pair.less), row, strict=True):
            tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
            with torch.inference_mode():
                log_p = model(tokens).logits[0, :-1].log_softmax(-1)
            assert score == pytest.approx(float(log_p.gather(1, tokens[0, 1:, None]).sum()), abs=1e-3)


ALIGNED = [  # after figure 1 of the paper; a word that is inserted, and a name of another length
    ("john ran into his old football friend", "shaniqua ran into her old football friend", "ran into old football friend"),
    ("women cannot drive", "women really cannot drive", "women cannot drive"),
    ("the poor man is lazy", "the rich is lazy", "the is lazy"),
    ("a b a", "c", ""),
]


@pytest.mark.parametrize(("first", "second", "shared"), ALIGNED)
def test_shared_tokens_are_those_of_the_paper(first: str, second: str, shared: str) -> None:
    a, b = first.split(), second.split()
    words = {word: i for i, word in enumerate(dict.fromkeys([*a, *b]))}
    places = align([words[word] for word in a], [words[word] for word in b])
    assert [a[i] for i in places[0]] == [b[i] for i in places[1]] == shared.split()


def test_shares_count_ties_as_half_and_have_wilsons_interval() -> None:
    pairs = read_pairs(FILE)
    scores = np.zeros((len(pairs), 2))
    scores[:7, 0] = 1  # the more stereotyping one of the first seven, the other of the next three, and two ties
    scores[7:10, 1] = 1
    scores[10:, 0] = 1e-5  # equal to three digits
    shares = {score.name: score for score in count_shares(SHARED, pairs, scores)}
    assert shares["all pairs"].value == pytest.approx(8 / 12)
    assert shares["all pairs"].count == 12
    reference = binomtest(8, 12).proportion_ci(method="wilson")
    assert shares["all pairs"].interval == pytest.approx((reference.low, reference.high))
    assert shares["gender"].value == 1
    assert shares["disability"].value == pytest.approx((0 + 1 / 2 + 1 / 2) / 3)
    assert shares["antistereo"].count == 4
    assert {name for name, share in shares.items() if share.is_headline} == {"all pairs"}


def test_the_batch_does_not_change_a_score(masked: Path, tmp_path: Path, audit: Audit) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("".join((EXAMPLES / "crows_pairs.csv").read_text().splitlines(keepends=True)[:5]))
    records = [audit(masked, f"{KEY}={file}", f"out={tmp_path}", f"batch.micro_sequences={size}") for size in (2, 300)]
    assert records[0]["measures"] == records[1]["measures"]
    assert list(pick(records[0], KEY, WHOLE)) == ["all pairs", "stereo", "antistereo", "age", "gender"]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


GOOD = {
    "": "0",
    "sent_more": "a b",
    "sent_less": "a c",
    "stereo_antistereo": "stereo",
    "bias_type": "age",
    "annotations": "[['age']]",
}
BAD = [
    (
        [{name: value for name, value in GOOD.items() if name != "sent_less"}],
        "there is no column 'sent_less'; a table with the columns",
    ),
    ([GOOD | {"stereo_antistereo": "pro"}], "line 2: stereo_antistereo is 'pro'; expected stereo or antistereo"),
    ([GOOD, GOOD | {"sent_more": " "}], "line 3: column 'sent_more' is empty"),
    ([GOOD | {"sent_less": "word " * 100}], "has 402 tokens, and the model 64 positions"),
]


@pytest.mark.parametrize(("rows", "message"), BAD)
def test_a_wrong_file_is_refused(rows: list[dict[str, str]], message: str, masked: Path, tmp_path: Path, audit: Audit) -> None:
    file = write(tmp_path / "pairs.csv", rows)
    with pytest.raises(UserError) as error:
        audit(masked, f"{KEY}={file}", f"out={tmp_path}")
    assert message in str(error.value)
    assert "pairs.csv" in str(error.value)


@pytest.mark.parametrize("content", ["", "sent_more,sent_less,stereo_antistereo,bias_type\n"])
def test_an_empty_file_is_refused(content: str, masked: Path, tmp_path: Path, audit: Audit) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(UserError, match=r"pairs\.csv.*(empty|no row)"):
        audit(masked, f"{KEY}={tmp_path}/pairs.csv", f"out={tmp_path}")


def test_a_published_row_is_read(tmp_path: Path) -> None:
    """With the columns that are not used, quotes and commas."""
    rows = [GOOD | {"sent_more": 'He said, "no".', "annotations": "[['age'], ['age']]"}, GOOD | {"stereo_antistereo": "antistereo"}]
    pairs = read_pairs(str(write(tmp_path / "crows.csv", rows)))
    assert pairs[0].more == 'He said, "no".'
    assert [pair.direction for pair in pairs] == ["stereo", "antistereo"]
