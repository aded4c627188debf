"""Banks without documents as chunks: values by key, surroundings of entities."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from services.memory.bank import Bank
from services.memory.chunks import Found
from services.memory.entries import EntryStore
from services.memory.entries_service import check_key
from services.memory.graph_queries import GraphReader
from services.memory.graph_text import GraphChunk, chunks
from services.runtime.moments import moment_of
from stack_client.content import content, plain
from stack_client.errors import InvalidArgumentError, UnsupportedError

DEFAULT_HOPS = 2
MAX_HOPS = 5
MAX_KEYS = 1000


class GraphLegs:
    """What key-value and graph banks answer where chunks are asked for.

    Args:
        entries: Of the key-value banks.
        graphs: Of the graph banks.
    """

    def __init__(self, entries: EntryStore, graphs: GraphReader) -> None:
        self._entries = entries
        self._graphs = graphs

    async def as_chunks(
        self, bank: Bank, request: v1.QueryDocumentsRequest, *, question: str, limit: int
    ) -> list[tuple[v1.MemoryBankChunk, float]]:
        """What a key-value or graph bank answers to a query: the values of `keys`, the surroundings of `entities`.

        Raises:
            InvalidArgumentError: If neither keys nor entities nor words are given.
            UnsupportedError: If the query asks for what such a bank cannot do.
            NotFoundError: If an entity does not exist.
        """
        params = request.params
        if params.mode or params.HasField("filters") or params.HasField("ranker") or params.HasField("highlight"):
            message = f"params: bank {bank.identifier!r} is of kind {bank.kind}; it takes max_chunks alone"
            raise UnsupportedError(message, field="params")
        if bank.kind == "keyvalue":
            return await self._values(bank, request, limit=limit)
        if not request.entities and not question.strip():
            message = "entities: name those whose surroundings are wanted, or give a query with their names"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field="entities")
        found = await chunks(self._graphs, bank, entities=list(request.entities), text=question, limit=limit)
        return [
            (
                v1.MemoryBankChunk(
                    content=content(one.text),
                    document_id=one.entity.entity_id,
                    chunk_id=one.entity.entity_id,
                    bank_id=bank.identifier,
                    metadata=one.entity.properties,
                ),
                one.score,
            )
            for one in found
        ]

    async def leg(
        self, bank: Bank, leg: v1.GraphLeg, *, first: int, limit: int
    ) -> tuple[list[Found], Mapping[int, Mapping[Any, Any]]]:
        """What a leg over a graph finds, numbered downwards from `first`, and the rows of these numbers.

        Raises:
            InvalidArgumentError: If neither entities nor words are given, or the hops are out of range.
            NotFoundError: If an entity does not exist.
        """
        hops = leg.max_hops if leg.HasField("max_hops") else DEFAULT_HOPS
        if not 1 <= hops <= MAX_HOPS:
            raise InvalidArgumentError(f"graph.max_hops is {hops}; allowed: 1 to {MAX_HOPS}", field="graph.max_hops")
        if not leg.entity_ids and not leg.text.strip():
            message = "graph: give entity_ids, or a text with their names"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field="graph")
        found = await chunks(
            self._graphs,
            bank,
            entities=list(leg.entity_ids),
            text=leg.text,
            max_hops=hops,
            as_of=moment_of(leg.as_of, field="graph.as_of") if leg.HasField("as_of") else None,
            limit=limit,
        )
        numbers = range(first, first - len(found), -1)
        rows = {number: _row(bank, one) for number, one in zip(numbers, found, strict=True)}
        return [Found(number, one.score) for number, one in zip(numbers, found, strict=True)], rows

    async def _values(
        self, bank: Bank, request: v1.QueryDocumentsRequest, *, limit: int
    ) -> list[tuple[v1.MemoryBankChunk, float]]:
        if not 1 <= len(request.keys) <= MAX_KEYS:
            message = f"keys has {len(request.keys)}; name 1 to {MAX_KEYS} whose values are wanted"
            raise InvalidArgumentError(message, reason="" if request.keys else "MISSING_FIELD", field="keys")
        keys = [check_key(key, field=f"keys[{index}]") for index, key in enumerate(dict.fromkeys(request.keys))]
        found = await self._entries.get(bank, keys)
        return [(_entry_chunk(bank, found[key]), 1.0) for key in keys if key in found][:limit]


def _entry_chunk(bank: Bank, entry: v1.Entry) -> v1.MemoryBankChunk:
    if entry.WhichOneof("value") == "data":
        text = entry.data.decode(errors="replace")
    else:
        value = plain(json_format.MessageToDict(entry.json))
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return v1.MemoryBankChunk(
        content=content(text),
        document_id=entry.key,
        chunk_id=entry.key,
        bank_id=bank.identifier,
        metadata=entry.metadata if entry.HasField("metadata") else None,
    )


def _row(bank: Bank, found: GraphChunk) -> dict[str, Any]:
    """An entity in the form of a chunk's row; see `Retriever.load`."""
    entity = found.entity
    return {
        "number": 0,
        "bank": bank.number,
        "chunk_id": entity.entity_id,
        "document_id": entity.entity_id,
        "text": found.text,
        "context": "",
        "start": None,
        "stop": None,
        "page": None,
        "token_count": 0,
        "source": entity.provenance.source,
        "mime_type": "text/plain",
        "file_id": "",
        "created_at": moment_of(entity.recorded_at),
        "metadata": plain(json_format.MessageToDict(entity.properties)),
        "facts": {},
    }
