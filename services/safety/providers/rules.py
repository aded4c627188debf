"""Provider `rules`: patterns, forbidden words and limits of a registration. A finding scores 1, anything else 0."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamastack import v1
from services.runtime.offload import offload
from services.safety import rules
from services.safety.baseline import phrases
from services.safety.normalise import normalise
from services.safety.rules import Allow, Rule, RuleError, RuleSet
from services.safety.shield import Judgement, ProviderContext, Shield, Span, Subject, Surface, surface_name
from stack_client.errors import InvalidArgumentError

_PARAMS = ("allow", "builtin", "deny", "limits", "patterns")
_PATTERN_KEYS = frozenset({"id", "pattern", "code", "surfaces", "replacement"})
_ALLOW_KEYS = frozenset({"exact", "pattern", "until", "owner"})
_MOST_RULES = 1000
_MOST_FINDINGS = 64
# Never let pass by an allow entry: child exploitation.
_ALWAYS = "S4"

_COUNTS: Mapping[str, Callable[[str], int]] = {
    "max_characters": len,
    "max_lines": lambda text: len(text.splitlines()),
    "max_line_characters": lambda text: max((len(line) for line in text.splitlines()), default=0),
    "max_urls": lambda text: text.lower().count("http://") + text.lower().count("https://"),
}


@dataclass(frozen=True, kw_only=True)
class RulesShield(Shield):
    """A registered set of rules."""

    rule_set: RuleSet
    limits: Mapping[str, int]
    baseline: bool = False
    streams: bool = True
    every_message: bool = False

    def default_threshold(self, surface: Surface) -> float:  # noqa: ARG002 (rules know no degrees)
        """Any finding counts."""
        return 1.0

    async def judge(self, subject: Subject) -> Judgement:
        """Look for every rule, a long text in a thread."""
        return await offload(len(subject.text), self._judged, subject)

    def _judged(self, subject: Subject) -> Judgement:
        text = subject.text
        searched = self.rule_set.find(text, normalise(text), surface=surface_name(subject.surface))
        found = searched.matches
        entry = self.rule_set.allowed(text, today=dt.datetime.now(dt.UTC).date())
        if entry:
            found = [match for match in found if match.rule.code == _ALWAYS]
        broken = [] if entry else [name for name, most in self.limits.items() if _COUNTS[name](text) > most]
        codes = tuple(dict.fromkeys([*(match.rule.code for match in found), *(["limit_exceeded"] if broken else [])]))
        spans = [match.span for match in found]
        if "max_characters" in broken:
            spans.append(Span(start=self.limits["max_characters"], end=len(text), code="limit_exceeded"))
        metadata: dict[str, Any] = {
            "findings": [_finding(match.rule, match.span) for match in found[:_MOST_FINDINGS]]
            + [{"rule": name} for name in broken]
        }
        if len(found) > _MOST_FINDINGS:
            metadata["findings_left_out"] = len(found) - _MOST_FINDINGS
        if entry:
            metadata["allowed_by"] = entry.owner
        return Judgement(
            codes=codes,
            score=1.0 if codes else 0.0,
            score_kind=v1.SCORE_KIND_RULE,
            category_scores=dict.fromkeys(codes, 1.0),
            spans=tuple(spans),
            coverage=1.0 if entry else searched.coverage,
            metadata=metadata,
        )


class RulesProvider:
    """Makes shields of rules.

    Parameters: `patterns` (list of `id`, `pattern` and optionally `code`, `surfaces`, `replacement`), `deny` (words and
    phrases), `allow` (list of `exact` or `pattern`, `until`, `owner`), `limits` (`max_characters`, `max_lines`,
    `max_line_characters`, `max_urls`), `builtin` (also look for phrases of prompt injection). What follows a finding is
    for the shield's `action` or the policy, by code; a pattern has no action of its own.

    Verdicts have in their metadata: `findings` (the first 64, with rule, code and place; all places are spans),
    `findings_left_out` (how many more) and `allowed_by`.
    """

    provider_type = "inline::rules"

    def __init__(self, context: ProviderContext) -> None:
        del context  # rules ask no model

    async def create(self, shield: v1.Shield, params: Mapping[str, Any]) -> RulesShield:
        """A shield from its registration; see `ShieldProvider.create`."""
        unknown = sorted(set(params) - set(_PARAMS))
        if unknown:
            message = f"rules know no parameter {unknown[0]!r}; there are: {', '.join(_PARAMS)}"
            raise _wrong(unknown[0], message)
        found = [*_patterns(params.get("patterns", [])), *_deny(params.get("deny", []))]
        if not isinstance(params.get("builtin", False), bool):
            raise _wrong("builtin", f"builtin is true or false, not {params['builtin']!r}")
        if params.get("builtin", False):
            found += phrases.builtin().rules
        limits = _limits(params.get("limits", {}))
        if not found and not limits:
            raise _wrong(
                "patterns", f"shield {shield.identifier!r} has no rule: give patterns, deny, limits or builtin"
            )
        if len(found) > _MOST_RULES:
            raise _wrong("patterns", f"{len(found)} rules; one shield has at most {_MOST_RULES}")
        return RulesShield(rule_set=RuleSet(rules=found, allow=_allow(params.get("allow", []))), limits=limits)


def _finding(rule: Rule, span: Span) -> dict[str, Any]:
    return {"rule": rule.rule_id, "code": rule.code, "start": span.start, "end": span.end}


def _patterns(entries: object) -> list[Rule]:
    found: dict[str, Rule] = {}
    for index, entry in enumerate(_list(entries, "patterns")):
        where = f"patterns[{index}]"
        fields = _fields(entry, where, known=_PATTERN_KEYS, required=("id", "pattern"))
        if fields["id"] in found:
            raise _wrong(where, f"{where}: id {fields['id']!r} is used twice")
        found[fields["id"]] = Rule(
            rule_id=fields["id"],
            expression=_compiled(where, fields["pattern"]),
            code=fields.get("code") or fields["id"],
            surfaces=_surfaces(fields.get("surfaces", []), where),
            replacement=fields.get("replacement"),
        )
    return list(found.values())


def _surfaces(names: object, where: str) -> frozenset[str]:
    known = [surface_name(value) for value in v1.SafetySurface.values() if value != v1.SAFETY_SURFACE_UNSPECIFIED]
    for name in _list(names, where):
        if name not in known:
            raise _wrong(where, f"{where}: no surface {name!r}; there are: {', '.join(known)}")
    return frozenset(_list(names, where))


def _deny(words: object) -> list[Rule]:
    texts = _list(words, "deny")
    if not all(isinstance(word, str) for word in texts):
        raise _wrong("deny", "deny is a list of words and phrases")
    try:
        return rules.forbidden(texts, code="denied_words")
    except RuleError as error:
        raise _wrong("deny", str(error)) from error


def _allow(entries: object) -> list[Allow]:
    found = []
    for index, entry in enumerate(_list(entries, "allow")):
        where = f"allow[{index}]"
        fields = _fields(entry, where, known=_ALLOW_KEYS, required=("until", "owner"))
        if ("exact" in fields) == ("pattern" in fields):
            raise _wrong(where, f"{where}: give either exact or pattern")
        pattern = fields.get("pattern") or f"^{rules.quote(fields['exact'])}$"
        if not (pattern.startswith("^") and pattern.endswith("$")):
            raise _wrong(where, f"{where}: pattern {pattern!r} must match the whole text: begin with ^ and end with $")
        try:
            until = dt.date.fromisoformat(fields["until"])
        except ValueError as error:
            raise _wrong(where, f"{where}: until is a day such as 2027-06-01, not {fields['until']!r}") from error
        found.append(
            Allow(expression=_compiled(where, rf"\A(?:{pattern[1:-1]})\z"), until=until, owner=fields["owner"])
        )
    return found


def _limits(entries: object) -> dict[str, int]:
    if not isinstance(entries, Mapping):
        raise _wrong("limits", f"limits is an object with {', '.join(_COUNTS)}")
    limits = {}
    for name, value in entries.items():
        if name not in _COUNTS:
            raise _wrong("limits", f"no limit {name!r}; there are: {', '.join(_COUNTS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
            raise _wrong("limits", f"limits.{name} is a whole number from 0, not {value!r}")
        limits[name] = int(value)
    return limits


def _compiled(where: str, pattern: str) -> Any:  # noqa: ANN401 (re2 publishes no types)
    try:
        return rules.compile_pattern(where, pattern)
    except RuleError as error:
        raise _wrong(where, str(error)) from error


def _fields(entry: object, where: str, *, known: frozenset[str], required: Sequence[str]) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise _wrong(where, f"{where} is an object with {', '.join(sorted(known))}")
    if unknown := sorted(set(entry) - known):
        raise _wrong(where, f"{where} knows no parameter {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    for name in required:
        if not entry.get(name):
            raise _wrong(where, f"{where}: {name} is missing")
    wrong = [name for name, value in entry.items() if name != "surfaces" and not isinstance(value, str)]
    if wrong:
        raise _wrong(where, f"{where}: {wrong[0]} is a text")
    return dict(entry)


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, f"{where} is a list")
    return list(value)


def _wrong(name: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, field=f"params.{name}")
