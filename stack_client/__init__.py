"""The Python SDK of the mesh.

`Agent` runs a model with tools, `Memory` is what it remembers, `StackClient` and `SyncStackClient` reach every service,
`errors` is the error tree.
"""

from typing import TYPE_CHECKING, Any

from stack_client import errors

if TYPE_CHECKING:
    from stack_client.agent import Agent as Agent
    from stack_client.agent import AgentEvent as AgentEvent
    from stack_client.agent import AgentResult as AgentResult
    from stack_client.client import StackClient as StackClient
    from stack_client.knowledge import Memory as Memory
    from stack_client.portal import SyncStackClient as SyncStackClient

_HOMES = {
    "Agent": "agent",
    "AgentEvent": "agent",
    "AgentResult": "agent",
    "Memory": "knowledge",
    "StackClient": "client",
    "SyncStackClient": "portal",
}

__all__ = ["Agent", "AgentEvent", "AgentResult", "Memory", "StackClient", "SyncStackClient", "errors"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (PEP 562: what is asked for is imported then)
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stack_client' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 (needed only here)

    return getattr(import_module(f"stack_client.{_HOMES[name]}"), name)
