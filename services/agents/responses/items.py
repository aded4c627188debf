"""Items of responses and conversations: their ids, and the messages that they are to the model."""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llamastack import v1
from stack_client.content import content
from stack_client.errors import InvalidArgumentError, UnsupportedError

PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "web_search_call": "ws",
    "file_search_call": "fs",
    "mcp_list_tools": "mcpl",
    "mcp_call": "mcp",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
    "reasoning": "rs",
    "compaction": "cmp",
}
COMPACTED = "llamastack-1:"
"""Begins what we write into compaction items."""
SUMMARY = "[Summary of the dialog so far]"
NOT_KEPT = "The result of this search is not kept."
DENIED = "A person did not allow this call"


@dataclass(frozen=True, kw_only=True)
class Item:
    """An item with what it says to the model."""

    item: v1.ResponseItem
    """The item."""
    dialog: Sequence[v1.Message] | None = None
    """What it says where the item does not tell; None: `messages_of` knows."""

    @property
    def item_id(self) -> str:
        """Its id."""
        return id_of(self.item)


Referred = Callable[[str, str], Item]
"""Finds an item by its id; also takes the field that names it."""
Approvals = Callable[[str], v1.MCPApprovalRequestItem | None]
"""Finds what a decision is about, by its id."""


def kind_of(item: v1.ResponseItem) -> str:
    """The member that is set; empty: none."""
    return item.WhichOneof("item") or ""


def id_of(item: v1.ResponseItem) -> str:
    """The id of an item."""
    kind = kind_of(item)
    return str(getattr(item, kind).id) if kind else ""


def new_id(prefix: str) -> str:
    """A fresh identifier."""
    return f"{prefix}_{secrets.token_hex(24)}"


def derived_id(prefix: str, *facts: object) -> str:
    """The identifier that the same facts always have."""
    text = "\0".join(str(fact) for fact in facts)
    return f"{prefix}_{hashlib.sha256(text.encode()).hexdigest()[:48]}"


def taken(given: Iterable[v1.ResponseItem], *, field: str, referred: Referred | None = None) -> list[Item]:
    """Input items as they are kept: checked, with ids.

    Args:
        given: The items.
        field: Where they are.
        referred: Finds items that are only named; None: none may be.

    Raises:
        NotFoundError: If an item that is named does not exist.
        InvalidArgumentError: If an item lacks what it needs.
        UnsupportedError: If it has what no model is shown.
    """
    kept = []
    for index, one in enumerate(given):
        kind = kind_of(one)
        if not kind:
            raise InvalidArgumentError(
                f"{field}[{index}] has no kind", reason="MISSING_FIELD", field=f"{field}[{index}]"
            )
        if kind == "item_reference":
            kept.append(_referred(one.item_reference, referred, field=f"{field}[{index}]"))
            continue
        item = v1.ResponseItem()
        item.CopyFrom(one)
        member = getattr(item, kind)
        member.id = member.id or new_id(PREFIXES[kind])
        if "status" in member.DESCRIPTOR.fields_by_name and not member.status:
            member.status = v1.RESPONSE_ITEM_STATUS_COMPLETED
        if kind != "mcp_approval_response":
            messages_of(Item(item=item), field=f"{field}[{index}]")
        kept.append(Item(item=item))
    return kept


def _referred(reference: v1.ItemReference, referred: Referred | None, *, field: str) -> Item:
    if referred is None:
        message = f"{field}: items can be named in the input of responses only; give the item itself"
        raise UnsupportedError(message, field=field)
    _needed(reference.id, f"{field}.id")
    return referred(reference.id, f"{field}.id")


def messages_of(  # noqa: PLR0911 (one per kind)
    one: Item, *, field: str, approvals: Approvals | None = None
) -> list[v1.Message]:
    """What an item says to the model.

    Raises:
        InvalidArgumentError: If it lacks what it needs.
        UnsupportedError: If it has what no model is shown.
    """
    if one.dialog is not None:
        return list(one.dialog)
    item = one.item
    match kind_of(item):
        case "message":
            return [_message(item.message, field=field)]
        case "function_call":
            call = item.function_call
            _needed(call.call_id, f"{field}.call_id")
            _needed(call.name, f"{field}.name")
            return [_called(call.call_id, call.name, call.arguments)]
        case "function_call_output":
            output = item.function_call_output
            _needed(output.call_id, f"{field}.call_id")
            answer = v1.ToolResponseMessage(call_id=output.call_id, content=_content(output.output, f"{field}.output"))
            return [v1.Message(tool=answer)]
        case "web_search_call":
            query = item.web_search_call.search.query
            return _call_and_result(item.web_search_call.id, "brave_search", query, NOT_KEPT)
        case "file_search_call":
            search = item.file_search_call
            found = "\n\n".join(result.text for result in search.results) or NOT_KEPT
            return _call_and_result(search.id, "knowledge_search", " ".join(search.queries), found)
        case "mcp_call":
            made = item.mcp_call
            result = made.error if made.HasField("error") else made.output
            return [_called(made.id, made.name, made.arguments), _result(made.id, made.name, result)]
        case "mcp_approval_response":
            return _decided(item.mcp_approval_response, approvals, field=field)
        case "compaction":
            text = item.compaction.encrypted_content
            if not text.startswith(COMPACTED):
                message = f"{field}.encrypted_content was not written by this stack's CompactResponse"
                raise InvalidArgumentError(message, field=f"{field}.encrypted_content")
            summary = f"{SUMMARY} {text.removeprefix(COMPACTED)}"
            return [v1.Message(user=v1.UserMessage(content=content(summary)))]
        case _:  # lists of tools, requests for approval: nothing happened yet; models are not shown earlier thoughts
            return []


