"""Making a response: its input as a dialog, its turn, and the rows of both, in one transaction."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from llamastack import v1
from services.agents import rows
from services.agents.ledger import begin
from services.agents.responses import records
from services.agents.responses.items import (
    Approvals,
    Item,
    derived_id,
    joined,
    kind_of,
    messages_of,
    taken,
    unknown_approval,
)
from services.agents.responses.setup import Setup
from services.agents.runner import TurnRunner
from services.agents.tables import histories, pins, responses, sessions, versions
from services.agents.turn_log import new_step, now
from stack_client.errors import ConflictError, FailedPreconditionError, InvalidArgumentError


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A response that is about to be stored."""

    request: v1.CreateResponseRequest
    """Checked."""
    response: v1.ResponseObject
    """As it begins."""
    setup: Setup
    """How it runs."""
    tenant: str
    """Whose it is."""


def store(connection: sa.Connection, draft: Draft, runner: TurnRunner) -> v1.Turn:
    """Store a response with its turn, which is not started here.

    Raises:
        NotFoundError: If what comes before it does not exist.
        FailedPreconditionError: If the response before it has not ended.
        ConflictError: If another response writes to the conversation.
        InvalidArgumentError: If the input makes no dialog.
    """
    request, response_id = draft.request, draft.response.id

    def referred(item_id: str, field: str) -> Item:
        return records.referred(connection, item_id, tenant=draft.tenant, field=field)

    items = taken(request.input, field="input", referred=referred)
    before = _before(connection, draft)
    requests = {one.item.mcp_approval_request.id: one.item.mcp_approval_request for one in items}

    def approval(item_id: str) -> v1.MCPApprovalRequestItem | None:
        return requests.get(item_id) or records.approval_of(connection, item_id, tenant=draft.tenant)

    own: list[v1.Message] = []
    for index, item in enumerate(items):
        own += messages_of(item, field=f"input[{index}]", approvals=approval)
    turn = _turn(draft, joined([*before, *own]))
    # Only what a response of this stack made: a caller must not make up calls that no model asked for.
    _approve(draft, turn, items, lambda item_id: records.approval_of(connection, item_id, tenant=draft.tenant))
    if not turn.input_messages and not turn.steps and not draft.setup.config.instructions:
        raise InvalidArgumentError("input is empty; ask something", reason="MISSING_FIELD", field="input")
    _add_turn(connection, draft, turn, runner)
    records.add_items(connection, response_id, items, tenant=draft.tenant, made=False)
    return turn


def _before(connection: sa.Connection, draft: Draft) -> list[v1.Message]:
    request, tenant = draft.request, draft.tenant
    if request.previous_response_id:
        found = records.find(connection, request.previous_response_id, tenant=tenant)
        if not found.settled:
            message = f"response {request.previous_response_id} has not ended; wait for it or cancel it"
            raise FailedPreconditionError(message, metadata={"response": request.previous_response_id})
        return records.dialog_through(connection, found)
    if not request.conversation:
        return []
    row = records.conversation_of(connection, request.conversation, tenant=tenant, lock=True)
    if row.writer:
        raise writing(request.conversation, row.writer)
    records.set_writer(connection, request.conversation, draft.response.id)
    kept = records.items_in(connection, request.conversation)
    known = {one.item.mcp_approval_request.id: one.item.mcp_approval_request for one in kept}
    return [
        message
        for index, item in enumerate(kept)
        for message in messages_of(item, field=f"conversation.items[{index}]", approvals=known.get)
    ]


def writing(conversation_id: str, response_id: str) -> ConflictError:
    """The error for a conversation that is being written."""
    message = f"response {response_id} is writing to conversation {conversation_id}; wait for its end or cancel it"
    return ConflictError(message, metadata={"response": response_id})


def _turn(draft: Draft, messages: list[v1.Message]) -> v1.Turn:
    """The turn: what the user and tools said last is its own, the rest stands before it (see `_add_turn`)."""
    turn = v1.Turn(
        turn_id=str(uuid.uuid4()),
        session_id=str(uuid.uuid4()),
        started_at=now(),
        status=v1.TURN_STATUS_QUEUED,
        agent_id=draft.response.id,
        agent_version=1,
    )
    cut = len(messages)
    while cut and messages[cut - 1].WhichOneof("message") in {"user", "tool"}:
        cut -= 1
    for message in messages[cut:]:
        if message.HasField("user"):
            turn.input_messages.add(user=message.user)
        else:
            turn.input_messages.add(tool=message.tool)
    draft.setup.before = messages[:cut]
    return turn


