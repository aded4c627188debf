"""What providers have in common that keep nothing."""

from types import TracebackType
from typing import Self

from llamastack import v1
from services.tools.provider import Access
from stack_client.content import content, struct
from stack_client.errors import InvalidArgumentError


class PlainProvider:
    """A provider without connections or state of groups."""

    arguments: frozenset[str] = frozenset()
    """Names that `args` of a group may have."""

    async def __aenter__(self) -> Self:
        """Nothing to open."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to close."""

    async def check(self, group: v1.ToolGroup, access: Access) -> None:  # noqa: ARG002 (the interface)
        """Refuse arguments that the provider does not have.

        Raises:
            InvalidArgumentError: Naming the first.
        """
        unknown = sorted(set(group.args.fields) - self.arguments)
        if unknown:
            known = ", ".join(sorted(self.arguments)) or "none"
            message = f"args.{unknown[0]}: {group.provider_id} has no such argument; there are: {known}"
            raise InvalidArgumentError(message, field=f"args.{unknown[0]}")

    async def removed(self, group: v1.ToolGroup, access: Access) -> None:
        """Nothing is kept."""


def failed(message: str, *, code: int = 1, **facts: object) -> v1.ToolInvocationResult:
    """A result that says what went wrong."""
    return v1.ToolInvocationResult(error_code=code, error_message=message, metadata=struct(facts) if facts else None)


def answered(text: str, **facts: object) -> v1.ToolInvocationResult:
    """A result."""
    clean = text.encode("utf-8", "replace").decode()
    return v1.ToolInvocationResult(content=content(clean), metadata=struct(facts) if facts else None)
