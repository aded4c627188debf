"""The openai provider: models that run behind an OpenAI-compatible endpoint, answered over its HTTP API.

A model's `provider_resource_id` is its name at the endpoint. Images go to the endpoint as they are; whether it reads
them is its to say. Usage is what the endpoint reports. The task of an embedding is not passed on: OpenAI's API has no
word for it.
"""

import dataclasses
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

from google.protobuf import json_format

from llamastack import v1
from services.inference import dialog
from services.inference.adapter_names import split_adapter
from services.inference.config import OpenAIConfig
from services.inference.provider import Answer, Facts, Report, Sink, Work
from services.inference.providers.openai.answers import StreamReader
from services.inference.providers.openai.endpoint import Endpoint, Json, wait_for
from services.inference.providers.openai.requests import chat_body, completion_body
from services.inference.providers.openai.reranking import check_reranks, rerank
from services.inference.providers.openai.tokens import detokenize, tokenize
from services.inference.validate import allows_several_calls
from stack_client.errors import InvalidArgumentError, UnavailableError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class RemoteModel:
    """A model and where it runs."""

    name: str
    """Its name at the endpoint."""
    endpoint: Endpoint
    context: int = 0
    """Tokens that it reads; 0 when the endpoint does not say."""
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    """Of tokens that were asked for by id, once the endpoint has told them."""


