"""Which server a group names and with what credential; together with the tenant, the key of a connection."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from llamastack import v1
from services.tools.hosts import host_matches
from services.tools.mcp.config import McpConfig
from services.tools.provider import Access
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError

Addresses = Callable[[str, int], Awaitable[Sequence[str]]]
"""Checked addresses of a host and port; raises PermissionDeniedError or UnavailableError."""

FIELD = "mcp_endpoint"
_STDIO = "stdio"
_OAUTH = {"client_id", "client_secret", "issuer", "scope"}
_HTTP_SECRET = {"authorization", "headers", *_OAUTH}
# What the protocol and HTTP itself set; a secret must not bend them.
_OWN_HEADERS = {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept"}


@dataclass(frozen=True, kw_only=True)
class OAuthClient:
    """A client of an authorization server, for the client credentials grant."""

    client_id: str
    client_secret: str = field(repr=False)
    issuer: str
    scope: str = ""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server and the credential for it. Equal endpoints may share a connection."""

    uri: str
    tenant: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every HTTP request."""
    oauth: OAuthClient | None = field(default=None, repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """From the secret, for a program."""
    bounds: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Lists of hosts, each with whose it is; requests go only to hosts that are in all of them."""

    @property
    def has_credential(self) -> bool:
        """Whether requests carry something that others must not see."""
        return bool(self.headers or self.oauth)

    def check_host(self, host: str, port: int) -> None:
        """Refuse a host to which requests may not go.

        Raises:
            PermissionDeniedError: Naming whose list it is not in.
        """
        for whose, hosts in self.bounds:
            if not host_matches(host, hosts, port=port):
                known = ", ".join(hosts)
                raise PermissionDeniedError(f"{self.label}: the host {host} is not of {whose} ({known}): refused")

    @property
    def stdio(self) -> str:
        """Name of the program, empty for servers behind HTTP."""
        scheme, _, name = self.uri.partition(":")
        return name if scheme == _STDIO else ""

    @property
    def label(self) -> str:
        """How messages call the server."""
        return self.uri.partition("?")[0][:200]

    @property
    def trust_name(self) -> str:
        """How `trust_annotations` names the server."""
        return self.uri if self.stdio else (urlsplit(self.uri).hostname or "")

    @property
    def key(self) -> tuple[str, str, str]:
        """Endpoint, hash of the credential, tenant."""
        oauth = self.oauth and [self.oauth.client_id, self.oauth.client_secret, self.oauth.issuer, self.oauth.scope]
        credential = json.dumps([sorted(self.headers.items()), oauth, sorted(self.env.items())])
        digest = hashlib.sha256(f"{credential}{self.bounds}".encode()).hexdigest()
        return self.uri, digest, self.tenant


def read_endpoint(
    group: v1.ToolGroup, access: Access, config: McpConfig, *, secret_hosts: Sequence[str] = ()
) -> Endpoint:
    """The server that a group names, with the caller's or the group's credential.

    Args:
        group: The group.
        access: With whose rights.
        config: Of the client.
        secret_hosts: To which alone the group's secret may go; empty = no such bound.

    Raises:
        InvalidArgumentError: If the address is none, or a credential is given that cannot be used.
        FailedPreconditionError: If the operator's secret cannot be used.
        PermissionDeniedError: If the server is not of the hosts of the group or the secret.
    """
    uri = group.mcp_endpoint.uri
    if not uri:
        raise InvalidArgumentError("a group of MCP tools names its server: set mcp_endpoint.uri", field=FIELD)
    if uri.partition(":")[0] == _STDIO:
        return _program(uri, access, config)
    _check_url(uri)
    unknown = sorted(set(access.secret) - _HTTP_SECRET)
    if unknown:
        known = ", ".join(sorted(_HTTP_SECRET))
        raise FailedPreconditionError(
            f"secret {group.settings.secrets_ref!r}: an MCP server behind HTTP has no use for {', '.join(unknown)}; "
            f"known: {known}"
        )
    headers = {**_secret_headers(group, access.secret), **_brought(access.headers)}
    oauth = _oauth(group, access.secret)
    if access.authorization:  # the caller's own credential goes before the group's
        headers["authorization"] = f"Bearer {access.authorization}"
        oauth = None
    lists = (("the group's egress_hosts", group.settings.egress_hosts), ("the secret's hosts", secret_hosts))
    bounds = tuple((whose, tuple(hosts)) for whose, hosts in lists if hosts)
    endpoint = Endpoint(uri=uri, tenant=access.tenant, headers=headers, oauth=oauth, bounds=bounds)
    endpoint.check_host(*place_of(uri))
    return endpoint


