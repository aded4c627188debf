"""Bodies, answers and events of 0.0.63 that have another shape today."""

from collections.abc import Callable, Mapping
from typing import Any

from services.gateway.jsonmap.values import shown, wrong
from services.gateway.request import Request
from services.gateway.routes.fields import FieldReader
from stack_client.errors import InvalidArgumentError

Json = Any
_STATUS = {"failed": "failure", "succeeded": "success"}
_AWAITS, _COMPLETE = "turn_awaiting_input", "turn_complete"
_KEYS = "give it in the header X-LlamaStack-ProviderData"


# Answers


def bare(value: Json) -> Json:
    """A list without the object around it."""
    return value["data"]


def by_api(value: Json) -> Json:
    """Providers by their API."""
    found: dict[str, list[Json]] = {}
    for one in value["data"]:
        found.setdefault(one["api"], []).append(one)
    return found


def by_area(value: Json) -> Json:
    """Routes by the first part of their paths behind the version."""
    found: dict[str, list[Json]] = {}
    for one in value["data"]:
        found.setdefault(one["route"].strip("/").split("/")[1], []).append(one)
    return found


def chat_batch(value: Json) -> Json:
    """Answers of several chats."""
    return {"completion_message_batch": [one["completion_message"] for one in value["batch"]]}


def completion_batch(value: Json) -> Json:
    """Answers of several texts, as messages."""
    batch = [
        {"role": "assistant", "content": one["content"], "stop_reason": one["stop_reason"], "tool_calls": []}
        for one in value["batch"]
    ]
    return {"completion_message_batch": batch}


def session(value: Json) -> Json:
    """A session with its turns."""
    return {**value, "turns": [turn(one) for one in value["turns"]], "memory_bank": None}


def turn(value: Json) -> Json:
    """A turn with its steps."""
    return {**value, "steps": [_step(one) for one in value["steps"]]}


def _step(value: Json) -> Json:
    if value.get("step_type") != "memory_retrieval":
        return value
    banks = value.get("vector_db_ids") or ""
    return {**value, "memory_bank_ids": banks.split(",") if isinstance(banks, str) else banks}


# Events


def chat_event(value: Json) -> Json:
    """A chunk of a chat: text is a plain string."""
    if "event" not in value:
        return value
    event = value["event"]
    return {**value, "event": {**event, "delta": _delta(event["delta"])}}


def _delta(delta: Json) -> Json:
    if delta["type"] == "text":
        return delta["text"]
    if delta["type"] == "tool_call":
        status = delta["parse_status"]
        return {"content": delta["tool_call"], "parse_status": _STATUS.get(status, status)}
    return delta


def turn_event(value: Json) -> Json:
    """A chunk of a turn: one that waits for its caller is complete, for clients answer with a new turn."""
    if "event" not in value:
        return value
    payload = dict(value["event"]["payload"])
    match payload["event_type"]:
        case "step_progress":
            delta = payload.pop("delta")
            written = _delta(delta)
            payload["text_delta"] = written if isinstance(written, str) else None
            payload["tool_call_delta"] = written if delta["type"] == "tool_call" else None
        case "step_complete":
            payload["step_details"] = _step(payload["step_details"])
        case "turn_awaiting_input" | "turn_complete":
            payload = {**payload, "event_type": _COMPLETE, "turn": turn(payload["turn"])}
    return {"event": {"payload": payload}}


# Requests


def turn_request(given: dict[str, Json], request: Request) -> dict[str, Json]:  # noqa: ARG001 - the interface
    """A turn: what of the agent's configuration it may change for itself."""
    for name in ("instructions", "tools", "sampling_params", "input_shields", "output_shields"):
        if name in given:
            raise InvalidArgumentError(f"{name}: a turn cannot change it; make another agent", field=name)
    return given


def brings_results(given: Mapping[str, Json]) -> bool:
    """Whether all messages of a turn are results of tools."""
    messages = given.get("messages")
    return isinstance(messages, list) and bool(messages) and all(map(_is_result, messages))


def _is_result(message: Json) -> bool:
    return isinstance(message, dict) and message.get("role") in {"tool", "ipython"}


def resume_request(given: dict[str, Json], request: Request) -> dict[str, Json]:
    """A turn that brings results of tools, as what goes on with the one that waits for them."""
    given = turn_request(given, request)
    results = [{key: item for key, item in one.items() if key != "role"} for one in given.pop("messages")]
    return {**given, "tool_responses": results}


