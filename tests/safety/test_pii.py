import socket
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastack import v1
from services.safety.guard import personal
from services.safety.shield import Shield
from stack_client.errors import InvalidArgumentError
from tests.safety.guard_models import fact, judge, shield_of

EXAMPLES = {
    "EMAIL_ADDRESS": ["jane.doe+x@example.co.uk", "müller@bücher.example"],
    "PHONE_NUMBER": ["+49 30 901820", "(650) 253-0000"],
    "CREDIT_CARD": ["4111 1111 1111 1111", "378282246310005", "5555-5555-5555-4444"],
    "IBAN_CODE": ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000"],
    "IP_ADDRESS": ["192.0.2.17", "2001:db8::ff00:42:8329"],
    "MAC_ADDRESS": ["00:1b:44:11:3a:b7"],
    "CRYPTO": ["1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"],
    "US_SSN": ["536-90-4399"],
    "UK_NHS": ["943 476 5870"],
    "CA_SIN": ["123-456-782"],
    "DE_TAX_ID": ["36 574 261 809"],
    "FR_NIR": ["2 95 10 99 126 111 93"],
    "IT_FISCAL_CODE": ["RCCMNL83S18D969H"],
    "ES_NIF": ["54362315K"],
    "ES_NIE": ["X-2482300W"],
    "IN_AADHAAR": ["2341 2341 2346"],
    "IN_PAN": ["AFZPK7190K"],
    "BR_CPF": ["390.533.447-05"],
    "PL_PESEL": ["44051401359"],
}
HARMLESS = [
    "Call me at ten, or meet at 12:30 on 2026-11-23.",
    "Version 1.2.3 has 1234567890123456 rows and 4111 1111 1111 1112 columns.",
    "user@localhost and @handle and a@b are no addresses; DE00 1234 is none either.",
    "The ratio 3:1::2 and the time 10:20:30 mean nothing. Order 123-45-678.",
    "Die Nummer 12345678901 steht auf Seite 5362 4317 0000.",
]


@pytest.fixture
async def shield() -> Shield:
    return await shield_of("pii", None)


def test_every_entity_has_an_example() -> None:
    assert set(EXAMPLES) == set(personal.ENTITIES)


@pytest.mark.parametrize(("entity", "example"), [(entity, text) for entity in EXAMPLES for text in EXAMPLES[entity]])
async def test_personal_data_is_found_where_it_stands(entity: str, example: str) -> None:
    shield = await shield_of("pii", None, entities=[entity])
    text = f"Please note {example} and tell nobody."
    found = await judge(shield, text)
    assert found.codes == (entity,)
    assert [text[span.start : span.end] for span in found.spans] == [example]
    assert (found.score, found.score_kind, found.category_scores) == (1.0, v1.SCORE_KIND_RULE, {entity: 1.0})


@pytest.mark.parametrize("text", HARMLESS)
async def test_numbers_that_are_nobodys_are_left_alone(shield: Shield, text: str) -> None:
    found = await judge(shield, text)
    assert (found.codes, found.score, found.spans) == ((), 0.0, ())


async def test_redaction_names_a_placeholder_for_each_span() -> None:
    shield = await shield_of("pii", None, action="redact")
    text = "Mail jane@example.com or pay GB82 WEST 1234 5698 7654 32 today"
    found = await judge(shield, text)
    redacted = text
    for span in reversed(found.spans):
        redacted = redacted[: span.start] + str(span.replacement) + redacted[span.end :]
    assert redacted == "Mail [EMAIL_ADDRESS] or pay [IBAN_CODE] today"
    assert fact(found, "entities") == {"EMAIL_ADDRESS": 1, "IBAN_CODE": 1}
    assert fact(found, "action") == "redact"


async def test_a_threshold_leaves_out_what_is_less_sure() -> None:
    shield = await shield_of("pii", None, score_threshold=0.85)
    assert (await judge(shield, "192.0.2.17 and jane@example.com")).codes == ("EMAIL_ADDRESS",)


async def test_numbers_without_a_country_are_read_in_the_language_asked_for() -> None:
    german = await shield_of("pii", None, entities=["PHONE_NUMBER"], language="de")
    english = await shield_of("pii", None, entities=["PHONE_NUMBER"])
    assert (await judge(german, "Ruf an: 030 901820")).codes == ("PHONE_NUMBER",)
    assert (await judge(english, "Ruf an: 030 901820")).codes == ()


async def test_text_beyond_the_limit_lowers_the_coverage(shield: Shield) -> None:
    found = await judge(shield, "word " * 25_000)
    assert found.coverage == pytest.approx(0.8)


async def test_thousands_of_findings_are_all_reported_in_order(shield: Shield) -> None:
    found = await judge(shield, "192.0.2.1 " * 5000)
    assert [span.start for span in found.spans] == list(range(0, 50_000, 10))


async def test_nothing_is_asked_of_the_network(shield: Shield, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    text = " ".join(example for examples in EXAMPLES.values() for example in examples)
    found = personal.find(text, entities=frozenset(personal.ENTITIES), language="en", least=0.5)
    assert len(found) > 10


@pytest.mark.parametrize(
    ("params", "complaint"),
    [({"entities": ["PERSON"]}, "take a model"), ({"action": "mask"}, "detect, redact"), ({"language": "xx"}, "de, en"),
     ({"score_threshold": 2}, "0 to 1"), ({"mode": "x"}, "is unknown")],
)  # fmt: skip
async def test_parameters_that_cannot_be_used_are_refused(params: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=complaint):
        await shield_of("pii", None, **params)


@given(st.text(alphabet="0123456789 -.:@+ABCDEFabcdefGx(é)٣３", max_size=80))
def test_any_text_is_searched_without_error_and_spans_do_not_overlap(text: str) -> None:
    found = personal.find(text, entities=frozenset(personal.ENTITIES), language="en", least=0)
    for before, after in pairwise(found):
        assert before.end <= after.start
    assert all(0 <= one.start < one.end <= len(text) for one in found)
