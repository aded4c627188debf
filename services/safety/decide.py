"""From what a shield found to what the policy orders: pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.safety.policy import Action, Binding
from services.safety.shield import Judgement, Span
from stack_client.safety import GUARD_UNAVAILABLE, REFUSAL, UNJUDGED

NEVER_ALLOWED = "S4"

_STRICTNESS: tuple[Action, ...] = ("log", "warn", "redact", "block")
_ORDERS = {
    "block": (v1.SAFETY_ACTION_BLOCK, v1.VIOLATION_LEVEL_ERROR),
    "redact": (v1.SAFETY_ACTION_REDACT, v1.VIOLATION_LEVEL_WARN),
    "warn": (v1.SAFETY_ACTION_WARN, v1.VIOLATION_LEVEL_WARN),
    "log": (v1.SAFETY_ACTION_ALLOW, v1.VIOLATION_LEVEL_INFO),
}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What follows from a judgement."""

    action: Action | None
    """None when nothing was found."""
    codes: tuple[str, ...] = ()
    """The codes that count."""
    rules: tuple[str, ...] = ()
    """Keys of the binding that decided, for example `threshold` or `categories.S6.action`."""


def lowest_threshold(binding: Binding, *, own: float) -> float:
    """The score from which a binding asks for anything.

    Args:
        binding: Of the shield to the surface.
        own: The shield's threshold where the binding names none.
    """
    asked = [binding.threshold if binding.threshold is not None else own]
    asked += [binding.warn] if binding.warn is not None else []
    asked += [rule.threshold for rule in binding.categories.values() if rule.threshold is not None]
    return min(asked)


def decide(judgement: Judgement, binding: Binding, *, own: float) -> Decision:
    """What a binding orders for a judgement; failures and coverage are the caller's matter.

    A category with a threshold of its own is compared by its own score where it has one; all others by the score of the
    whole text, for the shares of several categories together are what made it unsafe.
    """
    if judgement.score is None:
        return Decision(action=None)
    threshold = binding.threshold if binding.threshold is not None else own
    found: list[tuple[Action, str, str]] = []
    for code in dict.fromkeys([*judgement.codes, *judgement.category_scores]):
        rule = binding.categories.get(code)
        if rule is not None and rule.threshold is not None:
            score = judgement.category_scores.get(code, judgement.score if code in judgement.codes else 0.0)
            limit, where = rule.threshold, f"categories.{code}.threshold"
        elif code in judgement.codes:
            score, limit, where = judgement.score, threshold, "threshold"
        else:
            continue
        if score >= limit:
            found.append((rule.action if rule and rule.action else binding.action or "block", code, where))
        elif binding.warn is not None and score >= binding.warn:
            found.append(("warn", code, "warn"))
    if not judgement.codes and judgement.score >= threshold:
        found.append((binding.action or "block", "", "threshold"))
    elif not judgement.codes and binding.warn is not None and judgement.score >= binding.warn:
        found.append(("warn", "", "warn"))
    if not found:
        return Decision(action=None)
    action = max((action for action, _, _ in found), key=_STRICTNESS.index)
    if action == "redact" and not judgement.spans:
        action = "block"  # nothing says which part to take out
    codes = dict.fromkeys(code for _, code, _ in found if code)
    return Decision(action=action, codes=tuple(codes), rules=tuple(dict.fromkeys(where for *_, where in found)))


def order(action: Action) -> tuple["v1.SafetyAction.ValueType", "v1.ViolationLevel.ValueType"]:
    """Action and level of the contract."""
    return _ORDERS[action]


def strictest(verdicts: list[v1.Verdict]) -> v1.Verdict:
    """The verdict that decides; among equals the one with the highest score, then the first."""
    return max(verdicts, key=lambda verdict: (verdict.action, verdict.level, verdict.score))


def blocks(verdict: v1.Verdict) -> bool:
    """Whether the text must not be passed on."""
    return verdict.action >= v1.SAFETY_ACTION_HOLD


def violation_of(verdict: v1.Verdict) -> v1.SafetyViolation | None:
    """The verdict as Llama Stack tells it; None when nothing was found."""
    if verdict.level == v1.VIOLATION_LEVEL_UNSPECIFIED:
        return None
    facts = json_format.MessageToDict(verdict.metadata)
    facts.setdefault("violation_type", ",".join(verdict.codes))
    unjudged = verdict.HasField("error") and not verdict.codes
    if unjudged:
        facts |= {"violation_type": GUARD_UNAVAILABLE, "error": verdict.error.message}
    facts |= {
        "shield_id": verdict.shield_id,
        "verdict_id": verdict.verdict_id,
        "policy_version": verdict.policy_version,
        "surface": v1.SafetySurface.Name(verdict.surface).removeprefix("SAFETY_SURFACE_").lower(),
        "action": v1.SafetyAction.Name(verdict.action).removeprefix("SAFETY_ACTION_").lower(),
        "baseline": verdict.baseline,
        "categories": list(verdict.codes),
    }
    if verdict.HasField("score"):
        facts |= {"score": verdict.score, "score_kind": v1.ScoreKind.Name(verdict.score_kind)}
    if verdict.category_scores:
        facts["category_scores"] = dict(verdict.category_scores)
    violation = v1.SafetyViolation(violation_level=verdict.level)
    if blocks(verdict):
        violation.user_message = UNJUDGED if unjudged else REFUSAL
    json_format.ParseDict(facts, violation.metadata)
    return violation


def as_struct(facts: Mapping[str, Any]) -> Struct:
    """Plain JSON as the proto."""
    return json_format.ParseDict(dict(facts), Struct())


def placeholder(span: Span) -> str:
    """What redaction puts in a span's place."""
    return f"[{span.code}]" if span.replacement is None else span.replacement
