"""From a provider's answer to the messages of the contract."""

from llamastack import v1
from services.inference.coalesce import Collector
from services.inference.provider import Answer


def chat_response(answer: Answer, said: Collector, *, answer_id: str, model_id: str) -> v1.ChatCompletionResponse:
    """The unary answer to a dialog."""
    return v1.ChatCompletionResponse(
        completion_message=_message(answer, said),
        logprobs=said.logprobs,
        metrics=_metrics(answer),
        id=answer_id,
        model_id=model_id,
        finish_reason=answer.finish_reason,
        usage=_usage(answer),
    )


def chat_complete(answer: Answer, said: Collector) -> v1.ChatCompletionComplete:
    """The terminal event of a streamed answer to a dialog."""
    return v1.ChatCompletionComplete(
        stop_reason=answer.stop_reason,
        finish_reason=answer.finish_reason,
        usage=_usage(answer),
        completion_message=_message(answer, said),
        metrics=_metrics(answer),
    )


def completion_response(answer: Answer, said: Collector, *, answer_id: str) -> v1.CompletionResponse:
    """The unary continuation of a text."""
    return v1.CompletionResponse(
        content="".join(said.texts),
        stop_reason=answer.stop_reason,
        logprobs=said.logprobs,
        metrics=_metrics(answer),
        finish_reason=answer.finish_reason,
        usage=_usage(answer),
        id=answer_id,
    )


def completion_complete(answer: Answer, said: Collector) -> v1.CompletionComplete:
    """The terminal event of a streamed continuation."""
    return v1.CompletionComplete(
        stop_reason=answer.stop_reason,
        finish_reason=answer.finish_reason,
        usage=_usage(answer),
        content="".join(said.texts),
        metrics=_metrics(answer),
    )


def _message(answer: Answer, said: Collector) -> v1.CompletionMessage:
    text = "".join(said.texts)
    items = [v1.ContentItem(text=text)] if text else []
    return v1.CompletionMessage(
        content=v1.InterleavedContent(items=items), stop_reason=answer.stop_reason, tool_calls=said.tool_calls
    )


def _usage(answer: Answer) -> v1.Usage:
    return v1.Usage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        total_tokens=answer.prompt_tokens + answer.completion_tokens,
        cached_tokens=answer.cached_tokens,
    )


def _metrics(answer: Answer) -> list[v1.MetricInResponse]:
    usage = _usage(answer)
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return [v1.MetricInResponse(metric=name, value=getattr(usage, name), unit="tokens") for name in names]
