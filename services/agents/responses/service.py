"""The RPC edge of responses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import sqlalchemy as sa

from llamastack import v1
from services.agents.responses import records
from services.agents.responses.compact import compact
from services.agents.responses.engine import Responses
from services.agents.responses.include import trim_items
from services.agents.responses.lists import Found, Listed
from services.agents.responses.output import Event
from services.agents.responses.request import check_include
from services.agents.tables import response_items, responses
from services.runtime.calls import current_tenant
from services.runtime.stream import EventWriter, RpcContext
from stack_client.errors import InvalidArgumentError, StackError
from stack_client.inference import Inference


class ResponsesService(v1.ResponsesServiceServicer):
    """`llamastack.v1.ResponsesService`."""

    def __init__(self, engine: Responses, inference: Inference, *, draining: asyncio.Event) -> None:
        self._engine = engine
        self._inference = inference
        self._draining = draining

    async def CreateResponse(self, request: v1.CreateResponseRequest, context: RpcContext) -> v1.CreateResponseResponse:
        """Make a response; wait for its end unless it runs in the background."""
        tenant = current_tenant()
        response_id = await self._engine.create(request, tenant=tenant)
        async with self._reading(request, response_id):
            if request.background:
                response = await self._engine.now(response_id, tenant=tenant)
            else:
                response = await self._engine.end_of(response_id, tenant=tenant)
        if response.error.code == "CONTEXT_LENGTH_EXCEEDED":
            raise InvalidArgumentError(response.error.message, reason="CONTEXT_LENGTH_EXCEEDED", field="input")
        return v1.CreateResponseResponse(response=response)

    # Coroutines that write, not generators: `EventWriter` sends heartbeats beside them.
    async def StreamCreateResponse(  # type: ignore[override]
        self, request: v1.StreamCreateResponseRequest, context: RpcContext
    ) -> None:
        """Make a response and forward its events."""
        tenant = current_tenant()
        response_id = await self._engine.create(request.request, tenant=tenant)
        writer = EventWriter(context, v1.StreamCreateResponseResponse, draining=self._draining)

        async def forward() -> None:
            async with aclosing(self._engine.events(response_id, tenant=tenant)) as events:
                async for event in events:
                    await writer.forward(v1.StreamCreateResponseResponse.FromString(event.SerializeToString()))

        async with self._reading(request.request, response_id):
            await writer.run(forward())

    @asynccontextmanager
    async def _reading(self, request: v1.CreateResponseRequest, response_id: str) -> AsyncIterator[None]:
        """Read a response; whether it goes on when its caller goes away before its end is the caller's choice."""
        over = False
        try:
            yield
            over = True
        except StackError:
            over = True
            raise
        finally:
            # A shutdown ends calls too, which is not the caller's doing.
            stops = request.cancel_on_disconnect and not request.background and not self._draining.is_set()
            if stops and not over:
                await self._engine.abandon(response_id)
            await self._engine.leave(response_id)

    async def WatchResponse(  # type: ignore[override]
        self, request: v1.WatchResponseRequest, context: RpcContext
    ) -> None:
        """Forward a stored response's events."""
        check_include(request.include)
        tenant = current_tenant()
        writer = EventWriter(context, Event, draining=self._draining)

        async def forward() -> None:
            after = request.resume_after_sequence
            following = self._engine.events(
                request.response_id, tenant=tenant, after=after, hidden=False, include=request.include
            )
            async with aclosing(following) as events:
                async for event in events:
                    await writer.forward(event)

        await writer.run(forward())

    async def GetResponse(self, request: v1.GetResponseRequest, context: RpcContext) -> v1.GetResponseResponse:
        """Return a response as it stands."""
        check_include(request.include)
        response = await self._engine.now(request.response_id, tenant=current_tenant(), include=request.include)
        return v1.GetResponseResponse(response=response)

    async def ListResponses(self, request: v1.ListResponsesRequest, context: RpcContext) -> v1.ListResponsesResponse:
        """List stored responses with their input."""
        tenant = current_tenant()
        where = (responses.c.tenant == tenant) & responses.c.stored
        listed = Listed(
            columns=(responses.c.number, responses.c.response_id),
            where=where & (responses.c.model == request.model) if request.model else where,
            scope=f"responses {request.model}",
            what="response",
        )
        found, token = await self._engine.store.read(lambda connection: listed.page(connection, request))
        data = []
        for response_id in [row.response_id for row in found]:
            data.append(v1.ResponseObject())
            data[-1].CopyFrom(await self._engine.now(response_id, tenant=tenant))
            data[-1].input.extend(await self._inputs(response_id))
        return v1.ListResponsesResponse(data=data, next_page_token=token)

    async def _inputs(self, response_id: str) -> list[v1.ResponseItem]:
        items = await self._engine.store.read(lambda connection: records.items_of(connection, response_id, made=False))
        found = [one.item for one in items]
        trim_items(found, ())
        return found

    async def ListResponseInputItems(
        self, request: v1.ListResponseInputItemsRequest, context: RpcContext
    ) -> v1.ListResponseInputItemsResponse:
        """List what a response was asked."""
        check_include(request.include)
        tenant, response_id = current_tenant(), request.response_id
        items = response_items.c
        listed = Listed(
            columns=(items.number, items.item_id, items.message, items.dialog),
            where=(items.response_id == response_id) & (items.made == sa.false()),
            scope=f"input items {response_id}",
            what="item",
        )

        def find(connection: sa.Connection) -> Found:
            records.find(connection, response_id, tenant=tenant)
            return listed.page(connection, request)

        found, token = await self._engine.store.read(find)
        data = [records.item_of(row).item for row in found]
        trim_items(data, request.include)
        return v1.ListResponseInputItemsResponse(data=data, next_page_token=token)

    async def DeleteResponse(self, request: v1.DeleteResponseRequest, context: RpcContext) -> v1.DeleteResponseResponse:
        """Delete a response that has ended."""
        await self._engine.delete(request.response_id, tenant=current_tenant())
        return v1.DeleteResponseResponse(id=request.response_id, deleted=True)

    async def CancelResponse(self, request: v1.CancelResponseRequest, context: RpcContext) -> v1.CancelResponseResponse:
        """Stop a background response."""
        return v1.CancelResponseResponse(
            response=await self._engine.cancel(request.response_id, tenant=current_tenant())
        )

    async def CompactResponse(
        self, request: v1.CompactResponseRequest, context: RpcContext
    ) -> v1.CompactResponseResponse:
        """Summarise a dialog."""
        return await compact(request, engine=self._engine, inference=self._inference, tenant=current_tenant())
