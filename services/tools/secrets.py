"""Secrets of groups: read where the configuration says, given to the provider, and taken out of what it answers."""

import asyncio
import base64
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from llamastack import v1
from services.tools.config import SecretConfig, SecretSource
from services.tools.hosts import host_matches
from services.tools.provider import Access
from services.tools.provider_data import api_key, mcp_headers
from stack_client.errors import InvalidArgumentError

logger = logging.getLogger(__name__)

HIDDEN = "[secret]"
SHORTEST = 4
"""Characters of a value from which it is looked for in answers; shorter ones are found everywhere by chance."""


class Secrets:
    """The secrets of the configuration.

    Args:
        config: By name.
    """

    def __init__(self, config: Mapping[str, SecretConfig]) -> None:
        self._config = config

    async def access(self, group: v1.ToolGroup, *, tenant: str, authorization: str = "") -> Access:
        """With whose rights a group's tools are listed or run; values that are not set are left out.

        What the caller brought with the current call takes the place of the group's secret.

        Raises:
            InvalidArgumentError: If what the caller brought has another shape.
        """
        brought, headers = api_key(group), mcp_headers(group)
        if brought or headers:
            own = {"api_key": brought} if brought else {}
            return Access(tenant=tenant, authorization=authorization, secret=own, headers=headers)
        name = group.settings.secrets_ref
        values: Mapping[str, str] = {}
        if name in self._config:
            values = await asyncio.to_thread(_read_all, name, self._config[name].values)
        return Access(tenant=tenant, authorization=authorization, secret=values)

    def hosts(self, group: v1.ToolGroup) -> tuple[str, ...]:
        """Hosts to which the group's secret may go; empty means no such bound."""
        found = self._config.get(group.settings.secrets_ref)
        return found.hosts if found else ()

    def check(self, group: v1.ToolGroup, *, tenant: str | None, field: str = "settings.secrets_ref") -> None:
        """Refuse a group that names a secret which it may not have.

        Args:
            group: As it is to be registered.
            tenant: Who registers it; None means the configuration, which may name all.
            field: Of the request, for errors.

        Raises:
            InvalidArgumentError: If there is none of that name for the tenant, or the group may reach other hosts.
        """
        name = group.settings.secrets_ref
        if not name:
            return
        secret = self._config.get(name)
        if secret is None or (tenant is not None and not {"*", tenant} & set(secret.tenants)):
            message = (
                f"{field}: there is no secret {name!r} for you; the operator adds it to tools.secrets, with tenants"
            )
            raise InvalidArgumentError(message, field=field)
        beyond = [host for host in group.settings.egress_hosts if not _within(host, secret.hosts)]
        if secret.hosts and beyond:
            message = (
                f"settings.egress_hosts: the secret {name!r} may go to {', '.join(secret.hosts)}, not to {beyond[0]}"
            )
            raise InvalidArgumentError(message, field="settings.egress_hosts")


def _within(host: str, allowed: Iterable[str]) -> bool:
    plain = host.removeprefix("*.")
    return any(
        host == one
        or (one.startswith("*.") and (plain == one[2:] or plain.endswith(one[1:])))
        or host_matches(host, [one])
        for one in allowed
    )


def _read_all(name: str, sources: Mapping[str, SecretSource]) -> dict[str, str]:
    values = {}
    for key, source in sources.items():
        if source.file is None:
            value = os.environ.get(source.env, "")
        else:
            try:
                value = source.file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                logger.warning(
                    "secret cannot be read", extra={"secret": name, "key": key, "reason": type(error).__name__}
                )
                value = ""
        if value:
            values[key] = value
    return values


class Scrubber:
    """Takes secrets out of texts and messages, also where they are encoded for URLs or headers.

    Args:
        access: Whose secrets.
    """

    def __init__(self, access: Access) -> None:
        brought = [part for value in access.headers.values() for part in (value, value.rpartition(" ")[2])]
        values = [
            value for value in (*access.secret.values(), access.authorization, *brought) if len(value) >= SHORTEST
        ]
        if {"username", "password"} <= set(access.secret):  # as basic authentication writes them
            values.append(f"{access.secret['username']}:{access.secret['password']}")
        forms = {form for value in values for form in _forms(value)}
        self._forms = sorted(forms, key=len, reverse=True)
        self.longest = max(map(len, self._forms), default=0)
        """Characters of the longest form; 0 when nothing is secret."""

    def text(self, text: str) -> str:
        """A text without the secrets."""
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return text

    def message(self, message: Message) -> None:
        """Take the secrets out of every string and byte string of a message."""
        if not self._forms:
            return
        for field, value in list(message.ListFields()):
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                self._map(value)
            elif field.message_type is not None:
                for inner in value if _repeated(value) else [value]:
                    self.message(inner)
            elif field.type == FieldDescriptor.TYPE_STRING:
                if isinstance(value, str):
                    setattr(message, field.name, self.text(value))
                else:
                    value[:] = [self.text(one) for one in value]
            elif field.type == FieldDescriptor.TYPE_BYTES and isinstance(value, bytes):
                setattr(message, field.name, self._bytes(value))

    def _map(self, values: Any) -> None:  # noqa: ANN401 (a protobuf map)
        for key in list(values):
            if isinstance(values[key], Message):
                self.message(values[key])
            elif isinstance(values[key], str):
                values[key] = self.text(values[key])
            clean = self.text(key) if isinstance(key, str) else key
            if clean != key:
                if isinstance(values[key], Message):
                    values[clean].CopyFrom(values[key])
                else:
                    values[clean] = values[key]
                del values[key]

    def _bytes(self, data: bytes) -> bytes:
        for form in self._forms:
            data = data.replace(form.encode(), HIDDEN.encode())
        return data


class StreamScrubber:
    """Takes secrets out of a text that comes in pieces: the end of a piece is held back while a secret may begin there.

    Args:
        scrubber: Knows the secrets.
    """

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._held = ""

    def push(self, piece: str) -> str:
        """What may be shown now."""
        if not self._scrubber.longest:
            return piece
        text = self._scrubber.text(self._held + piece)
        keep = self._scrubber.longest - 1
        cut = max(0, len(text) - keep) if keep else len(text)
        # A mark stands for a secret that is out already; it must not be cut in two and held.
        shown, self._held = text[:cut], text[cut:]
        return shown

    def rest(self) -> str:
        """What was held back, at the end."""
        rest, self._held = self._scrubber.text(self._held), ""
        return rest


def _repeated(value: Any) -> bool:  # noqa: ANN401
    return not isinstance(value, Message)


def _forms(value: str) -> Iterable[str]:
    encoded = base64.b64encode(value.encode()).decode()
    return {value, quote(value, safe=""), quote(value), encoded, encoded.rstrip("=")}
