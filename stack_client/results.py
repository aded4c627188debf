"""What a run of an agent gives: events on the way, a result at its end, and what it waits for in between."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from stack_client.content import plain, struct
from stack_client.errors import FailedPreconditionError, InvalidArgumentError

_KINDS = {
    v1.PENDING_KIND_CLIENT_TOOL: "client_tool",
    v1.PENDING_KIND_APPROVAL: "approval",
    v1.PENDING_KIND_INPUT: "input",
    v1.PENDING_KIND_LOST: "lost",
}


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A call that waits for a person."""

    id: str
    """Names it in `approve`, `deny` and `answer`."""
    kind: str
    """`approval`: it may run or not. `input`: the tool asks something. `lost`: a process ended while an unsafe tool
    ran, so a person says what became of it: `answer` with the result, `approve` to run it again, or `deny`.
    `client_tool`: a function that the program which began the run has."""
    tool: str
    """Full name of the tool, `group/tool`, or of a function."""
    arguments: Mapping[str, Any]
    """What it would be called with."""
    message: str = ""
    """What the tool asks; only with `input`."""
    schema: Mapping[str, Any] | None = None
    """JSON Schema of the answer, where the tool gives one."""
    raw: v1.PendingCall = field(repr=False)
    """The service's own."""

    @classmethod
    def of(cls, raw: v1.PendingCall) -> "Pending":
        """A call as the service tells it."""
        text = raw.call.arguments_json or json_format.MessageToJson(raw.call.arguments)
        schema = raw.input.requested_schema if raw.input.HasField("requested_schema") else None
        return cls(
            id=raw.call.call_id,
            kind=_KINDS.get(raw.kind, "unknown"),
            tool=raw.tool or raw.call.tool_name,
            arguments=_arguments(text),
            message=raw.input.message,
            schema=None if schema is None else plain(json_format.MessageToDict(schema)),
            raw=raw,
        )


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Decisions about calls that wait; give it to `run`, `arun`, `stream` or `astream`. More can be chained."""

    turn_id: str
    """The turn that waits."""
    pending: Sequence[Pending]
    """What it waits for."""
    decisions: tuple[v1.ToolDecision, ...] = ()
    """What was decided."""
    responses: tuple[v1.ToolResponse, ...] = ()
    """Results that a person brings."""

    def approve(self, id: str = "", *, arguments: Mapping[str, Any] | None = None, by: str = "") -> "Answers":  # noqa: A002 (what users call it)
        """Let a call run, also with other arguments; without an id the only one that waits."""
        text = "" if arguments is None else json.dumps(dict(arguments))
        return self._decide(id, v1.TOOL_DECISION_KIND_APPROVE, arguments_json=text, decided_by=by)

    def deny(self, id: str = "", why: str = "", *, by: str = "") -> "Answers":  # noqa: A002
        """Do not let a call run; the model reads why."""
        return self._decide(id, v1.TOOL_DECISION_KIND_DENY, reason=why, decided_by=by)

    def answer(self, id: str = "", value: object = None, *, action: str = "accept", by: str = "") -> "Answers":  # noqa: A002
        """Answer what a tool asks (a mapping, or a text as `value`), or say what a lost call gave."""
        one = self._one(id)
        if one.kind == "lost":
            text = value if isinstance(value, str) else json.dumps(value)
            response = v1.ToolResponse(call_id=one.id)
            response.content.items.add(text=text)
            return _with(self, responses=(*self.responses, response))
        fields = dict(value) if isinstance(value, Mapping) else {} if value is None else {"value": value}
        said = v1.ToolInputResponse(action=action, content=struct(fields))
        return self._decide(one.id, v1.TOOL_DECISION_KIND_ANSWER, input=said, decided_by=by)

    def _decide(self, id: str, kind: "v1.ToolDecisionKind.ValueType", **facts: Any) -> "Answers":  # noqa: A002, ANN401
        decision = v1.ToolDecision(call_id=self._one(id).id, kind=kind, **facts)
        return _with(self, decisions=(*self.decisions, decision))

    def _one(self, id: str) -> Pending:  # noqa: A002
        decided = {one.call_id for one in self.decisions} | {one.call_id for one in self.responses}
        left = [one for one in self.pending if one.id not in decided]
        chosen = [one for one in left if id in {"", one.id}]
        if len(chosen) == 1:
            return chosen[0]
        names = ", ".join(f"{one.id} ({one.tool})" for one in left) or "nothing"
        what = f"no call {id!r} waits" if id else "name the call that is meant"
        raise InvalidArgumentError(f"{what}; there waits: {names}", field="id")


def _with(answers: Answers, **changes: Any) -> Answers:  # noqa: ANN401
    return Answers(**{**vars(answers), **changes})


@dataclass(frozen=True, kw_only=True)
class AgentResult:
    """The end of a run, or of the part up to where it waits for a person."""

    text: str
    """The answer; empty while something waits."""
    turn: v1.Turn
    """The whole turn: steps, usage, times."""
    session_id: str
    """The session, to go on from another process."""
    output_type: Any = field(default=None, repr=False)
    """What `output` is read as."""

    @property
    def turn_id(self) -> str:
        """The turn."""
        return self.turn.turn_id

    @cached_property
    def output(self) -> Any:  # noqa: ANN401 (what the agent's `output_type` says)
        """The answer as the agent's `output_type`; its text where the agent has none.

        Raises:
            FailedPreconditionError: If the answer is not of that type, for example because it was cut or blocked.
        """
        if self.output_type is None:
            return self.text
        from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 (slow to import)

        try:
            return TypeAdapter(self.output_type).validate_json(self.text)
        except ValidationError as error:
            message = f"the answer is no {getattr(self.output_type, '__name__', self.output_type)}: {error}"
            raise FailedPreconditionError(message) from error

    @property
    def steps(self) -> Sequence[v1.Step]:
        """What was done, in order."""
        return self.turn.steps

    @property
    def tool_calls(self) -> list[v1.ToolCall]:
        """The tools that were called, in order."""
        return [call for step in self.turn.steps for call in step.tool_execution.tool_calls]

    @property
    def attachments(self) -> Sequence[v1.Document]:
        """Files that the tools made."""
        return self.turn.output_attachments

    @property
    def usage(self) -> v1.Usage:
        """Tokens used by all steps."""
        return self.turn.usage

    @property
    def violation(self) -> v1.StepViolation | None:
        """What a shield blocked this run for; None when none did."""
        violations = [step.shield_call.violation for step in self.turn.steps]
        return next((found for found in violations if found.violation_level == "error"), None)

    @property
    def pending(self) -> list[Pending]:
        """What waits for a person; empty when the run has ended."""
        return [Pending.of(one) for one in self.turn.pending]

    def approve(self, id: str = "", *, arguments: Mapping[str, Any] | None = None, by: str = "") -> Answers:  # noqa: A002
        """Let a call run: `agent.run(result.approve(id))`; without an id the only one that waits."""
        return self._answers().approve(id, arguments=arguments, by=by)

    def deny(self, id: str = "", why: str = "", *, by: str = "") -> Answers:  # noqa: A002
        """Do not let a call run: `agent.run(result.deny(id, "too much"))`."""
        return self._answers().deny(id, why, by=by)

    def answer(self, id: str = "", value: object = None, *, action: str = "accept", by: str = "") -> Answers:  # noqa: A002
        """Answer what a tool asks: `agent.run(result.answer(id, {"name": "Ada"}))`."""
        return self._answers().answer(id, value, action=action, by=by)

    def _answers(self) -> Answers:
        if not self.turn.pending:
            raise FailedPreconditionError(f"nothing waits in turn {self.turn.turn_id}")
        return Answers(turn_id=self.turn.turn_id, pending=self.pending)

    def __str__(self) -> str:
        """The answer."""
        return self.text


@dataclass(frozen=True, kw_only=True)
class AgentEvent:
    """Something that happened in a run; `text` is empty except for pieces of the answer."""

    text: str = ""
    """A piece of the model's text."""
    tool_call: v1.ToolCall | None = None
    """The model calls a tool."""
    tool_progress: v1.ToolCallProgress | None = None
    """A running tool reports."""
    tool_response: v1.ToolResponse | None = None
    """A tool answered."""
    violation: v1.StepViolation | None = None
    """A shield found something; with level `error` the run ends with the shield's message as its answer."""
    retrieval: v1.MemoryRetrievalStep | None = None
    """Memory was searched."""
    compaction: v1.CompactionStep | None = None
    """Older history was summarised."""
    pending: Sequence[Pending] = ()
    """The run waits for a person; the last event."""
    restarted: bool = False
    """The step began anew after a fault: text since the step's start is void."""
    result: AgentResult | None = None
    """The end of the run; set on the last event only."""
    raw: v1.WatchTurnResponse | None = field(default=None, repr=False)
    """The service's event."""


def _arguments(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {"": text}  # what the model wrote is no JSON
    return value if isinstance(value, dict) else {"": value}
