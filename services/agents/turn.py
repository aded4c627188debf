"""The loop of one turn: inference, tools, inference, until the model has answered.

Its state is the log alone: every round looks at the steps that are stored and does the next one, so that a turn which
lost its process goes on where its log ends.
"""

import asyncio
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.message import Message

from llamastack import v1
from services.agents import history, shields
from services.agents.config import AgentsConfig
from services.agents.retrieval import Retrieval, retrieve, wants_retrieval
from services.agents.turn_log import TurnLog, now
from stack_client.content import content
from stack_client.errors import (
    ResourceExhaustedError,
    StackError,
    UnavailableError,
    to_error_message,
)
from stack_client.inference import Inference

logger = logging.getLogger(__name__)

REPEATED_CALLS = 3


@dataclass
class Ending:
    """How an answer ended, as far as shields are concerned."""

    verdicts: list[v1.Verdict] = field(default_factory=list)
    """What was found in the answer that does not block."""
    blocked: v1.ChatCompletionBlocked | None = None
    """What a shield withheld."""


class TurnLoop:
    """Runs one turn to its end, or to where it waits for its caller.

    Args:
        log: Of the turn.
        config: Of the agent.
        request: That created the turn.
        earlier: Turns of the session before this one.
        inference: The inference service.
        memory: The memory service.
        limits: Of the service.
    """

    def __init__(
        self,
        log: TurnLog,
        *,
        config: v1.AgentConfig,
        request: v1.CreateTurnRequest,
        earlier: list[v1.Turn],
        inference: Inference,
        memory: Retrieval,
        limits: AgentsConfig,
    ) -> None:
        self._log = log
        self._turn = log.turn
        self._config = config
        self._tool_config = request.tool_config if request.HasField("tool_config") else config.tool_config
        self._earlier = earlier
        self._inference = inference
        self._memory = memory
        self._limits = limits
        self._max_iters = config.max_infer_iters if config.HasField("max_infer_iters") else limits.max_infer_iters
        self._attempts = limits.inference_attempts
        self._pause = limits.inference_retry_seconds

    async def run(self) -> None:
        """Take the next step until the turn ends or waits; the last events are added, their commit is the caller's.

        Raises:
            StackError: If a step failed.
        """
        turn = self._turn
        if turn.status == v1.TURN_STATUS_QUEUED:
            self._log.add(turn_start=v1.TurnStart(turn_id=turn.turn_id))
        turn.status = v1.TURN_STATUS_RUNNING
        while turn.status == v1.TURN_STATUS_RUNNING:
            await self._next_step()

    async def _next_step(self) -> None:
        """Do what the log's last step calls for."""
        last = next((step for step in reversed(self._turn.steps) if not shields.is_shield_call(step)), None)
        match last.WhichOneof("details") if last else None:
            case "inference" if last and last.HasField("completed_at"):
                said = last.inference.model_response
                taken = sum(step.WhichOneof("details") == "inference" for step in self._turn.steps)
                if said.tool_calls and taken < self._max_iters:
                    await self._call_tools(said)
                else:
                    self._complete(said)
            case "tool_execution" if last and not last.HasField("completed_at"):
                self._await_input(last)
            case None if wants_retrieval(self._config):
                await self._retrieve()
            case "memory_retrieval" if last and not last.HasField("completed_at"):
                await self._retrieve()
            case _:
                await self._infer(last)

    async def _retrieve(self) -> None:
        await retrieve(self._log, self._config, memory=self._memory, limits=self._limits, new_step=self._new_step)

    async def _infer(self, last: v1.Step | None) -> None:
        """One inference step with its shields; tried again while the inference service is unavailable."""
        if last is not None and last.WhichOneof("details") == "inference":  # a process ended in the middle of it
            step = v1.Step()
            step.CopyFrom(last)
            attempt = await self._log.attempts(step.step_id) + 1
        else:
            step, attempt = self._new_step(v1.STEP_TYPE_INFERENCE, inference=v1.InferenceStep()), 1
        guard = shields.InputStep(self._log, self._config, new_step=self._new_step, inference=step)
        await guard.begin()
        for failures in range(1, self._attempts + 1):
            if not guard.waiting:
                self._begin(step, attempt)
            try:
                end = await self._generate(step, guard, attempt)
                break
            except (UnavailableError, ResourceExhaustedError) as error:
                overload = isinstance(error, ResourceExhaustedError)
                if failures == self._attempts or (overload and error.retry_after is None):
                    raise
                logger.warning("inference unavailable turn=%s attempt=%d: %s", step.turn_id, attempt, error.message)
                await asyncio.sleep(max(error.retry_after or 0.0, self._pause * 2 ** (failures - 1)))
                if not guard.waiting:
                    attempt += 1
        if end.blocked is not None and end.blocked.surface not in shields.OUTPUT_SURFACES:
            guard.block(end.blocked)
            self._withhold(end.blocked)
        else:
            self._complete_inference(step, end)
        await self._log.commit()

    def _complete_inference(self, step: v1.Step, end: "Ending") -> None:
        step.completed_at.CopyFrom(now())
        self._log.put_step(step)
        self._count(step.inference.usage)
        self._log.add(
            step_complete=v1.TurnStepComplete(step_type=step.step_type, step_id=step.step_id, step_details=step)
        )
        if self._config.output_shields:
            shields.output_step(self._log, end.verdicts, end.blocked, new_step=self._new_step)
        if end.blocked is not None:
            self._withhold(end.blocked)

    def _withhold(self, blocked: v1.ChatCompletionBlocked) -> None:
        """End the turn as a shield wants it: with what was shown before, and its message to the user."""
        said = v1.CompletionMessage(stop_reason=v1.STOP_REASON_END_OF_TURN)
        said.content.items.extend(blocked.completion_message.content.items)
        gap = "\n\n" if said.content.items else ""
        said.content.items.append(v1.ContentItem(text=f"{gap}{blocked.user_message}"))
        self._complete(said)

    def _begin(self, step: v1.Step, attempt: int) -> None:
        """Announce an inference step, or that it begins anew."""
        kind, step_id = step.step_type, step.step_id
        if attempt == 1:
            self._log.put_step(step)
            self._log.add(step_start=v1.TurnStepStart(step_type=kind, step_id=step_id))
        else:
            restarted = v1.TurnStepRestarted(step_type=kind, step_id=step_id, attempt=attempt)
            self._log.add(step_restarted=restarted)

    async def _generate(self, step: v1.Step, guard: "shields.InputStep", attempt: int) -> "Ending":
        """Stream one answer of the model into the log; commits run beside the stream, each taking what has gathered."""
        chat = self._chat_request()
        chat.input_shields.extend(self._config.input_shields if guard.waiting else ())
        stream = self._inference.stream(v1.StreamChatCompletionRequest(request=chat))
        end = Ending()
        try:
            async with asyncio.TaskGroup() as group, stream:
                committing = group.create_task(self._log.keep_committing())
                async for event in stream:
                    match event.WhichOneof("event"):
                        case "judged" if event.judged.surface not in shields.OUTPUT_SURFACES:
                            shields.take_redactions(self._log, len(chat.messages), event.judged.redacted)
                            guard.complete(event.judged.verdicts)
                            self._begin(step, attempt)
                        case "judged":
                            end.verdicts = list(event.judged.verdicts)
                        case "progress":
                            self._progress(step, event.progress.delta)
                        case "complete":
                            complete = event.complete
                            step.inference.model_response.CopyFrom(complete.completion_message)
                            step.inference.usage.CopyFrom(complete.usage)
                        case "blocked":
                            end.blocked = event.blocked
                            step.inference.model_response.CopyFrom(event.blocked.completion_message)
                            step.inference.usage.CopyFrom(event.blocked.usage)
                committing.cancel()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return end

    def _progress(self, step: v1.Step, delta: v1.ContentDelta) -> None:
        self._log.add(step_progress=v1.TurnStepProgress(step_type=step.step_type, step_id=step.step_id, delta=delta))

    def _chat_request(self) -> v1.ChatCompletionRequest:
        config = self._config
        tool_config = v1.ToolConfig()
        tool_config.CopyFrom(self._tool_config)
        called = [step.tool_execution for step in self._turn.steps if step.WhichOneof("details") == "tool_execution"]
        if called and tool_config.tool_choice not in {"", "auto", "none"}:
            # A required call holds for the first step only; otherwise the turn could never end.
            tool_config.tool_choice = "auto"
        if _repeats(called):
            # A model that goes in circles has its answer; without tools it must use it.
            tool_config.tool_choice = "none"
        return v1.ChatCompletionRequest(
            model_id=config.model,
            messages=history.dialog(config, self._earlier, self._turn),
            sampling_params=config.sampling_params,
            tools=[
                v1.ToolDefinition(
                    tool_name=tool.name,
                    description=tool.description,
                    input_schema=tool.input_schema if tool.HasField("input_schema") else None,
                    parameters={
                        parameter.name: v1.ToolParamDefinition(
                            param_type=parameter.parameter_type,
                            description=parameter.description,
                            required=parameter.required if parameter.HasField("required") else None,
                            default=parameter.default if parameter.HasField("default") else None,
                        )
                        for parameter in tool.parameters
                    },
                )
                for tool in config.client_tools
            ],
            tool_config=tool_config,
            response_format=config.response_format if config.HasField("response_format") else None,
            output_shields=config.output_shields,
        )

    async def _call_tools(self, said: v1.CompletionMessage) -> None:
        """Begin a tool step: calls of unknown tools are answered here, the rest waits for the caller."""
        known = {tool.name for tool in self._config.client_tools}
        step = self._new_step(
            v1.STEP_TYPE_TOOL_EXECUTION, tool_execution=v1.ToolExecutionStep(tool_calls=said.tool_calls)
        )
        for call in said.tool_calls:
            if call.tool_name not in known:
                names = ", ".join(sorted(known)) or "none"
                text = f"There is no tool {call.tool_name!r}; the tools are: {names}."
                step.tool_execution.tool_responses.append(
                    v1.ToolResponse(call_id=call.call_id, tool_name=call.tool_name, content=content(text))
                )
        self._log.add(step_start=v1.TurnStepStart(step_type=step.step_type, step_id=step.step_id))
        for call in said.tool_calls:
            delta = v1.ToolCallDelta(call=call, parse_status=v1.TOOL_CALL_PARSE_STATUS_IN_PROGRESS)
            self._progress(step, v1.ContentDelta(tool_call=delta))
        if not waiting_calls(step):
            complete_tools(self._log, step)
        self._log.put_step(step)
        await self._log.commit()

    def _await_input(self, step: v1.Step) -> None:
        """Stop until the caller brings the results."""
        turn = self._turn
        turn.status = v1.TURN_STATUS_AWAITING_INPUT
        turn.output_message.CopyFrom(calls_message(step))
        self._log.add(turn_awaiting_input=v1.TurnAwaitingInput(turn=turn))

    def _complete(self, said: v1.CompletionMessage) -> None:
        turn = self._turn
        turn.output_message.CopyFrom(said)
        turn.status = v1.TURN_STATUS_COMPLETED
        turn.completed_at.CopyFrom(now())
        self._log.add(turn_complete=v1.TurnComplete(turn=turn))

    def _new_step(self, kind: "v1.StepType.ValueType", **details: Message) -> v1.Step:
        return v1.Step(
            step_id=str(uuid.uuid4()),
            turn_id=self._turn.turn_id,
            step_type=kind,
            started_at=now(),
            **details,  # type: ignore[arg-type]
        )

    def _count(self, usage: v1.Usage) -> None:
        total = self._turn.usage
        total.prompt_tokens += usage.prompt_tokens
        total.completion_tokens += usage.completion_tokens
        total.total_tokens += usage.total_tokens
        total.cached_tokens += usage.cached_tokens


