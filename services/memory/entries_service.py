"""Key-value calls of the memory service: get, put, delete, scan, watch."""

import asyncio
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.entries import EntryStore
from services.runtime.background import wait
from services.runtime.calls import current_tenant
from services.runtime.offload import offload
from services.runtime.pages import decode_token, encode_token, page_size
from services.runtime.stream import EventWriter, RpcContext
from stack_client.errors import InvalidArgumentError, ResourceExhaustedError

MAX_KEY = 512
"""Bytes."""
MAX_KEYS = 1000
MAX_VALUE = 1024 * 1024
"""Bytes."""
POLL_SECONDS = 1.0
"""How often a watcher looks for what other processes changed."""


class EntryCalls:
    """Part of `MemoryBanksService`.

    Args:
        rest: What the other parts take.
        entries: The entries.
        draining: Set when the service is about to shut down.
        grace_seconds: How long streams may go on then.
    """

    _banks: BankStore

    def __init__(
        self,
        *rest: Any,  # noqa: ANN401 (of the other parts)
        entries: EntryStore,
        draining: asyncio.Event,
        grace_seconds: float,
        **named: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*rest, **named)
        self._entries = entries
        self._entries_draining = draining
        self._entries_grace = grace_seconds

    async def GetEntries(self, request: v1.GetEntriesRequest, context: RpcContext) -> v1.GetEntriesResponse:
        """Return values by key."""
        bank = await self._keyvalue(request.bank_id)
        if not 1 <= len(request.keys) <= MAX_KEYS:
            raise InvalidArgumentError(f"keys has {len(request.keys)} keys; allowed: 1 to {MAX_KEYS}", field="keys")
        keys = [check_key(key, field=f"keys[{index}]") for index, key in enumerate(dict.fromkeys(request.keys))]
        found = await self._entries.get(bank, keys)
        return v1.GetEntriesResponse(
            entries=[found[key] for key in keys if key in found],
            missing_keys=[key.decode() for key in keys if key not in found],
        )

    async def PutEntry(self, request: v1.PutEntryRequest, context: RpcContext) -> v1.PutEntryResponse:
        """Write a value."""
        bank = await self._keyvalue(request.bank_id)
        check_key(request.key, field="key")
        form = request.WhichOneof("value")
        if form is None or (form == "json" and request.json.WhichOneof("kind") is None):
            raise InvalidArgumentError("the value is missing: give json or data", reason="MISSING_FIELD", field="value")
        if form == "json":
            await _check_json(request.json, field="json")
        elif len(request.data) > MAX_VALUE:
            raise _too_large("data", len(request.data))
        if request.HasField("metadata"):
            await _check_json(request.metadata, field="metadata")
        if request.HasField("ttl_seconds") and not request.ttl_seconds:
            message = "ttl_seconds is 0; give at least 1, or leave it out for the bank's default"
            raise InvalidArgumentError(message, field="ttl_seconds")
        return await self._entries.put(bank, request, tenant=current_tenant())

    async def DeleteEntry(self, request: v1.DeleteEntryRequest, context: RpcContext) -> v1.DeleteEntryResponse:
        """Delete a key."""
        bank = await self._keyvalue(request.bank_id)
        key = check_key(request.key, field="key")
        wanted = request.if_version if request.HasField("if_version") else None
        deleted, revision = await self._entries.delete(bank, key, if_version=wanted)
        return v1.DeleteEntryResponse(deleted=deleted, revision=revision)

    async def ScanEntries(self, request: v1.ScanEntriesRequest, context: RpcContext) -> v1.ScanEntriesResponse:
        """List entries by key."""
        bank, size = await self._keyvalue(request.bank_id), page_size(request)
        prefix = check_prefix(request.prefix)
        scope = f"ScanEntries {bank.number} {request.keys_only} {request.prefix}"
        after = decode_token(request.page_token, scope=scope).encode()
        found = await self._entries.scan(bank, prefix=prefix, after=after, limit=size, keys_only=request.keys_only)
        token = encode_token(found.entries[-1].key, scope=scope) if found.more else ""
        return v1.ScanEntriesResponse(data=found.entries, next_page_token=token, revision=found.revision)

    # A coroutine that writes, not a generator: `EventWriter` sends heartbeats beside it.
    async def WatchEntries(self, request: v1.WatchEntriesRequest, context: RpcContext) -> None:
        """Forward changes until the bank is gone."""
        bank = await self._keyvalue(request.bank_id)
        prefix = check_prefix(request.prefix)
        start = request.resume_after_revision if request.HasField("resume_after_revision") else bank.revision
        writer = EventWriter(
            context, v1.WatchEntriesResponse, draining=self._entries_draining, grace_seconds=self._entries_grace
        )
        await writer.run(self._forward_changes(bank, prefix, start, writer))

    async def _forward_changes(
        self, bank: Bank, prefix: bytes, start: int, writer: "EventWriter[v1.WatchEntriesResponse]"
    ) -> None:
        place = (start, b"\xff")  # after all keys of the revision that was seen
        with self._entries.signals.listening(bank.number) as changed:
            while True:
                changed.clear()
                found = await self._entries.changes(bank.number, prefix=prefix, after=place)
                place = found.place
                for event in found.events:
                    await writer.write(**event)
                if found.closed:
                    await writer.write(closed=v1.EntryWatchClosed(revision=place[0]))
                    return
                if not found.more:
                    await wait(changed, seconds=POLL_SECONDS)

    async def _keyvalue(self, identifier: str) -> Bank:
        return await self._banks.require(identifier, "keyvalue", tenant=current_tenant())


def check_key(key: str, *, field: str) -> bytes:
    """The bytes of a key.

    Raises:
        InvalidArgumentError: If it is empty or too long.
    """
    data = key.encode()
    if not data:
        raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
    if len(data) > MAX_KEY:
        raise InvalidArgumentError(f"{field} has {len(data)} bytes; at most {MAX_KEY} are allowed", field=field)
    return data


def check_prefix(prefix: str) -> bytes:
    """The bytes of a prefix; empty means all keys.

    Raises:
        InvalidArgumentError: If it is longer than any key.
    """
    return check_key(prefix, field="prefix") if prefix else b""


async def _check_json(message: Message, *, field: str) -> None:
    size = message.ByteSize()
    if size > MAX_VALUE:
        raise _too_large(field, size)
    try:
        await offload(size, json_format.MessageToDict, message)
    except (json_format.Error, ValueError) as error:  # NaN and infinity are no JSON
        raise InvalidArgumentError(f"{field}: only finite numbers are JSON", field=field) from error


def _too_large(field: str, size: int) -> ResourceExhaustedError:
    message = f"{field} has {size} bytes; at most {MAX_VALUE} are allowed: keep it as a file, and its name here"
    return ResourceExhaustedError(message, reason="MESSAGE_TOO_LARGE", field=field)
