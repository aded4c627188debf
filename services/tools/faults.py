"""What goes wrong with a call, as a result that a model can use.

Codes of the runtime are those of HTTP, as are those of tools behind HTTP; 1 is a failure without a code.
"""

from collections.abc import Sequence
from enum import IntEnum

from llamastack import v1
from stack_client.content import struct

FAULT = "fault"
"""Key in a result's metadata under which the name of the fault is, where the runtime and not the tool found it."""


class Fault(IntEnum):
    """What the runtime answers instead of the tool."""

    INVALID_ARGUMENTS = 400
    """The arguments do not fit the tool's schema; nothing happened."""
    REFUSED = 403
    """The tool wanted what it may not, such as a host that is not in its list."""
    CANCELLED = 499
    """Stopped on request; effects until then remain."""
    INTERNAL = 500
    """A bug of the provider; whether the tool took effect is not known."""
    TIMEOUT = 504
    """Stopped when its time was over; effects until then remain."""
    LOST = 520
    """The process died while the tool ran; whether it took effect is not known."""


class FaultError(Exception):
    """A call that ends with a fault; only inside the runtime.

    Args:
        fault: What kind.
        message: For the model, with what to do.
        schema_path: Where the arguments break the schema, as JSON pointers.
    """

    def __init__(self, fault: Fault, message: str, *, schema_path: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.schema_path = schema_path

    def result(self) -> v1.ToolInvocationResult:
        """The same as a result."""
        return v1.ToolInvocationResult(
            error_code=int(self.fault),
            error_message=self.message,
            schema_path=self.schema_path,
            metadata=struct({FAULT: self.fault.name.lower()}),
        )