def cancel(log: TurnLog) -> None:
    """End a turn by its caller's wish; what is done so far is kept."""
    turn = log.turn
    turn.status = v1.TURN_STATUS_CANCELLED
    turn.completed_at.CopyFrom(now())
    log.add(turn_cancelled=v1.TurnCancelled(turn=turn))


def fail(log: TurnLog, error: StackError) -> None:
    """End a turn with an error."""
    turn = log.turn
    turn.error.CopyFrom(to_error_message(error))
    turn.status = v1.TURN_STATUS_FAILED
    turn.completed_at.CopyFrom(now())
    log.add(turn_failed=v1.TurnFailed(turn=turn))


def _repeats(called: Sequence[v1.ToolExecutionStep]) -> bool:
    """Whether the last tool steps made the very same calls, as often as a turn allows."""
    last = [
        [(call.tool_name, call.arguments.SerializeToString(deterministic=True)) for call in step.tool_calls]
        for step in called[-REPEATED_CALLS:]
    ]
    return len(last) == REPEATED_CALLS and all(calls == last[0] for calls in last)


def waiting_calls(step: v1.Step) -> list[v1.ToolCall]:
    """The calls of a tool step that have no result yet, in their order."""
    answered = {response.call_id for response in step.tool_execution.tool_responses}
    return [call for call in step.tool_execution.tool_calls if call.call_id not in answered]


def calls_message(step: v1.Step) -> v1.CompletionMessage:
    """The message that shows a caller which calls wait for him."""
    return v1.CompletionMessage(stop_reason=v1.STOP_REASON_END_OF_MESSAGE, tool_calls=waiting_calls(step))


def complete_tools(log: TurnLog, step: v1.Step) -> None:
    """End a tool step: results in the order of the calls, then its event."""
    order = {call.call_id: place for place, call in enumerate(step.tool_execution.tool_calls)}
    responses = sorted(step.tool_execution.tool_responses, key=lambda response: order[response.call_id])
    del step.tool_execution.tool_responses[:]
    step.tool_execution.tool_responses.extend(responses)
    step.completed_at.CopyFrom(now())
    log.add(step_complete=v1.TurnStepComplete(step_type=step.step_type, step_id=step.step_id, step_details=step))
