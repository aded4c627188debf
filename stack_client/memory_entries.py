"""Part of `client.memory`: keys and values."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, EventStream, every_page, unary
from stack_client.content import plain, struct


class EntryCalls:
    """Calls about key-value banks."""

    _stub: Any

    async def put(
        self,
        bank: str,
        key: str,
        value: Any,  # noqa: ANN401 (JSON)
        *,
        if_version: int | None = None,
        ttl_seconds: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.Entry:
        """Write a value into a key-value bank.

        Args:
            bank: A key-value bank.
            key: At most 512 bytes.
            value: Bytes, or anything that JSON can say.
            if_version: Only when the key has this version, 0 = only when it is new; None = always.
            ttl_seconds: Its life; None means the bank's default.
            metadata: The user's facts.
            timeout: Seconds until the call gives up.

        Raises:
            ConflictError: If the key has another version; `metadata["version"]` says which.
            StackError: If the call fails.
        """
        request = v1.PutEntryRequest(
            bank_id=bank, key=key, if_version=if_version, ttl_seconds=ttl_seconds, metadata=struct(metadata)
        )
        if isinstance(value, bytes):
            request.data = value
        else:
            json_format.ParseDict(value, request.json)
        response: v1.PutEntryResponse = await unary(self._stub.PutEntry(request, timeout=timeout))
        return response.entry

    async def value(self, bank: str, key: str, default: Any = None, *, timeout: float = DEFAULT_TIMEOUT) -> Any:  # noqa: ANN401
        """The value of a key, or `default`.

        Raises:
            StackError: If the call fails.
        """
        entries = await self.entries(bank, [key], timeout=timeout)
        return value_of(entries[0]) if entries else default

    async def entries(self, bank: str, keys: Sequence[str], *, timeout: float = DEFAULT_TIMEOUT) -> list[v1.Entry]:
        """Those keys that exist, in the order given.

        Raises:
            StackError: If the call fails.
        """
        request = v1.GetEntriesRequest(bank_id=bank, keys=keys)
        response: v1.GetEntriesResponse = await unary(self._stub.GetEntries(request, timeout=timeout))
        return list(response.entries)

    async def scan(self, bank: str, prefix: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> list[v1.Entry]:
        """Entries whose keys start with a prefix, by key.

        Raises:
            StackError: If the call fails.
        """
        request = v1.ScanEntriesRequest(bank_id=bank, prefix=prefix)
        return await every_page(self._stub.ScanEntries, request, timeout=timeout)

    async def remove(
        self, bank: str, key: str, *, if_version: int | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> bool:
        """Delete a key; whether it was there.

        Raises:
            ConflictError: If the key has another version than `if_version`.
            StackError: If the call fails.
        """
        request = v1.DeleteEntryRequest(bank_id=bank, key=key, if_version=if_version)
        response: v1.DeleteEntryResponse = await unary(self._stub.DeleteEntry(request, timeout=timeout))
        return response.deleted

    def watch(
        self, bank: str, prefix: str = "", *, after_revision: int | None = None
    ) -> EventStream[v1.WatchEntriesResponse]:
        """Changes of keys that start with a prefix, from now on or after a revision of the bank."""
        request = v1.WatchEntriesRequest(bank_id=bank, prefix=prefix, resume_after_revision=after_revision)
        return EventStream(self._stub.WatchEntries(request))


def value_of(entry: v1.Entry) -> Any:  # noqa: ANN401 (JSON)
    """The value of an entry: bytes, or what its JSON says."""
    if entry.WhichOneof("value") == "data":
        return entry.data
    return plain(json_format.MessageToDict(entry.json))
