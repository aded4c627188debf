"""The durable log in SQL: agents and sessions, and with `TurnStore` their turns, steps and events.

Sequences are dense per turn; an event is shown to nobody before it is committed. The functions of `rows` are parts of a
transaction; `AgentStore.write` and `AgentStore.once` run one as a whole.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message

from llamastack import v1
from services.agents.database import StoreConflictError
from services.agents.rows import delete_sessions, get_agent, get_session, get_turns, newest
from services.agents.swift import Swift
from services.agents.tables import agents, requests, sessions, turns, versions
from services.agents.turn_store import TurnStore
from stack_client.errors import InvalidArgumentError

MessageT = TypeVar("MessageT", bound=Message)

KEEP_REQUESTS_SECONDS = 24 * 3600.0
"""How long a repeat of a request is recognised."""
PRUNE_SECONDS = 600.0
"""Time between two clearings of older requests."""
_ANSWERED = """
    SELECT body, answer FROM answered WHERE tenant = :tenant AND method = :method AND request_id = :request_id
"""
_ADD_ANSWERED = """
    INSERT INTO answered (tenant, method, request_id, created, body, answer)
    VALUES (:tenant, :method, :request_id, :created, :body, :answer)
"""


class AgentStore(TurnStore):
    """The log. Use `async with`.

    Args:
        url: SQLAlchemy URL; a SQLite file is created with its folder.
    """

    def __init__(self, url: str | sa.URL) -> None:
        super().__init__(url)
        self._pruned = 0.0

    async def once(
        self, request: Message, answer: type[MessageT], work: Callable[[sa.Connection], MessageT], *, tenant: str = ""
    ) -> MessageT:
        """Do `work` in one transaction, at most once per tenant and request id of this kind of request.

        Raises:
            InvalidArgumentError: If the id was used before with another body.
        """
        request_id = getattr(request, "request_id", "")
        if not request_id:
            return await self.write(work)
        names = {"tenant": tenant, "method": request.DESCRIPTOR.name, "request_id": request_id}
        body = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()

        def at_most_once(connection: sa.Connection) -> MessageT:
            self._prune(connection)
            swift = Swift.over(connection)
            found = swift.run(_ANSWERED, names).fetchone()
            if found is not None:
                if found[0] != body:
                    message = f"request_id {request_id!r} was used before with another body; choose a new one"
                    raise InvalidArgumentError(message, reason="REQUEST_ID_REUSED", field="request_id")
                return answer.FromString(found[1])
            result = work(connection)
            row = {**names, "created": time.time(), "body": body, "answer": result.SerializeToString()}
            swift.run(_ADD_ANSWERED, row)
            return result

        try:
            return await self.write(at_most_once)
        except StoreConflictError:  # another process answered the same request in between
            return await self.write(at_most_once)

    def _prune(self, connection: sa.Connection) -> None:
        now = time.time()
        if now - self._pruned > PRUNE_SECONDS:
            self._pruned = now
            connection.execute(sa.delete(requests).where(requests.c.created < now - KEEP_REQUESTS_SECONDS))

    async def agent(self, agent_id: str, *, tenant: str | None = "", version: int = 0) -> v1.Agent:
        """One agent, its newest version unless one is named.

        Raises:
            NotFoundError: If there is none.
        """
        return await self.read(lambda connection: get_agent(connection, agent_id, tenant=tenant, version=version))

    async def list_agents(self, *, tenant: str = "", before: int, count: int) -> list[tuple[int, v1.Agent]]:
        """Agents with their numbers, newest first, older than `before` (0: all)."""
        whose = agents.c.tenant == tenant
        rows = await self.read(lambda connection: newest(connection, agents, whose, before=before, count=count))
        return [(row.number, v1.Agent.FromString(row.message)) for row in rows]

    async def delete_agent(self, agent_id: str, *, tenant: str = "") -> Sequence[str]:
        """Delete an agent with its sessions; returns the turns that went with them.

        Raises:
            NotFoundError: If there is none.
        """

        def delete(connection: sa.Connection) -> Sequence[str]:
            get_agent(connection, agent_id, tenant=tenant)
            gone = delete_sessions(connection, sessions.c.agent_id == agent_id)
            connection.execute(sa.delete(versions).where(versions.c.agent_id == agent_id))
            connection.execute(sa.delete(agents).where(agents.c.agent_id == agent_id))
            return gone

        return await self.write(delete)

    async def session(self, session_id: str, agent_id: str = "", *, tenant: str = "") -> v1.Session:
        """One session, without its turns.

        Raises:
            NotFoundError: If there is none, or none of this agent.
        """
        return await self.read(lambda connection: get_session(connection, session_id, agent_id, tenant=tenant))

    async def session_with_turns(self, session_id: str, agent_id: str = "", *, tenant: str = "") -> v1.Session:
        """One session.

        Raises:
            NotFoundError: If there is none, or none of this agent.
        """

        def find(connection: sa.Connection) -> v1.Session:
            session = get_session(connection, session_id, agent_id, tenant=tenant)
            session.turns.extend(turn for _, turn in get_turns(connection, turns.c.session_id == session_id))
            return session

        return await self.read(find)

    async def list_sessions(
        self, agent_id: str, *, tenant: str = "", before: int, count: int
    ) -> list[tuple[int, v1.Session]]:
        """Sessions of an agent with their numbers, newest first, older than `before` (0: all).

        Raises:
            NotFoundError: If there is no such agent.
        """

        def find(connection: sa.Connection) -> "Sequence[sa.Row[Any, Any]]":
            get_agent(connection, agent_id, tenant=tenant)
            return newest(connection, sessions, sessions.c.agent_id == agent_id, before=before, count=count)

        return [(row.number, v1.Session.FromString(row.message)) for row in await self.read(find)]

    async def delete_session(self, session_id: str, agent_id: str = "", *, tenant: str = "") -> Sequence[str]:
        """Delete a session with its turns, steps and events; returns the turns.

        Raises:
            NotFoundError: If there is none, or none of this agent.
        """

        def delete(connection: sa.Connection) -> Sequence[str]:
            get_session(connection, session_id, agent_id, tenant=tenant)
            return delete_sessions(connection, sessions.c.session_id == session_id)

        return await self.write(delete)