def _approve(draft: Draft, turn: v1.Turn, items: Sequence[Item], approval: Approvals) -> None:
    """Let the turn begin with the calls that the input allows."""
    decisions = [
        (index, one.item.mcp_approval_response)
        for index, one in enumerate(items)
        if kind_of(one.item) == "mcp_approval_response" and one.item.mcp_approval_response.approve
    ]
    if not decisions:
        return
    setup, tools = draft.setup, draft.setup.tools()
    groups = {label: group for group, label in setup.labels.items()}
    said = v1.CompletionMessage(stop_reason=v1.STOP_REASON_END_OF_TURN)
    for index, decision in decisions:
        field = f"input[{index}]"
        request = approval(decision.approval_request_id)
        if request is None:
            raise unknown_approval(decision, field=field)
        full = f"{groups.get(request.server_label, request.server_label)}/{request.name}"
        name = next((name for name, tool in tools.items() if tool.tool == full), None)
        if name is None:
            message = (
                f"{field}: the response has no tool {request.name!r} of {request.server_label!r}; give it in tools"
            )
            raise InvalidArgumentError(message, field="tools")
        call_id = derived_id("call", draft.response.id, request.id)
        said.tool_calls.add(call_id=call_id, tool_name=name, arguments_json=request.arguments)
        entry = {"call_id": call_id, "name": name, "tool": full, "arguments": request.arguments}
        setup.approved.append({**entry, "approval": request.id})
    _preset(turn, said, setup)


def _preset(turn: v1.Turn, said: v1.CompletionMessage, setup: Setup) -> None:
    """Put the calls into the turn as if its model had just made them and a person had allowed them."""
    wanted = new_step(turn, v1.STEP_TYPE_INFERENCE, inference=v1.InferenceStep(model_response=said))
    wanted.completed_at.CopyFrom(now())
    calls = v1.ToolExecutionStep(tool_calls=said.tool_calls)
    step = new_step(turn, v1.STEP_TYPE_TOOL_EXECUTION, tool_execution=calls)
    begin(step, place=1, tools=setup.tools(), config=setup.config)
    for line in step.tool_execution.records:
        line.state, line.approved_by = v1.TOOL_CALL_STATE_APPROVED, "a person"
    turn.steps.extend([wanted, step])


def _add_turn(connection: sa.Connection, draft: Draft, turn: v1.Turn, runner: TurnRunner) -> None:
    response, setup, tenant = draft.response, draft.setup, draft.tenant
    agent = setup.pin.agent
    agent.agent_id = response.id
    agent.created_at.CopyFrom(response.created_at)
    stored = agent.SerializeToString()
    # No row of `agent`: nobody lists it, and its sessions, which are reached through it.
    connection.execute(sa.insert(versions), {"agent_id": response.id, "version": 1, "message": stored})
    session = v1.Session(session_id=turn.session_id, started_at=turn.started_at, agent_id=response.id)
    row = {"session_id": session.session_id, "agent_id": response.id, "message": session.SerializeToString()}
    connection.execute(sa.insert(sessions), {**row, "tenant": tenant})
    request = v1.CreateTurnRequest(agent_id=response.id, session_id=session.session_id, messages=turn.input_messages)
    rows.add_turn(connection, turn, request, tenant=tenant, **runner.lease)
    most = draft.request.max_output_tokens if draft.request.HasField("max_output_tokens") else None
    history = {
        "turn_id": turn.turn_id,
        "message": v1.Dialog(messages=setup.before).SerializeToString(),
        "max_output_tokens": most,
    }
    connection.execute(sa.insert(histories), history)
    tools = setup.pin.tools.SerializeToString()
    pin = {"turn_id": turn.turn_id, "agent_id": response.id, "agent": stored, "tools": tools}
    connection.execute(sa.insert(pins), pin)
    connection.execute(
        sa.insert(responses),
        {
            "response_id": response.id,
            "tenant": tenant,
            "model": response.model,
            "stored": response.store,
            "settled": False,
            "conversation_id": draft.request.conversation,
            "turn_id": turn.turn_id,
            "session_id": turn.session_id,
            "facts": setup.facts(),
            "message": response.SerializeToString(),
        },
    )
