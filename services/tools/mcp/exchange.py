"""What is known of one exchange with a server, beyond what the SDK tells."""

import asyncio
import re
from dataclasses import dataclass, field

import mcp_types as types
from mcp.shared.exceptions import MCPError

from services.tools.mcp.endpoint import Endpoint
from services.tools.provider import Report
from stack_client.errors import (
    AuthenticationError,
    PermissionDeniedError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
)

_PARAMETER = re.compile(r'([A-Za-z_-]+)\s*=\s*(?:"([^"]*)"|([^\s,]+))')


@dataclass
class Question:
    """What a server asks in an old-style session while a call runs."""

    request: types.ElicitRequestParams
    answer: asyncio.Future[types.ElicitResult]


@dataclass
class Exchange:
    """One request of ours and what belongs to it."""

    report: Report | None = None
    """Where progress and output go; None outside calls."""
    status: int = 0
    """HTTP status of the last answer; 0 = none."""
    challenge: str = ""
    """`WWW-Authenticate` of the last answer."""
    fault: BaseException | None = None
    """What kept a request from being answered."""
    sent: bool = False
    """Whether something may have reached the server."""
    frozen: bool = False
    """The fault is final: later answers do not matter."""
    questions: asyncio.Queue[Question] = field(default_factory=asyncio.Queue)
    """Asked and not yet handed to the caller."""

    def begin(self) -> None:
        """A request goes out."""
        if not self.frozen:
            self.status, self.challenge, self.fault = 0, "", None
            self.sent = True

    def note(self, status: int, challenge: str) -> None:
        """An answer came."""
        if not self.frozen:
            self.status, self.challenge = status, challenge


class ConnectionLostError(Exception):
    """The connection ended before the answer came.

    Args:
        reason: In words.
        sent: Whether the request may have reached the server.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class ServerError(Exception):
    """The server answered with an error of the protocol.

    Args:
        code: JSON-RPC code.
        message: The server's words.
        data: The server's details.
    """

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


def understand(error: MCPError, exchange: Exchange, endpoint: Endpoint) -> Exception:  # noqa: PLR0911 (a table)
    """The error behind the SDK's words, with what the exchange noted."""
    label = endpoint.label
    if isinstance(exchange.fault, StackError):
        return exchange.fault
    if exchange.fault is not None:
        return ConnectionLostError(str(exchange.fault) or type(exchange.fault).__name__, sent=exchange.sent)
    match exchange.status:
        case 401:
            return _unauthenticated(exchange.challenge, label)
        case 403:
            scope = parameters(exchange.challenge).get("scope", "")
            more = f"; it wants the scope {scope!r}" if scope else ""
            return PermissionDeniedError(f"{label}: the MCP server refuses the credential{more}")
        case 404 if error.code != types.METHOD_NOT_FOUND:  # the session is gone; the request was not looked at
            return ConnectionLostError("the server does not know the session", sent=False)
        case 429:
            return ResourceExhaustedError(f"{label}: the MCP server has too much to do; try again later")
        case 503 if error.code == types.INTERNAL_ERROR:
            return UnavailableError(f"{label}: the MCP server answered 503; try again later")
        case status if status >= 500 and error.code == types.INTERNAL_ERROR:
            return ConnectionLostError(f"the server answered {status}", sent=True)
    if error.code == types.CONNECTION_CLOSED:
        return ConnectionLostError(error.message, sent=True)
    message = error.message
    if exchange.status >= 400 and error.code == types.INTERNAL_ERROR:
        message = f"{message} ({exchange.status})"
    return ServerError(error.code, message, error.data)


def parameters(challenge: str) -> dict[str, str]:
    """The parameters of a `WWW-Authenticate` header, by name (RFC 9110, 11.6.1)."""
    return {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(challenge)}


def _unauthenticated(challenge: str, label: str) -> AuthenticationError:
    given = parameters(challenge)
    where = given.get("resource_metadata", "")
    message = f"{label}: the MCP server refuses the credential; give `authorization` or a secret"
    if where:
        message += f" (what it accepts: {where})"
    facts = {"endpoint": label, "resource_metadata": where, "scope": given.get("scope", "")}
    return AuthenticationError(message, metadata={key: value for key, value in facts.items() if value})
