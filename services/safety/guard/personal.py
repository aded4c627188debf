"""Personal data that can be recognised with certainty: by strict grammar, check digits or numbering plans.

Every recogniser is a pattern for candidates and a check that decides. Nothing here guesses names or places: that takes
a model. Confidence: 0.9 where a check digit and a rare shape agree, 0.8 for one of both, 0.6 for a shape alone.
"""

import ipaddress
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from re import Pattern

import phonenumbers
from stdnum import bitcoin, iban, luhn
from stdnum.br import cpf
from stdnum.ca import sin
from stdnum.de import idnr
from stdnum.es import nie, nif
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.in_ import aadhaar, pan
from stdnum.it import codicefiscale
from stdnum.pl import pesel
from stdnum.us import ssn

_CARD = re.compile(r"4|5[1-5]|2[2-7]|3[0-9]|6[0245]")  # issuers' first digits, ISO/IEC 7812
_NO_DIGITS = re.compile(r"[ .-]")
REGIONS: Mapping[str, tuple[str, ...]] = {
    "de": ("DE", "AT", "CH"), "en": ("US", "GB"), "es": ("ES", "MX"), "fr": ("FR", "BE", "CH"), "hi": ("IN",),
    "it": ("IT",), "pl": ("PL",), "pt": ("PT", "BR"), "th": ("TH",),
}  # fmt: skip
"""Where phone numbers without a country code are taken to be from, by language."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One piece of personal data."""

    start: int
    """First character."""
    end: int
    """One past the last."""
    entity: str
    """What it is."""
    confidence: float
    """0 to 1."""


@dataclass(frozen=True)
class Recogniser:
    """Finds one kind of entity."""

    pattern: Pattern[str]
    """Candidates."""
    check: Callable[[str], bool]
    """Whether a candidate is one."""
    confidence: float


def _is_card(text: str) -> bool:
    digits = _NO_DIGITS.sub("", text)
    return bool(_CARD.match(digits)) and digits.isascii() and bool(luhn.is_valid(digits))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_email(text: str) -> bool:
    local, _, domain = text.rpartition("@")
    return not local.startswith(".") and ".." not in text and all(len(part) <= 63 for part in domain.split("."))


RECOGNISERS: Mapping[str, Recogniser] = {
    "EMAIL_ADDRESS": Recogniser(
        re.compile(r"(?<![\w.+%-])[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])"), _is_email, 0.9
    ),
    "CREDIT_CARD": Recogniser(re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])"), _is_card, 0.9),
    "IP_ADDRESS": Recogniser(
        re.compile(
            r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?=[0-9A-Fa-f]*:[0-9A-Fa-f]*:)(?=[0-9A-Fa-f:]*[0-9A-Fa-f]{3})[0-9A-Fa-f:]{3,39})(?![\w.:]*\w)"
        ),
        _is_address,
        0.6,
    ),
    "MAC_ADDRESS": Recogniser(
        re.compile(r"(?<![\w:-])[0-9A-Fa-f]{2}(?:([:-])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}(?![\w:-])"),
        lambda _: True,
        0.6,
    ),
    "CRYPTO": Recogniser(
        re.compile(r"\b(?:[13][1-9A-HJ-NP-Za-km-z]{25,34}|bc1[a-z0-9]{25,62})\b"), bitcoin.is_valid, 0.9
    ),
    "US_SSN": Recogniser(re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), ssn.is_valid, 0.6),
    "UK_NHS": Recogniser(re.compile(r"(?<!\d)\d{3}[ -]\d{3}[ -]\d{4}(?![\d-])"), nhs.is_valid, 0.6),
    "CA_SIN": Recogniser(re.compile(r"(?<![\d-])\d{3}([ -])\d{3}\1\d{3}(?![\d-])"), sin.is_valid, 0.6),
    "DE_TAX_ID": Recogniser(re.compile(r"(?<!\d)\d{2} ?\d{3} ?\d{3} ?\d{3}(?!\d)"), idnr.is_valid, 0.8),
    "FR_NIR": Recogniser(
        re.compile(r"(?<!\d)[12] ?\d{2} ?\d{2} ?[\dAB]{2} ?\d{3} ?\d{3} ?\d{2}(?!\d)"), nir.is_valid, 0.9
    ),
    "IT_FISCAL_CODE": Recogniser(
        re.compile(r"\b[A-Za-z]{6}\d{2}[A-Za-z]\d{2}[A-Za-z]\d{3}[A-Za-z]\b"), codicefiscale.is_valid, 0.9
    ),
    "ES_NIF": Recogniser(re.compile(r"(?<!\w)\d{8}-?[A-Za-z](?!\w)"), nif.is_valid, 0.8),
    "ES_NIE": Recogniser(re.compile(r"(?<!\w)[XYZxyz]-?\d{7}-?[A-Za-z](?!\w)"), nie.is_valid, 0.9),
    "IN_AADHAAR": Recogniser(re.compile(r"(?<![\d-])[2-9]\d{3}([ -]?)\d{4}\1\d{4}(?![\d-])"), aadhaar.is_valid, 0.8),
    "IN_PAN": Recogniser(re.compile(r"\b[A-Z]{5}\d{4}[A-Z]\b"), pan.is_valid, 0.6),
    "BR_CPF": Recogniser(re.compile(r"(?<!\d)\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)"), cpf.is_valid, 0.9),
    "PL_PESEL": Recogniser(re.compile(r"(?<!\d)\d{11}(?!\d)"), pesel.is_valid, 0.6),
}
"""Recognisers with a pattern of fixed extent, by entity."""
ENTITIES = (*RECOGNISERS, "IBAN_CODE", "PHONE_NUMBER")
"""Everything that can be found."""
# Groups take all they can: there are tens of thousands of other ways to cut a run into groups of up to four, and for
# fifteen characters, which the shortest account number has, they end at the same places.
_IBAN = re.compile(r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{1,4}+){3,8}(?:[A-Za-z0-9]{0,2})\b")


