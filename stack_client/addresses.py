"""Where the services are: given by the caller, read from the stack that runs on this machine, or the default ports."""

from collections.abc import Mapping

from stack_client.errors import FailedPreconditionError
from stack_client.home import Home

DEFAULT_PORTS = {
    "inference": 50051,
    "safety": 50052,
    "tools": 50053,
    "memory": 50054,
    "agents": 50055,
    "post_training": 50056,
    "evaluation": 50057,
    "telemetry": 50058,
    "gateway": 50059,
}
"""The services of the mesh and the TCP port of each."""
OPTIONAL_PORTS = {"router": 50050}
"""The same of services that run only where somebody asks for them."""


def resolve(target: str | Mapping[str, str] | None = None) -> dict[str, str]:
    """Addresses by service.

    Args:
        target: A mapping of service to address; or a host, which means its default ports; or None: the stack that
            runs on this machine, else the default ports on this machine.
    """
    if isinstance(target, Mapping):
        return dict(target)
    if target is None:
        try:
            return running(Home.choose(None))
        except FailedPreconditionError:
            target = "localhost"
    return {name: f"{target}:{port}" for name, port in DEFAULT_PORTS.items()}


def running(home: Home) -> dict[str, str]:
    """Addresses of the stack that runs in a home.

    Raises:
        FailedPreconditionError: If none does.
    """
    return {name: service.addresses[0] for name, service in home.running().services.items()}
