"""`knowledge_search`: passages of memory banks, as the memory service's RAG tool writes them out."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import json_format

from llamastack import v1
from services.tools.provider import Access, Call, ProviderContext
from services.tools.providers.plain import PlainProvider, answered, failed
from stack_client.calls import unary
from stack_client.content import content, plain, struct, text_of
from stack_client.errors import InvalidArgumentError

NO_MEMORY = "This stack has no memory service; the operator adds its address, addresses.memory."
SETTINGS = {"max_chunks", "max_tokens_in_context", "chunk_template", "mode", "context_model"}
MODES = {"vector": v1.SEARCH_MODE_VECTOR, "keyword": v1.SEARCH_MODE_KEYWORD, "hybrid": v1.SEARCH_MODE_HYBRID}

TOOL = v1.ToolDef(
    name="knowledge_search",
    description="Search the documents that were given to this assistant; the best passages come back.",
    input_schema=struct(
        {
            "type": "object",
            "properties": {
                "query": {"type": "string", "minLength": 1, "description": "What to search for, in any words."},
                "vector_db_ids": {
                    "type": "array",
                    "items": {"type": "string"},
                    "maxItems": 32,
                    "description": "Banks to search; only where none are set.",
                },
                "query_config": {"type": "object", "description": "Settings of the search; usually left out."},
            },
            "required": ["query"],
        }
    ),
    effect=v1.TOOL_EFFECT_READ,
)


class RagProvider(PlainProvider):
    """Searches memory banks.

    Args:
        context: Of the service.
    """

    arguments = frozenset({"vector_db_ids", "query_config"})

    def __init__(self, context: ProviderContext) -> None:
        self._context = context.service
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        """Open the channel; nothing is connected yet."""
        if "memory" in self._context.addresses:
            self._channel = self._context.open_channel("memory")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        if self._channel is not None:
            await self._channel.close(None)

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        """Refuse settings that no search has.

        Raises:
            InvalidArgumentError: Naming the first.
        """
        await super().check(group, access)
        if "query_config" in group.args.fields:
            query_config(plain(json_format.MessageToDict(group.args)).get("query_config"))

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:  # noqa: ARG002 (interface)
        """The one tool."""
        return [TOOL]

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """Search."""
        if self._channel is None:
            return failed(NO_MEMORY, code=501)
        banks = call.arguments.get("vector_db_ids") or []
        if not banks:
            return failed(
                "No bank to search is set: the caller names vector_db_ids in the args of builtin::rag.", code=400
            )
        request = v1.QueryRAGRequest(
            content=content(str(call.arguments["query"])),
            vector_db_ids=banks,
            query_config=query_config(call.arguments.get("query_config") or {}),
        )
        stub: Any = v1.RAGToolServiceStub(self._channel)
        response: v1.QueryRAGResponse = await unary(stub.QueryRAG(request, timeout=call.timeout))
        found = response.result
        if not found.HasField("content"):
            return answered("Nothing was found.", documents=[])
        result = v1.ToolInvocationResult(content=found.content)
        facts = found.metadata
        sources = {
            "document_ids": list(facts.document_ids),
            "chunks": [text_of(chunk) for chunk in facts.chunks],
            "scores": list(facts.scores),
            "vector_db_ids": list(facts.vector_db_ids),
        }
        result.metadata.CopyFrom(struct(sources) or result.metadata)
        return result


def query_config(given: object) -> v1.RAGQueryConfig:
    """Settings of a search in the words of Llama Stack.

    Raises:
        InvalidArgumentError: If there is one that is not known here, or with a wrong value.
    """
    field = "args.query_config"
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(f"{field} must be an object", field=field)
    unknown = sorted(set(given) - SETTINGS)
    if unknown:
        known = ", ".join(sorted(SETTINGS))
        raise InvalidArgumentError(f"{field}.{unknown[0]} is not known; there are: {known}", field=field)
    rest = {name: value for name, value in given.items() if name != "mode"}
    try:
        config = json_format.ParseDict(rest, v1.RAGQueryConfig())
    except json_format.ParseError as error:
        raise InvalidArgumentError(f"{field}: {error}", field=field) from error
    if "mode" in given:
        if given["mode"] not in MODES:
            message = f"{field}.mode is {given['mode']!r}; give {', '.join(MODES)}"
            raise InvalidArgumentError(message, field=field)
        config.mode = MODES[given["mode"]]
    return config
