"""The Python SDK of the mesh.

`Agent` runs a model with tools, `Memory` is what it remembers, `FakeModel` stands for a model in tests, `StackClient`
and `SyncStackClient` reach every service, `errors` is the error tree.
"""

from typing import TYPE_CHECKING, Any

from stack_client import errors

if TYPE_CHECKING:
    from stack_client.agent import Agent as Agent
    from stack_client.agent_tools import MCP as MCP
    from stack_client.agent_tools import ToolGroup as ToolGroup
    from stack_client.client import StackClient as StackClient
    from stack_client.knowledge import Memory as Memory
    from stack_client.portal import SyncStackClient as SyncStackClient
    from stack_client.printing import print_events as print_events
    from stack_client.results import AgentEvent as AgentEvent
    from stack_client.results import AgentResult as AgentResult
    from stack_client.results import Pending as Pending
    from stack_client.testing import FakeModel as FakeModel
    from stack_client.testing import Recording as Recording
    from stack_client.testing import call as call
    from stack_client.tools import tool as tool

_HOMES = {
    "Agent": "agent",
    "AgentEvent": "results",
    "AgentResult": "results",
    "FakeModel": "testing",
    "MCP": "agent_tools",
    "Memory": "knowledge",
    "Pending": "results",
    "Recording": "testing",
    "StackClient": "client",
    "SyncStackClient": "portal",
    "ToolGroup": "agent_tools",
    "call": "testing",
    "print_events": "printing",
    "tool": "tools",
}

__all__ = [
    "MCP",
    "Agent",
    "AgentEvent",
    "AgentResult",
    "FakeModel",
    "Memory",
    "Pending",
    "Recording",
    "StackClient",
    "SyncStackClient",
    "ToolGroup",
    "call",
    "errors",
    "print_events",
    "tool",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (PEP 562: what is asked for is imported then)
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stack_client' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 (needed only here)

    return getattr(import_module(f"stack_client.{_HOMES[name]}"), name)
