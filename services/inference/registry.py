"""The models of this node: configured ones and those registered at run time, which are kept over restarts."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from services.inference.adapter_names import SEPARATOR, split_adapter
from services.inference.config import ModelConfig
from services.inference.provider import Provider
from stack_client.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StackError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

_TYPES = {
    "llm": v1.MODEL_TYPE_LLM,
    "embedding": v1.MODEL_TYPE_EMBEDDING,
    "classifier": v1.MODEL_TYPE_CLASSIFIER,
    "rerank": v1.MODEL_TYPE_RERANK,
}


class ModelRegistry:
    """Models by identifier and the tasks that load them.

    Args:
        providers: By the name that `provider_id` uses.
        file: Where models registered at run time are kept.
        on_change: Called when a model's state or progress changes.
    """

    def __init__(self, providers: Mapping[str, Provider], *, file: Path, on_change: Callable[[], None]) -> None:
        self._providers = providers
        self._file = file
        self._on_change = on_change
        self._models: dict[str, v1.Model] = {}
        self._given: dict[str, dict[str, object]] = {}
        self._kept: set[str] = set()
        self._loads: dict[str, asyncio.Task[None]] = {}

    @property
    def models(self) -> Sequence[v1.Model]:
        """All models, by identifier."""
        return [self._models[identifier] for identifier in sorted(self._models)]

    def open(self, configured: Sequence[ModelConfig], tasks: asyncio.TaskGroup) -> None:
        """Register what is configured and what was kept, and begin to load it."""
        for entry in configured:
            self._add(
                v1.Model(
                    identifier=entry.model_id,
                    provider_resource_id=entry.provider_model_id or entry.model_id,
                    provider_id=entry.provider_id,
                    model_type=_TYPES[entry.model_type],
                ),
                entry.metadata,
                tasks,
            )
        for model, metadata in self._read():
            if model.identifier not in self._models:
                self._kept.add(model.identifier)
                self._add(model, metadata, tasks)

    def close(self) -> None:
        """Stop loading."""
        for task in self._loads.values():
            task.cancel()

    async def register(self, request: v1.RegisterModelRequest, tasks: asyncio.TaskGroup) -> v1.Model:
        """Add a model and begin to load it; the same model again is the existing one.

        What a repeat does not say counts as unchanged, so that a program may name a model that is there without
        knowing who provides it.

        An adapter, `base@name`, takes its base's provider when none is given, and is loaded after its base.

        Raises:
            NotFoundError: If an adapter's base is not registered.
            AlreadyExistsError: If the identifier has other content.
            InvalidArgumentError: If id or provider are missing or unknown.
        """
        if not request.model_id:
            raise InvalidArgumentError("model_id is empty", reason="MISSING_FIELD", field="model_id")
        metadata = json_format.MessageToDict(request.metadata)
        existing = self._models.get(request.model_id)
        if existing is not None and existing.state == v1.MODEL_STATE_FAILED:
            existing = None
        if existing is not None and self._repeats(existing, request, metadata):
            return existing
        base = self._base_of(request.model_id)
        model = v1.Model(
            identifier=request.model_id,
            provider_resource_id=request.provider_model_id or request.model_id,
            provider_id=request.provider_id or (base.provider_id if base else self._only_provider()),
            model_type=request.model_type or v1.MODEL_TYPE_LLM,
        )
        self._provider(model.provider_id)
        if base:
            _check_base(base, of=model)
        if existing is not None:
            message = f"model {model.identifier!r} exists with other content; unregister it first or choose another id"
            raise AlreadyExistsError(message, field="model_id")
        self._kept.add(model.identifier)
        self._add(model, metadata, tasks)
        await asyncio.to_thread(self._write)
        return self._models[model.identifier]

    def _repeats(self, existing: v1.Model, request: v1.RegisterModelRequest, metadata: dict[str, object]) -> bool:
        """Whether everything that a request says is so already."""
        said = {
            "provider_resource_id": request.provider_model_id,
            "provider_id": request.provider_id,
            "model_type": request.model_type,
        }
        same = all(getattr(existing, name) == value for name, value in said.items() if value)
        return same and metadata in ({}, self._given[existing.identifier])

    async def unregister(self, model_id: str) -> None:
        """Remove a model and free it.

        Raises:
            NotFoundError: If there is none.
            FailedPreconditionError: If adapters of it are registered.
        """
        model = self.get(model_id)
        adapters = [other for other in sorted(self._models) if other.startswith(model_id + SEPARATOR)]
        if adapters:
            message = f"model {model_id!r} has adapters; unregister them first: {', '.join(adapters)}"
            raise FailedPreconditionError(message, metadata={"adapters": ", ".join(adapters)}, field="model_id")
        load = self._loads.pop(model_id)
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
        del self._models[model_id]
        self._kept.discard(model_id)
        await asyncio.to_thread(self._write)
        await self._providers[model.provider_id].unload(model_id)
        self._on_change()

    def get(self, model_id: str, *, field: str = "model_id") -> v1.Model:
        """The model of that identifier.

        Raises:
            NotFoundError: If there is none; the message lists what is served.
        """
        if not model_id:
            raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
        model = self._models.get(model_id)
        if model is None:
            served = ", ".join(sorted(self._models)) or "none"
            message = f"no model {model_id!r}; this stack serves: {served}"
            raise NotFoundError(message, reason="MODEL_NOT_FOUND", metadata={"model": model_id}, field=field)
        return model

    def ready(self, model_id: str, *, of_type: "v1.ModelType.ValueType", field: str = "model_id") -> Provider:
        """The provider of a model that can answer now.

        Raises:
            NotFoundError: If there is no such model.
            InvalidArgumentError: If it is of another type, or could not be loaded.
            UnavailableError: If it is still loading.
        """
        model = self.get(model_id, field=field)
        if model.model_type != of_type:
            is_, wanted = (
                v1.ModelType.Name(kind).removeprefix("MODEL_TYPE_").lower() for kind in (model.model_type, of_type)
            )
            article, other = ("an" if kind in {"llm", "embedding"} else "a" for kind in (is_, wanted))
            message = f"model {model_id!r} is {article} {is_} model; this call needs {other} {wanted} model"
            raise InvalidArgumentError(message, reason="WRONG_MODEL_TYPE", field=field)
        if model.state == v1.MODEL_STATE_FAILED:
            raise UnavailableError(f"model {model_id!r} could not be loaded: {model.state_message}", reason="NOT_READY")
        if model.state != v1.MODEL_STATE_READY:
            message = f"model {model_id!r} is not ready: {model.state_message or 'loading'}; ask again in a moment"
            raise UnavailableError(message, reason="NOT_READY", retry_after=1.0)
        return self._providers[model.provider_id]

    def _add(self, model: v1.Model, metadata: dict[str, object], tasks: asyncio.TaskGroup) -> None:
        model.type = v1.RESOURCE_TYPE_MODEL
        model.state = v1.MODEL_STATE_LOADING
        created = Timestamp()
        created.GetCurrentTime()
        model.created.CopyFrom(model.created if model.HasField("created") else created)
        json_format.ParseDict(metadata, model.metadata)
        self._models[model.identifier] = model
        self._given[model.identifier] = dict(metadata)
        self._loads[model.identifier] = tasks.create_task(self._load(model))

    async def _load(self, model: v1.Model) -> None:
        loaded = False

        def report(message: str) -> None:
            model.state_message = message
            if model.state != v1.MODEL_STATE_FAILED and loaded:  # the provider lost it and loads it again
                model.state = v1.MODEL_STATE_LOADING if message else v1.MODEL_STATE_READY
            self._on_change()

        try:
            await self._base_loaded(model)
            facts = await self._provider(model.provider_id).load(model, report)
            _check_facts(model, given=self._given[model.identifier], facts=facts)
        except StackError as error:
            logger.error("model %s failed to load: %s", model.identifier, error.message)
            model.state = v1.MODEL_STATE_FAILED
            model.state_message = error.message
        except Exception as error:
            logger.exception("model %s failed to load", model.identifier)
            model.state = v1.MODEL_STATE_FAILED
            model.state_message = f"{type(error).__name__}: {error}"
        else:
            model.metadata.update(facts)
            loaded = True
            model.state = v1.MODEL_STATE_READY
            model.state_message = ""
            logger.info("model %s is ready", model.identifier)
        self._on_change()

    def _base_of(self, model_id: str) -> v1.Model | None:
        """The base of an adapter; None for a model of its own."""
        names = split_adapter(model_id)
        return self.get(names[0]) if names else None

    async def _base_loaded(self, model: v1.Model) -> None:
        """Wait until the base of an adapter has been loaded once; a model of its own waits for nothing."""
        base = self._base_of(model.identifier)
        if base is None:
            return
        _check_base(base, of=model)
        load = self._loads[base.identifier]
        if not load.done():
            model.state_message = f"waiting for {base.identifier}"
            await asyncio.wait([load])
        _check_base(base, of=model)

    def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            known = ", ".join(sorted(self._providers))
            raise InvalidArgumentError(f"no provider {name!r}; this node has: {known}", field="provider_id")
        return self._providers[name]

    def _only_provider(self) -> str:
        if len(self._providers) == 1:
            return next(iter(self._providers))
        known = ", ".join(sorted(self._providers))
        message = f"provider_id is empty and there are several: {known}"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field="provider_id")

    def _read(self) -> list[tuple[v1.Model, dict[str, object]]]:
        if not self._file.exists():
            return []
        kept = v1.ListModelsResponse()
        json_format.Parse(self._file.read_text(), kept)
        return [(model, json_format.MessageToDict(model.metadata)) for model in kept.data]

    def _write(self) -> None:
        """Keep the registered models; the old file stays whole until the new one is."""
        kept = v1.ListModelsResponse()
        for identifier in sorted(self._kept):
            model = v1.Model()
            model.CopyFrom(self._models[identifier])
            model.metadata.Clear()
            json_format.ParseDict(self._given[identifier], model.metadata)
            model.ClearField("state")
            model.ClearField("state_message")
            kept.data.append(model)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._file.with_suffix(".new")
        scratch.write_text(json_format.MessageToJson(kept, preserving_proto_field_name=True))
        scratch.replace(self._file)


def _check_base(base: v1.Model, *, of: v1.Model) -> None:
    """Refuse an adapter whose base cannot carry it.

    Raises:
        InvalidArgumentError: If the base is no text model, or of another provider.
        FailedPreconditionError: If the base could not be loaded.
    """
    if v1.MODEL_TYPE_LLM not in {base.model_type} & {of.model_type}:
        message = f"{of.identifier!r}: an adapter and its base are both text models (llm)"
        raise InvalidArgumentError(message, reason="WRONG_MODEL_TYPE", field="model_type")
    if base.provider_id != of.provider_id:
        message = f"{of.identifier!r}: its base is served by provider {base.provider_id!r}; leave provider_id out"
        raise InvalidArgumentError(message, field="provider_id")
    if base.state == v1.MODEL_STATE_FAILED:
        message = f"{of.identifier!r}: its base could not be loaded: {base.state_message}; register both again"
        raise FailedPreconditionError(message, field="model_id")


def _check_facts(model: v1.Model, *, given: Mapping[str, object], facts: Mapping[str, object]) -> None:
    """Refuse a model that is not what its registration says, before anybody stores vectors of the wrong length.

    Raises:
        InvalidArgumentError: If a fact that was given differs from what was found.
    """
    for name in facts.keys() & given.keys():
        if given[name] != facts[name]:
            message = f"model {model.identifier!r} was registered with {name} {given[name]}, but it is {facts[name]}"
            raise InvalidArgumentError(message, field=f"metadata.{name}")
