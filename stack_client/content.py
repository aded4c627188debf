"""Building and reading the nouns of the contract without ceremony."""

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from stack_client.errors import InvalidArgumentError

MessageLike = v1.Message | Mapping[str, str] | str
"""A message, `{"role": "user", "content": "Hi"}`, or a plain string, which is the user's."""


def content(text: str) -> v1.InterleavedContent:
    """Text as content.

    Raises:
        InvalidArgumentError: If it has halves of surrogate pairs, which no encoding can carry.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"the text is not valid Unicode at character {error.start}") from None
    return v1.InterleavedContent(items=[v1.ContentItem(text=text)])


def text_of(parts: v1.InterleavedContent) -> str:
    """The text of content, without its images."""
    return "".join(item.text for item in parts.items)


def message(like: MessageLike) -> v1.Message:
    """A message from any of its short forms.

    Raises:
        InvalidArgumentError: If the role is unknown or a key is missing.
    """
    if isinstance(like, v1.Message):
        return like
    if isinstance(like, str):
        return v1.Message(user=v1.UserMessage(content=content(like)))
    try:
        role, text = like["role"], content(like["content"])
    except KeyError as error:
        raise InvalidArgumentError(f"a message needs role and content; {error} is missing", field="messages") from None
    match role:
        case "user":
            return v1.Message(user=v1.UserMessage(content=text))
        case "system":
            return v1.Message(system=v1.SystemMessage(content=text))
        case "assistant":
            return v1.Message(assistant=v1.CompletionMessage(content=text))
        case "tool":
            return v1.Message(tool=v1.ToolResponseMessage(content=text, call_id=like.get("call_id", "")))
        case _:
            known = "user, system, assistant or tool"
            raise InvalidArgumentError(f"unknown role {role!r}; known are {known}", field="messages")


def messages(like: MessageLike | Iterable[MessageLike]) -> list[v1.Message]:
    """Messages from one or several short forms."""
    if isinstance(like, str | v1.Message | Mapping):
        return [message(like)]
    return [message(item) for item in like]


def sampling(
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    max_tokens: int | None = None,
    stop: Iterable[str] = (),
    seed: int | None = None,
    repetition_penalty: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
) -> v1.SamplingParams:
    """Sampling parameters from plain numbers.

    Args:
        temperature: 0 means greedy; so does None without top_p and top_k, with one of them it means 1.
        top_p: Share of probability kept.
        top_k: Tokens kept.
        max_tokens: New tokens at most; None means up to the context.
        stop: Strings that end the answer.
        seed: Makes sampling repeatable.
        repetition_penalty: Above 1 weakens tokens seen before.
        frequency_penalty: Subtracted per earlier use.
        presence_penalty: Subtracted once for used tokens.
    """
    if isinstance(stop, str):
        stop = [stop]
    strategy = v1.SamplingStrategy(greedy=v1.GreedySamplingStrategy())
    if temperature == 0:
        pass
    elif top_k is not None:
        strategy = v1.SamplingStrategy(top_k=v1.TopKSamplingStrategy(top_k=top_k, temperature=temperature, top_p=top_p))
    elif top_p is not None or temperature is not None:
        strategy = v1.SamplingStrategy(
            top_p=v1.TopPSamplingStrategy(temperature=temperature, top_p=1.0 if top_p is None else top_p)
        )
    return v1.SamplingParams(
        strategy=strategy,
        max_tokens=max_tokens,
        stop=list(stop),
        seed=seed,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
    )


def plain(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """JSON as a person would write it: a Struct's doubles that are whole become integers again."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case _:
            return value


def replaced(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    """A text with parts replaced; of overlapping parts the first one's replacement stands.

    Args:
        text: As it was.
        spans: First character, one past the last, replacement.
    """
    pieces, at = [], 0
    for start, end, replacement in sorted(spans):
        if start >= at:
            pieces += [text[at:start], replacement]
        at = max(at, end)
    return "".join([*pieces, text[at:]])


def struct(values: Mapping[str, Any] | None) -> Struct | None:
    """A JSON object as the proto; None stays None."""
    return None if values is None else json_format.ParseDict(dict(values), Struct())
