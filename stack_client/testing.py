"""Models for tests of programs that use agents: one that says what it is told, and one that repeats what was recorded.

    def test_refunds_are_small() -> None:
        model = FakeModel([call("refund", order_id="A17", amount=5.0), "Refunded."])
        assert Agent(model, tools=[refund]).run("Refund A17").text == "Refunded."
        assert "A17" in str(model.requests[-1])

Everything but the model is real: the agents and tools services run in a process of their own (`private_stack`).
"""

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf import json_format

from llamastack import v1
from stack_client.client import StackClient
from stack_client.content import content, struct, text_of
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, StackError, UnsupportedError
from stack_client.private_stack import private_stack


@dataclass(frozen=True)
class Call:
    """A tool call that a model makes; `call(...)` makes one."""

    name: str
    """The tool."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What it is called with."""


def call(name: str, /, **arguments: Any) -> Call:  # noqa: ANN401 (any JSON)
    """A tool call for a FakeModel."""
    return Call(name, arguments)


Reply: TypeAlias = str | Call | Sequence["str | Call"] | BaseException | Callable[[list[v1.Message]], Any]
"""A text, a call, several at once, an error, or a function of the dialog that gives one of these."""


class FakeModel:
    """A model that gives its replies in order.

    Args:
        replies: One for each time that it is asked; when they are used up, asking is an error.
        split: Characters of each piece of a streamed text; 0 sends it whole.

    Attributes:
        requests: What it was asked, in order.
    """

    def __init__(self, replies: Sequence[Reply], *, split: int = 0) -> None:
        self.model_id = f"fake-{uuid.uuid4().hex[:12]}"
        self.requests: list[v1.ChatCompletionRequest] = []
        self._replies = list(replies)
        self._split = split
        self._next = 0

    def addresses(self) -> Mapping[str, str]:
        """The stack that serves it; `Agent` asks for it at its first run."""
        stack = private_stack()
        stack.models[self.model_id] = self
        return stack.addresses()

    async def answer(self, request: v1.ChatCompletionRequest) -> AsyncIterator[v1.StreamChatCompletionResponse]:
        """The next reply as events."""
        if request.input_shields or request.output_shields:
            raise UnsupportedError("a FakeModel has no shields; test them with a stack", field="input_shields")
        kept = v1.ChatCompletionRequest()
        kept.CopyFrom(request)
        self.requests.append(kept)
        if self._next >= len(self._replies):
            message = (
                f"the FakeModel has no reply left: it was asked {len(self.requests)} times, with {self._next} replies"
            )
            raise FailedPreconditionError(message)
        reply = self._replies[self._next]
        self._next += 1
        text, calls = await _said(reply, list(kept.messages))
        for event in _events(text, calls, request, number=len(self.requests), split=self._split):
            yield event


