"""`client.tools`: groups of tools, and calling tools."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import grpc

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, EventStream, every_page, unary
from stack_client.content import struct
from stack_client.errors import InvalidArgumentError

MCP = "model-context-protocol"
EFFECTS = ("read", "idempotent_write", "write")
APPROVALS = ("never", "always", "writes")

GroupList: TypeAlias = list[v1.ToolGroup]
ToolList: TypeAlias = list[v1.Tool]
DefList: TypeAlias = list[v1.ToolDef]


class Tools:
    """Calls of `ToolGroupsService` and `ToolRuntimeService`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._groups: Any = v1.ToolGroupsServiceStub(channel)
        self._runtime: Any = v1.ToolRuntimeServiceStub(channel)

    async def groups(self, *, timeout: float = DEFAULT_TIMEOUT) -> GroupList:
        """All groups, by identifier.

        Raises:
            StackError: If the call fails.
        """
        return await every_page(self._groups.ListToolGroups, v1.ListToolGroupsRequest(), timeout=timeout)

    async def group(self, group: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.ToolGroup:
        """One group.

        Raises:
            NotFoundError: If there is none of that name.
        """
        request = v1.GetToolGroupRequest(toolgroup_id=group)
        response: v1.GetToolGroupResponse = await unary(self._groups.GetToolGroup(request, timeout=timeout))
        return response.tool_group

    async def register(
        self,
        group: str,
        provider: str = "",
        *,
        mcp_endpoint: str = "",
        args: Mapping[str, Any] | None = None,
        effect: str = "",
        approval: str = "",
        timeout_seconds: float | None = None,
        max_concurrency: int | None = None,
        egress_hosts: Sequence[str] = (),
        secrets_ref: str = "",
        description: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.ToolGroup:
        """Register a group; one that is there with the same content is answered as it is.

        Args:
            group: Its name, for example `http::tickets`.
            provider: Its provider; empty means `model-context-protocol` where `mcp_endpoint` is given.
            mcp_endpoint: Address of an MCP server.
            args: Settings of the provider, and arguments merged over the model's; numbers become doubles.
            effect: Of tools that have none of their own: `read`, `idempotent_write` or `write`; empty means write.
            approval: When a person must allow a call: `never`, `always` or `writes`; empty means never.
            timeout_seconds: Longest run of one call; None means the service's default.
            max_concurrency: Calls that run at once; None means the service's default.
            egress_hosts: Hosts that the tools may reach; empty means the provider's default.
            secrets_ref: Name of a secret of the service.
            description: What the group is for.
            timeout: Seconds until the call gives up.

        Raises:
            AlreadyExistsError: If there is one with other content.
            InvalidArgumentError: If the provider is unknown or refuses an argument.
            UnavailableError: If the tools' server does not answer.
        """
        if not provider and not mcp_endpoint:
            raise InvalidArgumentError("give provider, or mcp_endpoint for an MCP server", field="provider_id")
        request = v1.RegisterToolGroupRequest(
            toolgroup_id=group,
            provider_id=provider or MCP,
            mcp_endpoint=v1.URL(uri=mcp_endpoint) if mcp_endpoint else None,
            args=struct(args),
            settings=v1.ToolGroupSettings(
                effect=_value(v1.ToolEffect, "TOOL_EFFECT_", effect, EFFECTS, field="effect"),
                approval=_value(v1.ToolApproval, "TOOL_APPROVAL_", approval, APPROVALS, field="approval"),
                timeout_seconds=timeout_seconds,
                max_concurrency=max_concurrency,
                egress_hosts=egress_hosts,
                secrets_ref=secrets_ref,
            ),
            description=description,
        )
        response: v1.RegisterToolGroupResponse = await unary(self._groups.RegisterToolGroup(request, timeout=timeout))
        return response.tool_group

    async def unregister(self, group: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Remove a group; calls that run go on.

        Raises:
            NotFoundError: If there is none of that name.
            PermissionDeniedError: If it is of the service's configuration.
        """
        await unary(
            self._groups.UnregisterToolGroup(v1.UnregisterToolGroupRequest(toolgroup_id=group), timeout=timeout)
        )

    async def list(self, group: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> ToolList:
        """Registered tools, by group and name.

        Args:
            group: Only those of this group; empty means all.
            timeout: Seconds until one call gives up.

        Raises:
            NotFoundError: If there is no such group.
        """
        return await every_page(self._groups.ListTools, v1.ListToolsRequest(toolgroup_id=group), timeout=timeout)

    async def list_now(
        self, group: str = "", *, mcp_endpoint: str = "", authorization: str = "", timeout: float = DEFAULT_TIMEOUT
    ) -> DefList:
        """Tools as their providers offer them now, also those of an MCP server that is not registered.

        Raises:
            NotFoundError: If there is no such group.
            UnavailableError: If the tools' server does not answer.
        """
        request = v1.ListRuntimeToolsRequest(
            tool_group_id=group or None,
            mcp_endpoint=v1.URL(uri=mcp_endpoint) if mcp_endpoint else None,
            authorization=authorization or None,
        )
        return await every_page(self._runtime.ListRuntimeTools, request, timeout=timeout)

    async def get(self, tool: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Tool:
        """One tool, by `group/tool`, or by its bare name when only one group has it.

        Raises:
            NotFoundError: If there is none; names those that there are.
        """
        response: v1.GetToolResponse = await unary(
            self._groups.GetTool(v1.GetToolRequest(tool_name=tool), timeout=timeout)
        )
        return response.tool

    async def invoke(
        self,
        tool: str,
        arguments: Mapping[str, Any] | str | None = None,
        *,
        args: Mapping[str, Any] | None = None,
        idempotency_key: str = "",
        call_id: str = "",
        session_id: str = "",
        authorization: str = "",
        timeout_seconds: float | None = None,
        approved_by: str = "",
        input_response: v1.ToolInputResponse | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.ToolInvocationResult:
        """Run a tool and wait for its result; a tool that fails is a result with `error_code`.

        Args:
            tool: `group/tool`, or the bare name when only one group has it.
            arguments: The model's arguments, or their JSON.
            args: Arguments of the caller's own, over the model's.
            idempotency_key: The same key and arguments get the stored result; such a call goes on when its caller
                leaves. Empty means that it is stopped then.
            call_id: Id of the model's tool call.
            session_id: Agent session on whose behalf the tool runs.
            authorization: Bearer token for the tool's server.
            timeout_seconds: Longest run; None means the group's.
            approved_by: Who allowed the call, where the group demands an approval.
            input_response: The answer to `input_required` of an earlier result under the same key.
            timeout: Seconds until the call gives up.

        Raises:
            NotFoundError: If there is no such tool.
            FailedPreconditionError: If the call needs an approval that was not given.
            UnavailableError: If the tool's server does not answer.
        """
        request = invocation(
            tool,
            arguments,
            args=args,
            idempotency_key=idempotency_key,
            call_id=call_id,
            session_id=session_id,
            authorization=authorization,
            timeout_seconds=timeout_seconds,
            approved_by=approved_by,
            input_response=input_response,
        )
        response: v1.InvokeToolResponse = await unary(self._runtime.InvokeTool(request, timeout=timeout))
        return response.result

    def stream(
        self,
        tool: str,
        arguments: Mapping[str, Any] | str | None = None,
        *,
        timeout: float | None = None,
        **options: Any,  # noqa: ANN401 (those of `invoke`)
    ) -> EventStream[v1.StreamInvokeToolResponse]:
        """Run a tool and follow it: `started`, `progress` and `output`, and last one `result`.

        Args:
            tool: As of `invoke`.
            arguments: As of `invoke`.
            timeout: Seconds until the stream gives up; None means never.
            options: The others of `invoke`.

        Raises:
            StackError: While iterating, if the call fails.
        """
        request = v1.StreamInvokeToolRequest(request=invocation(tool, arguments, **options))
        return EventStream(self._runtime.StreamInvokeTool(request, timeout=timeout))

    async def get_invocation(
        self, idempotency_key: str, *, full_output: bool = False, timeout: float = DEFAULT_TIMEOUT
    ) -> v1.Invocation:
        """A call by its key, running or ended, for 24 hours.

        Args:
            idempotency_key: Of the call.
            full_output: The whole of a long output that is kept with the call.
            timeout: Seconds until the call gives up.

        Raises:
            NotFoundError: If there is none.
        """
        request = v1.GetInvocationRequest(idempotency_key=idempotency_key, full_output=full_output)
        response: v1.GetInvocationResponse = await unary(self._runtime.GetInvocation(request, timeout=timeout))
        return response.invocation

    async def cancel(self, idempotency_key: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Invocation:
        """Ask a running call to stop; it is RUNNING until the tool has stopped.

        Raises:
            NotFoundError: If there is none.
        """
        request = v1.CancelInvocationRequest(idempotency_key=idempotency_key)
        response: v1.CancelInvocationResponse = await unary(self._runtime.CancelInvocation(request, timeout=timeout))
        return response.invocation


def invocation(
    tool: str,
    arguments: Mapping[str, Any] | str | None = None,
    *,
    args: Mapping[str, Any] | None = None,
    authorization: str = "",
    **fields: Any,  # noqa: ANN401 (of the request)
) -> v1.InvokeToolRequest:
    """The request of a call."""
    text = arguments if isinstance(arguments, str) else json.dumps(dict(arguments or {}))
    return v1.InvokeToolRequest(
        tool_name=tool, kwargs_json=text, args=struct(args), authorization=authorization or None, **fields
    )


def _value(kind: Any, prefix: str, name: str, known: Sequence[str], *, field: str) -> Any:  # noqa: ANN401 (enums)
    if name and name not in known:
        raise InvalidArgumentError(f"no {field} {name!r}; there are {', '.join(known)}", field=f"settings.{field}")
    return kind.Value(f"{prefix}{name.upper() or 'UNSPECIFIED'}")
