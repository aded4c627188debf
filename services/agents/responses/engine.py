"""Responses in progress: started, followed to their end, and settled there, also after a process has ended."""

import asyncio
import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Sequence

import sqlalchemy as sa

from llamastack import v1
from services.agents.database import StoreError, to_the_end
from services.agents.responses import creating, records
from services.agents.responses.creating import Draft
from services.agents.responses.fold import Fold, as_begun
from services.agents.responses.groups import McpGroups
from services.agents.responses.include import Included, trim_event, trim_items
from services.agents.responses.items import derived_id, new_id
from services.agents.responses.output import Event
from services.agents.responses.preparing import Preparation
from services.agents.responses.request import check_request
from services.agents.responses.setup import Setup
from services.agents.runner import TurnRunner
from services.agents.store import AgentStore
from services.agents.tables import requests, responses
from services.agents.toolbox import Toolbox
from services.runtime.calls import detached
from stack_client.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    StackError,
)
from stack_client.models import Models
from stack_client.safety import Shields

logger = logging.getLogger(__name__)

SETTLE_ATTEMPTS = 5
SETTLE_SECONDS = 0.2
_OVER = (
    v1.TURN_STATUS_COMPLETED, v1.TURN_STATUS_FAILED, v1.TURN_STATUS_CANCELLED, v1.TURN_STATUS_AWAITING_INPUT,
    v1.TURN_STATUS_NEEDS_ATTENTION,
)  # fmt: skip


