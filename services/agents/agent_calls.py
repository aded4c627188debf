"""Agents as tools of others: a call becomes a turn of the other agent, which is found again by the call's key."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from llamastack import v1
from services.agents import ledger, rows
from services.agents.approvals import arguments_of
from services.agents.offered import Offered
from services.agents.store import AgentStore
from services.agents.turn_log import TurnLog, now
from stack_client.content import content
from stack_client.errors import FailedPreconditionError, NotFoundError, StackError

if TYPE_CHECKING:
    from services.agents.runner import TurnRunner

MOST_DEEP = 8
"""Agents that may call each other in a chain."""
_NAMES = uuid.UUID("5a1c6a7e-4f0b-4d0c-9a53-6f3f4b8f2f10")


class AgentCalls:
    """Lets other agents answer calls of one turn.

    Args:
        store: Agents, sessions, turns.
        runner: Runs the turns.
        log: Of the turn that asks.
    """

    def __init__(self, store: AgentStore, runner: "TurnRunner", log: TurnLog) -> None:
        self._store = store
        self._runner = runner
        self._log = log

    async def ask(self, call: v1.ToolCall, record: v1.ToolCallRecord, tool: Offered) -> v1.ToolInvocationResult | None:
        """The answer of another agent; None while it waits for people or for tools of its caller.

        Its own failure is a result that the model reads.
        """
        edited = v1.ToolCall(arguments_json=ledger.arguments_json(call, record), arguments=call.arguments)
        arguments = arguments_of(edited)
        message = arguments.get("message") if isinstance(arguments, dict) else None
        if not isinstance(message, str) or not message:
            return _failed(f"{tool.name} needs `message`, a text: the question or task.")
        try:
            turn = await self._turn(record, tool, message)
        except (NotFoundError, FailedPreconditionError) as error:
            return _failed(error.message)
        return await self._answer(turn.turn_id, call, tool)

    async def _turn(self, record: v1.ToolCallRecord, tool: Offered, message: str) -> v1.Turn:
        """The turn of the other agent, made when the call is sent first."""
        turn_id = str(uuid.uuid5(_NAMES, record.idempotency_key))
        record.agent_turn_id = turn_id
        parent, agent_id = self._log.turn, tool.tool.partition("/")[2]

        def create(connection: sa.Connection) -> tuple[v1.Turn, bool]:
            found = rows.find_turn(connection, turn_id)
            if found is not None:
                return found, False
            tenant = rows.tenant_of(connection, parent.turn_id)
            if rows.depth(connection, parent) >= MOST_DEEP:
                raise FailedPreconditionError(f"agents call each other more than {MOST_DEEP} deep; answer by yourself")
            agent = rows.get_agent(connection, agent_id, tenant=tenant)
            session = v1.Session(
                session_id=str(uuid.uuid5(_NAMES, turn_id)),
                session_name=f"asked by turn {parent.turn_id}",
                started_at=now(),
                agent_id=agent_id,
            )
            rows.add_session(connection, session, tenant=tenant)
            asked = v1.TurnInputMessage(user=v1.UserMessage(content=content(message)))
            request = v1.CreateTurnRequest(agent_id=agent_id, session_id=session.session_id, messages=[asked])
            turn = v1.Turn(
                turn_id=turn_id,
                session_id=session.session_id,
                input_messages=request.messages,
                started_at=now(),
                status=v1.TURN_STATUS_QUEUED,
                agent_id=agent_id,
                agent_version=agent.version,
                parent_turn_id=parent.turn_id,
            )
            rows.add_turn(connection, turn, request, tenant=tenant, **self._runner.lease)
            return turn, True

        turn, made = await self._store.write(create)
        if made:
            self._runner.start(turn, fence=1)
        return turn

    async def _answer(self, turn_id: str, call: v1.ToolCall, tool: Offered) -> v1.ToolInvocationResult | None:
        """Wait for the end of the other agent's turn; what it says on the way is shown as progress of the call."""
        try:
            return await self._followed(turn_id, call, tool)
        except asyncio.CancelledError:
            if not self._runner.stopping:
                await asyncio.shield(_cancel(self._runner, turn_id))
            raise

    async def _followed(self, turn_id: str, call: v1.ToolCall, tool: Offered) -> v1.ToolInvocationResult | None:
        sequence = 0
        step = ledger.open_step(self._log.turn)
        while True:
            for event in await self._runner.events(turn_id, after=sequence):
                sequence = event.sequence
                match event.WhichOneof("event"):
                    case "turn_complete":
                        said = event.turn_complete.turn
                        return v1.ToolInvocationResult(
                            content=said.output_message.content, attachments=said.output_attachments
                        )
                    case "turn_failed":
                        return _failed(f"{tool.name} failed: {event.turn_failed.turn.error.message}")
                    case "turn_cancelled":
                        return _failed(f"{tool.name} was cancelled.")
                    case "turn_awaiting_input":
                        turn = await self._store.turn(turn_id)
                        if turn.last_sequence == sequence:
                            return None
                    case "step_progress" if step is not None and event.step_progress.delta.text:
                        told = v1.ToolCallProgress(
                            call_id=call.call_id, tool=tool.tool, stream="agent", text=event.step_progress.delta.text
                        )
                        shown = v1.TurnStepProgress(step_type=step.step_type, step_id=step.step_id, tool_progress=told)
                        self._log.add(step_progress=shown)

    async def waiting(self, step: v1.Step) -> list[v1.PendingCall]:
        """What a tool step waits for; in place of a call that another agent answers, what that agent waits for."""
        found: list[v1.PendingCall] = []
        for one in ledger.pending(step):
            turn_id = ledger.record_of(step, one.call.call_id).agent_turn_id
            found += (await self._store.turn(turn_id)).pending if turn_id else [one]
        return found


