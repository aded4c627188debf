"""Copying a session up to a turn or a step."""

import uuid

import sqlalchemy as sa

from llamastack import v1
from services.agents.rows import ENDED, add_session, add_turn, get_session, get_turn_request, get_turns
from services.agents.tables import turns
from services.agents.turn_log import now
from stack_client.errors import InvalidArgumentError, NotFoundError


def fork_session(connection: sa.Connection, request: v1.ForkSessionRequest, *, tenant: str = "") -> str:
    """Copy a session as the request says; returns the copy's id.

    Raises:
        NotFoundError: If there is no such session, turn or step.
        InvalidArgumentError: If a step is named without its turn.
    """
    if request.at_step_id and not request.at_turn_id:
        raise InvalidArgumentError("at_step_id needs at_turn_id: name the turn of the step", field="at_turn_id")
    session = get_session(connection, request.session_id, tenant=tenant)
    originals = [turn for _, turn in get_turns(connection, turns.c.session_id == request.session_id)]
    fork = v1.Session(
        session_id=str(uuid.uuid4()),
        session_name=request.session_name or session.session_name,
        started_at=now(),
        agent_id=session.agent_id,
    )
    add_session(connection, fork, tenant=tenant)
    copies: dict[str, str] = {}
    for turn in _up_to(originals, request):
        original = turn.turn_id
        created_by = get_turn_request(connection, turn.turn_id)
        # The copy has steps but no events: nobody watches what ended long ago.
        turn.turn_id, turn.session_id, turn.last_sequence = str(uuid.uuid4()), fork.session_id, 0
        copies[original] = turn.turn_id
        for step in turn.steps:
            step.turn_id = turn.turn_id
            if step.HasField("compaction"):
                covered = step.compaction.through_turn_id
                step.compaction.through_turn_id = copies.get(covered, covered)
        add_turn(connection, turn, created_by, tenant=tenant)
    return fork.session_id


def _up_to(originals: list[v1.Turn], request: v1.ForkSessionRequest) -> list[v1.Turn]:
    """The ended turns of a session up to the turn and step that a fork names."""
    if not request.at_turn_id:
        return [turn for turn in originals if turn.status in ENDED]
    for place, turn in enumerate(originals):
        if turn.turn_id == request.at_turn_id:
            _cut(turn, request.at_step_id)
            return originals[: place + 1]
    raise NotFoundError(f"session {request.session_id} has no turn {request.at_turn_id!r}")


def _cut(turn: v1.Turn, step_id: str) -> None:
    """Drop what comes after a step; a copy does not run, so a turn that is cut or was running is over in the fork."""
    last = turn.steps[-1].step_id if turn.steps else ""
    if step_id:
        ids = [step.step_id for step in turn.steps]
        if step_id not in ids:
            raise NotFoundError(f"turn {turn.turn_id} has no step {step_id!r}")
        del turn.steps[ids.index(step_id) + 1 :]
    if turn.status not in ENDED or (step_id and step_id != last):
        turn.status = v1.TURN_STATUS_CANCELLED
        turn.completed_at.CopyFrom(now())
        turn.ClearField("output_message")
        turn.ClearField("pending")
        turn.ClearField("error")