class OpenAIProvider:
    """Serves chat, completion, embedding and rerank models of the configured endpoints."""

    def __init__(self, config: OpenAIConfig) -> None:
        self._endpoints = {name: Endpoint(name, endpoint) for name, endpoint in config.endpoints.items()}
        self._models: dict[str, RemoteModel] = {}
        self._resources = AsyncExitStack()

    @property
    def work(self) -> Work:
        """Requests that endpoints are answering."""
        return Work(running=sum(endpoint.in_flight for endpoint in self._endpoints.values()))

    async def __aenter__(self) -> Self:
        """Make the clients; they connect with the first request."""
        async with AsyncExitStack() as opening:
            for endpoint in self._endpoints.values():
                await opening.enter_async_context(endpoint)
            self._resources = opening.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections."""
        await self._resources.aclose()

    async def load(self, model: v1.Model, report: Report) -> Facts:
        """Check that the endpoint answers and lists the model; it may take `wait_seconds` to start."""
        if model.model_type not in {v1.MODEL_TYPE_LLM, v1.MODEL_TYPE_EMBEDDING, v1.MODEL_TYPE_RERANK}:
            kind = v1.ModelType.Name(model.model_type).removeprefix("MODEL_TYPE_").lower()
            message = f"the openai provider does not serve {kind} models"
            if model.model_type == v1.MODEL_TYPE_CLASSIFIER:  # vLLM's `classify` has probabilities of whole texts only
                message += ": endpoints give no windows with their characters and no raw outputs; use provider torch"
            raise UnsupportedError(message, field="model_type")
        if split_adapter(model.identifier) is not None:
            message = "an endpoint's adapters are models of its own; register one under a name without @"
            raise UnsupportedError(message, field="model_id")
        endpoint = self._endpoint(model)
        if model.model_type == v1.MODEL_TYPE_RERANK:
            check_reranks(endpoint)
        name = model.provider_resource_id
        report(f"asking {endpoint.config.base_url}")
        listed = await wait_for(endpoint, path="models", on_wait=report)
        entries = [entry for entry in listed.get("data") or () if isinstance(entry, dict)]
        entry = next((entry for entry in entries if name in {entry.get("id"), *(entry.get("aliases") or ())}), None)
        if entry is None:
            known = ", ".join(str(entry.get("id")) for entry in entries[:20]) or "none"
            message = f"the endpoint {endpoint.config.base_url} has no model {name!r}; it lists: {known}"
            raise InvalidArgumentError(message, field="provider_model_id")
        context = entry.get("max_model_len") or (entry.get("meta") or {}).get("n_ctx") or 0
        self._models[model.identifier] = RemoteModel(name=name, endpoint=endpoint, context=int(context))
        facts: Facts = {"context_length": int(context)} if context else {}
        if model.model_type == v1.MODEL_TYPE_EMBEDDING:
            probe = await endpoint.post("embeddings", {"model": name, "input": ["a"], "encoding_format": "float"})
            facts["embedding_dimension"] = len(_vectors(probe, 1)[0])
        return facts

    async def unload(self, model_id: str) -> None:
        """Forget the model; it stays at its endpoint, and requests in flight end as they would."""
        self._models.pop(model_id, None)

    async def chat(self, request: v1.ChatCompletionRequest, sink: Sink) -> Answer:
        """Let the endpoint continue the dialog."""
        model = self._models[request.model_id]
        body = chat_body(request, model=model.name, dialect=model.endpoint.config.dialect, context=model.context)
        several = allows_several_calls(request.tool_config)
        asked = await _asked(model, request)
        reader = StreamReader(
            sink, top_logprobs=_top(request), asked=asked, thoughts=request.show_thoughts, several_calls=several
        )
        answer = await _generate(model, "chat/completions", body, reader, sink)
        demanded = request.tool_config.tool_choice not in {"", "auto", "none"}
        if demanded and answer.finish_reason == v1.FINISH_REASON_STOP:
            field = "tool_config.tool_choice"
            message = f"{field}: the endpoint answered without the call that was demanded; it cannot force calls"
            raise UnsupportedError(message, field=field)
        return answer

    async def complete(self, request: v1.CompletionRequest, sink: Sink) -> Answer:
        """Let the endpoint continue the text."""
        model = self._models[request.model_id]
        body = completion_body(request, model=model.name, dialect=model.endpoint.config.dialect, context=model.context)
        reader = StreamReader(sink, top_logprobs=_top(request), asked=await _asked(model, request))
        return await _generate(model, "completions", body, reader, sink)

    async def embed(self, request: v1.EmbedRequest) -> v1.EmbedResponse:
        """Let the endpoint embed the texts; a text that is too long is refused by it."""
        model = self._models[request.model_id]
        if request.text_truncation in {v1.TEXT_TRUNCATION_START, v1.TEXT_TRUNCATION_END}:
            field = "text_truncation"
            raise UnsupportedError(f"{field}: OpenAI's API has none; shorten the texts", field=field)
        texts = [dialog.text_of(content, f"contents[{index}]") for index, content in enumerate(request.contents)]
        body: Json = {"model": model.name, "input": texts, "encoding_format": "float"}
        if request.HasField("output_dimension"):
            body["dimensions"] = request.output_dimension
        answer = await model.endpoint.post("embeddings", body)
        vectors = _vectors(answer, len(texts))
        if request.HasField("output_dimension") and len(vectors[0]) != request.output_dimension:
            field = "output_dimension"
            raise UnsupportedError(f"{field}: {request.model_id} cannot shorten its vectors", field=field)
        tokens = (answer.get("usage") or {}).get("prompt_tokens") or 0
        return v1.EmbedResponse(
            embeddings=[v1.Embedding(values=vector) for vector in vectors],
            usage=v1.Usage(prompt_tokens=tokens, total_tokens=tokens),
            model_id=request.model_id,
        )

    async def classify(self, request: v1.ClassifyRequest) -> v1.ClassifyResponse:
        """No endpoint serves classifiers: `load` refuses them."""
        raise UnsupportedError(f"model {request.model_id} is no classifier", field="model_id")

    async def rerank(self, request: v1.RerankRequest) -> v1.RerankResponse:
        """Let the endpoint score the items; what is too long is cut or refused by it."""
        model = self._models[request.model]
        return await rerank(model.endpoint, model.name, request)

    async def tokenize(self, request: v1.TokenizeRequest) -> v1.TokenizeResponse:
        """Ask the endpoint for token ids, where its dialect has a call for it."""
        model = self._models[request.model_id]
        ids = await tokenize(model.endpoint, model.name, request)
        return v1.TokenizeResponse(token_ids=ids, max_context=model.context)

    async def detokenize(self, request: v1.DetokenizeRequest) -> v1.DetokenizeResponse:
        """Ask the endpoint for the text of token ids, where its dialect has a call for it."""
        model = self._models[request.model_id]
        return v1.DetokenizeResponse(text=await detokenize(model.endpoint, model.name, list(request.token_ids)))

    def _endpoint(self, model: v1.Model) -> Endpoint:
        known = ", ".join(sorted(self._endpoints)) or "none"
        name = json_format.MessageToDict(model.metadata).get("endpoint", "")
        if not name and len(self._endpoints) == 1:
            return next(iter(self._endpoints.values()))
        if not name:
            message = f"the model names no endpoint in its metadata; this node has: {known}"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field="metadata.endpoint")
        if name not in self._endpoints:
            message = f"there is no endpoint {name!r}; inference.providers.openai.endpoints has: {known}"
            raise InvalidArgumentError(message, field="metadata.endpoint")
        return self._endpoints[name]


async def _generate(model: RemoteModel, path: str, body: Json, reader: StreamReader, sink: Sink) -> Answer:
    """Stream one answer through the reader."""
    async with model.endpoint.stream(path, body) as chunks:
        sink.admitted()
        async for chunk in chunks:
            reader.read(chunk)
    return reader.end()


async def _asked(model: RemoteModel, request: v1.ChatCompletionRequest | v1.CompletionRequest) -> dict[int, str]:
    """The tokens whose log probabilities are asked for, in that order, with their texts."""
    for token_id in request.logprobs.token_ids:
        if token_id not in model.texts:
            model.texts[token_id] = await detokenize(model.endpoint, model.name, [token_id])
    return {token_id: model.texts[token_id] for token_id in request.logprobs.token_ids}


def _top(request: v1.ChatCompletionRequest | v1.CompletionRequest) -> int | None:
    """Alternatives per token that are asked for; None without log probabilities."""
    return request.logprobs.top_k if request.HasField("logprobs") else None


def _vectors(answer: Json, count: int) -> list[list[float]]:
    """The vectors in the order of the texts.

    Raises:
        UnavailableError: If the endpoint sent something else.
    """
    data = sorted(answer.get("data") or (), key=lambda entry: int(entry.get("index", 0)))
    vectors = [entry.get("embedding") for entry in data]
    if len(vectors) != count or not all(isinstance(vector, list) for vector in vectors):
        raise UnavailableError(f"the endpoint answered {count} texts with {len(vectors)} embeddings or in another form")
    return vectors
