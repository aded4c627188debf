"""Rules: patterns and forbidden words over a text as it came and as a reader sees it.

Patterns are RE2 expressions: the time of one search is linear in the text, and the places that are kept are bounded,
so no pattern and no text can hang the service; what RE2 lacks (look-around, back references) is refused when a rule is
made.
"""

import datetime as dt
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import re2

from services.safety.blobs import Blob
from services.safety.normalise import Hidden, Normalised, normalise
from services.safety.shield import Span

MAX_PATTERN = 2000
"""Characters of one pattern."""
MOST_PLACES = 5000
"""Places that are kept of one text, about; a text with more is not judged as a whole."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD_BORDER = r"(?:^|[^\pL\pN_])"
_WORD_END = r"(?:$|[^\pL\pN_])"


class RuleError(ValueError):
    """A rule that cannot be used; says which and why."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One pattern."""

    rule_id: str
    """Its name in findings."""
    expression: Any
    """The compiled RE2 expression; where it has a group, the group is what was found."""
    code: str
    """The code of its findings."""
    surfaces: frozenset[str] = frozenset()
    """Surfaces that it looks at; empty means all."""
    replacement: str | None = None
    """What redaction puts in place of a match."""


@dataclass(frozen=True, kw_only=True)
class Allow:
    """A text that is let pass whatever the rules find, until a day."""

    expression: Any
    """Matches the whole text."""
    until: dt.date
    """Last day on which it counts."""
    owner: str
    """Who answers for it."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """One finding."""

    rule: Rule
    """What found it."""
    span: Span
    """Where, in the raw text."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What rules found in one text."""

    matches: Sequence[Match] = ()
    """Every place once per rule. A rule that matches anywhere has one here, however many places the others have."""
    coverage: float = 1.0
    """Share of the text before the first place that was not kept; 1 when all were."""


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    """Rules that are looked for together."""

    rules: Sequence[Rule] = ()
    """In the order in which they are reported."""
    allow: Sequence[Allow] = field(default=())
    """Texts that pass."""

    def allowed(self, text: str, *, today: dt.date) -> Allow | None:
        """The entry that lets a text pass on a day; None when there is none."""
        return next((entry for entry in self.allow if entry.until >= today and _found(entry.expression, text)), None)

    def find(self, text: str, normalised: Normalised, *, surface: str) -> Found:
        """Matches in the raw text, in the normalised one, and in what was decoded."""
        found: dict[tuple[str, int, int], Match] = {}
        end_known = len(text)
        forms = (_encodable(text), _encodable(normalised.text) if normalised.text != text else "")
        for rule in self.rules:
            if rule.surfaces and surface not in rule.surfaces:
                continue
            for places in _places(rule, *forms, normalised):
                most = max(1, MOST_PLACES - len(found))
                for start, end in itertools.islice(places, most):
                    span = Span(start=start, end=end, code=rule.code, replacement=rule.replacement)
                    found.setdefault((rule.rule_id, start, end), Match(rule=rule, span=span))
                left = next(iter(places), None)
                if left is not None:
                    end_known = min(end_known, left[0], len(text) - 1)
        return Found(matches=list(found.values()), coverage=end_known / len(text) if text else 1.0)


def compile_pattern(name: str, pattern: str) -> Any:  # noqa: ANN401 (re2 publishes no types)
    """An RE2 expression; letters match whatever their case.

    Raises:
        RuleError: If it is too long, does not compile, or matches the empty text.
    """
    if not pattern or len(pattern) > MAX_PATTERN:
        raise RuleError(f"{name}: a pattern has 1 to {MAX_PATTERN} characters, this one has {len(pattern)}")
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    try:
        expression = re2.compile(pattern, options=options)
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else error
        raise RuleError(f"{name}: {why}; patterns are RE2, which has no look-around and no back references") from error
    if expression.search("") is not None:
        raise RuleError(f"{name}: {pattern!r} matches the empty text, so it would find everything")
    if expression.groups > 1:
        raise RuleError(f"{name}: at most one group, which marks what was found; write (?:...) for the others")
    return expression


def quote(text: str) -> str:
    """A pattern that matches exactly this text."""
    return str(re2.escape(text))


def forbidden(words: Sequence[str], *, code: str) -> list[Rule]:
    """A rule per forbidden word or phrase; it matches between word borders, in any case and spacing.

    Raises:
        RuleError: If a phrase is empty.
    """
    rules = []
    for phrase in words:
        parts = normalise(phrase).text.split()
        if not parts:
            raise RuleError(f"deny: {phrase!r} holds no word")
        body = r"\s+".join(quote(part) for part in parts)
        expression = compile_pattern(f"deny {phrase!r}", f"{_WORD_BORDER}({body}){_WORD_END}")
        rules.append(Rule(rule_id=f"deny:{phrase}", expression=expression, code=code))
    return rules


def _places(rule: Rule, raw: str, normal: str, normalised: Normalised) -> Iterable[Iterator[tuple[int, int]]]:
    """The places in the raw text, in the normalised one (empty where it is the same) and in what was decoded."""
    decoded: list[Blob | Hidden] = [*normalised.blobs, *normalised.hidden]
    return (
        _spans(rule, raw),
        (normalised.mapped.raw_span(start, end) for start, end in _spans(rule, normal)),
        ((part.start, part.end) for part in decoded if _found(rule.expression, part.text)),
    )


def _spans(rule: Rule, text: str) -> Iterator[tuple[int, int]]:
    if text:
        for match in rule.expression.finditer(text):
            yield match.span(rule.expression.groups)


def _found(expression: Any, text: str) -> bool:  # noqa: ANN401 (re2 publishes no types)
    return bool(text) and expression.search(_encodable(text)) is not None


def _encodable(text: str) -> str:
    """The text with lone surrogates replaced one by one; none come over the wire."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
