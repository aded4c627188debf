"""A dialog as a Llama Guard sees it: turns of `User` and `Agent` in alternation, the judged text last."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from re import Pattern

from google.protobuf import json_format

from llamastack import v1
from services.safety.guard.prompt import Role, Turn
from services.safety.guard.quoting import quote
from services.safety.shield import Subject, Surface
from stack_client.errors import InvalidArgumentError, UnsupportedError

_AGENT = (v1.SAFETY_SURFACE_ASSISTANT, v1.SAFETY_SURFACE_TOOL_ARGUMENTS, v1.SAFETY_SURFACE_CODE)
BETWEEN = "\n\n"
"""Stands between messages of one role that follow each other."""


def judged_role(surface: Surface) -> Role:
    """The role that a text of this surface is judged in: what a model wrote is the Agent's, all else the User's."""
    return "Agent" if surface in _AGENT else "User"


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A dialog and the text to be judged, quoted where they look like the prompt's own parts."""

    older: tuple[Turn, ...]
    """The turns before, alternating; the first is the User's, the last is not of the judged role."""
    lead: str
    """What the same role said right before: it stands in the same turn, ahead of the text."""
    text: str
    """The judged text."""
    role: Role
    """Its role."""
    role_mapped: bool
    """Whether something that is neither user nor assistant, such as a tool's result, appears as the User's."""
    placeholder: bool
    """Whether an empty User turn was put before an Agent turn that had none."""
    findings: dict[str, int] = field(default_factory=dict)
    """How much was quoted in the judged text, by kind."""
    context_findings: dict[str, int] = field(default_factory=dict)
    """The same in the dialog before it."""

    def turns(self, older: Sequence[Turn], text: str) -> tuple[Turn, ...]:
        """A prompt's turns: some older ones and a part of the text, after what leads into it."""
        return (*older, Turn(self.role, f"{self.lead}{text}"))

    @property
    def required(self) -> int:
        """How many of the older turns must stay: the User's before an Agent's."""
        return 1 if self.role == "Agent" else 0


def conversation_of(subject: Subject, look_alikes: Pattern[str]) -> Conversation:
    """The conversation around a text; system messages are left out, nothing else is.

    Args:
        subject: The text and its dialog.
        look_alikes: What a written-out special token of the guard model looks like.

    Raises:
        UnsupportedError: If the dialog holds an image.
        InvalidArgumentError: If a message has no role, or content that is neither text nor image.
    """
    said = [turn for index, message in enumerate(subject.dialog) for turn in _turns_of(message, index)]
    joined = [Turn(role, BETWEEN.join(turn.text for turn in turns)) for role, turns in groupby(said, lambda t: t.role)]
    role = judged_role(subject.surface)
    lead = joined.pop().text + BETWEEN if joined and joined[-1].role == role else ""
    placeholder = joined[0].role == "Agent" if joined else role == "Agent"
    if placeholder:
        joined.insert(0, Turn("User", ""))
    context: dict[str, int] = {}
    older = tuple(Turn(turn.role, _quoted(turn.text, look_alikes, context)) for turn in joined)
    lead = _quoted(lead, look_alikes, context) if lead else ""
    found = quote(subject.text, look_alikes, begins_line=bool(lead))
    mapped = role == "User" and subject.surface != v1.SAFETY_SURFACE_USER
    return Conversation(
        older=older,
        lead=lead,
        text=found.text,
        role=role,
        role_mapped=mapped or any(message.WhichOneof("message") == "tool" for message in subject.dialog),
        placeholder=placeholder,
        findings=found.findings,
        context_findings=context,
    )


def _quoted(text: str, look_alikes: Pattern[str], counts: dict[str, int]) -> str:
    found = quote(text, look_alikes, begins_line=False)
    for kind, count in found.findings.items():
        counts[kind] = counts.get(kind, 0) + count
    return found.text


def _turns_of(message: v1.Message, index: int) -> list[Turn]:
    where = f"messages[{index}]"
    match message.WhichOneof("message"):
        case "user":
            parts = [_text(message.user.content, f"{where}.user.content")]
            if message.user.HasField("context"):
                parts.append(_text(message.user.context, f"{where}.user.context"))
            return [Turn("User", "\n".join(parts))]
        case "system":
            return []
        case "tool":
            return [Turn("User", _text(message.tool.content, f"{where}.tool.content"))]
        case "assistant":
            text = _text(message.assistant.content, f"{where}.assistant.content")
            parts = [text] if text else []
            return [Turn("Agent", "\n".join([*parts, *map(call_text, message.assistant.tool_calls)]))]
        case _:
            raise InvalidArgumentError(f"{where} has no role: set user, system, tool or assistant", field=where)


def call_text(call: v1.ToolCall) -> str:
    """A tool call as the Agent's text: name and arguments."""
    # A Struct forgets the order of its keys: sorted, the same call is the same text in every process.
    arguments = call.arguments_json or json_format.MessageToJson(call.arguments, indent=None, sort_keys=True)
    return f"{call.tool_name}({arguments})"


def _text(content: v1.InterleavedContent, where: str) -> str:
    for index, item in enumerate(content.items):
        place = f"{where}.items[{index}]"
        match item.WhichOneof("item"):
            case "image":
                raise UnsupportedError(f"{place}.image: this shield judges text only", field=f"{place}.image")
            case None:
                raise InvalidArgumentError(f"{place} holds neither text nor image", field=place)
            case _:
                pass
    return "".join(item.text for item in content.items)
