"""From the messages of a dialog to the texts that are judged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llamastack import v1
from services.safety.guard.conversation import call_text
from services.safety.shield import Surface
from stack_client.errors import InvalidArgumentError, UnsupportedError

_BY_ROLE: dict[str, Surface] = {
    "user": v1.SAFETY_SURFACE_USER,
    "system": v1.SAFETY_SURFACE_USER,
    "assistant": v1.SAFETY_SURFACE_ASSISTANT,
    "tool": v1.SAFETY_SURFACE_TOOL_RESULT,
}

_THEIRS = frozenset({"user", "tool"})  # not the model's, nor the operator's


@dataclass(frozen=True, kw_only=True)
class Part:
    """One text of a request."""

    text: str
    """May be empty, which is safe."""
    surface: Surface
    """Where it stands."""
    message_index: int
    """Place of its message in the request."""
    dialog: Sequence[v1.Message]
    """The messages before it."""
    in_context: bool = False
    """It is the retrieved context of a user message."""
    new: bool = True
    """It was not there when the model last answered."""


def parts_of(messages: Sequence[v1.Message], surface: Surface, *, every_message: bool) -> list[Part]:
    """The texts to judge: what is new, or all that a model did not write.

    New is the last message, and where a user or tool wrote it, all since the last one of the model: a caller may bring
    several at once, such as the results of parallel tool calls.

    Args:
        messages: The dialog, oldest first.
        surface: What the last message is; unspecified means by its role.
        every_message: Whether older messages of users and tools are judged too.

    Raises:
        InvalidArgumentError: If there is no message, or one without a role.
        UnsupportedError: If one holds an image.
    """
    if not messages:
        raise InvalidArgumentError("messages is empty; send at least one", reason="MISSING_FIELD", field="messages")
    for index, message in enumerate(messages):
        _check(message, index)
    last = len(messages) - 1
    roles = [message.WhichOneof("message") or "" for message in messages]
    first = last
    while first and roles[last] in _THEIRS and roles[first - 1] != "assistant":
        first -= 1
    parts = []
    for index, (message, role) in enumerate(zip(messages, roles, strict=True)):
        wanted = every_message or index >= first
        if index < last and not (wanted and role in _THEIRS):
            continue
        found = _parts(message, role, index, messages[:index], surface if index == last else 0)
        parts += [replace(part, new=index >= first) for part in found]
    return parts


def _parts(message: v1.Message, role: str, index: int, dialog: Sequence[v1.Message], surface: int) -> list[Part]:
    chosen = surface or _BY_ROLE[role]
    if role == "assistant" and not surface and message.assistant.tool_calls and not message.assistant.content.items:
        chosen = v1.SAFETY_SURFACE_TOOL_ARGUMENTS
    parts = [Part(text=message_text(message), surface=chosen, message_index=index, dialog=dialog)]  # type: ignore[arg-type]
    context = _text(message.user.context) if role == "user" else ""
    if context:  # retrieved text travels with the question, but nobody trusts it like the user
        surface_of_context = v1.SAFETY_SURFACE_RETRIEVED
        parts.append(
            Part(text=context, surface=surface_of_context, message_index=index, dialog=dialog, in_context=True)
        )
    return parts


def message_text(message: v1.Message) -> str:
    """What a message says, tool calls included, without retrieved context."""
    match message.WhichOneof("message"):
        case "user":
            return _text(message.user.content)
        case "system":
            return _text(message.system.content)
        case "tool":
            return _text(message.tool.content)
        case _:
            said = message.assistant
            return "\n".join(filter(None, [_text(said.content), *map(call_text, said.tool_calls)]))


def _text(content: v1.InterleavedContent) -> str:
    return "".join(item.text for item in content.items)


def _check(message: v1.Message, index: int) -> None:
    role = message.WhichOneof("message")
    if role is None:
        field = f"messages[{index}]"
        raise InvalidArgumentError(f"{field} has no role: set user, system, tool or assistant", field=field)
    contents = [getattr(message, role).content, *([message.user.context] if role == "user" else [])]
    for content in contents:
        if any(item.WhichOneof("item") == "image" for item in content.items):
            field = f"messages[{index}].{role}.content"
            raise UnsupportedError(f"{field}: shields judge text only so far; leave the image out", field=field)
