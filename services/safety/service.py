"""The RPC edge of safety: which shields judge which texts, and how their verdicts are told."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from services.runtime.calls import current_tenant
from services.runtime.stream import EventWriter, RpcContext
from services.runtime.together import together
from services.safety.audit import AuditLog
from services.safety.decide import as_struct, placeholder, strictest, violation_of
from services.safety.guard.profiles import HAZARDS
from services.safety.judge import Bench, Outcome
from services.safety.policies import Policies
from services.safety.policy import Policy
from services.safety.registry import Entry, ShieldRegistry
from services.safety.shield import Surface, surface_name
from services.safety.stream import ModeratedStream, read_stream
from services.safety.subjects import Part, parts_of
from stack_client.content import replaced
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from stack_client.safety import POLICY

MOST_SHIELDS = 16
MOST_INPUTS = 256
INPUTS_AT_ONCE = 16
CLOSING_SECONDS = 2.0


class SafetyService(v1.SafetyServiceServicer):
    """`llamastack.v1.SafetyService`."""

    def __init__(
        self,
        bench: Bench,
        registry: ShieldRegistry,
        policies: Policies,
        *,
        audit: AuditLog | None,
        moderation_shield: str,
        draining: asyncio.Event,
        grace_seconds: float,
    ) -> None:
        self._bench = bench
        self._registry = registry
        self._policies = policies
        self._audit = audit
        self._moderation_shield = moderation_shield
        self._draining = draining
        self._grace = grace_seconds

    async def RunShield(self, request: v1.RunShieldRequest, context: RpcContext) -> v1.RunShieldResponse:
        """Run one shield, or the policy's."""
        params = json_format.MessageToDict(request.params)
        verdict = await self._run(request.shield_id, request.messages, request.surface, params=params)
        return v1.RunShieldResponse(violation=violation_of(verdict), verdict=verdict)

    async def RunShields(self, request: v1.RunShieldsRequest, context: RpcContext) -> v1.RunShieldsResponse:
        """Run several shields at once."""
        _check_shields([invocation.shield_id for invocation in request.shields], field="shields")
        verdicts = await together(
            [
                self._run(
                    invocation.shield_id,
                    request.messages,
                    request.surface,
                    params=json_format.MessageToDict(invocation.params),
                )
                for invocation in request.shields
            ]
        )
        responses = [
            _shield_response(invocation, verdict) for invocation, verdict in zip(request.shields, verdicts, strict=True)
        ]
        return v1.RunShieldsResponse(responses=responses, action=max(response.verdict.action for response in responses))

    async def Moderate(self, request: v1.ModerateRequest, context: RpcContext) -> v1.ModerateResponse:
        """Judge independent texts."""
        if not request.input:
            raise InvalidArgumentError("input is empty; send at least one text", reason="MISSING_FIELD", field="input")
        if len(request.input) > MOST_INPUTS:
            message = f"input has {len(request.input)} texts; at most {MOST_INPUTS} are allowed"
            raise InvalidArgumentError(message, field="input")
        check_surface(request.surface)
        surface = request.surface or v1.SAFETY_SURFACE_USER
        policy = self._policies.current
        entries, model = self._moderators(request.model, surface)
        gate = asyncio.Semaphore(INPUTS_AT_ONCE)  # a long list leaves room for other callers

        async def moderate(text: str) -> v1.ModerationResult:
            async with gate:
                return await self._moderate(entries, text, surface, policy=policy)

        results = await together([moderate(text) for text in request.input])
        return v1.ModerateResponse(id=f"modr-{uuid.uuid4()}", model=model, results=results)

    async def StreamModerate(  # type: ignore[override]
        self, requests: AsyncIterator[v1.StreamModerateRequest], context: RpcContext
    ) -> None:
        """Judge a text while it is generated."""
        start = await _start_of(requests)
        check_surface(start.surface)
        surface = start.surface or v1.SAFETY_SURFACE_ASSISTANT
        policy = self._policies.current
        entries = self._streaming_entries(start.shield_ids, surface, policy)
        parts_of([*start.messages, _user("x")], v1.SAFETY_SURFACE_UNSPECIFIED, every_message=False)  # checks them
        await context.send_initial_metadata(())  # tells the caller that the start is accepted
        writer = EventWriter(context, v1.StreamModerateResponse, draining=self._draining, grace_seconds=self._grace)
        stream = ModeratedStream(
            self._bench, entries, policy=policy, surface=surface, dialog=start.messages, mode=start.mode,
            write=writer.write, offsets_only=start.offsets_only,
        )  # fmt: skip
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(writer.keep_alive())
                reading = group.create_task(read_stream(requests, stream))
                await stream.run()
                keeper.cancel()
                # Until the caller has closed its side: a call that ends under its writes would lose the last event.
                await asyncio.wait([reading], timeout=CLOSING_SECONDS)
                reading.cancel()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def GetPolicy(self, request: v1.GetPolicyRequest, context: RpcContext) -> v1.GetPolicyResponse:
        """A version of the policy."""
        facts = await asyncio.to_thread(self._policies.get, request.policy_id, request.version)
        policy = v1.SafetyPolicy(
            policy_id=facts["policy_id"], version=facts["version"], document=as_struct(facts["document"])
        )
        policy.loaded_at.FromJsonString(facts["loaded_at"])
        return v1.GetPolicyResponse(policy=policy)

    async def ExplainVerdict(self, request: v1.ExplainVerdictRequest, context: RpcContext) -> v1.ExplainVerdictResponse:
        """Why a verdict was given."""
        if self._audit is None:
            raise FailedPreconditionError("the audit log is switched off (safety.audit.enabled)")
        if not request.verdict_id:
            raise InvalidArgumentError("verdict_id is empty", reason="MISSING_FIELD", field="verdict_id")
        record = await asyncio.to_thread(self._audit.find, request.verdict_id)
        if record is None or record["tenant"] != current_tenant():
            raise NotFoundError(f"no verdict {request.verdict_id!r} in the audit log", field="verdict_id")
        verdict = json_format.ParseDict(record["verdict"], v1.Verdict())
        at = Timestamp()
        at.FromJsonString(record["time"])
        where = f"surfaces.{record['surface']}.shields.{record['shield_id']}"
        return v1.ExplainVerdictResponse(
            verdict=verdict,
            rules=[rule if rule.startswith("allow:") else f"{where}.{rule}" for rule in record["rules"]],
            thresholds=dict.fromkeys(verdict.codes or ["*"], record["threshold"]),
            judged_at=at,
        )

    async def _run(
        self, name: str, messages: Sequence[v1.Message], surface: Surface, *, params: dict[str, Any]
    ) -> v1.Verdict:
        """The strictest verdict of one shield, or of the policy's, over what is new in a dialog."""
        check_surface(surface)
        policy = self._policies.current
        if name == POLICY:
            if params:
                raise InvalidArgumentError("params: the policy has none; name a shield", field="params")
            work = self._of_policy(messages, surface, policy)
        else:
            entry = await self._registry.with_params(self._entry(name), params)
            work = [(entry, part) for part in parts_of(messages, surface, every_message=entry.every_message)]
        if not work:
            return v1.Verdict(
                verdict_id=str(uuid.uuid4()), shield_id=POLICY, action=v1.SAFETY_ACTION_ALLOW,
                policy_version=policy.version, metadata=as_struct({"unbound": True}),
            )  # fmt: skip
        outcomes = await together([self._judge_part(entry, part, policy) for entry, part in work])
        verdict = combined([outcome.verdict for outcome in outcomes])
        if verdict.action == v1.SAFETY_ACTION_REDACT:
            verdict.metadata.update({"redacted_text": _redacted(outcomes, [part for _, part in work])})
        return verdict

    def _of_policy(self, messages: Sequence[v1.Message], surface: Surface, policy: Policy) -> list[tuple[Entry, Part]]:
        """What each shield of the policy judges; policies name everybody's shields, never a tenant's own."""
        return [
            (entry, part)
            for part in parts_of(messages, surface, every_message=True)
            for binding in policy.bindings(surface_name(part.surface))
            for entry in [self._registry.get(binding.shield)]
            if part.new or entry.every_message
        ]

    async def _judge_part(self, entry: Entry, part: Part, policy: Policy) -> Outcome:
        return await self._bench.judge(
            entry,
            part.text,
            part.surface,
            policy=policy,
            dialog=part.dialog,
            message_index=part.message_index,
            in_context=part.in_context,
        )

    def _entry(self, name: str) -> Entry:
        return self._registry.get(name, tenant=current_tenant())

    def _moderators(self, model: str, surface: Surface) -> tuple[list[Entry], str]:
        """The shields of a moderation call, and what its answer calls the model."""
        if not model and not self._moderation_shield:
            bindings = self._policies.current.bindings(surface_name(surface))
            bound = [self._registry.get(binding.shield) for binding in bindings]
            if not bound:
                message = "model is missing, and the policy binds no shield to this surface"
                raise InvalidArgumentError(message, reason="MISSING_FIELD", field="model")
            return bound, bound[0].shield.provider_resource_id if len(bound) == 1 else POLICY
        wanted = model or self._moderation_shield
        shields = self._registry.shields(current_tenant())
        found = [shield for shield in shields if shield.provider_resource_id == wanted]
        found = found or [shield for shield in shields if shield.identifier == wanted]
        if not found:
            known = ", ".join(sorted({shield.provider_resource_id for shield in shields})) or "none"
            message = f"no shield uses the guard model {wanted!r}; there are: {known}"
            raise NotFoundError(message, reason="MODEL_NOT_FOUND", metadata={"model": wanted}, field="model")
        if len(found) > 1:
            names = ", ".join(shield.identifier for shield in found)
            raise InvalidArgumentError(
                f"model {wanted!r} fits several shields: {names}; name one of them", field="model"
            )
        return [self._entry(found[0].identifier)], found[0].provider_resource_id

    async def _moderate(
        self, entries: list[Entry], text: str, surface: Surface, *, policy: Policy
    ) -> v1.ModerationResult:
        outcomes = await together([self._bench.judge(entry, text, surface, policy=policy) for entry in entries])
        verdict = combined([outcome.verdict for outcome in outcomes])
        violation = violation_of(verdict)
        flagged = violation is not None and verdict.level != v1.VIOLATION_LEVEL_INFO
        names = [HAZARDS.get(code, code) for code in verdict.codes]
        scores = {HAZARDS.get(code, code): score for code, score in verdict.category_scores.items()}
        # A shield that judges no hazards, such as one for personal data, has found none of them nor their absence.
        judges_hazards = bool(scores or names) or "profile" in verdict.metadata
        categories = {name: name in names for name in [*HAZARDS.values(), *scores, *names]} if judges_hazards else {}
        applied = dict.fromkeys(categories, v1.ModerationInputTypes(types=["text"]))
        result = v1.ModerationResult(
            flagged=flagged, categories=categories, category_scores=scores, category_applied_input_types=applied,
        )  # fmt: skip
        facts = json_format.MessageToDict(violation.metadata) if violation else {
            "policy_version": verdict.policy_version, "shield_id": verdict.shield_id, "baseline": verdict.baseline,
            "verdict_id": verdict.verdict_id, **({"score": verdict.score} if verdict.HasField("score") else {}),
        }  # fmt: skip
        json_format.ParseDict(facts, result.metadata)
        if violation is not None and violation.HasField("user_message"):
            result.user_message = violation.user_message
        return result

    def _streaming_entries(self, names: Sequence[str], surface: Surface, policy: Policy) -> list[Entry]:
        if len(names) > MOST_SHIELDS:
            raise InvalidArgumentError(f"shield_ids has {len(names)} names; at most {MOST_SHIELDS}", field="shield_ids")
        found: dict[str, Entry] = {}
        for name in names or [POLICY]:
            if name == POLICY:
                bindings = policy.bindings(surface_name(surface))
                found |= {binding.shield: self._registry.get(binding.shield) for binding in bindings}
            else:
                found[name] = self._entry(name)
        if not found and not names:
            message = f"shield_ids is empty, and the policy binds no shield to surface {surface_name(surface)}"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field="shield_ids")
        return list(found.values())