def _decided(decision: v1.MCPApprovalResponseItem, approvals: Approvals | None, *, field: str) -> list[v1.Message]:
    """A call that was denied, with that as its result; one that was approved is run by the response itself."""
    if decision.approve or approvals is None:
        return []
    request = approvals(decision.approval_request_id)
    if request is None:
        raise unknown_approval(decision, field=field)
    why = f": {decision.reason}" if decision.reason else ""
    return [
        _called(request.id, request.name, request.arguments),
        _result(request.id, request.name, f"{DENIED}{why}."),
    ]


def unknown_approval(decision: v1.MCPApprovalResponseItem, *, field: str) -> InvalidArgumentError:
    """The error for a decision about nothing."""
    message = f"{field}.approval_request_id: there is no approval request {decision.approval_request_id!r} before it"
    return InvalidArgumentError(message, field=f"{field}.approval_request_id")


def joined(messages: Iterable[v1.Message]) -> list[v1.Message]:
    """A dialog as models take it: what the assistant said in a row is one message, results name their tools.

    Raises:
        InvalidArgumentError: If a call has no result, or a result no call.
    """
    result: list[v1.Message] = []
    waiting: dict[str, str] = {}
    for message in messages:
        kind = message.WhichOneof("message")
        if waiting and kind not in {"tool", "assistant"}:
            break
        one = v1.Message()
        one.CopyFrom(message)
        if kind == "tool":
            name = waiting.pop(one.tool.call_id, None)
            if name is None:
                text = f"input: no function call {one.tool.call_id!r} waits for this output"
                raise InvalidArgumentError(text, field="input")
            one.tool.tool_name = name
        for call in one.assistant.tool_calls if kind == "assistant" else ():
            waiting[call.call_id] = call.tool_name
        if kind == "assistant" and result and result[-1].WhichOneof("message") == "assistant":
            result[-1].assistant.content.items.extend(one.assistant.content.items)
            result[-1].assistant.tool_calls.extend(one.assistant.tool_calls)
        else:
            result.append(one)
    if waiting:
        text = f"input: function call {min(waiting)!r} has no output; give a function_call_output for it"
        raise InvalidArgumentError(text, field="input")
    return result


def _message(message: v1.ResponseMessage, *, field: str) -> v1.Message:
    parts = _content(message.content, f"{field}.content")
    match message.role:
        case v1.RESPONSE_ROLE_USER:
            return v1.Message(user=v1.UserMessage(content=parts))
        case v1.RESPONSE_ROLE_SYSTEM | v1.RESPONSE_ROLE_DEVELOPER:
            return v1.Message(system=v1.SystemMessage(content=parts))
        case v1.RESPONSE_ROLE_ASSISTANT:
            return v1.Message(assistant=v1.CompletionMessage(content=parts, stop_reason=v1.STOP_REASON_END_OF_TURN))
        case _:
            message_text = f"{field}.role is not set; say user, assistant, system or developer"
            raise InvalidArgumentError(message_text, reason="MISSING_FIELD", field=f"{field}.role")


def _content(parts: Iterable[v1.ResponseContentPart], field: str) -> v1.InterleavedContent:
    found = v1.InterleavedContent()
    for index, part in enumerate(parts):
        where = f"{field}[{index}]"
        match part.WhichOneof("part"):
            case "input_text":
                found.items.add(text=part.input_text.text)
            case "output_text":
                found.items.add(text=part.output_text.text)
            case "refusal":
                found.items.add(text=part.refusal.refusal)
            case "input_image" if part.input_image.image_url:
                if part.input_image.detail not in {v1.IMAGE_DETAIL_UNSPECIFIED, v1.IMAGE_DETAIL_AUTO}:
                    raise UnsupportedError(
                        f"{where}.input_image.detail: only auto", field=f"{where}.input_image.detail"
                    )
                url = v1.URL(uri=part.input_image.image_url)
                found.items.add().image.CopyFrom(v1.ImageContent(url=url))
            case None:
                raise InvalidArgumentError(f"{where} has no kind", reason="MISSING_FIELD", field=where)
            case kind:
                raise UnsupportedError(
                    f"{where}.{kind}: only texts and images by URL are read", field=f"{where}.{kind}"
                )
    return found


def _called(call_id: str, name: str, arguments: str) -> v1.Message:
    call = v1.ToolCall(call_id=call_id, tool_name=name, arguments_json=arguments or "{}")
    return v1.Message(assistant=v1.CompletionMessage(tool_calls=[call], stop_reason=v1.STOP_REASON_END_OF_TURN))


def _result(call_id: str, name: str, text: str) -> v1.Message:
    return v1.Message(tool=v1.ToolResponseMessage(call_id=call_id, tool_name=name, content=content(text)))


def _call_and_result(call_id: str, name: str, query: str, text: str) -> list[v1.Message]:
    return [_called(call_id, name, json.dumps({"query": query})), _result(call_id, name, text)]


def _needed(value: str, field: str) -> None:
    if not value:
        raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
