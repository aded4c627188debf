"""Token ids from endpoints that have calls for them beyond OpenAI's API: vLLM and llama.cpp."""

from llamastack import v1
from services.inference.providers.openai.endpoint import Endpoint, Json
from services.inference.providers.openai.requests import chat_body
from stack_client.errors import UnsupportedError


async def tokenize(endpoint: Endpoint, model: str, request: v1.TokenizeRequest) -> list[int]:
    """Ids of a text without special tokens, or of a dialog's prompt with them.

    Raises:
        UnsupportedError: If the endpoint's dialect has no such call.
    """
    _check(endpoint)
    if request.with_offsets:
        field = "with_offsets"
        raise UnsupportedError(f"{field}: endpoints do not say where tokens lie", field=field)
    if request.HasField("template_arguments"):
        field = "template_arguments"
        raise UnsupportedError(f"{field}: which variables an endpoint's template has cannot be told", field=field)
    dialog: Json = {}
    if request.WhichOneof("input") == "dialog":
        chat = v1.ChatCompletionRequest(
            messages=request.dialog.messages, tools=request.tools, tool_config=request.tool_config
        )
        body = chat_body(chat, model=model, dialect=endpoint.config.dialect)
        dialog = {key: value for key, value in body.items() if key in {"messages", "tools"}}
    if endpoint.config.dialect == "vllm":
        asked: Json = {"model": model, "prompt": request.text, "add_special_tokens": False}
        if dialog:
            asked = {"model": model, **dialog, "add_generation_prompt": True}
    else:
        asked = {"content": request.text, "add_special": False, "parse_special": request.parse_special}
        if dialog:
            prompt = (await endpoint.post("/apply-template", dialog))["prompt"]
            asked = {"content": prompt, "add_special": True, "parse_special": True}
    return [int(token) for token in (await endpoint.post("/tokenize", asked))["tokens"]]


async def detokenize(endpoint: Endpoint, model: str, ids: list[int]) -> str:
    """Text of ids.

    Raises:
        UnsupportedError: If the endpoint's dialect has no such call.
    """
    _check(endpoint)
    answer = await endpoint.post("/detokenize", {"model": model, "tokens": ids})
    return str(answer["prompt" if endpoint.config.dialect == "vllm" else "content"])


def _check(endpoint: Endpoint) -> None:
    if endpoint.config.dialect not in {"vllm", "llamacpp"}:
        message = f"endpoint {endpoint.name!r} of dialect {endpoint.config.dialect} has no call for token ids"
        raise UnsupportedError(message, field="model_id")
