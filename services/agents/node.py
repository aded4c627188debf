"""Putting the agents service together: store, runner, RPC edge."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc
import sqlalchemy as sa

from llamastack import v1
from services.agents.chat_completions_service import ChatCompletionsService
from services.agents.config import AgentsConfig
from services.agents.database import SchemaError
from services.agents.notices import FanOut, NoFanOut, Notices, RedisFanOut
from services.agents.responses.conversations_service import ConversationsService
from services.agents.responses.engine import Responses
from services.agents.responses.groups import McpGroups
from services.agents.responses.prompts_service import PromptsService
from services.agents.responses.service import ResponsesService
from services.agents.retrieval import Retrieval
from services.agents.runner import TurnRunner
from services.agents.service import AgentsService
from services.agents.store import AgentStore
from services.agents.toolbox import NoTools, Toolbox, ToolService
from services.agents.turn import Around
from services.runtime.config import ConfigError
from services.runtime.database_url import database_url
from services.runtime.service import ServiceContext
from stack_client.inference import Inference
from stack_client.models import Models
from stack_client.safety import Shields
from stack_client.toolgroups import Tools

SERVICES = (
    "llamastack.v1.AgentsService",
    "llamastack.v1.ResponsesService",
    "llamastack.v1.ConversationsService",
    "llamastack.v1.PromptsService",
    "llamastack.v1.ChatCompletionsService",
)


class AgentsNode:
    """The agents service of one process."""

    name = "agents"

    def __init__(self, context: ServiceContext) -> None:
        self.readiness = context.readiness
        self._context = context
        self._config = context.section(AgentsConfig)
        config = self._config
        try:
            url = database_url("agents", config.database, config.database_password_file, context.data_dir)
            self._store = AgentStore(url)
        except (sa.exc.ArgumentError, OSError) as error:
            raise ConfigError(f"{context.config.file}: agents.database: {error}") from error
        self._tasks = asyncio.TaskGroup()
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the store and go on with the turns that the last process left."""
        async with AsyncExitStack() as opening:
            try:
                await opening.enter_async_context(self._store)
            except SchemaError as error:  # starting again cannot help
                raise ConfigError(error.message) from error
            channel = self._context.open_channel("inference")
            opening.push_async_callback(channel.close, None)
            memory = None
            if "memory" in self._context.addresses:
                memory = self._context.open_channel("memory")
                opening.push_async_callback(memory.close, None)
            self._toolbox: Toolbox = NoTools()
            groups = McpGroups(None)
            if "tools" in self._context.addresses:
                tools = self._context.open_channel("tools")
                opening.push_async_callback(tools.close, None)
                self._toolbox, groups = ToolService(tools), McpGroups(Tools(tools))
            shields = None
            if "safety" in self._context.addresses:
                safety = self._context.open_channel("safety")
                opening.push_async_callback(safety.close, None)
                shields = Shields(safety)
            self._inference = Inference(channel)
            around = Around(
                inference=self._inference, memory=Retrieval(memory), toolbox=self._toolbox, limits=self._config
            )
            notices = Notices()
            fan_out = await self._fan_out(opening, notices)
            await opening.enter_async_context(self._tasks)
            self._runner = TurnRunner(
                self._store,
                around=around,
                notices=notices,
                fan_out=fan_out,
                tasks=self._tasks,
                span=self._context.telemetry.work,
            )
            opening.push_async_callback(self._runner.stop)
            self._responses = Responses(
                self._store, self._runner, toolbox=self._toolbox, groups=groups, shields=shields,
                models=Models(channel), tasks=self._tasks,
            )  # fmt: skip
            opening.push_async_callback(self._responses.stop)
            await self._runner.recover()
            await self._responses.recover()
            keeper = self._tasks.create_task(self._runner.keep_leases())
            opening.callback(keeper.cancel)
            self._resources = opening.pop_all()
        self.readiness.ready()
        return self

    async def _fan_out(self, opening: AsyncExitStack, notices: Notices) -> FanOut:
        """What carries news to other replicas."""
        url = self._config.redis or os.environ.get("STACK_AGENTS_REDIS", "")
        if not url:
            return NoFanOut()
        try:
            redis = RedisFanOut(url, stream=self._config.redis_stream, heard=notices.wake)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{self._context.config.file}: agents.redis: {error}") from error
        await opening.enter_async_context(redis.running())
        return redis

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave running turns for the next process and close the store."""
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the service."""
        draining = self._context.draining
        service = AgentsService(self._store, self._runner, self._toolbox, draining=draining)
        v1.add_AgentsServiceServicer_to_server(service, server)
        responses = ResponsesService(self._responses, self._inference, draining=draining)
        v1.add_ResponsesServiceServicer_to_server(responses, server)
        v1.add_ConversationsServiceServicer_to_server(ConversationsService(self._responses), server)
        v1.add_PromptsServiceServicer_to_server(PromptsService(self._store), server)
        v1.add_ChatCompletionsServiceServicer_to_server(ChatCompletionsService(self._store), server)
        return SERVICES


def build(context: ServiceContext) -> AgentsNode:
    """Make the agents service."""
    return AgentsNode(context)
