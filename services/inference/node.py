"""Putting an inference node together: providers, registry, RPC edge."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc

from llamastack import v1
from services.inference.config import InferenceConfig
from services.inference.engine_metrics import EngineMetrics
from services.inference.membership import Membership
from services.inference.metrics import InferenceMetrics, MeasuredProvider
from services.inference.models_service import ModelsService
from services.inference.provider import Provider
from services.inference.providers.openai import OpenAIProvider
from services.inference.providers.scripted import ScriptedProvider
from services.inference.providers.torch_engine import TorchProvider
from services.inference.registry import ModelRegistry
from services.inference.service import InferenceService
from services.runtime.listen import open_channel
from services.runtime.service import ServiceContext
from stack_client.safety import Safety

SERVICES = ("llamastack.v1.InferenceService", "llamastack.v1.ModelsService")


class InferenceNode:
    """One inference node: the providers that its models need, and the two gRPC services."""

    name = "inference"

    def __init__(self, context: ServiceContext) -> None:
        self.readiness = context.readiness
        self._config = context.section(InferenceConfig)
        self._context = context
        self._runtime = context.runtime
        self._safety: Safety | None = None
        self._draining = context.draining
        self._grace = context.runtime.drain_grace_seconds
        torch = TorchProvider(self._config.providers.torch, cache_dir=context.cache_dir)
        self.providers: Mapping[str, Provider] = {
            "torch": torch,
            "scripted": ScriptedProvider(self._config.providers.scripted),
            "openai": OpenAIProvider(self._config.providers.openai),
        }
        metrics = InferenceMetrics(context.telemetry.registry)
        measured = {
            name: MeasuredProvider(provider, name=name, metrics=metrics, used=context.telemetry.used_tokens)
            for name, provider in self.providers.items()
        }
        self.registry = ModelRegistry(measured, file=context.data_dir / "models.json", on_change=self._show_readiness)
        context.telemetry.registry.register(EngineMetrics(lambda: torch.engine.figures))
        torch.engine.on_queued = lambda model, seconds: metrics.queue.labels(model).observe(seconds)
        self._tasks = asyncio.TaskGroup()
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start the providers and begin to load the models; returns before they are ready."""
        async with AsyncExitStack() as opening:
            for provider in self.providers.values():
                await opening.enter_async_context(provider)
            await opening.enter_async_context(self._tasks)
            self.registry.open(self._config.models, self._tasks)
            opening.callback(self.registry.close)
            if self._config.router is not None:
                link = self._config.router
                await opening.enter_async_context(
                    Membership(
                        link,
                        channel=open_channel(link.address, config=self._runtime),
                        readiness=self.readiness,
                        report=self._report,
                    )
                )
            if "safety" in self._context.addresses:
                channel = self._context.open_channel("safety")
                opening.push_async_callback(channel.close, None)
                self._safety = Safety(channel)
            self._resources = opening.pop_all()
        self._show_readiness()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop loading, then the providers."""
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add both services."""
        inference = InferenceService(
            self.registry, safety=self._safety, draining=self._draining, grace_seconds=self._grace
        )
        v1.add_InferenceServiceServicer_to_server(inference, server)
        v1.add_ModelsServiceServicer_to_server(ModelsService(self.registry, tasks=self._tasks), server)
        return SERVICES

    def _report(self) -> v1.NodeReport:
        """What a router is told."""
        work = [provider.work for provider in self.providers.values()]
        load = v1.NodeLoad(
            running=sum(one.running for one in work),
            waiting=sum(one.waiting for one in work),
            held_tokens=sum(one.held_tokens for one in work),
        )
        draining = self.readiness.state == "draining"
        return v1.NodeReport(load=load, models=self.registry.models, draining=draining)

    def _show_readiness(self) -> None:
        """Ready as soon as every model is either served or has failed; failed when none is served."""
        models = self.registry.models
        self.readiness.details["models"] = ", ".join(
            model.identifier
            if model.state == v1.MODEL_STATE_READY
            else f"{model.identifier} ({v1.ModelState.Name(model.state).removeprefix('MODEL_STATE_').lower()})"
            for model in models
        )
        loading = [model for model in models if model.state == v1.MODEL_STATE_LOADING]
        failed = [model for model in models if model.state == v1.MODEL_STATE_FAILED]
        if loading:
            first = loading[0]
            self.readiness.waiting(f"{first.identifier}: {first.state_message or 'starting the engine'}")
        elif failed and len(failed) == len(models):
            self.readiness.failed(f"{failed[0].identifier}: {failed[0].state_message}")
        else:
            self.readiness.ready()


def build(context: ServiceContext) -> InferenceNode:
    """Make the inference node."""
    return InferenceNode(context)
