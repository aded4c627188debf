"""Writing answers as OpenAI's chat completions, whole and in chunks."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from llamastack import v1
from services.gateway import sse
from services.gateway.jsonmap.values import struct_json

_FINISH: Mapping[int, str] = {
    v1.FINISH_REASON_STOP: "stop",
    v1.FINISH_REASON_LENGTH: "length",
    v1.FINISH_REASON_TOOL_CALLS: "tool_calls",
    v1.FINISH_REASON_CONTENT_FILTER: "content_filter",
}


def usage_json(usage: v1.Usage) -> dict[str, Any]:
    """The tokens of a chat or completion."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def logprobs_json(entries: Sequence[v1.TokenLogProbs]) -> dict[str, Any] | None:
    """The log probabilities of a choice."""
    if not entries:
        return None
    return {
        "content": [{**_token(one.chosen), "top_logprobs": [_token(item) for item in one.top]} for one in entries],
        "refusal": None,
    }


def _token(one: v1.TokenLogProb) -> dict[str, Any]:
    return {"token": one.token, "logprob": float(f"{one.logprob:.7g}"), "bytes": list(one.bytes)}


def tool_call_json(call: v1.ToolCall) -> dict[str, Any]:
    """A call of a function."""
    return {"id": call.call_id, "type": "function", "function": function_json(call)}


def function_json(call: v1.ToolCall) -> dict[str, Any]:
    """Name and arguments of a call."""
    arguments = call.arguments_json
    if not arguments and call.HasField("arguments"):
        arguments = orjson.dumps(struct_json(call.arguments)).decode()
    return {"name": call.tool_name, "arguments": arguments or "{}"}


def completion_json(response: v1.ChatCompletionResponse, *, functions: bool, tier: str | None) -> dict[str, Any]:
    """A whole answer."""
    if response.HasField("blocked"):
        choices = [_blocked_choice(response)]
    elif response.choices:
        choices = [
            _choice(one.index, one.completion_message, one.finish_reason, one.logprobs, functions=functions)
            for one in response.choices
        ]
    else:
        message, reason = response.completion_message, response.finish_reason
        choices = [_choice(0, message, reason, response.logprobs, functions=functions)]
    return {
        "id": response.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": response.model_id,
        "choices": choices,
        "usage": usage_json(response.usage),
        "service_tier": tier,
        "system_fingerprint": None,
    }


def text_of(message: v1.CompletionMessage) -> str:
    """What a model said."""
    return "".join(item.text for item in message.content.items)


def _choice(
    index: int,
    message: v1.CompletionMessage,
    reason: int,
    logprobs: Sequence[v1.TokenLogProbs],
    *,
    functions: bool,
) -> dict[str, Any]:
    calls, text = message.tool_calls, text_of(message)
    written: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not calls else None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": function_json(calls[0]) if calls and functions else None,
        "tool_calls": [tool_call_json(call) for call in calls] if calls and not functions else None,
    }
    return {
        "index": index,
        "message": written,
        "finish_reason": finish_name(reason, functions=functions),
        "logprobs": logprobs_json(logprobs),
    }


def _blocked_choice(response: v1.ChatCompletionResponse) -> dict[str, Any]:
    choice = _choice(0, response.completion_message, v1.FINISH_REASON_CONTENT_FILTER, [], functions=False)
    choice["message"]["refusal"] = response.blocked.user_message
    choice["message"]["content"] = choice["message"]["content"] or None
    return choice


def finish_name(reason: int, *, functions: bool) -> str:
    """Why an answer ended, in OpenAI's words."""
    name = _FINISH.get(reason, "stop")
    return "function_call" if functions and name == "tool_calls" else name


class Chunks:
    """Writes the events of a streamed answer as chunks.

    Args:
        model: Identifier of the model.
        include_usage: Whether the last chunk tells the usage.
        functions: Whether calls are written in the old form.
        tier: The service tier asked for.
        answers: How many there are.
    """

    def __init__(self, *, model: str, include_usage: bool, functions: bool, tier: str | None, answers: int) -> None:
        self._head: dict[str, Any] = {
            "id": "",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "service_tier": tier,
            "system_fingerprint": None,
        }
        self._tail: dict[str, Any] = {"usage": None} if include_usage else {}
        self._functions = functions
        self._answers = answers
        self._calls: dict[int, int] = {}
        self._quick: tuple[bytes, bytes] = (b"", b"")

    @property
    def created(self) -> int:
        """When the answer began, in seconds since 1970."""
        return int(self._head["created"])

    def start(self, event: v1.ChatCompletionStart) -> list[bytes]:
        """The first chunk of each answer: its role."""
        self._head |= {"id": event.id, "model": event.model_id or self._head["model"]}
        # All that is the same in every chunk of plain text is written once.
        whole = sse.data(self._chunk([_delta(0, {"content": "\0"})]))
        before, _, after = whole.partition(orjson.dumps("\0"))
        self._quick = (before, after)
        role = {"role": "assistant", "content": "", "refusal": None}
        return [sse.data(self._chunk([_delta(index, role)])) for index in range(self._answers)]

    def progress(self, event: v1.ChatCompletionProgress) -> list[bytes]:  # noqa: PLR0911 - one kind of piece each
        """A piece of an answer."""
        kind = event.delta.WhichOneof("delta")
        index = event.choice_index
        if kind == "text":
            if not index and not event.logprobs:
                return [self._quick[0] + orjson.dumps(event.delta.text) + self._quick[1]]
            return [self._data(index, {"content": event.delta.text}, event.logprobs)]
        if kind != "tool_call":
            return []
        call = event.delta.tool_call
        if call.parse_status == v1.TOOL_CALL_PARSE_STATUS_FAILED:
            return [self._data(index, {"content": call.text}, event.logprobs)]
        if call.parse_status != v1.TOOL_CALL_PARSE_STATUS_SUCCEEDED:
            return []
        place = self._calls.get(index, 0)
        self._calls[index] = place + 1
        if self._functions:
            return [] if place else [self._data(index, {"function_call": function_json(call.call)}, event.logprobs)]
        written = {"index": place, **tool_call_json(call.call)}
        return [self._data(index, {"tool_calls": [written]}, event.logprobs)]

    def complete(self, event: v1.ChatCompletionComplete) -> list[bytes]:
        """The last chunks: why each answer ended, and the usage."""
        reasons = [(one.index, one.finish_reason) for one in event.choices] or [(0, event.finish_reason)]
        chunks = [
            sse.data(self._chunk([_delta(index, {}, finish_name(reason, functions=self._functions))]))
            for index, reason in reasons
        ]
        return chunks + self._usage(event.usage)

    def blocked(self, event: v1.ChatCompletionBlocked) -> list[bytes]:
        """The last chunks of an answer that a shield withheld."""
        chunks = [
            sse.data(self._chunk([_delta(0, {"refusal": event.user_message})])),
            sse.data(self._chunk([_delta(0, {}, "content_filter")])),
        ]
        return chunks + self._usage(event.usage)

    def _usage(self, usage: v1.Usage) -> list[bytes]:
        if not self._tail:
            return []
        return [sse.data({**self._head, "choices": [], "usage": usage_json(usage)})]

    def _data(self, index: int, delta: dict[str, Any], logprobs: Sequence[v1.TokenLogProbs]) -> bytes:
        return sse.data(self._chunk([_delta(index, delta, None, logprobs_json(logprobs))]))

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "choices": choices, **self._tail}


def _delta(
    index: int, delta: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
