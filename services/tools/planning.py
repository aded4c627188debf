"""What is decided about a call before anything happens: the tool, the arguments, the key, the bounds."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamastack import v1
from services.runtime.calls import current_call, current_tenant
from services.runtime.names import check_printable
from services.runtime.offload import offload
from services.tools.arguments import digest, fitted, fixed, from_struct, read_arguments
from services.tools.faults import Fault, FaultError
from services.tools.groups import Found
from services.tools.listings import Listings, schema_of
from services.tools.provider import Access
from services.tools.schemas import Schemas
from services.tools.secrets import Secrets
from stack_client.errors import FailedPreconditionError, InvalidArgumentError

MAX_ID = 256
ACTIONS = ("accept", "decline", "cancel")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A call that may run."""

    request: v1.InvokeToolRequest
    """As it came."""
    found: Found
    """The group."""
    tool: v1.ToolDef
    """The tool."""
    tenant: str
    """For whom."""
    request_id: str
    """Of the RPC."""
    key: str
    """Idempotency key."""
    digest: str
    """Of tool and arguments."""
    arguments: Mapping[str, Any] = field(repr=False)
    """The model's."""
    args: Mapping[str, Any] = field(repr=False)
    """The caller's."""
    timeout: float
    """Seconds."""

    @property
    def tool_name(self) -> str:
        """`group/tool`."""
        return f"{self.tool.toolgroup_id}/{self.tool.name}"


class Planner:
    """Decides.

    Args:
        listings: Finds tools.
        secrets: Of the groups.
        max_argument_bytes: Size of arguments.
    """

    def __init__(self, listings: Listings, secrets: Secrets, *, max_argument_bytes: int) -> None:
        self._listings = listings
        self._secrets = secrets
        self._most = max_argument_bytes
        self._schemas = Schemas()

    async def plan(self, request: v1.InvokeToolRequest) -> Plan:
        """Find the tool and read the arguments.

        Raises:
            FaultError: If the arguments are no JSON object.
            InvalidArgumentError: If another field is wrong.
            NotFoundError: If there is no such tool.
        """
        call, tenant = current_call(), current_tenant()
        self._check(request)
        found, tool = await self._listings.find(request.tool_name, tenant=tenant, authorization=request.authorization)
        arguments = await offload(len(request.kwargs_json), read_arguments, request)
        args = from_struct(request.args, name="args")
        timeout = tool.timeout_seconds
        return Plan(
            request=request,
            found=found,
            tool=tool,
            tenant=tenant,
            request_id=call.request_id if call else "",
            key=request.idempotency_key or f"call-{secrets.token_hex(16)}",
            digest=digest(f"{tool.toolgroup_id}/{tool.name}", arguments, args),
            arguments=arguments,
            args=args,
            timeout=min(timeout, request.timeout_seconds) if request.HasField("timeout_seconds") else timeout,
        )

    async def access(self, plan: Plan) -> Access:
        """With whose rights the tool runs."""
        return await self._secrets.access(
            plan.found.group, tenant=plan.tenant, authorization=plan.request.authorization
        )

    async def arguments(self, plan: Plan) -> Mapping[str, Any]:
        """All arguments, which fit the tool's schema.

        Raises:
            FaultError: If they do not.
        """
        schema = schema_of(plan.tool)
        group = fixed(schema, from_struct(plan.found.group.args, name="args"))
        merged = {**plan.arguments, **plan.args, **group}
        try:
            validator = self._schemas.validator(schema)
        except InvalidArgumentError as error:
            message = f"The tool {plan.tool_name} cannot be called: {error.message}."
            raise FaultError(Fault.INTERNAL, message) from error
        return await offload(plan.request.ByteSize(), fitted, merged, validator)

    def _check(self, request: v1.InvokeToolRequest) -> None:
        for name in ("idempotency_key", "call_id", "session_id", "approved_by"):
            check_printable(getattr(request, name), most=MAX_ID, field=name)
        if request.HasField("timeout_seconds") and not request.timeout_seconds > 0:
            message = f"timeout_seconds is {request.timeout_seconds:g}; give more than 0"
            raise InvalidArgumentError(message, field="timeout_seconds")
        size = len(request.kwargs_json.encode()) + request.kwargs.ByteSize() + request.args.ByteSize()
        if size > self._most:
            message = f"the arguments have {size} bytes; at most {self._most} are allowed (tools.max_argument_bytes)"
            raise InvalidArgumentError(message, field="kwargs_json" if request.kwargs_json else "kwargs")
        if request.HasField("input_response"):
            if not request.idempotency_key:
                message = "input_response needs the idempotency_key of the call that asked"
                raise InvalidArgumentError(message, reason="MISSING_FIELD", field="idempotency_key")
            if request.input_response.action not in ACTIONS:
                message = f"input_response.action is {request.input_response.action[:40]!r}; give {', '.join(ACTIONS)}"
                raise InvalidArgumentError(message, field="input_response.action")


def check_approval(plan: Plan) -> None:
    """Refuse a call that nobody allowed.

    Raises:
        FailedPreconditionError: If the group demands an approval that was not given.
    """
    demands = plan.tool.approval == v1.TOOL_APPROVAL_ALWAYS or (
        plan.tool.approval == v1.TOOL_APPROVAL_WRITES and plan.tool.effect != v1.TOOL_EFFECT_READ
    )
    if demands and not plan.request.approved_by:
        message = f"{plan.tool_name} needs the approval of a person: ask, and name who allowed it in approved_by"
        raise FailedPreconditionError(message, metadata={"tool": plan.tool_name, "approval": "required"})
