"""Unions without a tag: one pair of functions each.

`encode(codec, message)` gives the JSON value, `decode(codec, message, value, path, reading)` reads one.
"""

from typing import TYPE_CHECKING, Any

from services.gateway.jsonmap.shapes import Adapter
from stack_client.errors import InvalidArgumentError

if TYPE_CHECKING:
    from services.gateway.jsonmap.codec import Codec
    from services.gateway.jsonmap.decoder import Reading

TEXT_OR_ITEMS = {
    "anyOf": [
        {"type": "string"},
        {"$message": "ContentItem"},
        {"type": "array", "items": {"$message": "ContentItem"}},
    ]
}


def encode_content(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """InterleavedContent: one text is a string, anything else a list of items."""
    items = message.items
    if not items:
        return ""
    if len(items) == 1 and items[0].WhichOneof("item") == "text":
        return items[0].text
    return [codec.encode(item) for item in items]


def decode_content(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """InterleavedContent: a string, an item, or a list of both."""
    entries = value if isinstance(value, list) else [value]
    for index, entry in enumerate(entries):
        place = f"{path}[{index}]" if isinstance(value, list) else path
        if isinstance(entry, str):
            codec.merge(message.items.add(), {"type": "text", "text": entry}, path=place, reading=reading)
        elif isinstance(entry, dict):
            codec.merge(message.items.add(), content_item(entry, path=place), path=place, reading=reading)
        else:
            raise InvalidArgumentError(f"{place}: expected a text, a content item or a list of them", field=place)


def content_item(entry: dict[str, Any], *, path: str) -> dict[str, Any]:
    """A content item in our form: OpenAI's image parts, and images of 0.0.63 beside the type, are rewritten."""
    if entry.get("type") == "image_url":
        image = entry.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str):
            raise InvalidArgumentError(f"{path}.image_url.url: missing", field=f"{path}.image_url.url")
        return image_item(url, path=f"{path}.image_url.url")
    if entry.get("type") == "image":
        image = entry.get("image", {key: entry[key] for key in ("url", "data") if key in entry})
        if isinstance(image, dict):
            url = image.get("url")
            if isinstance(url, dict):
                url = url.get("uri")
            if isinstance(url, str):
                return image_item(url, path=f"{path}.image.url")
            return {"type": "image", "image": {"data": image.get("data")}}
    return entry


def image_item(url: str, *, path: str) -> dict[str, Any]:
    """An image by its URL; a data URL becomes its bytes.

    Raises:
        InvalidArgumentError: A data URL without base64.
    """
    if not url.startswith("data:"):
        return {"type": "image", "image": {"url": {"uri": url}}}
    head, _, data = url.partition(",")
    if not head.endswith(";base64") or not data:
        raise InvalidArgumentError(f"{path}: a data URL must be data:<type>;base64,<data>", field=path)
    return {"type": "image", "image": {"data": data}}


def encode_content_or_url(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """ContentOrUrl: a URL is an object with `uri`."""
    which = message.WhichOneof("form")
    return None if which is None else codec.encode(getattr(message, which))


def decode_content_or_url(
    codec: "Codec",
    message: Any,  # noqa: ANN401
    value: Any,  # noqa: ANN401
    path: str,
    reading: "Reading",
) -> None:
    """ContentOrUrl: an object with `uri` and no `type` is a URL."""
    if isinstance(value, dict) and "uri" in value and "type" not in value:
        codec.merge(message.url, value, path=path, reading=reading)
    else:
        message.content.SetInParent()
        codec.merge(message.content, value, path=path, reading=reading)


def decode_url(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """URL: an object with `uri`; a plain string does too."""
    codec.merge_fields(message, {"uri": value} if isinstance(value, str) else value, path=path, reading=reading)


def encode_fields(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """A message by its fields."""
    return codec.encode_fields(message)


def decode_fields(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """A message by its fields."""
    codec.merge_fields(message, value, path=path, reading=reading)


def encode_tool_call(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """ToolCall: the arguments as a map, and as the exact JSON text."""
    written = codec.encode_fields(message)
    if not message.HasField("arguments"):
        written["arguments"] = {}
    return written


def decode_tool_call(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """ToolCall: arguments are a map or JSON text; OpenAI's form with `function` is read too."""
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{path}: expected an object", field=path)
    given = dict(value)
    function = given.pop("function", None)
    if isinstance(function, dict):  # {"id", "type": "function", "function": {"name", "arguments"}}
        given.pop("type", None)
        given.pop("index", None)
        given = {"call_id": given.pop("id", None), **given, "tool_name": function.get("name")}
        given["arguments"] = function.get("arguments")
    arguments = given.get("arguments")
    if isinstance(arguments, str):
        given.pop("arguments")
        given["arguments_json"] = given.get("arguments_json") or arguments
    codec.merge_fields(message, given, path=path, reading=reading)


def encode_tool_call_delta(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """ToolCallDelta: raw text while it is written, then the call."""
    status = codec.enum_name(message.DESCRIPTOR.fields_by_name["parse_status"].enum_type, message.parse_status)
    whole = message.WhichOneof("content") == "call"
    return {"tool_call": codec.encode(message.call) if whole else message.text, "parse_status": status}


def decode_tool_call_delta(
    codec: "Codec",
    message: Any,  # noqa: ANN401
    value: Any,  # noqa: ANN401
    path: str,
    reading: "Reading",
) -> None:
    """ToolCallDelta: never in a request."""
    raise InvalidArgumentError(f"{path}: a request has no deltas of tool calls", field=path)


def decode_agent_toolgroup(
    codec: "Codec",
    message: Any,  # noqa: ANN401
    value: Any,  # noqa: ANN401
    path: str,
    reading: "Reading",
) -> None:
    """AgentToolGroup: a name, or name and arguments."""
    codec.merge_fields(message, {"name": value} if isinstance(value, str) else value, path=path, reading=reading)


def encode_agent_toolgroup(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """AgentToolGroup: only its name where there is nothing else."""
    return codec.encode_fields(message) if message.HasField("args") else message.name


def decode_sampling(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """SamplingParams: the strategy is an object, or its name with its settings on the same level (before 0.1)."""
    if isinstance(value, dict):
        value = dict(value)
        flat = {key: value.pop(key) for key in ("temperature", "top_p", "top_k") if key in value}
        strategy = value.get("strategy")
        if isinstance(strategy, str):
            settings = {"top_p": ("temperature", "top_p"), "top_k": ("top_k",)}.get(strategy, ())
            value["strategy"] = {"type": strategy, **{key: flat[key] for key in settings if flat.get(key) is not None}}
        elif flat and strategy is None and any(item is not None for item in flat.values()):
            kind = "top_k" if flat.get("top_k") else "top_p"
            value["strategy"] = {"type": kind, **{key: item for key, item in flat.items() if item is not None}}
        if value.get("max_tokens") == 0:  # as much as the context holds
            del value["max_tokens"]
    codec.merge_fields(message, value, path=path, reading=reading)


def encode_metadata_filter(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """MetadataFilter: a comparison or a combination, told apart by `type`."""
    which = message.WhichOneof("filter")
    return None if which is None else codec.encode(getattr(message, which))


def decode_metadata_filter(
    codec: "Codec",
    message: Any,  # noqa: ANN401
    value: Any,  # noqa: ANN401
    path: str,
    reading: "Reading",
) -> None:
    """MetadataFilter: `and`, `or`, `not` combine, everything else compares."""
    combines = isinstance(value, dict) and value.get("type") in ("and", "or", "not")
    member = message.compound if combines else message.comparison
    member.SetInParent()
    codec.merge(member, value, path=path, reading=reading)


def decode_tool_parameter(
    codec: "Codec",
    message: Any,  # noqa: ANN401
    value: Any,  # noqa: ANN401
    path: str,
    reading: "Reading",
) -> None:
    """ToolParameter: what newer clients say of a parameter in JSON Schema words is read too."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if not (key in {"title", "items"} and item is None)}
    codec.merge_fields(message, value, path=path, reading=reading)


def encode_embedding(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """Embedding: a list of numbers."""
    return list(message.values)


_EMBEDDED_STORES = ("faiss", "sqlite-vec", "sqlite_vec")
"""Vector stores inside the servers of Llama Stack, which programs name: our own embedded one takes their place."""


def decode_vector_registration(
    codec: "Codec",
    message: Any,  # noqa: ANN401
    value: Any,  # noqa: ANN401
    path: str,
    reading: "Reading",
) -> None:
    """A request that makes a vector DB or store: embedded stores of other servers mean ours."""
    if isinstance(value, dict) and value.get("provider_id") in _EMBEDDED_STORES:
        value = {key: item for key, item in value.items() if key != "provider_id"}
    codec.merge_fields(message, value, path=path, reading=reading)


def decode_chunk_query(
    codec: "Codec",
    message: Any,  # noqa: ANN401
    value: Any,  # noqa: ANN401
    path: str,
    reading: "Reading",
) -> None:
    """ChunkQueryParams: the ranker of 0.2 and the reranker of OGX are read as ours."""
    if isinstance(value, dict):
        value = dict(value)
        if value.get("max_num_results") is not None:
            value["max_chunks"] = value.pop("max_num_results")
        if value.pop("embedding_dimensions", None) is not None:
            place = f"{path}.embedding_dimensions"
            raise InvalidArgumentError(f"{place}: queries are embedded as the bank's chunks are", field=place)
        kind, settings = value.pop("reranker_type", None), value.pop("reranker_params", None)
        ranker = value.get("ranker")
        if kind is not None:
            value["ranker"] = {"type": kind, **(settings if isinstance(settings, dict) else {})}
        elif isinstance(ranker, dict) and "strategy" in ranker:
            value["ranker"] = _ranker(ranker["strategy"], ranker.get("params") or {}, path=f"{path}.ranker")
    codec.merge_fields(message, value, path=path, reading=reading)


def _ranker(strategy: Any, params: Any, *, path: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(params, dict):
        raise InvalidArgumentError(f"{path}.params: expected an object", field=f"{path}.params")
    if strategy == "rrf":
        factor = params.get("k", params.get("impact_factor"))
        return {"type": "rrf", "impact_factor": factor}
    if strategy == "weighted":
        weights = params.get("weights")
        if isinstance(weights, list) and len(weights) == 2 and all(isinstance(one, int | float) for one in weights):
            total = sum(weights)
            return {"type": "weighted", "alpha": weights[0] / total if total else 0.5}
        return {"type": "weighted", "alpha": params.get("alpha")}
    return {"type": strategy}


def encode_chunk(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """Chunk: its id under the names of old and new clients."""
    written = codec.encode_fields(message)
    written["stored_chunk_id"] = written["chunk_id"]
    written["embedding"] = written["embedding"] or None
    return written


def encode_store_content(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """VectorStoreContent: no vector is null, not an empty one."""
    written = codec.encode_fields(message)
    written["embedding"] = written["embedding"] or None
    return written


def encode_answer(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """Answers of the native routes: log probabilities that nobody asked for are null, as in their streams."""
    written = codec.encode_fields(message)
    written["logprobs"] = written["logprobs"] or None
    return written


def encode_input_types(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """ModerationInputTypes: the bare list."""
    return list(message.types)


def decode_unread(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """For messages that only answers have."""
    raise InvalidArgumentError(f"{path}: not part of a request", field=path)


ADAPTERS = {
    "llamastack.v1.InterleavedContent": Adapter(encode=encode_content, decode=decode_content, schema=TEXT_OR_ITEMS),
    "llamastack.v1.ContentOrUrl": Adapter(
        encode=encode_content_or_url,
        decode=decode_content_or_url,
        schema={"anyOf": [*TEXT_OR_ITEMS["anyOf"], {"$message": "URL"}]},
    ),
    "llamastack.v1.URL": Adapter(encode=encode_fields, decode=decode_url),
    "llamastack.v1.ToolCall": Adapter(encode=encode_tool_call, decode=decode_tool_call),
    "llamastack.v1.ToolCallDelta": Adapter(encode=encode_tool_call_delta, decode=decode_tool_call_delta),
    "llamastack.v1.AgentToolGroup": Adapter(
        encode=encode_agent_toolgroup,
        decode=decode_agent_toolgroup,
        schema={"anyOf": [{"type": "string"}, {"$fields": "AgentToolGroup"}]},
    ),
    "llamastack.v1.SamplingParams": Adapter(encode=encode_fields, decode=decode_sampling),
    "llamastack.v1.MetadataFilter": Adapter(
        encode=encode_metadata_filter,
        decode=decode_metadata_filter,
        schema={"anyOf": [{"$message": "ComparisonFilter"}, {"$message": "CompoundFilter"}]},
    ),
    "llamastack.v1.ToolParameter": Adapter(encode=encode_fields, decode=decode_tool_parameter),
    "llamastack.v1.RegisterVectorDBRequest": Adapter(encode=encode_fields, decode=decode_vector_registration),
    "llamastack.v1.CreateVectorStoreRequest": Adapter(encode=encode_fields, decode=decode_vector_registration),
    "llamastack.v1.ChunkQueryParams": Adapter(encode=encode_fields, decode=decode_chunk_query),
    "llamastack.v1.Chunk": Adapter(encode=encode_chunk, decode=decode_fields),
    "llamastack.v1.VectorStoreContent": Adapter(encode=encode_store_content, decode=decode_unread),
    "llamastack.v1.ChatCompletionResponse": Adapter(encode=encode_answer, decode=decode_unread),
    "llamastack.v1.CompletionResponse": Adapter(encode=encode_answer, decode=decode_unread),
    "llamastack.v1.ModerationInputTypes": Adapter(
        encode=encode_input_types, decode=decode_unread, schema={"type": "array", "items": {"type": "string"}}
    ),
    "llamastack.v1.Embedding": Adapter(
        encode=encode_embedding, decode=decode_unread, schema={"type": "array", "items": {"type": "number"}}
    ),
}
