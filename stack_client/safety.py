"""`client.safety` and `client.shields`: judge texts, moderate streams, register shields."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Self

import grpc

from llamastack import v1
from stack_client import content
from stack_client.calls import DEFAULT_TIMEOUT, EventStream, every_page, unary
from stack_client.content import MessageLike
from stack_client.errors import InvalidArgumentError

SURFACES = {
    v1.SafetySurface.Name(number).removeprefix("SAFETY_SURFACE_").lower(): number
    for number in v1.SafetySurface.values()
    if number
}
"""Places in a dialog by name: user, assistant, tool_arguments, tool_result, retrieved, memory_write, file, code."""
MODES = {
    "hold": v1.STREAM_MODERATION_MODE_HOLD,
    "whole": v1.STREAM_MODERATION_MODE_WHOLE,
    "observe": v1.STREAM_MODERATION_MODE_OBSERVE,
}
"""When a moderated stream releases text."""
GUARD_PRESETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "llama-guard": ("llama-guard", ("user", "assistant", "tool_arguments")),
    "prompt-guard": ("prompt-guard", ("user", "tool_result", "retrieved", "file", "memory_write")),
}
"""By the beginning of a guard's name: its provider, and the surfaces that it watches unless told otherwise."""
REFUSAL = "I can't answer that. Can I help with something else?"
"""Shown to users in place of what a shield blocks."""
UNJUDGED = "This could not be checked for safety just now. Please try again in a moment."
"""Shown to users in place of what no shield could judge."""
GUARD_UNAVAILABLE = "guard_unavailable"
"""The violation type where a guard could not judge, unlike a violation: a repeat may succeed."""
POLICY = "policy"
"""In place of a shield's name: all shields that the policy binds to the surface."""


def guard_preset(name: str) -> tuple[str, tuple[str, ...]]:
    """Provider and surfaces that a guard's name implies; empty where it implies none."""
    return next((preset for start, preset in GUARD_PRESETS.items() if name.startswith(start)), ("", ()))


