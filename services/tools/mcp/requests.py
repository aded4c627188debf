"""A call as requests of the protocol: of a tool, or of what resources and prompts are read with."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import mcp_types as types
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError

from llamastack import v1
from services.tools.mcp import content, questions
from services.tools.mcp.listing import CALL, METHOD
from services.tools.provider import Call

KEY_META = "llamastack.mesh/idempotency-key"
"""`_meta` of a call: the same for every attempt."""
CALL_META = "llamastack.mesh/call-id"
"""`_meta` of a call: the model's id of it."""
MARGIN_SECONDS = 5.0  # the runtime's own bound comes first
PAGES = 100  # of one list; a server whose list never ends is cut there

Outcome = v1.ToolInvocationResult | types.InputRequiredResult


def request_of(call: Call, round_: questions.Round) -> Callable[[ClientSession], Awaitable[Outcome]]:
    """What asks the server for the result of a call."""
    # A Struct has no `get`.
    method = call.tool.metadata[METHOD] if METHOD in call.tool.metadata else CALL  # noqa: SIM401
    arguments = dict(call.arguments)
    responses, state = round_.responses or None, round_.request_state

    async def run(session: ClientSession) -> Outcome:
        match method:
            case "resources/list":
                return await _list_resources(session)
            case "prompts/list":
                return await _list_prompts(session)
            case "resources/read":
                read = await session.read_resource(
                    arguments["uri"], input_responses=responses, request_state=state, allow_input_required=True
                )
                return read if isinstance(read, types.InputRequiredResult) else content.resources_result(read.contents)
            case "prompts/get":
                prompt = await session.get_prompt(
                    arguments["name"],
                    arguments.get("arguments"),
                    input_responses=responses,
                    request_state=state,
                    allow_input_required=True,
                )
                return prompt if isinstance(prompt, types.InputRequiredResult) else content.prompt_result(prompt)
        return await _call_tool(session, call, round_)

    return run


async def _call_tool(session: ClientSession, call: Call, round_: questions.Round) -> Outcome:
    meta: Any = {KEY_META: call.idempotency_key}
    if call.call_id:
        meta[CALL_META] = call.call_id

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        share = min(max(progress / total, 0.0), 1.0) if total else None
        call.report.progress(share, message or "")

    answer = await session.call_tool(
        call.tool.name,
        dict(call.arguments),
        read_timeout_seconds=call.timeout + MARGIN_SECONDS,
        progress_callback=tell,
        meta=meta,
        input_responses=round_.responses or None,
        request_state=round_.request_state,
        allow_input_required=True,
    )
    return answer if isinstance(answer, types.InputRequiredResult) else content.call_result(answer)


async def _list_resources(session: ClientSession) -> v1.ToolInvocationResult:
    entries = [_short(one, "uri") async for page in _pages(session.list_resources) for one in page.resources]
    try:
        templates = [one async for page in _pages(session.list_resource_templates) for one in page.resource_templates]
    except MCPError as error:
        if error.code != types.METHOD_NOT_FOUND:
            raise
        templates = []  # not every server with resources has templates
    return content.listing_result([*entries, *(_short(one, "uri_template") for one in templates)])


async def _list_prompts(session: ClientSession) -> v1.ToolInvocationResult:
    entries = []
    async for page in _pages(session.list_prompts):
        for prompt in page.prompts:
            arguments = [
                {"name": one.name, "description": one.description or "", "required": bool(one.required)}
                for one in prompt.arguments or []
            ]
            entries.append({"name": prompt.name, "description": prompt.description or "", "arguments": arguments})
    return content.listing_result(entries)


async def _pages(request: Any) -> AsyncIterator[Any]:  # noqa: ANN401 (lists of different things)
    """The pages of a list."""
    cursor = None
    for _ in range(PAGES):
        page = await request(params=types.PaginatedRequestParams(cursor=cursor) if cursor else None)
        yield page
        cursor = page.next_cursor
        if not cursor:
            return


def _short(resource: types.Resource | types.ResourceTemplate, key: str) -> dict[str, Any]:
    entry = {key: str(getattr(resource, key)), "name": resource.name}
    if resource.description:
        entry["description"] = resource.description
    if resource.mime_type:
        entry["mime_type"] = resource.mime_type
    return entry
