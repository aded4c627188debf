"""Retrieval steps: what memory knows about a question is put before the model, beside the question, for one turn."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import json_format

from llamastack import v1
from services.agents.config import AgentsConfig
from services.agents.turn_log import TurnLog, new_step, now
from stack_client.calls import DEFAULT_TIMEOUT, unary
from stack_client.content import plain, text_of
from stack_client.errors import InvalidArgumentError, UnavailableError, UnsupportedError
from stack_client.rag import query_config

GROUP = "builtin::rag"


class Retrieval:
    """The memory service as turns see it.

    Args:
        channel: To the memory service; None where the stack has none.
    """

    def __init__(self, channel: grpc.aio.Channel | None) -> None:
        self._stub: Any = None if channel is None else v1.RAGToolServiceStub(channel)
        self._banks: Any = None if channel is None else v1.VectorDBsServiceStub(channel)

    async def keep(self, bank: str, documents: Sequence[v1.RAGDocument]) -> None:
        """Put documents into a bank, which is made where it is missing; those that are there already stay.

        Raises:
            StackError: If the memory service refuses, cannot read one, or cannot be reached.
        """
        if self._stub is None:
            raise UnsupportedError("this stack has no memory service to read documents; set addresses.memory")
        await unary(
            self._banks.RegisterVectorDB(v1.RegisterVectorDBRequest(vector_db_id=bank), timeout=DEFAULT_TIMEOUT)
        )
        request = v1.InsertRAGDocumentsRequest(vector_db_id=bank, documents=documents)
        await unary(self._stub.InsertRAGDocuments(request, timeout=DEFAULT_TIMEOUT))

    async def query(self, request: v1.QueryRAGRequest) -> v1.RAGQueryResult:
        """Text ready for a prompt.

        Raises:
            StackError: If the memory service refuses or cannot be reached.
        """
        if self._stub is None:
            raise UnsupportedError("this stack has no memory service; set addresses.memory", field="toolgroups")
        response: v1.QueryRAGResponse = await unary(self._stub.QueryRAG(request, timeout=DEFAULT_TIMEOUT))
        return response.result


def wants_retrieval(config: v1.AgentConfig) -> bool:
    """Whether an agent looks into memory before it answers."""
    return any(group.name == GROUP for group in config.toolgroups)


def rag_request(group: v1.AgentToolGroup, *, field: str) -> v1.QueryRAGRequest:
    """What a toolgroup's arguments ask of memory; the question is still missing.

    Raises:
        InvalidArgumentError: If an argument is missing or wrong.
    """
    args: Mapping[str, Any] = plain(json_format.MessageToDict(group.args))
    names, settings = args.get("vector_db_ids"), args.get("query_config", {})
    unknown = sorted(set(args) - {"vector_db_ids", "query_config"})
    if unknown:
        raise InvalidArgumentError(f"{field}.args: {GROUP} has no argument {unknown[0]!r}", field=f"{field}.args")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        message = f"{field}.args.vector_db_ids: name the memory banks to be searched, as a list"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field=f"{field}.args.vector_db_ids")
    config = query_config(settings, field=f"{field}.args.query_config")
    return v1.QueryRAGRequest(vector_db_ids=names, query_config=config)


async def retrieve(
    log: TurnLog,
    config: v1.AgentConfig,
    *,
    memory: Retrieval,
    limits: AgentsConfig,
    documents: Sequence[v1.RAGDocument] = (),
    attached: str = "",
) -> None:
    """Do the retrieval step of a turn; one that was begun before begins anew, for it changes nothing twice.

    Args:
        log: Of the turn.
        config: Of the agent.
        memory: The memory service.
        limits: Of the service.
        documents: That came with the question and are searched.
        attached: The bank with documents of the session; empty where it has none.

    Raises:
        StackError: If memory cannot be asked.
    """
    begun = next((step for step in log.turn.steps if step.WhichOneof("details") == "memory_retrieval"), None)
    step = v1.Step()
    if begun is None:
        step.CopyFrom(new_step(log.turn, v1.STEP_TYPE_MEMORY_RETRIEVAL, memory_retrieval=v1.MemoryRetrievalStep()))
    else:
        step.CopyFrom(begun)
    requests = [
        rag_request(group, field="agent_config.toolgroups") for group in config.toolgroups if group.name == GROUP
    ]
    if attached:
        hybrid = v1.RAGQueryConfig(mode=v1.SEARCH_MODE_HYBRID)
        requests.append(v1.QueryRAGRequest(vector_db_ids=[attached], query_config=hybrid))
    step.memory_retrieval.vector_db_ids = ",".join(name for request in requests for name in request.vector_db_ids)
    if begun is None:
        log.put_step(step)
        log.add(step_start=v1.TurnStepStart(step_type=step.step_type, step_id=step.step_id))
    else:
        attempt = await log.attempts(step.step_id) + 1
        restarted = v1.TurnStepRestarted(step_type=step.step_type, step_id=step.step_id, attempt=attempt)
        log.add(step_restarted=restarted)
    await log.commit()
    if documents:
        await memory.keep(attached, documents)
    question = _question(log.turn)
    for request in requests:
        request.content.items.add(text=question)
        # Whose tokens the bound is counted in.
        request.query_config.context_model = request.query_config.context_model or config.model
        result = await _tried(memory, request, limits)
        step.memory_retrieval.inserted_context.items.extend(result.content.items)
    step.completed_at.CopyFrom(now())
    log.put_step(step)
    log.add(step_complete=v1.TurnStepComplete(step_type=step.step_type, step_id=step.step_id, step_details=step))
    await log.commit()


def retrieved(turn: v1.Turn) -> list[v1.ContentItem]:
    """What memory knew about the question of a turn."""
    return [
        item
        for step in turn.steps
        if step.WhichOneof("details") == "memory_retrieval"
        for item in step.memory_retrieval.inserted_context.items
    ]


async def _tried(memory: Retrieval, request: v1.QueryRAGRequest, limits: AgentsConfig) -> v1.RAGQueryResult:
    for failures in range(1, limits.inference_attempts + 1):
        try:
            return await memory.query(request)
        except UnavailableError as error:
            if failures == limits.inference_attempts:
                raise
            await asyncio.sleep(max(error.retry_after or 0.0, limits.inference_retry_seconds * 2 ** (failures - 1)))
    raise AssertionError("the last try returns or raises")


def _question(turn: v1.Turn) -> str:
    texts = [text_of(entry.user.content) for entry in turn.input_messages if entry.WhichOneof("message") == "user"]
    return "\n".join(texts)