class Safety:
    """Calls of `SafetyService`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.SafetyServiceStub(channel)

    async def run_shield(
        self,
        shield: str,
        messages: MessageLike | Iterable[MessageLike],
        *,
        params: Mapping[str, Any] | None = None,
        surface: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.RunShieldResponse:
        """Judge the last message of a dialog; `violation` is set when something was found.

        Args:
            shield: Its name, or `policy` for those that the policy binds to the surface.
            messages: The dialog; a plain string is one user message.
            params: Laid over the shield's own for this call.
            surface: What the last message is, one of `SURFACES`; empty means by its role.
            timeout: Seconds until the call gives up.

        Raises:
            StackError: If the call fails.
        """
        request = v1.RunShieldRequest(
            shield_id=shield,
            messages=content.messages(messages),
            params=content.struct(params),
            surface=_surface(surface),
        )
        response: v1.RunShieldResponse = await unary(self._stub.RunShield(request, timeout=timeout))
        return response

    async def run_shields(
        self,
        shields: Sequence[str | v1.ShieldInvocation],
        messages: MessageLike | Iterable[MessageLike],
        *,
        surface: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.RunShieldsResponse:
        """Judge by several shields at once.

        Raises:
            StackError: If the call fails.
        """
        request = v1.RunShieldsRequest(
            shields=[v1.ShieldInvocation(shield_id=one) if isinstance(one, str) else one for one in shields],
            messages=content.messages(messages),
            surface=_surface(surface),
        )
        response: v1.RunShieldsResponse = await unary(self._stub.RunShields(request, timeout=timeout))
        return response

    async def moderate(
        self, texts: str | Sequence[str], *, model: str = "", surface: str = "", timeout: float = DEFAULT_TIMEOUT
    ) -> v1.ModerateResponse:
        """Judge independent texts, one result each, as OpenAI's moderation answers.

        Args:
            texts: One or several.
            model: Guard model or shield; empty means the configured default, else the policy's shields.
            surface: What the texts are; empty means user.
            timeout: Seconds until the call gives up.

        Raises:
            StackError: If the call fails.
        """
        request = v1.ModerateRequest(
            input=[texts] if isinstance(texts, str) else texts, model=model or None, surface=_surface(surface)
        )
        response: v1.ModerateResponse = await unary(self._stub.Moderate(request, timeout=timeout))
        return response

    def stream_moderate(
        self,
        shields: Sequence[str] = (),
        messages: MessageLike | Iterable[MessageLike] = (),
        *,
        surface: str = "",
        mode: str = "",
    ) -> "ModerationStream":
        """Judge a text while it is generated: `send` pieces, `end`, and read what may be shown beside it.

        Args:
            shields: Names; none means the policy's for the surface.
            messages: The dialog before the text.
            surface: What the text is; empty means assistant.
            mode: hold, whole or observe; empty means as the policy says.
        """
        if mode and mode not in MODES:
            raise InvalidArgumentError(f"there is no mode {mode!r}; there are {', '.join(MODES)}", field="mode")
        start = v1.ModerationStart(
            shield_ids=shields,
            messages=content.messages(messages),
            surface=_surface(surface),
            mode=MODES[mode] if mode else v1.STREAM_MODERATION_MODE_UNSPECIFIED,
        )
        return ModerationStream(self._stub, start)

    async def policy(self, version: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> v1.SafetyPolicy:
        """The policy in force, or an older version.

        Raises:
            NotFoundError: If there is no such version.
        """
        request = v1.GetPolicyRequest(version=version)
        response: v1.GetPolicyResponse = await unary(self._stub.GetPolicy(request, timeout=timeout))
        return response.policy

    async def explain(self, verdict_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.ExplainVerdictResponse:
        """Why a verdict was given, from the audit log.

        Raises:
            NotFoundError: If the log has no such verdict.
        """
        request = v1.ExplainVerdictRequest(verdict_id=verdict_id)
        response: v1.ExplainVerdictResponse = await unary(self._stub.ExplainVerdict(request, timeout=timeout))
        return response


class Shields:
    """Calls of `ShieldsService`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.ShieldsServiceStub(channel)

    async def list(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[v1.Shield]:
        """All shields, by name.

        Raises:
            StackError: If the call fails.
        """
        return await every_page(self._stub.ListShields, v1.ListShieldsRequest(), timeout=timeout)

    async def get(self, shield: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Shield:
        """One shield.

        Raises:
            NotFoundError: If there is none.
        """
        request = v1.GetShieldRequest(identifier=shield)
        response: v1.GetShieldResponse = await unary(self._stub.GetShield(request, timeout=timeout))
        return response.shield

    async def register(
        self,
        shield: str,
        *,
        provider_id: str,
        provider_shield_id: str = "",
        params: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.Shield:
        """Register a shield; a repeat with the same content answers the existing one.

        Args:
            shield: Its name.
            provider_id: llama-guard, prompt-guard, code-scanner, pii, rules, moderation-api or embedded.
            provider_shield_id: The guard model; empty means the shield's name.
            params: Parameters of every run, among them `threshold`, `thresholds`, `action`, `messages`, `surfaces`.
            timeout: Seconds until the call gives up.

        Raises:
            AlreadyExistsError: If the name belongs to a shield with other content.
            InvalidArgumentError: If a parameter is wrong.
        """
        request = v1.RegisterShieldRequest(
            shield_id=shield,
            provider_id=provider_id,
            provider_shield_id=provider_shield_id or None,
            params=content.struct(params),
        )
        response: v1.RegisterShieldResponse = await unary(self._stub.RegisterShield(request, timeout=timeout))
        return response.shield

    async def unregister(self, shield: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Remove a shield.

        Raises:
            NotFoundError: If there is none.
        """
        await unary(self._stub.UnregisterShield(v1.UnregisterShieldRequest(identifier=shield), timeout=timeout))


class ModerationStream:
    """A moderated text: pieces go in by `send`, what may be shown comes out by iterating.

    Iterating ends after the terminal event `completed`, `blocked` or `failed`. `async with` cancels what has not ended.
    """

    def __init__(self, stub: Any, start: v1.ModerationStart) -> None:  # noqa: ANN401 (a generated stub)
        self._outbox: asyncio.Queue[v1.StreamModerateRequest | None] = asyncio.Queue(maxsize=64)
        self._sequence = 0
        self._start = start
        self._closed = False
        self._call = stub.StreamModerate(self._requests())
        self._events: EventStream[v1.StreamModerateResponse] = EventStream(self._call)

    async def send(self, text: str) -> None:
        """Hand over the next piece; waits while the service is far behind, does nothing after the stream's end."""
        if text and not self._closed:
            self._sequence += 1
            delta = v1.ModerationDelta(sequence=self._sequence, text=text)
            await self._outbox.put(v1.StreamModerateRequest(delta=delta))

    async def end(self) -> None:
        """Say that the text is whole."""
        end = v1.ModerationEnd(last_sequence=self._sequence)
        if not self._closed:
            await self._outbox.put(v1.StreamModerateRequest(end=end))
            await self._outbox.put(None)

    async def __aenter__(self) -> Self:
        """Use it inside a `with` block."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Cancel the call if it has not ended."""
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the call if it has not ended."""
        self._close()
        await self._events.aclose()

    def __aiter__(self) -> Self:
        """The events in order."""
        return self

    async def __anext__(self) -> v1.StreamModerateResponse:
        """The next event."""
        try:
            event = await anext(self._events)
        except BaseException:
            self._close()
            raise
        if event.WhichOneof("event") in {"completed", "blocked", "failed"}:
            self._close()
        return event

    def _close(self) -> None:
        """Nobody reads any more: let a sender that waits for room go on, and close our side."""
        self._closed = True
        while not self._outbox.empty():
            self._outbox.get_nowait()
        self._outbox.put_nowait(None)

    async def _requests(self) -> AsyncIterator[v1.StreamModerateRequest]:
        yield v1.StreamModerateRequest(start=self._start)
        # The service answers the start with its metadata or refuses it. Were we still writing when it refuses, grpc.aio
        # would report our failed write instead of the reason.
        await self._call.initial_metadata()
        if self._call.done():
            return
        while (request := await self._outbox.get()) is not None:
            yield request


def _surface(name: str) -> "v1.SafetySurface.ValueType":
    """The surface of a name; unspecified for none.

    Raises:
        InvalidArgumentError: If there is no such surface.
    """
    if not name:
        return v1.SAFETY_SURFACE_UNSPECIFIED
    if name not in SURFACES:
        raise InvalidArgumentError(f"there is no surface {name!r}; there are {', '.join(SURFACES)}", field="surface")
    return SURFACES[name]