class Recording:
    """A model whose answers are kept in a file: recorded from a real stack once, repeated from then on.

    What is asked is told apart by the dialog, the tools and the settings. In `auto` a question that the file does not
    have is asked of the real model and kept; in `replay` it is an error.

    Args:
        path: A file of JSON lines; made when it is missing.
        model: The real model.
        mode: `auto` or `replay`.
        client: Of the real stack; None means the one on this machine.
    """

    def __init__(self, path: str | Path, model: str, *, mode: str = "auto", client: StackClient | None = None) -> None:
        if mode not in {"auto", "replay"}:
            raise InvalidArgumentError(f"mode: {mode!r} is none of auto, replay", field="mode")
        self.model_id = f"recording-{uuid.uuid4().hex[:12]}"
        self.requests: list[v1.ChatCompletionRequest] = []
        self._path = Path(path)
        self._model = model
        self._mode = mode
        self._client = client
        self._kept: dict[str, list[dict[str, Any]]] | None = None

    def addresses(self) -> Mapping[str, str]:
        """The stack that serves it; `Agent` asks for it at its first run."""
        stack = private_stack()
        stack.models[self.model_id] = self
        return stack.addresses()

    async def answer(self, request: v1.ChatCompletionRequest) -> AsyncIterator[v1.StreamChatCompletionResponse]:
        """The events that were recorded, or that the real model sends now."""
        asked = v1.ChatCompletionRequest()
        asked.CopyFrom(request)
        asked.model_id = self._model
        self.requests.append(asked)
        kept = await self._load()
        key = _key(asked)
        if key in kept:
            for stored in kept[key]:
                yield json_format.ParseDict(stored, v1.StreamChatCompletionResponse())
            return
        if self._mode == "replay":
            last = text_of(asked.messages[-1].user.content) or "a tool's result"
            message = f"{self._path} has no answer to {last!r} in this dialog; record it with mode='auto'"
            raise FailedPreconditionError(message)
        events = []
        client = self._client or StackClient()
        async with client.inference.stream(v1.StreamChatCompletionRequest(request=asked)) as stream:
            async for event in stream:
                events.append(json_format.MessageToDict(event))
                yield event
        kept[key] = events
        await asyncio.to_thread(self._append, {"key": key, "events": events})

    async def _load(self) -> dict[str, list[dict[str, Any]]]:
        if self._kept is None:
            lines = await asyncio.to_thread(self._lines)
            self._kept = {line["key"]: line["events"] for line in lines}
        return self._kept

    def _lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines() if line]

    def _append(self, line: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _key(request: v1.ChatCompletionRequest) -> str:
    """What was asked, without the ids that every run makes anew."""
    plain = json_format.MessageToDict(request)
    ids: dict[str, str] = {}

    def renamed(value: Any, name: str = "") -> Any:  # noqa: ANN401 (JSON)
        if isinstance(value, dict):
            return {key: renamed(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return ids.setdefault(value, f"call-{len(ids)}") if name == "callId" else value

    return hashlib.sha256(json.dumps(renamed(plain), sort_keys=True).encode()).hexdigest()


async def _said(reply: Any, messages: list[v1.Message]) -> tuple[str, list[Call]]:  # noqa: ANN401 (a Reply)
    """The text and the calls of a reply."""
    while callable(reply) and not isinstance(reply, BaseException | Call):
        reply = reply(messages)
        if asyncio.iscoroutine(reply):
            reply = await reply
    if isinstance(reply, StackError):
        raise reply
    if isinstance(reply, BaseException):
        raise FailedPreconditionError(f"the FakeModel was told to fail: {type(reply).__name__}: {reply}")
    parts = [reply] if isinstance(reply, str | Call) else list(reply)
    text = "".join(part for part in parts if isinstance(part, str))
    return text, [part for part in parts if isinstance(part, Call)]


def _events(
    text: str, calls: Sequence[Call], request: v1.ChatCompletionRequest, *, number: int, split: int
) -> list[v1.StreamChatCompletionResponse]:
    made = [
        v1.ToolCall(
            call_id=f"call_{number}_{place}",
            tool_name=one.name,
            arguments=struct(one.arguments),
            arguments_json=json.dumps(one.arguments),
        )
        for place, one in enumerate(calls)
    ]
    stop = v1.STOP_REASON_END_OF_MESSAGE if made else v1.STOP_REASON_END_OF_TURN
    finish = v1.FINISH_REASON_TOOL_CALLS if made else v1.FINISH_REASON_STOP
    read, wrote = sum(len(str(one).split()) for one in request.messages), len(text.split())
    usage = v1.Usage(prompt_tokens=read, completion_tokens=wrote, total_tokens=read + wrote)
    message = v1.CompletionMessage(stop_reason=stop, content=content(text) if text else None, tool_calls=made)
    pieces = [text[at : at + split] for at in range(0, len(text), split)] if split else [text] if text else []
    deltas = [v1.ContentDelta(text=piece) for piece in pieces]
    deltas += [
        v1.ContentDelta(tool_call=v1.ToolCallDelta(call=one, parse_status=v1.TOOL_CALL_PARSE_STATUS_SUCCEEDED))
        for one in made
    ]
    events = [v1.StreamChatCompletionResponse(start=v1.ChatCompletionStart())]
    events += [v1.StreamChatCompletionResponse(progress=v1.ChatCompletionProgress(delta=delta)) for delta in deltas]
    complete = v1.ChatCompletionComplete(
        stop_reason=stop, finish_reason=finish, usage=usage, completion_message=message
    )
    events.append(v1.StreamChatCompletionResponse(complete=complete))
    for sequence, event in enumerate(events, 1):
        event.sequence = sequence
    return events