def combined(verdicts: list[v1.Verdict]) -> v1.Verdict:
    """The strictest verdict, with what the others of the same call found beside it."""
    first = strictest(verdicts)
    if len(verdicts) == 1:
        return first
    whole = v1.Verdict()
    whole.CopyFrom(first)
    if first.HasField("error") and not first.codes:
        return whole  # that nothing could be judged is the message; findings beside it would hide that
    for other in verdicts:
        if other is first or other.level == v1.VIOLATION_LEVEL_UNSPECIFIED:
            continue
        whole.codes.extend(code for code in other.codes if code not in whole.codes)
        whole.spans.extend(other.spans)
    for other in verdicts:
        for code, score in other.category_scores.items():
            whole.category_scores[code] = max(score, whole.category_scores.get(code, 0.0))
    whole.coverage = min(verdict.coverage for verdict in verdicts)
    whole.latency_ms = max(verdict.latency_ms for verdict in verdicts)
    return whole


def check_surface(surface: Surface) -> None:
    """Refuse surfaces that this version does not know.

    Raises:
        InvalidArgumentError: If it is one.
    """
    if surface not in v1.SafetySurface.values():
        raise InvalidArgumentError(f"surface is {surface}, which this version does not know", field="surface")


def _redacted(outcomes: Sequence[Outcome], parts: Sequence[Part]) -> str:
    """The last message's text without what all shields take out of it."""
    index = max(part.message_index for part in parts)
    here = [(outcome, part) for outcome, part in zip(outcomes, parts, strict=True) if part.message_index == index]
    text = next(part.text for _, part in here if not part.in_context)
    spans = [span for outcome, part in here if not part.in_context for span in outcome.redactions]
    return replaced(text, [(span.start, span.end, placeholder(span)) for span in spans])


