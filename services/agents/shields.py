"""Shield steps of a turn: what was judged before the model's answer was shown, and what came of it."""

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.agents.turn_log import TurnLog, new_step, now

_LEVELS = {v1.VIOLATION_LEVEL_INFO: "info", v1.VIOLATION_LEVEL_WARN: "warn", v1.VIOLATION_LEVEL_ERROR: "error"}
OUTPUT_SURFACES = frozenset({v1.SAFETY_SURFACE_ASSISTANT, v1.SAFETY_SURFACE_TOOL_ARGUMENTS})
"""What the model wrote; everything else is what it reads."""
USER_INPUT = "user-input"
ASSISTANT_OUTPUT = "assistant-output"


def is_shield_call(step: v1.Step) -> bool:
    """Whether a step is one of shields."""
    return step.WhichOneof("details") == "shield_call"


class InputStep:
    """The shields over what the model is about to read: the user's message or the results of tools.

    Args:
        log: Of the turn.
        config: Of the agent.
        inference: The step that they gate; one that was begun before was judged before.
    """

    def __init__(self, log: TurnLog, config: v1.AgentConfig, *, inference: v1.Step) -> None:
        self._log = log
        self._step: v1.Step | None = None
        steps = list(log.turn.steps)
        begun = any(step.step_id == inference.step_id for step in steps)
        self.waiting = bool(config.input_shields) and not begun
        """Whether the verdict is still to come."""
        self._restarts = bool(steps) and is_shield_call(steps[-1]) and not steps[-1].HasField("completed_at")
        if self.waiting:
            self._step = v1.Step()
            self._step.CopyFrom(steps[-1] if self._restarts else new_step(log.turn, v1.STEP_TYPE_SHIELD_CALL))
            self._step.shield_call.SetInParent()

    async def begin(self) -> None:
        """Announce the step, or that it begins anew."""
        if self._step is None:
            return
        if self._restarts:
            attempt = await self._log.attempts(self._step.step_id) + 1
            restarted = v1.TurnStepRestarted(
                step_type=self._step.step_type, step_id=self._step.step_id, attempt=attempt
            )
            self._log.add(step_restarted=restarted)
            return
        self._log.put_step(self._step)
        self._log.add(step_start=_start(self._step, USER_INPUT))

    def complete(self, verdicts: Sequence[v1.Verdict]) -> None:
        """Nothing blocks."""
        if self._step is not None and self.waiting:
            self.waiting = False
            _end(self._log, self._step, verdicts)

    def block(self, blocked: v1.ChatCompletionBlocked) -> None:
        """A shield blocks what the model was about to read."""
        assert self._step is not None
        self.waiting = False
        _end(self._log, self._step, blocked.verdicts, blocked)


def output_step(
    log: TurnLog,
    verdicts: Sequence[v1.Verdict],
    blocked: v1.ChatCompletionBlocked | None,
) -> None:
    """The shields over an answer; they are through when it is."""
    step = new_step(log.turn, v1.STEP_TYPE_SHIELD_CALL, shield_call=v1.ShieldCallStep())
    log.add(step_start=_start(step, ASSISTANT_OUTPUT))
    _end(log, step, blocked.verdicts if blocked else verdicts, blocked)


def blocking(turn: v1.Turn) -> v1.StepViolation | None:
    """The violation that ended a turn."""
    for step in turn.steps:
        if is_shield_call(step) and step.shield_call.violation.violation_level == "error":
            return step.shield_call.violation
    return None


def take_redactions(log: TurnLog, dialog: int, redacted: Iterable[v1.RedactedMessage]) -> None:
    """Keep what the model was shown in place of what a shield took parts out of: later steps and turns read it.

    Args:
        log: Of the turn.
        dialog: Messages of the request; the turn's own stand at its end.
        redacted: The messages as the model was shown them.
    """
    turn = log.turn
    for one in redacted:
        message = one.message
        if message.WhichOneof("message") == "user":
            place = len(turn.input_messages) - (dialog - one.message_index)
            if place >= 0 and turn.input_messages[place].HasField("user"):
                turn.input_messages[place].user.CopyFrom(message.user)
            continue
        for step in turn.steps:
            for response in step.tool_execution.tool_responses:
                if response.call_id == message.tool.call_id:
                    response.content.CopyFrom(message.tool.content)
                    log.put_step(step)


def judged_until(turn: v1.Turn) -> int:
    """How many of a turn's first steps what the model read was judged for; -1 where not even the question was."""
    until = -1
    for index, step in enumerate(turn.steps):
        after_answer = index > 0 and turn.steps[index - 1].WhichOneof("details") == "inference"
        if is_shield_call(step) and not after_answer and step.HasField("completed_at"):
            until = index
    return until


def _start(step: v1.Step, touchpoint: str) -> v1.TurnStepStart:
    metadata = Struct()
    metadata.update({"touchpoint": touchpoint})
    return v1.TurnStepStart(step_type=step.step_type, step_id=step.step_id, metadata=metadata)


def _end(
    log: TurnLog,
    step: v1.Step,
    verdicts: Iterable[v1.Verdict],
    blocked: v1.ChatCompletionBlocked | None = None,
) -> None:
    """Complete a step with the strictest of its verdicts as its violation."""
    found = max(verdicts, key=lambda verdict: (verdict.action, verdict.level, verdict.score), default=None)
    if found is not None:
        step.shield_call.violation.CopyFrom(_violation(found, blocked))
    step.completed_at.CopyFrom(now())
    log.put_step(step)
    log.add(step_complete=v1.TurnStepComplete(step_type=step.step_type, step_id=step.step_id, step_details=step))


def _violation(verdict: v1.Verdict, blocked: v1.ChatCompletionBlocked | None) -> v1.StepViolation:
    facts: dict[str, Any] = json_format.MessageToDict(verdict.metadata)
    facts |= {
        "violation_type": blocked.violation_type if blocked else ",".join(verdict.codes),
        "shield_id": verdict.shield_id,
        "verdict_id": verdict.verdict_id,
        "policy_version": verdict.policy_version,
        "baseline": verdict.baseline,
        "surface": v1.SafetySurface.Name(verdict.surface).removeprefix("SAFETY_SURFACE_").lower(),
        **({"score": verdict.score} if verdict.HasField("score") else {}),
        **({"error": verdict.error.message} if verdict.HasField("error") else {}),
    }
    violation = v1.StepViolation(violation_level=_LEVELS.get(verdict.level, "info"))
    if blocked is not None:
        violation.user_message = blocked.user_message
    json_format.ParseDict(facts, violation.metadata)
    return violation
