"""Personal data: planted in sentences in many formats, none in clean ones, checksums as their standards have them."""

from __future__ import annotations

import random
import time

import pytest

from llm_lightning.inspection import personal_data
from llm_lightning.inspection.personal_data import find_personal_data, is_card, is_iban, mask
from llm_lightning.inspection.scripts import find_scripts

from .planted import news, plant

KNOWN = {
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "GB82 WEST 1234 5698 7654 32",
        "FR14 2004 1010 0505 0001 3M02 606",
        "NO93 8601 1117 947",
    ],
    "card": [
        "4111 1111 1111 1111",
        "5555555555554444",
        "3782 822463 10005",
        "6011-1111-1111-1117",
        "30569309025904",
        "2223003122003222",
    ],
    "ip_address": [
        "8.8.8.8",
        "192.168.1.17",
        "93.184.216.34:8080",
        "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
        "fe80::1ff:fe23:4567:890a",
    ],
    "phone": [
        "(555) 123-4567",
        "+49 (0)30 123456",
        "07700 900123",
        "+7 (495) 123-45-67",
        "8 (495) 123-45-67",
        "call me at 5551234567",
    ],
    "email": ["o'brien@corp.ie", "kim (at) example [dot] com", "first.last@sub.domain.museum"],
    "password": ["pass: hunter2", "Passwort: Sommer2024!", "DB_PASSWORD=p@ssw0rd", "Login with password Passw0rd1"],
    "private_key": ["-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"],
    "social_security_number": ["123-45-6789"],
}
CLEAN = [
    *(
        "On 12/05/2004 the index rose 1,234,567 points",
        "from 2004-2005 to 1999 2000",
        "version 1.2.3.4",
        "$1,000,000,000.00",
        "10:30:45",
    ),
    *("ISBN 978-3-16-148410-0", "order 1234567890123", "the password is important", "Victoria's Secret: sales up", "3-2 6-4 7-6"),
    *(
        "std::vector and a::b",
        "0.25 0.50 0.75",
        "pi 3.14159265358979",
        "2004-10-12 12:30:45",
        "the secret of success",
        "1 234 567 890",
    ),
    *(
        "4111 1111 1111 1112",
        "DE89 3704 0044 0532 0130 01",
        "000-12-3456",
        "127.0.0.1",
        "999.1.1.1",
        "key players",
        "coordinates 52.52, 13.4",
    ),
]


def kinds(text: str) -> list[str]:
    return [finding.kind for _, findings in find_personal_data([text]) for finding in findings]


@pytest.mark.parametrize(("kind", "datum"), [(kind, datum) for kind, examples in KNOWN.items() for datum in examples])
def test_a_format_is_found_wherever_it_stands(kind: str, datum: str) -> None:
    for sentence in ("{}", "Please note {} for later.", "({})", "see {}, thanks", "x: {}!", "{}."):
        assert kinds(sentence.format(datum)) == [kind], sentence


@pytest.mark.parametrize("text", CLEAN)
def test_other_numbers_and_words_are_no_alarm(text: str) -> None:
    assert kinds(text) == []


def test_checksums_refuse_every_wrong_digit() -> None:
    """One wrong digit is always found (ISO/IEC 7064 and 7812)."""
    for number, is_valid in (("4111111111111111", is_card), ("DE89370400440532013000", is_iban)):
        assert is_valid(number)
        for place in range(4, len(number)):
            for digit in set("0123456789") - {number[place]}:
                assert not is_valid(number[:place] + digit + number[place + 1 :])


def test_planted_data_is_found() -> None:
    planted = plant(1000)
    found = dict(find_personal_data([sentence for sentence, _, _ in planted]))
    missed = [
        (kind, datum)
        for number, (sentence, kind, datum) in enumerate(planted)
        if not any(f.kind == kind and sentence[f.start : f.end].strip("\"'().,") in datum for f in found.get(number, []))
    ]
    assert len(missed) <= 20, missed


def test_news_is_no_alarm() -> None:
    rows = news()
    assert len(list(find_personal_data(rows))) <= 0.005 * len(rows)


def test_places_are_those_of_the_text_whatever_it_is_searched_with() -> None:
    """Searched alone or between others, whose ends may look like the beginning of a datum, with characters that grow in lower case."""
    rng = random.Random(0)
    texts = [sentence for sentence, _, _ in plant(300, seed=1)] + [
        "password:",
        "İİİ a@b.co İ",
        "+49 30",
        "",
        "\0 8.8.8.8 \0",
        "key 4111",
    ]
    rng.shuffle(texts)
    alone = {i: findings for i, text in enumerate(texts) for _, findings in find_personal_data([text])}
    assert dict(find_personal_data(texts)) == alone
    assert all(0 <= f.start < f.end <= len(texts[i]) for i, findings in alone.items() for f in findings)


def test_masked_texts_hold_no_datum() -> None:
    for sentence, kind, datum in plant(200, seed=2):
        masked = mask(sentence)
        if kind in kinds(sentence):
            assert f"[{kind}]" in masked
            assert datum.strip("<>") not in masked
    assert mask("nothing here") == "nothing here"


def test_a_long_text_takes_time_in_proportion_to_its_length() -> None:
    """Texts that are made to hold many beginnings of data and no end."""
    for piece in ("1", "a@", "1.", "a.", "password ", "DE89", "1 ", "::", "+4 "):
        seconds = []
        for size in (40_000, 160_000):
            started = time.process_time()
            list(find_personal_data([piece * (size // len(piece))]))
            seconds.append(time.process_time() - started)
        assert seconds[1] < 10 * max(seconds[0], 0.05), piece


def test_detectors_keep_no_text() -> None:
    assert set(personal_data.Finding.__dataclass_fields__) == {"kind", "start", "end"}


def test_scripts_are_those_of_most_letters() -> None:
    texts = ["plain text", "Привет, world", "東京タワーです", "中文文本", "한국어", "123 …", "", "שלום", "naïve Ελληνικά γλώσσα"]
    assert find_scripts(texts) == ["Latin", "Cyrillic", "Kana", "Han", "Hangul", "no letters", "no letters", "Hebrew", "Greek"]