def _shield_response(invocation: v1.ShieldInvocation, verdict: v1.Verdict) -> v1.ShieldResponse:
    """What a shield found, after what the caller makes of it; a guard that could not judge is not his to forgive."""
    violation = violation_of(verdict)
    unjudged = verdict.HasField("error") and verdict.action >= v1.SAFETY_ACTION_HOLD
    action = v1.ON_VIOLATION_ACTION_UNSPECIFIED if unjudged else invocation.on_violation_action
    if invocation.on_violation_action not in v1.OnViolationAction.values():
        message = f"on_violation_action is {invocation.on_violation_action}, which this version does not know"
        raise InvalidArgumentError(message, field="shields.on_violation_action")
    match action:
        case v1.ON_VIOLATION_ACTION_IGNORE:
            violation = None
            verdict.action, verdict.level = v1.SAFETY_ACTION_ALLOW, v1.VIOLATION_LEVEL_UNSPECIFIED
        case v1.ON_VIOLATION_ACTION_WARN if violation is not None:
            verdict.action, verdict.level = v1.SAFETY_ACTION_WARN, v1.VIOLATION_LEVEL_WARN
            violation = violation_of(verdict)
        case v1.ON_VIOLATION_ACTION_RAISE if violation is not None:
            verdict.action, verdict.level = v1.SAFETY_ACTION_BLOCK, v1.VIOLATION_LEVEL_ERROR
            violation = violation_of(verdict)
    response = v1.ShieldResponse(
        shield_id=invocation.shield_id, is_violation=violation is not None, violation=violation, verdict=verdict
    )
    if violation is not None:
        response.violation_type = str(violation.metadata["violation_type"])
        if violation.HasField("user_message"):
            response.violation_return_message = violation.user_message
    return response


def _check_shields(names: list[str], *, field: str) -> None:
    if not names:
        raise InvalidArgumentError(f"{field} is empty; name at least one", reason="MISSING_FIELD", field=field)
    if len(names) > MOST_SHIELDS:
        raise InvalidArgumentError(f"{field} has {len(names)} entries; at most {MOST_SHIELDS}", field=field)
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgumentError(f"{field}: {name!r} is there twice", field=field)


async def _start_of(requests: AsyncIterator[v1.StreamModerateRequest]) -> v1.ModerationStart:
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("message") != "start":
        raise InvalidArgumentError("the first message of a moderated stream is its start", field="start")
    return first.start


def _user(text: str) -> v1.Message:
    content = v1.InterleavedContent(items=[v1.ContentItem(text=text)])
    return v1.Message(user=v1.UserMessage(content=content))