def find(text: str, *, entities: frozenset[str], language: str, least: float) -> list[Found]:
    """Personal data in a text, in its order; where two overlap, the surer or longer one.

    Args:
        text: What is searched.
        entities: Kinds wanted.
        language: Key of `REGIONS`; decides how phone numbers without a country code are read.
        least: Least confidence.
    """
    found = [
        Found(start=match.start(), end=match.end(), entity=entity, confidence=recogniser.confidence)
        for entity, recogniser in RECOGNISERS.items()
        if entity in entities and recogniser.confidence >= least
        for match in recogniser.pattern.finditer(text)
        if recogniser.check(match[0])
    ]
    if "IBAN_CODE" in entities:
        found += _ibans(text)
    if "PHONE_NUMBER" in entities:
        found += _phones(text, REGIONS[language])
    return _without_overlaps([one for one in found if one.confidence >= least])


def _ibans(text: str) -> Iterator[Found]:
    """Account numbers; the words after one look like a part of it, so ends are tried from the longest on."""
    for match in _IBAN.finditer(text):
        ends = [match.end(), *(match.start() + at for at in range(len(match[0]) - 1, 14, -1) if match[0][at] == " ")]
        for end in ends:
            if iban.is_valid(text[match.start() : end], check_country=False):
                yield Found(start=match.start(), end=end, entity="IBAN_CODE", confidence=0.9)
                break


def _phones(text: str, regions: tuple[str, ...]) -> Iterator[Found]:
    strict = phonenumbers.Leniency.STRICT_GROUPING
    for region in (None, *regions):
        leniency = strict if region else phonenumbers.Leniency.VALID
        for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=leniency, max_tries=len(text)):
            sure = match.raw_string.startswith("+")
            if match.raw_string.isdigit() and not match.raw_string.startswith("0"):
                continue  # any count or order number is some region's telephone number
            yield Found(start=match.start, end=match.end, entity="PHONE_NUMBER", confidence=0.8 if sure else 0.6)


def _without_overlaps(found: list[Found]) -> list[Found]:
    kept: list[Found] = []  # by start, none overlapping: only neighbours can meet a new one
    for one in sorted(found, key=lambda f: (-f.confidence, f.start - f.end, f.start)):
        at = bisect_left(kept, one.start, key=lambda f: f.start)
        after_last = at == 0 or kept[at - 1].end <= one.start
        if after_last and (at == len(kept) or one.end <= kept[at].start):
            kept.insert(at, one)
    return kept
