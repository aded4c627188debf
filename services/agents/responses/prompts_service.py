"""The RPC edge of prompts."""

import sqlalchemy as sa

from llamastack import v1
from services.agents.responses.items import new_id
from services.agents.responses.lists import cut, start
from services.agents.responses.prompts import add_version, check_slots, get, row_of
from services.agents.store import AgentStore
from services.agents.tables import prompt_versions, prompts
from services.agents.turn_log import now
from services.runtime.calls import current_tenant
from services.runtime.stream import RpcContext
from stack_client.errors import ConflictError


class PromptsService(v1.PromptsServiceServicer):
    """`llamastack.v1.PromptsService`."""

    def __init__(self, store: AgentStore) -> None:
        self._store = store

    async def CreatePrompt(self, request: v1.CreatePromptRequest, context: RpcContext) -> v1.CreatePromptResponse:
        """Store a prompt's first version."""
        tenant = current_tenant()
        check_slots(request.prompt, list(request.variables))

        def create(connection: sa.Connection) -> v1.CreatePromptResponse:
            prompt = v1.Prompt(
                prompt=request.prompt,
                version=1,
                prompt_id=new_id("pmpt"),
                variables=request.variables,
                is_default=True,
                created_at=now(),
            )
            key = {"prompt_id": prompt.prompt_id, "tenant": tenant}
            connection.execute(sa.insert(prompts), {**key, "latest": 1, "chosen": 1})
            add_version(connection, prompt)
            return v1.CreatePromptResponse(prompt=prompt)

        return await self._store.once(request, v1.CreatePromptResponse, create, tenant=tenant)

    async def GetPrompt(self, request: v1.GetPromptRequest, context: RpcContext) -> v1.GetPromptResponse:
        """Return a version."""
        tenant = current_tenant()
        version = request.version if request.HasField("version") else None
        return v1.GetPromptResponse(
            prompt=await self._store.read(lambda connection: get(connection, request.prompt_id, version, tenant))
        )

    async def UpdatePrompt(self, request: v1.UpdatePromptRequest, context: RpcContext) -> v1.UpdatePromptResponse:
        """Add a version."""
        tenant = current_tenant()
        check_slots(request.prompt, list(request.variables))

        def update(connection: sa.Connection) -> v1.UpdatePromptResponse:
            row = row_of(connection, request.prompt_id, tenant, lock=True)
            if row.latest != request.version:
                message = (
                    f"prompt {request.prompt_id} is at version {row.latest}, not {request.version}; read it again "
                    "before changing it"
                )
                raise ConflictError(message, field="version", metadata={"version": str(row.latest)})
            chosen = request.set_as_default if request.HasField("set_as_default") else True
            prompt = v1.Prompt(
                prompt=request.prompt,
                version=row.latest + 1,
                prompt_id=request.prompt_id,
                variables=request.variables,
                is_default=chosen,
                created_at=now(),
            )
            values = {"latest": prompt.version, **({"chosen": prompt.version} if chosen else {})}
            connection.execute(sa.update(prompts).where(prompts.c.prompt_id == request.prompt_id).values(values))
            add_version(connection, prompt)
            return v1.UpdatePromptResponse(prompt=prompt)

        return await self._store.once(request, v1.UpdatePromptResponse, update, tenant=tenant)

    async def DeletePrompt(self, request: v1.DeletePromptRequest, context: RpcContext) -> v1.DeletePromptResponse:
        """Delete all versions."""
        tenant = current_tenant()

        def delete(connection: sa.Connection) -> None:
            row_of(connection, request.prompt_id, tenant, lock=True)
            for table in (prompt_versions, prompts):
                connection.execute(sa.delete(table).where(table.c.prompt_id == request.prompt_id))

        await self._store.write(delete)
        return v1.DeletePromptResponse()

    async def ListPrompts(self, request: v1.ListPromptsRequest, context: RpcContext) -> v1.ListPromptsResponse:
        """List default versions, newest prompt first."""
        tenant = current_tenant()
        size, before = start(request, scope="prompts")
        query = sa.select(prompts).where(prompts.c.tenant == tenant).order_by(prompts.c.number.desc()).limit(size + 1)
        query = query.where(prompts.c.number < before) if before else query

        def find(connection: sa.Connection) -> list[tuple[int, v1.Prompt]]:
            found = connection.execute(query).all()
            return [(row.number, get(connection, row.prompt_id, None, tenant)) for row in found]

        data, token = cut(await self._store.read(find), size, scope="prompts")
        return v1.ListPromptsResponse(data=data, next_page_token=token)

    async def ListPromptVersions(
        self, request: v1.ListPromptVersionsRequest, context: RpcContext
    ) -> v1.ListPromptVersionsResponse:
        """List the versions of a prompt, oldest first."""
        tenant, scope = current_tenant(), f"prompt versions {request.prompt_id}"
        size, after = start(request, scope=scope)

        def find(connection: sa.Connection) -> list[tuple[int, v1.Prompt]]:
            row = row_of(connection, request.prompt_id, tenant)
            versions = range(after + 1, min(row.latest, after + size + 1) + 1)
            return [(version, get(connection, request.prompt_id, version, tenant)) for version in versions]

        data, token = cut(await self._store.read(find), size, scope=scope)
        return v1.ListPromptVersionsResponse(data=data, next_page_token=token)

    async def SetDefaultPromptVersion(
        self, request: v1.SetDefaultPromptVersionRequest, context: RpcContext
    ) -> v1.SetDefaultPromptVersionResponse:
        """Choose the version that is used when none is named."""
        tenant = current_tenant()

        def choose(connection: sa.Connection) -> v1.Prompt:
            row_of(connection, request.prompt_id, tenant, lock=True)
            get(connection, request.prompt_id, request.version, tenant)
            where = prompts.c.prompt_id == request.prompt_id
            connection.execute(sa.update(prompts).where(where).values(chosen=request.version))
            return get(connection, request.prompt_id, request.version, tenant)

        return v1.SetDefaultPromptVersionResponse(prompt=await self._store.write(choose))
