"""Completions, OpenAI's: plain continuation of texts."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from llamastack import v1
from services.gateway import sse
from services.gateway.edge import Edge
from services.gateway.jsonmap.values import text, wrong
from services.gateway.request import JsonReply, Reply, Request, StreamReply
from services.gateway.routes.chat_answer import finish_name, usage_json
from services.gateway.routes.chat_request import read_response_format
from services.gateway.routes.fields import FieldReader
from services.gateway.routes.openai_schemas import COMPLETION_REQUEST, COMPLETION_RESPONSE
from services.gateway.routes.sampling import read_sampling
from services.gateway.routing import OPENAI, Route
from services.gateway.upstream import Rpc
from services.runtime.together import together
from stack_client.errors import InvalidArgumentError, StackError

COMPLETION = Rpc("InferenceService.Completion")
STREAM = Rpc("InferenceService.StreamCompletion")
MOST = 128
"""Answers to one request: prompts times `n`."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a client asked for."""

    model: str
    messages: Sequence[v1.CompletionRequest]
    """One per answer, in the order of the choices."""
    echoed: Sequence[str]
    """What each answer begins with: the prompt where the client wants it back."""
    stream: bool
    include_usage: bool
    logprobs: bool


def routes(edge: Edge) -> list[Route]:
    """The rows."""

    async def complete(request: Request) -> Reply:
        asked = read(edge, request.json())
        if asked.stream:
            return StreamReply(pieces=stream(edge, asked, request))
        calls = [edge.upstream.unary(COMPLETION, message, request=request) for message in asked.messages]
        answers = await together(calls)
        usage = add_usage([answer.usage for answer in answers])
        request.tokens += usage.total_tokens
        choices = [
            {
                "index": index,
                "text": asked.echoed[index] + answer.content,
                "finish_reason": finish_name(answer.finish_reason, functions=False),
                "logprobs": logprobs_json(answer.logprobs, len(asked.echoed[index])) if asked.logprobs else None,
            }
            for index, answer in enumerate(answers)
        ]
        head = {"id": answers[0].id, "object": "text_completion", "created": int(time.time()), "model": asked.model}
        return JsonReply(value={**head, "choices": choices, "usage": usage_json(usage), "system_fingerprint": None})

    return [
        Route(
            method="POST",
            path="/completions",
            handler=complete,
            mounts=OPENAI,
            api="inference",
            scope="inference",
            summary="Continue texts",
            streams=True,
            request=COMPLETION_REQUEST,
            response=COMPLETION_RESPONSE,
        )
    ]


def read(edge: Edge, body: dict[str, Any]) -> Asked:
    """The requests of a body, one per answer.

    Raises:
        InvalidArgumentError: Something in it is wrong; `field` names it.
    """
    fields = FieldReader(body)
    base = v1.CompletionRequest(model_id=fields.text("model", required=True))
    prompts = read_prompts(fields.take("prompt"))
    n, best_of = fields.whole("n", least=1, most=MOST) or 1, fields.whole("best_of", least=1)
    if best_of is not None and best_of != n:
        raise InvalidArgumentError("best_of: only as many as `n` are drawn; leave it out", field="best_of")
    read_sampling(fields, base.sampling_params, many=n > 1)
    if not base.sampling_params.HasField("max_tokens"):
        base.sampling_params.max_tokens = 16  # OpenAI's default for this endpoint
    logprobs = _read_logprobs(fields, base)
    read_response_format(edge, fields, base)
    echo, stream_wanted = bool(fields.flag("echo")), bool(fields.flag("stream"))
    options = FieldReader(fields.mapping("stream_options") or {}, path="stream_options")
    include_usage = bool(options.flag("include_usage"))
    options.drop("include_obfuscation")
    options.finish()
    for name in ("suffix", "prompt_logprobs"):
        if fields.take(name):
            message = f"{name}: the models of this stack cannot do that; leave it out"
            raise InvalidArgumentError(message, field=name, reason="UNSUPPORTED")
    fields.drop("user")
    fields.finish()
    if len(prompts) * n > MOST:
        raise InvalidArgumentError(f"prompt: at most {MOST} answers at once, prompts times n", field="prompt")
    messages, echoed = [], []
    for prompt in prompts:
        for draw in range(n):
            one = v1.CompletionRequest()
            one.CopyFrom(base)
            if draw and base.sampling_params.HasField("seed"):
                one.sampling_params.seed = base.sampling_params.seed + draw
            if isinstance(prompt, str):
                one.content.items.add(text=prompt)
            else:
                one.token_ids.extend(prompt)
            if echo and not isinstance(prompt, str):
                raise InvalidArgumentError("echo: only texts can be echoed, not token ids", field="echo")
            messages.append(one)
            echoed.append(prompt if echo and isinstance(prompt, str) else "")
    return Asked(
        model=base.model_id,
        messages=messages,
        echoed=echoed,
        stream=stream_wanted,
        include_usage=include_usage,
        logprobs=logprobs,
    )


