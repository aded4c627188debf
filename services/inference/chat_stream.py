"""One streamed chat: events in order, shields around it, exactly one end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from llamastack import v1
from services.inference.answers import chat_complete
from services.inference.coalesce import Collector, Delta
from services.inference.generations import run_generations
from services.inference.provider import Answer, Sink
from services.inference.shielding import (
    RedactedError,
    Shielding,
    WithheldError,
    input_verdicts,
    output_verdicts,
    surface_of,
)
from services.runtime.stream import EventWriter
from stack_client import content
from stack_client.safety import Safety

Generate = Callable[[v1.ChatCompletionRequest], Callable[[Sink], Awaitable[Answer]]]
"""How one answer to a request is generated."""


class ChatStream:
    """A chat on its way to the client.

    Args:
        chat: What is answered.
        writer: Of the call.
        answer_id: For logs.
        safety: The safety service; None only for chats without shields.
    """

    def __init__(
        self,
        chat: v1.ChatCompletionRequest,
        writer: "EventWriter[v1.StreamChatCompletionResponse]",
        *,
        answer_id: str,
        safety: Safety | None,
    ) -> None:
        self._chat = chat
        self._writer = writer
        self._id = answer_id
        self._safety = safety
        self._started = asyncio.Event()
        self._said: list[Collector] = []
        self._tokens = 0
        self._found: list[v1.Verdict] = []

    async def run(self, generate: Generate) -> None:
        """Answer to the end, which `complete` or `blocked` tells.

        Raises:
            StackError: If a generation failed or a shield does not exist.
        """
        chat = self._chat
        while True:
            try:
                await self._run(chat, generate)
            except RedactedError as redacted:  # nothing was sent yet: the answer to the redacted dialog is another one
                await self._start()
                await self._judged(surface_of(chat.messages), redacted.verdicts, redacted.redacted)
                chat = redacted.apply(chat)
                continue
            except WithheldError as withheld:
                await self._start()
                await self._writer.write(blocked=self._blocked(withheld.blocked))
            return

    async def _run(self, chat: v1.ChatCompletionRequest, generate: Generate) -> None:
        requests = single_requests(chat)
        self._said, self._tokens = [Collector() for _ in requests], 0
        shielding = self._shielding(chat)
        if shielding is None:
            answers = await run_generations([*map(generate, requests)], self._start, self._forward, self._writer)
        else:

            async def forward(index: int, delta: Delta) -> None:
                self._tokens += delta.tokens
                if delta.tool_call is not None:
                    await shielding.check_call(index, delta.tool_call)
                    await self._forward(index, delta)
                elif delta.logprobs:  # input shields only: see `check_shields`
                    await shielding.opened()
                    await self._forward(index, delta)
                else:
                    await shielding.text(index, "".join(delta.text))

            def beside(group: asyncio.TaskGroup) -> None:
                shielding.start(group, started=self._started)

            try:
                answers = await run_generations(
                    [*map(generate, requests)],
                    self._start,
                    forward,
                    self._writer,
                    beside=beside,
                    finish=shielding.finish,
                )
            finally:
                await shielding.aclose()
        complete = chat_complete(answers, self._said)
        complete.verdicts.extend(self._found)
        await self._writer.write(complete=complete)

    def _shielding(self, chat: v1.ChatCompletionRequest) -> Shielding | None:
        if not chat.input_shields and not chat.output_shields:
            return None
        assert self._safety is not None
        return Shielding(self._safety, chat, release=self._release, judged=self._judged)

    async def _start(self) -> None:
        if not self._started.is_set():
            start = v1.ChatCompletionStart(id=self._id, model_id=self._chat.model_id)
            await self._writer.write(start=start)
            self._started.set()

    async def _forward(self, index: int, delta: Delta) -> None:
        piece = v1.ContentDelta(text="".join(delta.text))
        if delta.tool_call is not None:
            self._said[index].tool_call(delta.tool_call)
            piece = v1.ContentDelta(
                tool_call=v1.ToolCallDelta(call=delta.tool_call, parse_status=v1.TOOL_CALL_PARSE_STATUS_SUCCEEDED)
            )
        else:
            self._said[index].text(piece.text, tokens=0)
        await self._writer.write(
            progress=v1.ChatCompletionProgress(delta=piece, logprobs=delta.logprobs, choice_index=index)
        )

    async def _release(self, index: int, text: str) -> None:
        await self._forward(index, Delta(text=[text]))

    async def _judged(
        self,
        surface: "v1.SafetySurface.ValueType",
        verdicts: Sequence[v1.Verdict],
        redacted: Sequence[v1.RedactedMessage] = (),
    ) -> None:
        self._found.extend(verdicts)
        judged = v1.ChatCompletionJudged(surface=surface, verdicts=verdicts, redacted=redacted)
        await self._writer.write(judged=judged)

    def _blocked(self, blocked: v1.ChatCompletionBlocked) -> v1.ChatCompletionBlocked:
        """With what was sent before, and the tokens of the answer; those of the prompt are not known any more."""
        texts = "".join(self._said[0].texts) if self._said else ""
        blocked.completion_message.stop_reason = v1.STOP_REASON_END_OF_TURN
        if texts:
            blocked.completion_message.content.CopyFrom(content.content(texts))
        blocked.usage.completion_tokens = blocked.usage.total_tokens = self._tokens
        return blocked


async def shielded_answer(
    chat: v1.ChatCompletionRequest,
    answer: Callable[[v1.ChatCompletionRequest], Awaitable[v1.ChatCompletionResponse]],
    *,
    safety: Safety,
    answer_id: str,
) -> v1.ChatCompletionResponse:
    """The unary answer to a dialog with shields: input shields beside the generation, output shields over the whole.

    Raises:
        StackError: If the generation failed or a shield does not exist.
    """
    found: list[v1.Verdict] = []
    usage = v1.Usage()
    while True:
        try:
            try:
                async with asyncio.TaskGroup() as group:
                    generating = group.create_task(_awaited(answer(chat)))
                    if chat.input_shields:
                        found += await input_verdicts(safety, chat)
                response = generating.result()
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
            usage = response.usage
            if chat.output_shields:
                for said in _messages(response):
                    found += await output_verdicts(safety, chat, said)
        except RedactedError as redacted:
            found += redacted.verdicts
            chat = redacted.apply(chat)
            continue
        except WithheldError as withheld:
            withheld.blocked.usage.CopyFrom(usage)
            return v1.ChatCompletionResponse(
                usage=usage,
                id=answer_id,
                model_id=chat.model_id,
                finish_reason=v1.FINISH_REASON_CONTENT_FILTER,
                completion_message=v1.CompletionMessage(stop_reason=v1.STOP_REASON_END_OF_TURN),
                blocked=withheld.blocked,
            )
        if response.choices:
            response.completion_message.CopyFrom(response.choices[0].completion_message)
        response.verdicts.extend(found)
        return response


def _messages(response: v1.ChatCompletionResponse) -> list[v1.CompletionMessage]:
    """All answers."""
    return [choice.completion_message for choice in response.choices] or [response.completion_message]


async def _awaited(work: Awaitable[v1.ChatCompletionResponse]) -> v1.ChatCompletionResponse:
    return await work


def single_requests(request: v1.ChatCompletionRequest) -> list[v1.ChatCompletionRequest]:
    """One request per answer that is wanted; with a seed, each answer has its own: seed, seed + 1, ..."""
    if request.n <= 1:
        return [request]
    singles = []
    for index in range(request.n):
        single = v1.ChatCompletionRequest()
        single.CopyFrom(request)
        single.ClearField("n")
        if request.sampling_params.HasField("seed"):
            single.sampling_params.seed = request.sampling_params.seed + index
        singles.append(single)
    return singles
