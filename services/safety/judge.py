"""One judgement from text to verdict: cache, shield, policy, audit, metrics. What cannot be judged is blocked."""

import asyncio
import datetime as dt
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from services.runtime.calls import current_call, current_tenant
from services.safety.audit import AuditError, AuditLog
from services.safety.cache import JudgementCache, key_of
from services.safety.config import SafetyConfig
from services.safety.decide import NEVER_ALLOWED, Decision, as_struct, decide, lowest_threshold, order
from services.safety.guards import Guards
from services.safety.metrics import SafetyMetrics
from services.safety.policy import Binding, Policy
from services.safety.registry import Entry
from services.safety.shield import Judgement, Span, Subject, Surface, surface_name
from stack_client.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
    UnsupportedError,
    to_error_message,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A verdict, and what a stream needs to know beyond it."""

    verdict: v1.Verdict
    judgement: Judgement
    redactions: tuple[Span, ...] = ()
    """What must be replaced before the text is passed on."""


class Bench:
    """Judges texts.

    Args:
        config: Bounds.
        guards: The models of the inference service.
        audit: The log; None writes none.
        metrics: Counts verdicts.
    """

    def __init__(self, config: SafetyConfig, *, guards: Guards, audit: AuditLog | None, metrics: SafetyMetrics) -> None:
        self._guards = guards
        self._config = config
        self._audit = audit
        self._metrics = metrics
        self._running = asyncio.Semaphore(config.running_judgements)
        self._waiting = 0
        self.cache = JudgementCache(size=config.cached_verdicts, seconds=config.cache_seconds)
        self.most_characters = config.text_characters
        """Longest text of one judgement or stream."""

    def stream_ended(self, end: str, *, calls: int, sent: int) -> None:
        """Count a moderated stream: how it ended, guard calls, bytes sent to guards."""
        self._metrics.streams.labels(end).inc()
        self._metrics.guard_calls.inc(calls)
        self._metrics.guard_bytes.inc(sent)

    async def judge(
        self,
        entry: Entry,
        text: str,
        surface: Surface,
        *,
        policy: Policy,
        dialog: Sequence[v1.Message] = (),
        message_index: int = 0,
        in_context: bool = False,
        settled: int = 0,
        binding: Binding | None = None,
        audited: bool = True,
    ) -> Outcome:
        """Judge one text by one shield.

        Args:
            entry: The shield.
            text: May be empty, which is safe without asking anybody.
            surface: Where the text stands.
            policy: The version that decides.
            dialog: The messages before.
            message_index: Place of the text's message, for the spans.
            in_context: Whether the text is that message's retrieved context.
            settled: Characters at the start that are context only.
            binding: Instead of the policy's.
            audited: Whether the verdict is written to the log.

        Raises:
            InvalidArgumentError: If the text is too long, or the shield refuses it as such.
            ResourceExhaustedError: If too many judgements run.
            InternalError: If the verdict cannot be written and must be.
        """
        self._check_size(text)
        where = surface_name(surface)
        binding = binding or policy.binding(where, entry.shield.identifier)
        if binding.action is None:
            binding = replace(binding, action=entry.settings.action)
        warn = getattr(entry.implementation, "default_warn", None)
        if binding.warn is None and warn is not None:
            binding = replace(binding, warn=warn)
        own = entry.threshold(surface)
        started = time.monotonic()
        subject = Subject(
            text=text, surface=surface, dialog=dialog, settled=settled, threshold=lowest_threshold(binding, own=own)
        )
        judgement, error, cached = await self._look(entry, subject)
        decision = decide(judgement, binding, own=own)  # what was found counts even where the rest was not judged
        rule = policy.allows(where, text, today=dt.datetime.now(tz=dt.UTC).date()) if decision.action else None
        if rule is not None and NEVER_ALLOWED not in decision.codes:
            decision = Decision(action=None, rules=(f"allow:{rule.owner}",))
        verdict = _verdict(entry, subject, judgement, decision, error, policy=policy)
        if decision.action is not None:
            verdict.spans.extend(_spans(judgement, message_index=message_index, in_context=in_context))
        verdict.latency_ms = round((time.monotonic() - started) * 1000)
        verdict.cached = cached
        self._metrics.judged(verdict, seconds=time.monotonic() - started)
        if audited and self._audit is not None:
            await self._write([(verdict, text, decision.rules, own, binding)])
        redactions = judgement.spans if decision.action == "redact" else ()
        return Outcome(verdict=verdict, judgement=judgement, redactions=redactions)

    async def _look(self, entry: Entry, subject: Subject) -> tuple[Judgement, StackError | None, bool]:
        """The judgement, why there is none, and whether it was known before."""
        if not subject.text.strip("\0 \t\r\n"):
            return Judgement(score=0.0, baseline=entry.implementation.baseline), None, False
        key = key_of(entry, subject, tenant=current_tenant())
        known = self.cache.get(key, threshold=subject.threshold)
        if known is not None and known.stamp == await self._stamp(known.judgement):
            return known.judgement, None, True
        if self._waiting >= self._config.waiting_judgements:
            message = f"{self._waiting} judgements are waiting; ask again in a second"
            raise ResourceExhaustedError(message, retry_after=1.0)
        self._waiting += 1
        try:
            async with self._running:
                judgement, error = await self._ask(entry, subject)
        finally:
            self._waiting -= 1
        if error is None:
            self.cache.put(key, judgement, threshold=subject.threshold, stamp=await self._stamp(judgement))
        return judgement, error, False

    async def _stamp(self, judgement: Judgement) -> str:
        """Which weights judged, as far as that can be told by the model's name."""
        return await self._guards.stamp(judgement.model) if judgement.model else ""

    async def _ask(self, entry: Entry, subject: Subject) -> tuple[Judgement, StackError | None]:
        """Ask the shield; whatever goes wrong is an error to be decided on, never a safe text."""
        name = entry.shield.identifier
        nothing = Judgement(coverage=0.0, baseline=entry.implementation.baseline)
        try:
            async with asyncio.timeout(self._config.judge_seconds):
                judgement = await entry.implementation.judge(subject)
        except TimeoutError:
            message = f"shield {name!r} did not judge within {self._config.judge_seconds:g} s"
            return nothing, DeadlineExceededError(message)
        except (InvalidArgumentError, UnsupportedError):
            raise  # the caller's own fault, such as an image
        except StackError as error:
            return nothing, error
        except Exception as error:
            logger.exception("shield %s failed", name)
            return nothing, InternalError(f"shield {name!r} failed: {type(error).__name__}: {error}")
        return judgement, _why_not(judgement, name)

    def _check_size(self, text: str) -> None:
        most = self.most_characters
        if len(text) > most:
            message = f"the text has {len(text)} characters; at most {most} are judged at once (safety.text_characters)"
            raise InvalidArgumentError(message, field="messages")

    async def _write(self, judged: Sequence[tuple[v1.Verdict, str, tuple[str, ...], float, Binding]]) -> None:
        assert self._audit is not None
        call = current_call()
        entries = [
            {
                "verdict_id": verdict.verdict_id,
                "tenant": current_tenant(),
                "request_id": call.request_id if call else "",
                "surface": surface_name(verdict.surface),
                "shield_id": verdict.shield_id,
                "policy_version": verdict.policy_version,
                "verdict": _for_audit(verdict),
                "rules": list(rules),
                "threshold": binding.threshold if binding.threshold is not None else own,
                "text": text,
            }
            for verdict, text, rules, own, binding in judged
        ]
        try:
            await self._audit.append(entries)
        except AuditError as error:
            logger.error("audit log: %s", error)
            if self._config.audit.required:
                raise InternalError(f"the verdict cannot be written to the audit log: {error}") from error


