"""The events of a response, made of the events of its turn: the same turn always gives the same events."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from services.agents import ledger
from services.agents.approvals import needs_approval
from services.agents.offered import Offered, group_of
from services.agents.responses.calls import Call, call_of
from services.agents.responses.items import Item, derived_id
from services.agents.responses.setup import Setup
from services.agents.shields import blocking
from stack_client.content import text_of

Event = v1.WatchResponseResponse
_DONE = v1.RESPONSE_ITEM_STATUS_COMPLETED
_RUNS = v1.RESPONSE_ITEM_STATUS_IN_PROGRESS
_CUT = v1.RESPONSE_ITEM_STATUS_INCOMPLETE


@dataclass(kw_only=True)
class _Open:
    """A message that is being written."""

    index: int
    text: str = ""
    again: str | None = None
    """What a step that began anew has written so far, while that is no more than `text`."""


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
    void: set[int] = field(default_factory=set)
    """Messages that a step which began anew did not stand by."""
    _made: list[Event] = field(default_factory=list)
    _open: _Open | None = None
    _calls: dict[str, Call] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tools: dict[str, Offered] = self.setup.tools()

    @property
    def output(self) -> list[Item]:
        """The items, with what they say to the model; what a step did not stand by says nothing."""
        items = enumerate(self.response.output)
        return [Item(item=item, dialog=() if at in self.void else self.dialogs.get(at)) for at, item in items]

    def begin(self) -> list[Event]:
        """The events before the turn's."""
        self._progress(created=self.response)
        if self.response.status == v1.RESPONSE_STATUS_QUEUED:
            self._progress(queued=self.response)
        else:
            self._start()
        return self._take()

    def feed(self, event: v1.WatchTurnResponse) -> list[Event]:
        """The events that one of the turn's becomes."""
        match event.WhichOneof("event"):
            case "turn_start" if self.response.status == v1.RESPONSE_STATUS_QUEUED:
                self.response.status = v1.RESPONSE_STATUS_IN_PROGRESS
                self._start()
            case "step_progress" if event.step_progress.step_type == v1.STEP_TYPE_INFERENCE:
                if event.step_progress.delta.text:
                    self._write(event.step_progress.delta.text)
            case "step_restarted" if event.step_restarted.step_type == v1.STEP_TYPE_INFERENCE:
                if self._open is not None:
                    self._open.again = ""
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
        return self._take()

    def snapshot(self) -> v1.ResponseObject:
        """The response as it stands, with what is written so far of its last message."""
        if self._open is not None:
            message = self.response.output[self._open.index].message
            message.content[0].output_text.text = self._open.text
        return self.response

    def _take(self) -> list[Event]:
        made, self._made = self._made, []
        return made

    def _emit(self, **event: object) -> None:
        self.response.last_sequence += 1
        made = Event(sequence=self.response.last_sequence, **event)  # type: ignore[arg-type]
        self._made.append(made)

    def _progress(self, **progress: object) -> None:
        if (response := progress.get("created") or progress.get("queued") or progress.get("in_progress")) is not None:
            assert isinstance(response, v1.ResponseObject)
            shown = v1.ResponseObject()
            shown.CopyFrom(response)
            shown.last_sequence += 1
            progress = dict.fromkeys(progress, shown)
        self._emit(progress=v1.ResponseProgress(**progress))  # type: ignore[arg-type]

    def _start(self) -> None:
        self._progress(in_progress=self.response)
        for group, label in self.setup.labels.items():
            item = v1.ResponseItem(mcp_list_tools=v1.MCPListToolsItem(server_label=label))
            index = self._add("mcpl", item)
            state = self._state(index)
            self._progress(mcp_list_tools_in_progress=state)
            self.response.output[index].mcp_list_tools.tools.extend(self.setup.listed(group))
            self._progress(mcp_list_tools_completed=state)
            self._done(index)
        for one in self.setup.approved:
            call = v1.ToolCall(call_id=one["call_id"], tool_name=one["name"], arguments_json=one["arguments"])
            self._begin_call(call, one["tool"], approval=one["approval"])

    def _add(self, prefix: str, item: v1.ResponseItem) -> int:
        """Begin an item of the output; returns its place."""
        index = len(self.response.output)
        member = getattr(item, item.WhichOneof("item") or "")
        member.id = derived_id(prefix, self.response.id, index)
        self.response.output.append(item)
        event = v1.ResponseOutputItemEvent(response_id=self.response.id, output_index=index, item=item)
        self._progress(output_item_added=event)
        return index

    def _done(self, index: int) -> None:
        item = self.response.output[index]
        event = v1.ResponseOutputItemEvent(response_id=self.response.id, output_index=index, item=item)
        self._progress(output_item_done=event)

    def _state(self, index: int) -> v1.ResponseCallStateEvent:
        item = self.response.output[index]
        return v1.ResponseCallStateEvent(item_id=getattr(item, item.WhichOneof("item") or "").id, output_index=index)

    # Messages.

    def _write(self, text: str) -> None:
        """A piece of text; of a step that began anew only what goes beyond what it had written before."""
        if self._open is None:
            self._open = self._open_message()
        if self._open.again is None:
            self._show(text)
            return
        self._open.again += text
        if self._open.again.startswith(self._open.text):
            self._catch_up()
        elif not self._open.text.startswith(self._open.again):
            self._start_over()

    def _catch_up(self) -> None:
        message = self._open
        assert message is not None
        assert message.again is not None
        more, message.again = message.again[len(message.text) :], None
        self._show(more)

    def _start_over(self) -> None:
        """The step writes something else now: what it wrote before is left as an incomplete message."""
        message = self._open
        assert message is not None
        again = message.again or ""
        self.void.add(message.index)
        self._close_message(_CUT)
        if again:
            self._open = self._open_message()
            self._show(again)

    def _open_message(self, *, refusal: bool = False) -> _Open:
        message = v1.ResponseMessage(role=v1.RESPONSE_ROLE_ASSISTANT, status=_RUNS)
        index = self._add("msg", v1.ResponseItem(message=message))
        part = self.response.output[index].message.content.add()
        (part.refusal if refusal else part.output_text).SetInParent()
        self._progress(content_part_added=self._part(index))
        return _Open(index=index)

    def _part(self, index: int) -> v1.ResponseContentPartEvent:
        message = self.response.output[index].message
        return v1.ResponseContentPartEvent(
            response_id=self.response.id, item_id=message.id, output_index=index, part=message.content[0]
        )

    def _show(self, text: str) -> None:
        if not text or self._open is None:
            return
        self._open.text += text
        message = self.response.output[self._open.index].message
        delta = v1.ResponseTextDeltaEvent(item_id=message.id, output_index=self._open.index, delta=text)
        self._progress(output_text_delta=delta)

    def _close_message(self, status: "v1.ResponseItemStatus.ValueType") -> None:
        if self._open is None:
            return
        index, text = self._open.index, self._open.text
        self._open = None
        message = self.response.output[index].message
        message.content[0].output_text.text = text
        self._progress(output_text_done=v1.ResponseTextDoneEvent(item_id=message.id, output_index=index, text=text))
        self._progress(content_part_done=self._part(index))
        message.status = status
        self._done(index)

    def _said(self, said: v1.CompletionMessage) -> None:
        """An inference step is over."""
        text = text_of(said.content)
        if self._open is None and text:
            self._open = self._open_message()
        if self._open is not None:
            self._open.again = text
            if text.startswith(self._open.text):
                self._catch_up()
            else:
                self._start_over()
        cut = said.stop_reason == v1.STOP_REASON_OUT_OF_TOKENS
        self._close_message(_CUT if cut else _DONE)
        for call in said.tool_calls:
            tool = self._tools.get(call.tool_name)
            if tool is None:
                continue  # the model is told so
            if tool.kind == "client":
                self._function_call(call)
            elif not needs_approval(call, tool, self.setup.config)[0]:
                self._begin_call(call, tool.tool)

    def _refuse(self, text: str) -> None:
        """A message with what a shield says in place of an answer."""
        index = self._open_message(refusal=True).index
        self._open = None
        message = self.response.output[index].message
        message.content[0].refusal.refusal = text
        place = {"item_id": message.id, "output_index": index}
        self._progress(refusal_delta=v1.ResponseTextDeltaEvent(**place, delta=text))  # type: ignore[arg-type]
        self._progress(refusal_done=v1.ResponseTextDoneEvent(**place, text=text))  # type: ignore[arg-type]
        self._progress(content_part_done=self._part(index))
        message.status = _DONE
        self._done(index)

    # Calls.

    def _function_call(self, call: v1.ToolCall) -> None:
        item = v1.FunctionCallItem(call_id=call.call_id, name=call.tool_name, status=_RUNS)
        index = self._add("fc", v1.ResponseItem(function_call=item))
        made = self.response.output[index].function_call
        made.arguments = call.arguments_json
        place = {"item_id": made.id, "output_index": index}
        self._progress(function_call_arguments_delta=v1.ResponseArgumentsDeltaEvent(**place, delta=made.arguments))  # type: ignore[arg-type]
        done = v1.ResponseArgumentsDoneEvent(**place, arguments=made.arguments, name=made.name)  # type: ignore[arg-type]
        self._progress(function_call_arguments_done=done)
        made.status = _DONE
        self._done(index)

    def _begin_call(self, call: v1.ToolCall, tool: str, *, approval: str = "") -> None:
        """A tool of the stack is about to run."""
        made = call_of(call, tool, label=self.setup.labels.get(group_of(tool), ""), approval=approval)
        made.index = self._add(made.prefix, made.begun())
        self._calls[call.call_id] = made
        place = {"item_id": self._state(made.index).item_id, "output_index": made.index}
        self._progress(**{made.states[0]: self._state(made.index)})
        if made.has_arguments:
            arguments = call.arguments_json
            self._progress(mcp_call_arguments_delta=v1.ResponseArgumentsDeltaEvent(**place, delta=arguments))  # type: ignore[arg-type]
            done = v1.ResponseArgumentsDoneEvent(**place, arguments=arguments, name=made.name)  # type: ignore[arg-type]
            self._progress(mcp_call_arguments_done=done)
        else:
            self._progress(**{made.states[1]: self._state(made.index)})

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
                made.ended(text_of(result.content), failed=failed, item_id=self._state(made.index).item_id)
            )
            self.dialogs[made.index] = made.dialog(result)
            self._progress(**{made.states[-1] if failed else made.states[-2]: self._state(made.index)})
            self._done(made.index)

    # Ends.

    def _complete(self, turn: v1.Turn) -> None:
        said = turn.output_message
        if blocking(turn) is not None:
            self._refuse(said.content.items[-1].text.strip())
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
        self._done(self._add("mcpr", v1.ResponseItem(mcp_approval_request=item)))

    def _fail(self, turn: v1.Turn, code: str, message: str) -> None:
        self.response.error.code, self.response.error.message = code, message
        self._end("failed", v1.RESPONSE_STATUS_FAILED, turn)

    def _end(self, event: str, status: "v1.ResponseStatus.ValueType", turn: v1.Turn) -> None:
        self._close_message(_CUT)
        for made in self._calls.values():
            item = made.ended("it did not end", failed=True, item_id=self._state(made.index).item_id)
            self.response.output[made.index].CopyFrom(item)
            self._progress(**{made.states[-1]: self._state(made.index)})
            self._done(made.index)
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
        self._emit(**{event: shown})


def _ended_at(turn: v1.Turn) -> Timestamp:
    if turn.HasField("completed_at"):
        return turn.completed_at
    return turn.awaiting_since