def place_of(uri: str) -> tuple[str, int]:
    """Host and port of a URL that was checked."""
    parts = urlsplit(uri)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _program(uri: str, access: Access, config: McpConfig) -> Endpoint:
    name = uri.partition(":")[2]
    server = config.stdio.get(name)
    if server is None:
        known = ", ".join(f"stdio:{one}" for one in sorted(config.stdio)) or "none"
        message = (
            f"no program {uri!r}: the operator names programs in tools.providers.model-context-protocol.stdio "
            f"(there now: {known})"
        )
        raise InvalidArgumentError(message, field=FIELD)
    if access.authorization:
        message = f"{uri} is a program and takes no bearer token: leave `authorization` out"
        raise InvalidArgumentError(message, field="authorization")
    unknown = sorted(set(access.secret) - set(server.secret_env))
    if unknown:
        raise FailedPreconditionError(
            f"{uri} takes no {', '.join(unknown)} of a secret: name it in secret_env of the program's configuration"
        )
    return Endpoint(uri=uri, tenant=access.tenant, env=dict(access.secret))


def _check_url(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        port_fits = parts.port is None or parts.port > 0
    except ValueError as error:
        raise InvalidArgumentError(f"{uri[:120]!r} is no URL: {error}", field=FIELD) from error
    if parts.scheme not in {"http", "https"}:
        message = f"{uri[:120]!r}: an MCP server is reached by https:, http: or stdio:<name>"
        raise InvalidArgumentError(message, field=FIELD)
    if parts.username is not None or parts.password is not None:
        message = "the address of the MCP server has a user's name or password: use `authorization` or a secret"
        raise InvalidArgumentError(message, field=FIELD)
    if not parts.hostname or not port_fits or not uri.isprintable() or "\\" in uri:
        raise InvalidArgumentError(f"{uri[:120]!r} is no address of a server", field=FIELD)


def _brought(headers: Mapping[str, str]) -> Mapping[str, str]:
    own = sorted(name for name in headers if name in _OWN_HEADERS or name.startswith("mcp-"))
    if own:
        message = f"mcp_headers of the provider data sets {', '.join(own)}, which the protocol sets itself"
        raise InvalidArgumentError(message, field="mcp_headers")
    return headers


def _secret_headers(group: v1.ToolGroup, secret: Mapping[str, str]) -> dict[str, str]:
    where = f"secret {group.settings.secrets_ref!r}"
    headers: dict[str, str] = {}
    if "headers" in secret:
        try:
            given = json.loads(secret["headers"])
        except ValueError as error:
            raise FailedPreconditionError(f"{where}: headers is no JSON object of texts") from error
        if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
            raise FailedPreconditionError(f"{where}: headers is no JSON object of texts")
        headers = {name.lower(): value for name, value in given.items()}
        own = sorted(name for name in headers if name in _OWN_HEADERS or name.startswith("mcp-"))
        if own:
            raise FailedPreconditionError(f"{where}: headers sets {', '.join(own)}, which the protocol sets itself")
    if value := secret.get("authorization", ""):
        headers["authorization"] = value if " " in value else f"Bearer {value}"
    return headers


def _oauth(group: v1.ToolGroup, secret: Mapping[str, str]) -> OAuthClient | None:
    given = {key: value for key, value in secret.items() if key in _OAUTH and value}
    if not given:
        return None
    missing = sorted({"client_id", "client_secret", "issuer"} - set(given))
    if missing:
        raise FailedPreconditionError(
            f"secret {group.settings.secrets_ref!r}: client credentials also need {', '.join(missing)}"
        )
    return OAuthClient(**given)
