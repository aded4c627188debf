"""From the chunks of a streamed OpenAI answer to the sink: text, whole tool calls, log probabilities, the end."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamastack import v1
from services.inference import dialog
from services.inference.provider import Answer, Sink
from services.inference.providers.openai.endpoint import Json
from services.llama.messages import ToolCall
from stack_client.errors import UnavailableError, UnsupportedError

UNKNOWN_ID = -1
"""Token id where the endpoint gives only the token's text."""
THINK, THOUGHT = "<think>", "</think>\n\n"
_FINISH = {
    "stop": v1.FINISH_REASON_STOP,
    "length": v1.FINISH_REASON_LENGTH,
    "tool_calls": v1.FINISH_REASON_TOOL_CALLS,
    "function_call": v1.FINISH_REASON_TOOL_CALLS,
    "content_filter": v1.FINISH_REASON_CONTENT_FILTER,
}


@dataclass
class _Call:
    """A tool call as it arrives."""

    call_id: str = ""
    name: str = ""
    arguments: str = ""


class StreamReader:
    """Reads one streamed answer, of chat or of a completion.

    Args:
        sink: Takes the pieces.
        top_logprobs: Alternatives that the caller asked for; None without log probabilities.
        asked: Texts of the tokens whose log probability the caller asked for; the endpoint names tokens by id then.
        thoughts: Whether what the endpoint tells apart as thoughts is put before the answer.
        several_calls: Whether the answer may have several calls; not all servers keep to one when they are told so.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        top_logprobs: int | None,
        asked: Mapping[int, str] | None = None,
        thoughts: bool = False,
        several_calls: bool = True,
    ) -> None:
        self._thoughts = thoughts
        self._thinking = False
        self._several = several_calls
        self._sink = sink
        self._top = top_logprobs
        self._asked = asked or {}
        self._calls: dict[int, _Call] = {}
        self._finish = ""
        self._usage: Json = {}

    def read(self, chunk: Json) -> None:
        """Take one chunk."""
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text = delta.get("content") or choice.get("text") or delta.get("refusal") or ""
            logprobs: list[v1.TokenLogProbs] = []
            if self._asked:
                logprobs = list(_of_asked(choice.get("logprobs"), text=text, asked=self._asked))
            elif self._top is not None:
                logprobs = list(_logprobs(choice.get("logprobs"), top=self._top))
            if self._thoughts:
                text = self._with_thoughts(delta, text)
            if text or logprobs:
                self._sink.text(text, tokens=max(1, len(logprobs)), logprobs=logprobs)
            for place, piece in enumerate(delta.get("tool_calls") or ()):
                self._add(piece, place)
            self._finish = choice.get("finish_reason") or self._finish

    def end(self) -> Answer:
        """Push the tool calls and say how the answer ended; a call that was cut or is no JSON object is text.

        Raises:
            UnavailableError: If the endpoint gave it up.
        """
        if self._finish not in _FINISH:
            raise UnavailableError(f"the endpoint gave the answer up ({self._finish or 'no reason given'}); ask again")
        if self._thinking:  # it was cut, or only calls followed
            self._sink.text(THOUGHT, tokens=0)
        calls = [self._calls[index] for index in sorted(self._calls)]
        if not self._several:
            calls = calls[:1]
        whole = bool(calls) and all(_is_object(call.arguments) for call in calls)
        for place, call in enumerate(calls):
            if whole:
                call_id = call.call_id or f"call_{place}"
                read = ToolCall(call_id=call_id, tool_name=call.name, arguments_json=call.arguments or "{}")
                self._sink.tool_call(dialog.tool_call(read))
            else:
                self._sink.text(f"{call.name}({call.arguments})", tokens=1)
        finish = _FINISH[self._finish]
        if whole and finish != v1.FINISH_REASON_LENGTH:
            finish = v1.FINISH_REASON_TOOL_CALLS
        elif finish == v1.FINISH_REASON_TOOL_CALLS:
            finish = v1.FINISH_REASON_STOP
        details = self._usage.get("prompt_tokens_details") or {}
        return Answer(
            stop_reason=_STOP.get(finish, v1.STOP_REASON_END_OF_TURN),
            finish_reason=finish,
            prompt_tokens=self._usage.get("prompt_tokens") or 0,
            completion_tokens=self._usage.get("completion_tokens") or 0,
            cached_tokens=details.get("cached_tokens") or 0,
        )

    def _with_thoughts(self, delta: Json, text: str) -> str:
        """A piece with the thoughts before it, in their marks. Servers have two names for them."""
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if thought and not self._thinking:
            self._thinking, thought = True, THINK + thought
        if text and self._thinking:
            self._thinking, text = False, THOUGHT + text
        return thought + text

    def _add(self, piece: Json, place: int) -> None:
        """Add a piece of a call; servers that send whole calls may leave out their index."""
        index = piece.get("index")
        call = self._calls.setdefault(place if index is None else index, _Call())
        function = piece.get("function") or {}
        call.call_id = piece.get("id") or call.call_id
        call.name += function.get("name") or ""
        arguments = function.get("arguments") or ""
        call.arguments += arguments if isinstance(arguments, str) else json.dumps(arguments)


_STOP = {
    v1.FINISH_REASON_LENGTH: v1.STOP_REASON_OUT_OF_TOKENS,
    v1.FINISH_REASON_TOOL_CALLS: v1.STOP_REASON_END_OF_MESSAGE,
}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text or "{}"), dict)
    except ValueError:
        return False


def _logprobs(given: Json | None, *, top: int) -> Iterator[v1.TokenLogProbs]:
    """Log probabilities of a chunk, in the form of chat or in the older one of completions."""
    if not given:
        return
    for entry in given.get("content") or ():
        yield _position(_token(entry), [_token(other) for other in (entry.get("top_logprobs") or ())[:top]])
    tokens: Sequence[str] = given.get("tokens") or ()
    tops: Sequence[Any] = given.get("top_logprobs") or [None] * len(tokens)
    for token, logprob, others in zip(tokens, given.get("token_logprobs") or (), tops, strict=False):
        ranked = sorted((others or {}).items(), key=lambda item: -item[1])[:top]
        yield _position(
            _token({"token": token, "logprob": logprob or 0.0}),
            [_token({"token": text, "logprob": value}) for text, value in ranked],
        )


def _of_asked(given: Json | None, *, text: str, asked: Mapping[int, str]) -> Iterator[v1.TokenLogProbs]:
    """Log probabilities of a chunk in which tokens are `token_id:N`.

    Raises:
        UnsupportedError: If one that was asked for is missing, as from endpoints that do not know the parameter.
    """
    positions = list(_logprobs(given, top=len(asked) + 1))
    for position in positions:
        found = {_id_of(entry.token): entry.logprob for entry in [*position.top, position.chosen]}
        if missing := asked.keys() - found.keys():
            field = "logprobs.token_ids"
            message = f"{field}: the endpoint reported nothing about {min(missing)}; it takes a vLLM that knows them"
            raise UnsupportedError(message, field=field)
        chosen_id = _id_of(position.chosen.token)
        # A chunk of one token says its text; of several tokens the text cannot be told apart.
        said = asked.get(chosen_id, text if len(positions) == 1 else "")
        chosen = _named(chosen_id, said, position.chosen.logprob)
        entries = [_named(token_id, name, found[token_id]) for token_id, name in asked.items()]
        yield v1.TokenLogProbs(logprobs_by_token={said: chosen.logprob}, chosen=chosen, asked=entries)


def _named(token_id: int, text: str, logprob: float) -> v1.TokenLogProb:
    return v1.TokenLogProb(token=text, token_id=token_id, bytes=text.encode(), logprob=logprob)


def _id_of(token: str) -> int:
    """The id in `token_id:N`."""
    number = token.removeprefix("token_id:")
    return int(number) if number.isdecimal() else UNKNOWN_ID


def _position(chosen: v1.TokenLogProb, top: list[v1.TokenLogProb]) -> v1.TokenLogProbs:
    by_token = {entry.token: entry.logprob for entry in reversed([chosen, *top])}
    return v1.TokenLogProbs(logprobs_by_token=by_token, chosen=chosen, top=top)


def _token(entry: Json) -> v1.TokenLogProb:
    text = entry["token"]
    raw = bytes(entry["bytes"]) if entry.get("bytes") is not None else text.encode()
    return v1.TokenLogProb(token=text, token_id=entry.get("id", UNKNOWN_ID), bytes=raw, logprob=entry["logprob"])
