"""`knowledge_search`: passages of memory banks, as the memory service's RAG tool writes them out."""

from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from services.tools.provider import Access, Call
from services.tools.providers.over_memory import NO_MEMORY, OverMemory
from services.tools.providers.plain import answered, failed
from stack_client.calls import unary
from stack_client.content import content, plain, struct, text_of
from stack_client.rag import query_config

FIELD = "args.query_config"
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


class RagProvider(OverMemory):
    """Searches memory banks.

    Args:
        context: Of the service.
    """

    arguments = frozenset({"vector_db_ids", "query_config"})

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        """Refuse settings that no search has.

        Raises:
            InvalidArgumentError: Naming the first.
        """
        await super().check(group, access)
        if "query_config" in group.args.fields:
            query_config(plain(json_format.MessageToDict(group.args)).get("query_config"), field=FIELD)

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
            query_config=query_config(call.arguments.get("query_config") or {}, field=FIELD),
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
            "sources": list(facts.sources),
            "attributes": [plain(json_format.MessageToDict(one)) for one in facts.attributes],
        }
        result.metadata.CopyFrom(struct(sources) or result.metadata)
        return result
