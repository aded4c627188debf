"""From a provider's answer to the messages of the contract."""

from collections.abc import Sequence

from llamastack import v1
from services.inference.coalesce import Collector
from services.inference.provider import Answer


def chat_response(
    answers: Sequence[Answer], said: Sequence[Collector], *, answer_id: str, model_id: str
) -> v1.ChatCompletionResponse:
    """The unary answer to a dialog, or several answers to it."""
    usage = _usage(answers)
    return v1.ChatCompletionResponse(
        completion_message=_message(answers[0], said[0]),
        logprobs=said[0].logprobs,
        metrics=_metrics(usage),
        id=answer_id,
        model_id=model_id,
        finish_reason=answers[0].finish_reason,
        usage=usage,
        choices=_choices(answers, said, with_logprobs=True),
    )


def chat_complete(answers: Sequence[Answer], said: Sequence[Collector]) -> v1.ChatCompletionComplete:
    """The terminal event of a streamed answer to a dialog; the pieces had the log probabilities."""
    usage = _usage(answers)
    return v1.ChatCompletionComplete(
        stop_reason=answers[0].stop_reason,
        finish_reason=answers[0].finish_reason,
        usage=usage,
        completion_message=_message(answers[0], said[0]),
        metrics=_metrics(usage),
        choices=_choices(answers, said, with_logprobs=False),
    )


def completion_response(answer: Answer, said: Collector, *, answer_id: str) -> v1.CompletionResponse:
    """The unary continuation of a text."""
    return v1.CompletionResponse(
        content="".join(said.texts),
        stop_reason=answer.stop_reason,
        logprobs=said.logprobs,
        metrics=_metrics(_usage([answer])),
        finish_reason=answer.finish_reason,
        usage=_usage([answer]),
        id=answer_id,
    )


def completion_complete(answer: Answer, said: Collector) -> v1.CompletionComplete:
    """The terminal event of a streamed continuation."""
    return v1.CompletionComplete(
        stop_reason=answer.stop_reason,
        finish_reason=answer.finish_reason,
        usage=_usage([answer]),
        content="".join(said.texts),
        metrics=_metrics(_usage([answer])),
    )


def _message(answer: Answer, said: Collector) -> v1.CompletionMessage:
    text = "".join(said.texts)
    items = [v1.ContentItem(text=text)] if text else []
    return v1.CompletionMessage(
        content=v1.InterleavedContent(items=items), stop_reason=answer.stop_reason, tool_calls=said.tool_calls
    )


def _choices(
    answers: Sequence[Answer], said: Sequence[Collector], *, with_logprobs: bool
) -> list[v1.ChatCompletionChoice]:
    """All answers where there are several."""
    if len(answers) == 1:
        return []
    return [
        v1.ChatCompletionChoice(
            index=index,
            completion_message=_message(answer, words),
            finish_reason=answer.finish_reason,
            logprobs=words.logprobs if with_logprobs else (),
        )
        for index, (answer, words) in enumerate(zip(answers, said, strict=True))
    ]


def _usage(answers: Sequence[Answer]) -> v1.Usage:
    """Tokens of all answers; their prompt is one and counts once."""
    prompt, completion = answers[0].prompt_tokens, sum(answer.completion_tokens for answer in answers)
    return v1.Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cached_tokens=answers[0].cached_tokens,
    )


def _metrics(usage: v1.Usage) -> list[v1.MetricInResponse]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return [v1.MetricInResponse(metric=name, value=getattr(usage, name), unit="tokens") for name in names]