def agent(given: dict[str, Json], request: Request) -> dict[str, Json]:
    """An agent: its typed tools are groups of tools and tools of the caller.

    Raises:
        InvalidArgumentError: A tool asks for what we do not do.
    """
    config = given.get("agent_config")
    if not isinstance(config, dict):
        return given
    config = dict(config)
    tools = config.pop("tools", None) or []
    if not isinstance(tools, list):
        raise wrong("agent_config.tools", "a list", tools)
    groups, own = list(config.pop("toolgroups", None) or []), list(config.pop("client_tools", None) or [])
    for index, one in enumerate(tools):
        tool = FieldReader(one, path=f"agent_config.tools[{index}]")
        kind = tool.text("type", required=True)
        if kind == "function_call":
            own.append(_function(tool))
        elif kind in _GROUPS:
            groups.append(_GROUPS[kind](tool, request))
        else:
            known = ", ".join(("function_call", *_GROUPS))
            message = f"{tool.at('type')}: {shown(kind)} is not served; there are: {known}"
            raise InvalidArgumentError(message, field=tool.at("type"))
        for name in ("input_shields", "output_shields", "remote_execution"):
            if tool.take(name):
                message = f"{tool.at(name)}: not served for single tools; shields belong to the agent"
                raise InvalidArgumentError(message, field=tool.at(name))
        tool.finish()
    return {**given, "agent_config": {**config, "toolgroups": groups, "client_tools": own}}


def _function(tool: FieldReader) -> Json:
    name, description = tool.text("function_name", required=True), tool.text("description")
    parameters = tool.mapping("parameters") or {}
    return {
        "name": name,
        "description": description,
        "parameters": [_parameter(tool, *one) for one in parameters.items()],
    }


def _parameter(tool: FieldReader, name: str, value: Json) -> Json:
    fields = FieldReader(value, path=f"{tool.at('parameters')}.{name}")
    required = fields.flag("required")
    written = {
        "name": name,
        "parameter_type": fields.text("param_type", required=True),
        "description": fields.text("description"),
        "required": required is not False,
        "default": fields.take("default"),
    }
    fields.finish()
    return written


def _search(tool: FieldReader, request: Request) -> Json:
    engine = tool.choice("engine", ("bing", "brave", "tavily")) or "brave"
    _key_elsewhere(tool, request, f"{engine}_search_api_key")
    request.ignored.append(tool.at("engine"))  # the operator chose one for the group
    return "builtin::websearch"


def _wolfram(tool: FieldReader, request: Request) -> Json:
    _key_elsewhere(tool, request, "wolfram_alpha_api_key")
    return "builtin::wolfram_alpha"


def _key_elsewhere(tool: FieldReader, request: Request, name: str) -> None:
    """Refuse a key inside an agent, which is stored, but where the same comes with the request, which is not.

    Raises:
        InvalidArgumentError: There is a key.
    """
    key = tool.text("api_key")
    if key and request.provider_data().get(name) != key:
        message = f"{tool.at('api_key')}: keys are not stored with agents; {_KEYS} as {name}, with every turn"
        raise InvalidArgumentError(message, field=tool.at("api_key"))


def _interpreter(tool: FieldReader, _request: Request) -> Json:
    if tool.flag("enable_inline_code_execution") is False:
        place = tool.at("enable_inline_code_execution")
        raise InvalidArgumentError(f"{place}: false is not served; leave the tool out", field=place)
    return "builtin::code_interpreter"


def _memory(tool: FieldReader, _request: Request) -> Json:
    banks = []
    for index, one in enumerate(tool.items("memory_bank_configs", required=True)):
        bank = FieldReader(one, path=f"{tool.at('memory_bank_configs')}[{index}]")
        kind = bank.text("type", required=True)
        if kind not in {"vector", "keyword"}:
            message = f"{bank.at('type')}: {shown(kind)} is not searched by agents; use vector or keyword"
            raise InvalidArgumentError(message, field=bank.at("type"))
        banks.append(bank.text("bank_id", required=True))
        bank.finish()
    config: dict[str, Json] = {
        "max_tokens_in_context": tool.whole("max_tokens_in_context", least=1) or 4096,
        "max_chunks": tool.whole("max_chunks", least=1) or 10,
    }
    generator = tool.mapping("query_generator_config")
    if generator is not None:
        config["query_generator_config"] = _generator(generator)
    return {"name": "builtin::rag", "args": {"vector_db_ids": banks, "query_config": config}}


def _generator(given: Mapping[str, Json]) -> Json:
    written = dict(given)
    if "sep" in written:
        written["separator"] = written.pop("sep")
    return written


_GROUPS: Mapping[str, Callable[[FieldReader, Request], Json]] = {
    "brave_search": _search,
    "wolfram_alpha": _wolfram,
    "code_interpreter": _interpreter,
    "memory": _memory,
}
"""Tools of 0.0.63 that are groups of ours, by their type."""
