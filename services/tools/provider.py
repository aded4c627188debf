"""What a provider of tools is, and what it is given for a call.

The runtime (`invoke.py`) has done everything general before a provider sees a call: the tool exists, the arguments fit
its schema, the call is allowed, recorded and bounded in time. A provider lists its tools and runs them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from llamastack import v1
from services.runtime.service import ServiceContext


class Report(Protocol):
    """Where a running tool tells how far it is; both calls return at once."""

    def progress(self, fraction: float | None, message: str = "") -> None:
        """The share done, 0 to 1 (None: unknown), and one line for people."""

    def output(self, stream: str, text: str) -> None:
        """A piece of output, `stdout`, `stderr` or a name of the tool's own."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """With whose rights tools are listed or run."""

    tenant: str = ""
    """For whom; connections and state are never shared between tenants."""
    authorization: str = field(default="", repr=False)
    """Bearer token of the caller for the tool's server; never logged; empty means none."""
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The secret that the group's `secrets_ref` names, by key, or what the caller brought in its place; injected
    here and nowhere else."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers, by lower-case name, that the caller brought for the group's MCP server; they take the place of the
    group's secret."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a tool."""

    group: v1.ToolGroup
    """The group, with the arguments and settings that it was registered with."""
    tool: v1.ToolDef
    """The tool as the provider listed it."""
    arguments: Mapping[str, Any]
    """What fits the tool's schema: the model's arguments and the group's."""
    access: Access
    """With whose rights."""
    idempotency_key: str
    """The same for every attempt of this call; to be handed to the tool where it can take one."""
    call_id: str = ""
    """The model's id of the call; empty means none."""
    session_id: str = ""
    """The agent's session; interpreters keep their state by (tenant, session); empty means none."""
    timeout: float
    """Seconds after which the runtime cancels the call."""
    input_response: v1.ToolInputResponse | None = None
    """The answer to what an earlier attempt asked with `input_required`."""
    report: Report
    """Where progress and output go."""


class ToolProvider(Protocol):
    """Serves the tools of the groups that name it as their provider.

    `async with` opens what it needs; its constructor takes a `ProviderContext` and opens nothing.
    """

    async def __aenter__(self) -> Self:
        """Open connections and pools."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close them; running calls have been cancelled."""

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        """Refuse a registration that cannot be honoured.

        Raises:
            InvalidArgumentError: Naming the field that is wrong.
            UnavailableError: If the tool's server does not answer.
        """

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:
        """The tools as they are offered now, with `name`, `description`, `input_schema` and `effect`.

        Raises:
            UnavailableError: If the tool's server does not answer.
        """

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """Run a call. What goes wrong inside the tool is a result with `error_code`, in words that a model can use.

        Cancelling the task stops the tool and leaves nothing behind.

        Raises:
            UnavailableError: If the tool's server cannot be reached, so that nothing happened.
        """

    async def removed(self, group: v1.ToolGroup, access: Access) -> None:
        """The group is gone: let go of what was kept for it."""


@dataclass(frozen=True, kw_only=True)
class ProviderContext:
    """What the service gives to the constructor of a provider."""

    service: ServiceContext
    """Configuration, addresses, channels, telemetry."""
    config: Mapping[str, Any]
    """The provider's own section, `tools.providers.<provider id>`; for `services.runtime.reader.read_config`."""
    data_dir: Path
    """Folder of its own for what must be kept; not yet created."""
