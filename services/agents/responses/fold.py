"""The events of a response, made of the events of its turn: the same turn always gives the same events."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from services.agents import ledger
from services.agents.approvals import needs_approval
from services.agents.offered import Offered, group_of
from services.agents.responses.calls import Call, call_of
from services.agents.responses.items import Item
from services.agents.responses.output import Event, Output
from services.agents.responses.setup import Setup
from services.agents.responses.writing import Writing, refuse
from services.agents.shields import blocking
from stack_client.content import content, text_of

_DONE = v1.RESPONSE_ITEM_STATUS_COMPLETED
_RUNS = v1.RESPONSE_ITEM_STATUS_IN_PROGRESS
_CUT = v1.RESPONSE_ITEM_STATUS_INCOMPLETE


@dataclass(kw_only=True)
class Fold:
    """Turns events of a turn into those of its response.

    Attributes:
        response: As it stands; the response as it was created at first.
        setup: Of the response.
    """

    response: v1.ResponseObject
    setup: Setup
    ended: bool = False
    """Whether the last event was made."""
    dialogs: dict[int, Sequence[v1.Message]] = field(default_factory=dict)
    """What output items say to the model where they do not tell, by their place."""
    _calls: dict[str, Call] = field(default_factory=dict)
    _served: int = 0
    """Calls of the stack's tools so far."""

    def __post_init__(self) -> None:
        self._tools: dict[str, Offered] = self.setup.tools()
        self._out = Output(response=self.response)
        self._writing = Writing(self._out)

    @property
    def output(self) -> list[Item]:
        """The items, with what they say to the model; what a step did not stand by says nothing."""
        items = enumerate(self.response.output)
        return [Item(item=item, dialog=() if at in self._out.void else self.dialogs.get(at)) for at, item in items]

    def begin(self) -> list[Event]:
        """The events before the turn's."""
        self._out.progress(created=self.response)
        if self.response.status == v1.RESPONSE_STATUS_QUEUED:
            self._out.progress(queued=self.response)
        else:
            self._start()
        return self._out.take()

    def feed(self, event: v1.WatchTurnResponse) -> list[Event]:
        """The events that one of the turn's becomes."""
        match event.WhichOneof("event"):
            case "turn_start" if self.response.status == v1.RESPONSE_STATUS_QUEUED:
                self.response.status = v1.RESPONSE_STATUS_IN_PROGRESS
                self._start()
            case "step_progress" if event.step_progress.step_type == v1.STEP_TYPE_INFERENCE:
                self._writing.write(event.step_progress.delta.text, event.step_progress.logprobs)
            case "step_restarted" if event.step_restarted.step_type == v1.STEP_TYPE_INFERENCE:
                self._writing.restart()
            case "step_complete" if event.step_complete.step_details.HasField("inference"):
                self._said(event.step_complete.step_details.inference.model_response)
            case "step_complete" if event.step_complete.step_details.HasField("tool_execution"):
                self._finish_calls(event.step_complete.step_details)
            case "turn_complete":
                self._complete(event.turn_complete.turn)
            case "turn_awaiting_input":
                self._wait(event.turn_awaiting_input.turn)
            case "turn_failed":
                error = event.turn_failed.turn.error
                code = v1.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
                self._fail(event.turn_failed.turn, code, error.message)
            case "turn_cancelled":
                self._end("cancelled", v1.RESPONSE_STATUS_CANCELLED, event.turn_cancelled.turn)
        return self._out.take()

    def snapshot(self) -> v1.ResponseObject:
        """The response as it stands, with what is written so far of its last message."""
        self._writing.snapshot()
        return self.response

    def _start(self) -> None:
        self._out.progress(in_progress=self.response)
        for group, label in self.setup.labels.items():
            item = v1.ResponseItem(mcp_list_tools=v1.MCPListToolsItem(server_label=label))
            index = self._out.add("mcpl", item)
            state = self._out.state(index)
            self._out.progress(mcp_list_tools_in_progress=state)
            self.response.output[index].mcp_list_tools.tools.extend(self.setup.listed(group))
            self._out.progress(mcp_list_tools_completed=state)
            self._out.done(index)
        for one in self.setup.approved:
            call = v1.ToolCall(call_id=one["call_id"], tool_name=one["name"], arguments_json=one["arguments"])
            self._served += 1
            self._begin_call(call, one["tool"], approval=one["approval"])

    def _said(self, said: v1.CompletionMessage) -> None:
        """An inference step is over."""
        cut = said.stop_reason == v1.STOP_REASON_OUT_OF_TOKENS
        self._writing.finish(text_of(said.content), _CUT if cut else _DONE)
        for call in said.tool_calls:
            tool = self._tools.get(call.tool_name)
            if tool is None:
                continue  # the model is told so
            if tool.kind == "client":
                self._function_call(call)
            elif not self._may_serve():
                continue  # it is not run
            elif not needs_approval(call, tool, self.setup.config)[0]:
                self._begin_call(call, tool.tool)

    # Calls.

    def _may_serve(self) -> bool:
        """Count one more call of the stack's tools; False for those beyond the limit, as `ledger.begin` counts."""
        self._served += 1
        config = self.setup.config
        return not config.HasField("max_tool_calls") or self._served <= config.max_tool_calls

    def _function_call(self, call: v1.ToolCall) -> None:
        item = v1.FunctionCallItem(call_id=call.call_id, name=call.tool_name, status=_RUNS)
        index = self._out.add("fc", v1.ResponseItem(function_call=item))
        made = self.response.output[index].function_call
        made.arguments = call.arguments_json
        place = {"item_id": made.id, "output_index": index}
        self._out.progress(function_call_arguments_delta=v1.ResponseArgumentsDeltaEvent(**place, delta=made.arguments))  # type: ignore[arg-type]
        done = v1.ResponseArgumentsDoneEvent(**place, arguments=made.arguments, name=made.name)  # type: ignore[arg-type]
        self._out.progress(function_call_arguments_done=done)
        made.status = _DONE
        self._out.done(index)

    def _begin_call(self, call: v1.ToolCall, tool: str, *, approval: str = "") -> None:
        """A tool of the stack is about to run."""
        made = call_of(call, tool, label=self.setup.labels.get(group_of(tool), ""), approval=approval)
        made.index = self._out.add(made.prefix, made.begun())
        self._calls[call.call_id] = made
        place = {"item_id": self._out.state(made.index).item_id, "output_index": made.index}
        self._out.progress(**{made.states[0]: self._out.state(made.index)})
        if made.has_arguments:
            arguments = call.arguments_json
            self._out.progress(mcp_call_arguments_delta=v1.ResponseArgumentsDeltaEvent(**place, delta=arguments))  # type: ignore[arg-type]
            done = v1.ResponseArgumentsDoneEvent(**place, arguments=arguments, name=made.name)  # type: ignore[arg-type]
            self._out.progress(mcp_call_arguments_done=done)
        else:
            self._out.progress(**{made.states[1]: self._out.state(made.index)})

    def _finish_calls(self, step: v1.Step) -> None:
        """Show what became of the calls of a tool step; those that wait are left."""
        results = {result.call_id: result for result in step.tool_execution.tool_responses}
        for call, record in ledger.lines(step):
            made = self._calls.get(call.call_id)
            if made is None or record.state not in ledger.ENDED:
                continue
            del self._calls[call.call_id]
            failed = record.state == v1.TOOL_CALL_STATE_FAILED
            result = results[call.call_id]
            self.response.output[made.index].CopyFrom(
                made.ended(result, failed=failed, item_id=self._out.state(made.index).item_id)
            )
            self.dialogs[made.index] = made.dialog(result)
            self._out.progress(**{made.states[-1] if failed else made.states[-2]: self._out.state(made.index)})
            self._out.done(made.index)

    # Ends.

    def _complete(self, turn: v1.Turn) -> None:
        said = turn.output_message
        if blocking(turn) is not None:
            refuse(self._out, said.content.items[-1].text.strip())
            self._end("completed", v1.RESPONSE_STATUS_COMPLETED, turn)
            return
        unanswered = [call for call in said.tool_calls if not self._is_function(call)]
        most = self.response.max_output_tokens
        spent = bool(most) and turn.usage.completion_tokens >= most
        if said.stop_reason == v1.STOP_REASON_OUT_OF_TOKENS or (unanswered and spent):
            self._cut(turn, "max_output_tokens")
        elif unanswered:
            self._cut(turn, "max_infer_iters")
        else:
            self._end("completed", v1.RESPONSE_STATUS_COMPLETED, turn)

    def _is_function(self, call: v1.ToolCall) -> bool:
        tool = self._tools.get(call.tool_name)
        return tool is not None and tool.kind == "client"

    def _cut(self, turn: v1.Turn, reason: str) -> None:
        self.response.incomplete_details.reason = reason
        self._end("incomplete", v1.RESPONSE_STATUS_INCOMPLETE, turn)

    def _wait(self, turn: v1.Turn) -> None:
        """The turn waits for its caller: the response is over, and another one goes on."""
        step = ledger.open_step(turn)
        if step is not None:
            self._finish_calls(step)
        for one in turn.pending:
            if one.kind == v1.PENDING_KIND_APPROVAL:
                self._ask_approval(one)
            elif one.kind != v1.PENDING_KIND_CLIENT_TOOL:
                what = "asks a person something" if one.kind == v1.PENDING_KIND_INPUT else "has an unknown fate"
                message = f"the call {one.call.call_id} of {one.tool} {what}, which no item can say; use AgentsService"
                self._fail(turn, "UNSUPPORTED", message)
                return
        self._end("completed", v1.RESPONSE_STATUS_COMPLETED, turn)

    def _ask_approval(self, one: v1.PendingCall) -> None:
        group, _, name = one.tool.partition("/")
        label = self.setup.labels.get(group, group)
        item = v1.MCPApprovalRequestItem(server_label=label, name=name, arguments=one.call.arguments_json)
        self._out.done(self._out.add("mcpr", v1.ResponseItem(mcp_approval_request=item)))

    def _fail(self, turn: v1.Turn, code: str, message: str) -> None:
        self.response.error.code, self.response.error.message = code, message
        self._end("failed", v1.RESPONSE_STATUS_FAILED, turn)

    def _end(self, event: str, status: "v1.ResponseStatus.ValueType", turn: v1.Turn) -> None:
        self._writing.close(_CUT)
        for made in self._calls.values():
            lost = v1.ToolResponse(content=content("it did not end"))
            item = made.ended(lost, failed=True, item_id=self._out.state(made.index).item_id)
            self.response.output[made.index].CopyFrom(item)
            self._out.progress(**{made.states[-1]: self._out.state(made.index)})
            self._out.done(made.index)
        self._calls.clear()
        response = self.response
        response.status = status
        response.completed_at.CopyFrom(_ended_at(turn))
        response.usage.input_tokens = turn.usage.prompt_tokens
        response.usage.output_tokens = turn.usage.completion_tokens
        response.usage.total_tokens = turn.usage.total_tokens
        response.usage.input_tokens_details.cached_tokens = turn.usage.cached_tokens
        response.usage.output_tokens_details.SetInParent()
        self.ended = True
        shown = v1.ResponseObject()
        shown.CopyFrom(response)
        shown.last_sequence += 1
        self._out.emit(**{event: shown})


def _ended_at(turn: v1.Turn) -> Timestamp:
    if turn.HasField("completed_at"):
        return turn.completed_at
    return turn.awaiting_since


def as_begun(response: v1.ResponseObject) -> v1.ResponseObject:
    """A response as it was created, of what it has become."""
    for name in ("completed_at", "error", "incomplete_details", "usage", "output", "last_sequence"):
        response.ClearField(name)
    background = response.background
    response.status = v1.RESPONSE_STATUS_QUEUED if background else v1.RESPONSE_STATUS_IN_PROGRESS
    return response