class Responses:
    """Makes responses and brings them to their end; no call owns them.

    Args:
        store: The durable log.
        runner: Runs the turns.
        toolbox: Lists tools.
        groups: Registers MCP servers.
        shields: Lists shields; None where the stack has no safety service.
        models: What the stack serves.
        tasks: Where responses are followed.
    """

    def __init__(
        self,
        store: AgentStore,
        runner: TurnRunner,
        *,
        toolbox: Toolbox,
        groups: McpGroups,
        shields: Shields | None,
        models: Models,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.store = store
        self._runner = runner
        self._preparation = Preparation(store, toolbox, groups, shields)
        self._groups = groups
        self._models = models
        self._tasks = tasks
        self._following: dict[str, asyncio.Task[None]] = {}
        # Who still reads a response: one that is not stored goes with its last reader.
        self._readers: Counter[str] = Counter()
        self._doomed: set[str] = set()

    async def recover(self) -> None:
        """Follow the responses whose end nobody has stored."""
        left = sa.or_(responses.c.settled == sa.false(), responses.c.stored == sa.false())
        query = sa.select(responses.c.response_id, responses.c.tenant).where(left)
        for row in await self.store.read(lambda connection: connection.execute(query).all()):
            self._follow(row.response_id, tenant=row.tenant)

    async def stop(self) -> None:
        """Leave all as it is, for the next process."""
        tasks = list(self._following.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Making.

    async def create(self, request: v1.CreateResponseRequest, *, tenant: str) -> str:
        """Store a response and start it; returns its id, which the caller reads until it calls `leave`.

        Raises:
            StackError: If it cannot be made.
        """
        check_request(request)
        response_id = new_id("resp")
        if request.request_id:
            response_id = derived_id("resp", tenant, request.request_id)
            if await self._answered(request, tenant=tenant):
                self._readers[response_id] += 1
                return response_id
        await self._models.get(request.model)
        await self._settle_before(request, tenant=tenant)
        setup, response = await self._preparation.prepare(request, response_id, tenant=tenant)
        try:
            draft = Draft(request=request, response=response, setup=setup, tenant=tenant)
            return await to_the_end(self._store(draft))
        except StackError:
            await self._groups.remove(setup.own)
            raise
        except asyncio.CancelledError as cancelled:
            if cancelled.__cause__ is None:  # it was stored nevertheless
                if request.cancel_on_disconnect and not request.background:
                    await self.abandon(response_id)
                await self.leave(response_id)
            raise

    async def _answered(self, request: v1.CreateResponseRequest, *, tenant: str) -> bool:
        """Whether the request came before; `once` decides, this only saves the work."""
        body = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        query = sa.select(requests.c.body).where(
            requests.c.tenant == tenant,
            requests.c.method == request.DESCRIPTOR.name,
            requests.c.request_id == request.request_id,
        )
        before = await self.store.read(lambda connection: connection.execute(query).scalar())
        if before is not None and before != body:
            message = f"request_id {request.request_id!r} was used before with another body; choose a new one"
            raise InvalidArgumentError(message, reason="REQUEST_ID_REUSED", field="request_id")
        return before is not None

    async def _settle_before(self, request: v1.CreateResponseRequest, *, tenant: str) -> None:
        """Let what comes before be settled where it is over."""
        if request.previous_response_id:
            await self.settle_if_over(request.previous_response_id, tenant=tenant)
        if request.conversation:
            await self.settle_writer(request.conversation, tenant=tenant)

    async def _store(self, draft: Draft) -> str:
        made: list[v1.Turn] = []

        def store(connection: sa.Connection) -> v1.CreateResponseResponse:
            made[:] = [creating.store(connection, draft, self._runner)]
            # Nothing of the response: what is not to be stored must not stay with the answered requests.
            return v1.CreateResponseResponse(response=v1.ResponseObject(id=draft.response.id))

        answer = await self.store.once(draft.request, v1.CreateResponseResponse, store, tenant=draft.tenant)
        self._readers[answer.response.id] += 1
        for turn in made:
            self._runner.start(turn, fence=1)
            self._follow(draft.response.id, tenant=draft.tenant)
        return answer.response.id

    async def leave(self, response_id: str) -> None:
        """Read a response no more."""
        self._readers[response_id] -= 1
        if self._readers[response_id] > 0:
            follower = self._following.get(response_id)
            if response_id in self._doomed and follower is not None:
                await asyncio.wait([follower])  # it is about to end: what is not stored is gone with the answer
            return
        del self._readers[response_id]
        if response_id in self._doomed:
            self._doomed.discard(response_id)
            await to_the_end(self.store.write(lambda connection: records.drop(connection, response_id)))

    # Following.

    def _follow(self, response_id: str, *, tenant: str) -> None:
        if response_id not in self._following:
            follower = self._settle_at_end(response_id)
            self._readers[response_id] += 1
            self._following[response_id] = self._tasks.create_task(follower, context=detached(tenant=tenant))

    async def _settle_at_end(self, response_id: str) -> None:
        try:
            for attempt in range(1, SETTLE_ATTEMPTS + 1):
                try:
                    async for _ in self.events(response_id, tenant=None):
                        pass
                    return
                except StoreError as error:
                    logger.error("a response cannot be settled yet response=%s: %s", response_id, error.message)
                    await asyncio.sleep(SETTLE_SECONDS * 2**attempt)
        except NotFoundError:
            return  # it was deleted, or settled and not stored
        except StackError as error:
            logger.error("a response cannot be followed response=%s: %s", response_id, error.message)
        finally:
            del self._following[response_id]
            with contextlib.suppress(StoreError):  # else the next process does it
                await self.leave(response_id)

    async def fold(self, response_id: str, *, tenant: str | None, hidden: bool = True) -> tuple[Fold, records.Record]:
        """A response before its first event.

        Raises:
            NotFoundError: If there is none.
        """

        def find(connection: sa.Connection) -> tuple[Fold, records.Record]:
            found = records.find(connection, response_id, tenant=tenant, hidden=hidden)
            setup = Setup.of(found.facts, records.pin_of(connection, found.turn_id))
            begun = v1.ResponseObject()
            begun.CopyFrom(found.response)
            return Fold(response=as_begun(begun), setup=setup), found

        return await self.store.read(find)

    async def events(
        self, response_id: str, *, tenant: str | None, after: int = 0, hidden: bool = True, include: Included = ()
    ) -> AsyncGenerator[Event]:
        """The events of a response behind one, to its end, which is stored before the last event is given.

        Args:
            response_id: The response.
            tenant: Whose it is; None: anybody's.
            after: The sequence of that event.
            hidden: Whether it may be one that is not stored.
            include: What items are shown with, beside what the response was created with.

        Raises:
            NotFoundError: If there is none.
            OutOfRangeError: If none follows.
        """
        fold, found = await self.fold(response_id, tenant=tenant, hidden=hidden)
        made, sequence = fold.begin(), 0
        include = {*include, *fold.setup.include}
        shown = False
        while True:
            if fold.ended and not found.settled:
                await self.settle(fold, found)
            if fold.ended and not fold.response.store:
                self._doomed.add(response_id)
            for event in made:
                if event.sequence > after:
                    shown = True
                    trim_event(event, include)
                    yield event
            if fold.ended:
                break
            made = []
            for happened in await self._runner.events(found.turn_id, after=sequence):
                sequence = happened.sequence
                made += fold.feed(happened)
                if fold.ended:
                    break
        if not shown:
            last = fold.response.last_sequence
            message = f"the last event of response {response_id} is {last}; watch from below {last}"
            raise OutOfRangeError(message, field="resume_after_sequence")

    async def now(
        self, response_id: str, *, tenant: str | None, hidden: bool = False, include: Included = ()
    ) -> v1.ResponseObject:
        """A response as it stands, with what is included of its items beyond the usual.

        Raises:
            NotFoundError: If there is none.
        """
        found = await self.store.read(
            lambda connection: records.find(connection, response_id, tenant=tenant, hidden=hidden)
        )
        include = {*include, *found.include}
        if found.settled:
            trim_items(found.response.output, include)
            return found.response
        fold, found = await self.fold(response_id, tenant=tenant, hidden=hidden)
        fold.begin()
        for event in (await self.store.events_after(found.turn_id, 0)).events:
            fold.feed(event)
            if fold.ended:
                await self.settle(fold, found)
                break
        response = fold.snapshot()
        trim_items(response.output, include)
        return response

    async def end_of(self, response_id: str, *, tenant: str) -> v1.ResponseObject:
        """A response once it has ended.

        Raises:
            FailedPreconditionError: If it has ended before, and was not stored.
        """
        try:
            async with contextlib.aclosing(self.events(response_id, tenant=tenant)) as events:
                async for event in events:
                    kind = event.WhichOneof("event") or ""
                    if kind != "progress":
                        response: v1.ResponseObject = getattr(event, kind)
                        return response
        except NotFoundError:
            message = f"response {response_id} was answered before and not stored; ask again under a new request_id"
            raise FailedPreconditionError(message, metadata={"response": response_id}) from None
        raise AssertionError("a response ends with its last event")

    # Settling.

    async def settle(self, fold: Fold, found: records.Record) -> None:
        """Store the end of a response, with what hangs on it; a repeat changes nothing."""
        response_id, tenant = fold.response.id, found.tenant
        output = fold.output

        def store(connection: sa.Connection) -> bool:
            where = responses.c.response_id == response_id
            row = connection.execute(sa.select(responses.c.settled).where(where).with_for_update()).first()
            if row is None or row.settled:
                return False
            if found.conversation_id:
                inputs = records.items_of(connection, response_id, made=False)
                records.append(connection, found.conversation_id, [*inputs, *output])
                records.set_writer(connection, found.conversation_id, "")
            message = fold.response.SerializeToString()
            connection.execute(sa.update(responses).where(where).values(settled=True, message=message))
            records.add_items(connection, response_id, output, tenant=tenant, made=True)
            return True

        if await self.store.write(store):
            await self._groups.remove(fold.setup.own)

    async def settle_if_over(self, response_id: str, *, tenant: str | None) -> None:
        """Settle a response whose turn is over."""

        def over(connection: sa.Connection) -> bool:
            found = records.find(connection, response_id, tenant=tenant, hidden=True)
            return not found.settled and records.status_of(connection, found.turn_id) in _OVER

        with contextlib.suppress(NotFoundError):
            if await self.store.read(over):
                await self.now(response_id, tenant=tenant, hidden=True)

    async def settle_writer(self, conversation_id: str, *, tenant: str) -> None:
        """Settle the response that writes to a conversation where it is over."""

        def writer(connection: sa.Connection) -> str:
            name: str = records.conversation_of(connection, conversation_id, tenant=tenant).writer
            return name

        response_id = await self.store.read(writer)
        if response_id:
            await self.settle_if_over(response_id, tenant=tenant)

    # Ending.

    async def cancel(self, response_id: str, *, tenant: str) -> v1.ResponseObject:
        """Stop a background response.

        Raises:
            NotFoundError: If there is none.
            FailedPreconditionError: If it does not run in the background, or has ended.
        """
        response = await self.now(response_id, tenant=tenant)
        if not response.background:
            raise FailedPreconditionError(f"response {response_id} does not run in the background; end its call")
        if response.HasField("completed_at"):
            status = v1.ResponseStatus.Name(response.status).removeprefix("RESPONSE_STATUS_").lower()
            raise FailedPreconditionError(f"response {response_id} has ended already; it is {status}")
        found = await self.store.read(lambda connection: records.find(connection, response_id, tenant=tenant))
        await to_the_end(self._runner.cancel(found.turn_id))
        return await self.now(response_id, tenant=tenant)

    async def abandon(self, response_id: str) -> None:
        """Stop a response whose reader has gone away and would be the last one; one that has ended stays as it is."""
        others = self._readers[response_id] - 1 - (response_id in self._following)
        if others > 0 or self._runner.stopping:
            return
        with contextlib.suppress(NotFoundError, FailedPreconditionError):
            found = await self.store.read(
                lambda connection: records.find(connection, response_id, tenant=None, hidden=True)
            )
            await to_the_end(self._runner.cancel(found.turn_id))

    async def delete(self, response_id: str, *, tenant: str) -> None:
        """Delete a response that has ended.

        Raises:
            NotFoundError: If there is none.
            FailedPreconditionError: If it runs.
        """
        response = await self.now(response_id, tenant=tenant)
        if not response.HasField("completed_at"):
            raise FailedPreconditionError(f"response {response_id} is still running; cancel it or wait for its end")

        def delete(connection: sa.Connection) -> Sequence[str]:
            return records.delete(connection, records.find(connection, response_id, tenant=tenant))

        await self.store.write(delete)
