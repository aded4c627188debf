"""Shields around a chat: the dialog is judged beside prefill and gates the first piece, answers before they leave."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from llamastack import v1
from stack_client import content
from stack_client.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    StackError,
    UnsupportedError,
    from_error_message,
    to_error_message,
)
from stack_client.safety import GUARD_UNAVAILABLE, REFUSAL, UNJUDGED, ModerationStream, Safety

Release = Callable[[int, str], Awaitable[None]]
"""Sends a piece of an answer: which answer, and the text."""
Judged = Callable[["v1.SafetySurface.ValueType", Sequence[v1.Verdict]], Awaitable[None]]
"""Tells that nothing blocks: what was judged, and what was found all the same."""


class WithheldError(Exception):
    """A shield blocks; nothing more of this chat may be sent."""

    def __init__(self, blocked: v1.ChatCompletionBlocked) -> None:
        super().__init__(blocked.violation_type)
        self.blocked = blocked


class RedactedError(Exception):
    """The model must not see the dialog as it is; it is asked again with these messages in the places of theirs."""

    def __init__(self, redacted: Sequence[v1.RedactedMessage], verdicts: Sequence[v1.Verdict]) -> None:
        super().__init__("redacted")
        self.redacted = redacted
        self.verdicts = verdicts

    def apply(self, chat: v1.ChatCompletionRequest) -> v1.ChatCompletionRequest:
        """The chat with the redacted messages; its dialog is judged."""
        redone = v1.ChatCompletionRequest()
        redone.CopyFrom(chat)
        redone.ClearField("input_shields")
        for one in self.redacted:
            redone.messages[one.message_index].CopyFrom(one.message)
        return redone


class Shielding:
    """The shields of one chat.

    Args:
        safety: The safety service.
        chat: What is answered.
        release: Sends judged text.
        judged: Tells what was found that does not block.
        mode: When text leaves, as in `Safety.stream_moderate`.
    """

    def __init__(
        self,
        safety: Safety,
        chat: v1.ChatCompletionRequest,
        *,
        release: Release,
        judged: Judged,
        mode: str = "",
    ) -> None:
        self._safety = safety
        self._chat = chat
        self._release = release
        self._judged = judged
        self._mode = mode
        self._open = asyncio.Event()
        self._streams: dict[int, ModerationStream] = {}
        self._readers: dict[int, asyncio.Task[list[v1.Verdict]]] = {}
        self._found: list[v1.Verdict] = []
        self._group: asyncio.TaskGroup | None = None

    def start(self, group: asyncio.TaskGroup, *, started: asyncio.Event) -> None:
        """Begin to judge beside the generation.

        Args:
            group: What fails here ends with it: WithheldError, RedactedError, StackError.
            started: Set when the chat's first event was sent.
        """
        self._group = group
        group.create_task(self._judge_dialog(started))

    async def text(self, index: int, text: str) -> None:
        """Take a piece of an answer; it is sent when shields allow."""
        await self._open.wait()
        if not self._chat.output_shields:
            await self._release(index, text)
            return
        if index not in self._streams:
            assert self._group is not None
            self._streams[index] = self._stream()
            self._readers[index] = self._group.create_task(self._read(index, self._streams[index]))
        await self._streams[index].send(text)

    async def opened(self) -> None:
        """Return when the dialog was judged and nothing blocks."""
        await self._open.wait()

    async def check_call(self, index: int, call: v1.ToolCall) -> None:
        """Return when a tool call may be sent: after all text before it, and when shields allow it.

        Raises:
            WithheldError: If it must not. A policy that redacts withholds it too: arguments with holes are other ones.
        """
        await self._open.wait()
        if self._chat.output_shields:
            await self._settle(index)
            said = v1.Message(assistant=v1.CompletionMessage(tool_calls=[call]))
            surface = v1.SAFETY_SURFACE_TOOL_ARGUMENTS
            found = await verdicts_of(self._safety, self._chat.output_shields, [*self._chat.messages, said], surface)
            redacting = [verdict for verdict in found if verdict.action == v1.SAFETY_ACTION_REDACT]
            if redacting:
                raise withheld(redacting, surface)
            self._found += found

    async def finish(self) -> list[v1.Verdict]:
        """Judge and send what is still held; returns what was found that does not block."""
        await self._open.wait()
        for index in list(self._streams):
            await self._settle(index)
        if self._chat.output_shields:
            await self._judged(v1.SAFETY_SURFACE_ASSISTANT, self._found)
        return self._found

    async def aclose(self) -> None:
        """Cancel what has not ended."""
        for stream in self._streams.values():
            await stream.aclose()

    async def _settle(self, index: int) -> None:
        """Judge and send all text of an answer so far."""
        if index in self._streams:
            await self._streams[index].end()
            self._found += await self._readers[index]
            del self._streams[index], self._readers[index]

    async def _judge_dialog(self, started: asyncio.Event) -> None:
        if self._chat.input_shields:
            surface = surface_of(self._chat.messages)
            found = await input_verdicts(self._safety, self._chat)
            await started.wait()
            await self._judged(surface, found)
        self._open.set()

    async def _read(self, index: int, stream: ModerationStream) -> list[v1.Verdict]:
        """Send what a moderated stream releases, until its end."""
        surface = v1.SAFETY_SURFACE_ASSISTANT
        failed: list[v1.Verdict] = []
        try:
            async for event in stream:
                match event.WhichOneof("event"):
                    case "verdict" if event.verdict.HasField("error"):
                        failed = [event.verdict]
                    case "released":
                        await self._release(index, event.released.text)
                    case "blocked":
                        raise withheld(list(event.blocked.verdicts), surface)
                    case "failed" if failed:
                        raise withheld(failed, surface)
                    case "failed":
                        raise unjudged(from_error_message(event.failed), surface)
                    case "completed":
                        return list(event.completed.verdicts)
        except (InvalidArgumentError, NotFoundError):
            raise  # the caller named a shield that does not exist
        except StackError as error:
            raise unjudged(error, surface) from error
        raise unjudged(InternalError("the moderated stream had no end"), surface)

    def _stream(self) -> ModerationStream:
        return self._safety.stream_moderate(list(self._chat.output_shields), self._chat.messages, mode=self._mode)


async def input_verdicts(safety: Safety, chat: v1.ChatCompletionRequest) -> list[v1.Verdict]:
    """What the input shields found that does not block.

    Raises:
        WithheldError: If one blocks or could not judge.
        RedactedError: If the policy wants parts of messages taken out before the model sees them.
        StackError: If a shield does not exist or refuses the request.
    """
    found = await verdicts_of(safety, chat.input_shields, chat.messages, surface_of(chat.messages))
    redacting = [verdict for verdict in found if verdict.action == v1.SAFETY_ACTION_REDACT]
    if redacting:
        raise RedactedError(_redacted(chat.messages, redacting), found)
    return found


async def output_verdicts(
    safety: Safety, chat: v1.ChatCompletionRequest, said: v1.CompletionMessage
) -> list[v1.Verdict]:
    """What the output shields found in a whole answer that does not block; redacts it where the policy says so.

    Raises:
        WithheldError: If one blocks or could not judge.
        StackError: If a shield does not exist or refuses the request.
    """
    pieces: list[str] = []

    async def release(index: int, text: str) -> None:  # noqa: ARG001 (there is one)
        pieces.append(text)

    async def judged(surface: "v1.SafetySurface.ValueType", verdicts: Sequence[v1.Verdict]) -> None:
        """Nobody is told before the end."""

    plain = v1.ChatCompletionRequest(messages=chat.messages, output_shields=chat.output_shields)
    shielding = Shielding(safety, plain, release=release, judged=judged, mode="whole")
    started = asyncio.Event()
    started.set()
    found: list[v1.Verdict] = []
    text = content.text_of(said.content)
    try:
        async with asyncio.TaskGroup() as group:
            shielding.start(group, started=started)
            for call in said.tool_calls:
                await shielding.check_call(0, call)
            if text:
                await shielding.text(0, text)
            found = await shielding.finish()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        await shielding.aclose()
    if text and "".join(pieces) != text:
        said.content.CopyFrom(content.content("".join(pieces)))
    return found


async def verdicts_of(
    safety: Safety, shields: Sequence[str], messages: Sequence[v1.Message], surface: "v1.SafetySurface.ValueType"
) -> list[v1.Verdict]:
    """What shields found in the last message that does not block.

    Raises:
        WithheldError: If one blocks or could not judge.
        StackError: If a shield does not exist or refuses the request.
    """
    try:
        response = await safety.run_shields(list(shields), messages)
    except (InvalidArgumentError, NotFoundError, DeadlineExceededError):
        raise
    except StackError as error:
        raise unjudged(error, surface) from error
    verdicts = [answer.verdict for answer in response.responses]
    blocking = [verdict for verdict in verdicts if verdict.action >= v1.SAFETY_ACTION_HOLD]
    if blocking:
        raise withheld(blocking, surface, [answer.violation for answer in response.responses])
    return [verdict for verdict in verdicts if verdict.level != v1.VIOLATION_LEVEL_UNSPECIFIED]


def withheld(
    verdicts: list[v1.Verdict],
    surface: "v1.SafetySurface.ValueType",
    violations: Sequence[v1.SafetyViolation] = (),
) -> WithheldError:
    """The end of a chat whose dialog or answer is blocked."""
    verdicts = sorted(verdicts, key=lambda verdict: (verdict.action, verdict.score), reverse=True)
    first = verdicts[0]
    unable = first.HasField("error") and not first.codes
    told = next((one.user_message for one in violations if one.HasField("user_message")), "")
    return WithheldError(
        v1.ChatCompletionBlocked(
            shield_id=first.shield_id,
            user_message=UNJUDGED if unable else told or REFUSAL,
            violation_type=GUARD_UNAVAILABLE if unable else ",".join(first.codes) or "unsafe",
            verdicts=verdicts,
            surface=surface,
        )
    )


def unjudged(error: StackError, surface: "v1.SafetySurface.ValueType") -> WithheldError:
    """The end of a chat that nobody could judge: what is not judged is not sent."""
    verdict = v1.Verdict(
        surface=surface,
        action=v1.SAFETY_ACTION_BLOCK,
        level=v1.VIOLATION_LEVEL_ERROR,
        error=to_error_message(error),
    )
    return withheld([verdict], surface)


def surface_of(messages: Sequence[v1.Message]) -> "v1.SafetySurface.ValueType":
    """What the last message of a dialog is."""
    roles = {"tool": v1.SAFETY_SURFACE_TOOL_RESULT, "assistant": v1.SAFETY_SURFACE_ASSISTANT}
    role = messages[-1].WhichOneof("message") if messages else None
    return roles.get(role or "", v1.SAFETY_SURFACE_USER)


def check_shields(chat: v1.ChatCompletionRequest, safety: Safety | None) -> None:
    """Refuse shields where nobody could run them, and what would show text before it is judged.

    Raises:
        UnsupportedError: `field` names it.
    """
    for name in ("input_shields", "output_shields"):
        if getattr(chat, name) and safety is None:
            message = f"{name}: this node knows no safety service; set addresses.safety in its configuration"
            raise UnsupportedError(message, field=name)
    if chat.output_shields and chat.HasField("logprobs"):
        raise UnsupportedError("logprobs: they show an answer that output_shields may withhold", field="logprobs")


def _redacted(messages: Sequence[v1.Message], verdicts: Sequence[v1.Verdict]) -> list[v1.RedactedMessage]:
    """The messages without what shields found in them.

    Raises:
        WithheldError: If nobody says where the findings are, or they are in what is no text of a user or tool.
    """
    spans = [span for verdict in verdicts for span in verdict.spans]
    found = []
    for index in sorted({span.message_index for span in spans}):
        message = v1.Message()
        message.CopyFrom(messages[index])
        role = message.WhichOneof("message") or ""
        if role not in {"user", "tool"}:
            raise withheld(list(verdicts), surface_of(messages))
        here = [span for span in spans if span.message_index == index]
        for text, inside in ((getattr(message, role).content, False), (message.user.context, True)):
            chosen = [span for span in here if span.in_context == inside]
            if chosen:
                text.CopyFrom(content.content(_without(content.text_of(text), chosen)))
        found.append(v1.RedactedMessage(message_index=index, message=message))
    if not found:
        raise withheld(list(verdicts), surface_of(messages))
    return found


def _without(text: str, spans: Sequence[v1.VerdictSpan]) -> str:
    """A text with the spans of verdicts replaced."""
    return content.replaced(
        text,
        [
            (span.start, span.end, span.replacement if span.HasField("replacement") else f"[{span.code}]")
            for span in spans
        ],
    )