def read_prompts(given: Any) -> list[str | list[int]]:  # noqa: ANN401
    """A text, texts, tokens, or lists of tokens.

    Raises:
        InvalidArgumentError: It is none of these.
    """
    if given is None:
        raise InvalidArgumentError("prompt: missing", field="prompt", reason="MISSING_FIELD")
    if isinstance(given, str):
        return [text(given, path="prompt")]
    if not isinstance(given, list) or not given:
        raise wrong("prompt", "a text, texts, or token ids", given)
    if all(type(item) is int for item in given):
        given = [given]
    prompts: list[str | list[int]] = []
    for index, entry in enumerate(given):
        path = f"prompt[{index}]"
        if isinstance(entry, str):
            prompts.append(text(entry, path=path))
        elif isinstance(entry, list) and entry and all(type(item) is int and 0 <= item < 2**31 for item in entry):
            prompts.append(entry)
        else:
            raise wrong(path, "a text or a list of token ids", entry)
    return prompts


def _read_logprobs(fields: FieldReader, message: v1.CompletionRequest) -> bool:
    given = fields.take("logprobs")
    if given is None or given is False:
        return False
    count = 1 if given is True else given
    if not isinstance(count, int) or not 0 <= count <= 20:
        raise wrong("logprobs", "true, false or 0 to 20", given)
    message.logprobs.top_k = count
    return True


def logprobs_json(entries: Sequence[v1.TokenLogProbs], offset: int) -> dict[str, Any]:
    """Log probabilities in the form of this endpoint: lists side by side.

    Args:
        entries: One per token.
        offset: Characters before the first token.
    """
    offsets = []
    for one in entries:
        offsets.append(offset)
        offset += len(one.chosen.token)
    return {
        "tokens": [one.chosen.token for one in entries],
        "token_logprobs": [_short(one.chosen.logprob) for one in entries],
        "top_logprobs": [{item.token: _short(item.logprob) for item in one.top} for one in entries],
        "text_offset": offsets,
    }


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def add_usage(usages: Sequence[v1.Usage]) -> v1.Usage:
    """The sum of several."""
    total = v1.Usage()
    for one in usages:
        total.prompt_tokens += one.prompt_tokens
        total.completion_tokens += one.completion_tokens
        total.total_tokens += one.total_tokens
        total.cached_tokens += one.cached_tokens
    return total


async def stream(edge: Edge, asked: Asked, request: Request) -> AsyncIterator[bytes]:
    """The chunks of all answers, as they come.

    Raises:
        StackError: What failed before the first chunk.
    """
    head: dict[str, Any] = {"id": "", "object": "text_completion", "created": int(time.time()), "model": asked.model}
    tail: dict[str, Any] = {"usage": None} if asked.include_usage else {}
    usages: list[v1.Usage] = []
    offsets = [0] * len(asked.messages)
    begun = False

    def chunk(index: int, piece: str, finish: str | None, logprobs: dict[str, Any] | None = None) -> bytes:
        choice = {"index": index, "text": piece, "logprobs": logprobs, "finish_reason": finish}
        return sse.data({**head, "choices": [choice], **tail})

    try:
        async with AsyncExitStack() as opened:
            async for index, event in merged(edge, asked, request, opened):
                kind = event.WhichOneof("event")
                if kind == "start":
                    head["id"] = head["id"] or event.start.id
                    begun = True
                    if asked.echoed[index]:
                        yield chunk(index, asked.echoed[index], None)
                        offsets[index] = len(asked.echoed[index])
                elif kind == "progress":
                    delta = event.progress.delta
                    found = logprobs_json(event.progress.logprobs, offsets[index]) if asked.logprobs else None
                    offsets[index] += len(delta)
                    yield chunk(index, delta, None, found)
                elif kind == "complete":
                    usages.append(event.complete.usage)
                    yield chunk(index, "", finish_name(event.complete.finish_reason, functions=False))
                elif kind == "heartbeat":
                    yield sse.HEARTBEAT
    except StackError as error:
        if not begun:
            raise
        yield sse.failure(error)
        return
    total = add_usage(usages)
    request.tokens += total.total_tokens
    if asked.include_usage:
        yield sse.data({**head, "choices": [], "usage": usage_json(total)})
    if request.wants_done:
        yield sse.DONE


async def merged(edge: Edge, asked: Asked, request: Request, opened: AsyncExitStack) -> AsyncIterator[tuple[int, Any]]:
    """The events of all answers with the index of each."""
    streams = []
    for message in asked.messages:
        wrapped = v1.StreamCompletionRequest(request=message)
        streams.append(await opened.enter_async_context(edge.upstream.stream(STREAM, wrapped, request=request)))
    if len(streams) == 1:
        async for event in streams[0]:
            yield 0, event
        return
    waiting = {asyncio.ensure_future(anext(one)): index for index, one in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                index = waiting.pop(task)
                try:
                    event = task.result()
                except StopAsyncIteration:
                    continue
                yield index, event
                waiting[asyncio.ensure_future(anext(streams[index]))] = index
    finally:
        for task in waiting:
            task.cancel()