def _why_not(judgement: Judgement, name: str) -> StackError | None:
    """Why a judgement is none; None when it is one."""
    if judgement.failure:
        return UnavailableError(f"shield {name!r} could not judge: {judgement.failure}")
    if judgement.coverage < 1:
        return UnavailableError(f"shield {name!r} judged only {judgement.coverage:.0%} of the text; shorten it")
    if judgement.score is None:
        return InternalError(f"shield {name!r} answered without a score")
    if not all(0 <= score <= 1 for score in (judgement.score, *judgement.category_scores.values())):  # nor NaN
        return InternalError(f"shield {name!r} answered with a score that is none: {judgement.score}")
    return None


def _verdict(
    entry: Entry,
    subject: Subject,
    judgement: Judgement,
    decision: Decision,
    error: StackError | None,
    *,
    policy: Policy,
) -> v1.Verdict:
    verdict = v1.Verdict(
        verdict_id=str(uuid.uuid4()),
        shield_id=entry.shield.identifier,
        surface=subject.surface,
        action=v1.SAFETY_ACTION_ALLOW,
        codes=decision.codes,
        score=judgement.score,
        score_kind=judgement.score_kind,
        category_scores=judgement.category_scores,
        model=judgement.model,
        model_hash=judgement.model_hash,
        policy_version=policy.version,
        baseline=judgement.baseline or entry.implementation.baseline,
        coverage=judgement.coverage,
        language=judgement.language,
        metadata=as_struct(judgement.metadata) if judgement.metadata else None,
    )
    if decision.action is not None:
        verdict.action, verdict.level = order(decision.action)
    if error is not None:
        verdict.error.CopyFrom(to_error_message(error))
        if policy.fails_open(surface_name(subject.surface)):
            logger.warning(
                "FAILED OPEN shield=%s surface=%s: %s",
                entry.shield.identifier, surface_name(subject.surface), error.message,
            )  # fmt: skip
            if verdict.action < v1.SAFETY_ACTION_WARN:
                verdict.action, verdict.level = order("warn")
        else:
            verdict.action, verdict.level = order("block")
    return verdict


def _spans(judgement: Judgement, *, message_index: int, in_context: bool) -> list[v1.VerdictSpan]:
    return [
        v1.VerdictSpan(
            message_index=message_index,
            start=span.start,
            end=span.end,
            code=span.code,
            in_context=in_context,
            replacement=span.replacement,
        )
        for span in judgement.spans
    ]


def _for_audit(verdict: v1.Verdict) -> dict[str, Any]:
    facts: dict[str, Any] = json_format.MessageToDict(verdict, preserving_proto_field_name=True)
    return facts