@dataclass(frozen=True, kw_only=True)
class Brought:
    """What a caller brought to a turn."""

    responses: Sequence[v1.ToolResponse]
    """Results of client tools."""
    decisions: Sequence[v1.ToolDecision]
    """What people decided."""
    woken: frozenset[str] = frozenset()
    """Turns of other agents that were given what was theirs."""


async def forward(runner: "TurnRunner", turn: v1.Turn, brought: Brought) -> Brought:
    """Hand what belongs to turns of other agents to them; returns what is the turn's own.

    Raises:
        StackError: As such a turn refuses it.
    """
    step = ledger.open_step(turn)
    responses, decided, woken = list(brought.responses), list(brought.decisions), set(brought.woken)
    for turn_id in ledger.nested_turns(step) if step is not None else ():
        nested = await runner.stored(turn_id)
        theirs = {one.call.call_id for one in nested.pending}
        theirs |= {call.call_id for one in nested.steps for call in one.tool_execution.tool_calls}
        results = [one for one in responses if one.call_id in theirs]
        choices = [one for one in decided if one.call_id in theirs]
        if results or choices:
            await runner.resume(turn_id, Brought(responses=results, decisions=choices))
            woken.add(turn_id)
        responses = [one for one in responses if one.call_id not in theirs]
        decided = [one for one in decided if one.call_id not in theirs]
    return Brought(responses=responses, decisions=decided, woken=frozenset(woken))


async def cancel_nested(runner: "TurnRunner", turn: v1.Turn) -> None:
    """Cancel the turns of other agents that answer calls of a turn."""
    step = ledger.open_step(turn)
    for turn_id in ledger.nested_turns(step) if step is not None else ():
        await _cancel(runner, turn_id)


async def _cancel(runner: "TurnRunner", turn_id: str) -> None:
    try:
        await runner.cancel(turn_id)
    except StackError:
        return  # it has ended


def _failed(text: str) -> v1.ToolInvocationResult:
    return v1.ToolInvocationResult(error_message=text, error_code=1)
