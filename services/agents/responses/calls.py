"""Calls of the stack's tools as items: web search, file search, tools of MCP servers and all others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from google.protobuf import json_format

from llamastack import v1
from services.agents.offered import group_of
from services.agents.responses.setup import FILES, WEB
from stack_client.content import text_of

_DONE, _FAILED = v1.RESPONSE_ITEM_STATUS_COMPLETED, v1.RESPONSE_ITEM_STATUS_FAILED
_RUNS = v1.RESPONSE_ITEM_STATUS_IN_PROGRESS


@dataclass(kw_only=True)
class Call:
    """A call while it runs."""

    call: v1.ToolCall
    """As the model wrote it."""
    name: str
    """The tool at its server."""
    label: str
    """Of the server."""
    kind: str
    """`web`, `files` or `mcp`."""
    approval: str = ""
    """The request that allowed it."""
    index: int = 0
    """Place in the output."""

    @property
    def prefix(self) -> str:
        """Of its id."""
        return {"web": "ws", "files": "fs", "mcp": "mcp"}[self.kind]

    @property
    def has_arguments(self) -> bool:
        """Whether its item shows arguments."""
        return self.kind == "mcp"

    @property
    def states(self) -> Sequence[str]:
        """Its events: when it begins and runs, when it is done, when it failed."""
        if self.kind == "mcp":
            return ("mcp_call_in_progress", "mcp_call_completed", "mcp_call_failed")
        name = {"web": "web_search_call", "files": "file_search_call"}[self.kind]
        # A search that failed has no event of its own; its item says so.
        return (f"{name}_in_progress", f"{name}_searching", f"{name}_completed", f"{name}_completed")

    def begun(self) -> v1.ResponseItem:
        """The item while it runs."""
        return self._item(_RUNS)

    def ended(self, result: v1.ToolResponse, *, failed: bool, item_id: str) -> v1.ResponseItem:
        """The item with what became of the call, and all that was found."""
        item, text = self._item(_FAILED if failed else _DONE), text_of(result.content)
        getattr(item, item.WhichOneof("item") or "").id = item_id
        if self.kind == "files":
            item.file_search_call.results.extend(_found(result))
        elif self.kind == "web":
            item.web_search_call.search.sources.extend(_sources(text))
        if self.kind == "mcp" and failed:
            item.mcp_call.error = text
        elif self.kind == "mcp":
            item.mcp_call.output = text
        return item

    def dialog(self, result: v1.ToolResponse) -> list[v1.Message]:
        """What it says to the model."""
        said = v1.CompletionMessage(tool_calls=[self.call], stop_reason=v1.STOP_REASON_END_OF_TURN)
        answer = v1.ToolResponseMessage(
            call_id=self.call.call_id, tool_name=self.call.tool_name, content=result.content
        )
        return [v1.Message(assistant=said), v1.Message(tool=answer)]

    def _item(self, status: "v1.ResponseItemStatus.ValueType") -> v1.ResponseItem:
        match self.kind:
            case "web":
                query = self._query()
                search = v1.WebSearchAction(query=query, queries=[query])
                return v1.ResponseItem(web_search_call=v1.WebSearchCallItem(status=status, search=search))
            case "files":
                item = v1.FileSearchCallItem(status=status, queries=[self._query()])
                return v1.ResponseItem(file_search_call=item)
            case _:
                made = v1.MCPCallItem(
                    server_label=self.label, name=self.name, arguments=self.call.arguments_json, status=status
                )
                if self.approval:
                    made.approval_request_id = self.approval
                return v1.ResponseItem(mcp_call=made)

    def _query(self) -> str:
        try:
            arguments = json.loads(self.call.arguments_json or "{}")
        except ValueError:
            return ""
        return str(arguments.get("query", "")) if isinstance(arguments, dict) else ""


def _found(result: v1.ToolResponse) -> list[v1.FileSearchResult]:
    """What the search tool tells beside its text."""
    facts = json_format.MessageToDict(result.metadata) if result.HasField("metadata") else {}
    names = ("document_ids", "chunks", "scores", "sources", "attributes")
    files, texts, scores, sources, attributes = (facts.get(name) or [] for name in names)
    found = []
    for file_id, text, score, source, known in zip_longest(files, texts, scores, sources, attributes):
        if file_id is None:
            break
        one = v1.FileSearchResult(file_id=file_id, text=text or "", score=score or 0.0, filename=source or file_id)
        one.attributes.update(known or {})
        found.append(one)
    return found


def _sources(text: str) -> list[v1.WebSearchSource]:
    """The pages in the JSON that the search tool gives."""
    try:
        body = json.loads(text)
    except ValueError:
        return []
    hits = body.get("top_k") if isinstance(body, dict) else None
    urls = [hit.get("url") for hit in hits or () if isinstance(hit, dict)]
    return [v1.WebSearchSource(url=url) for url in urls if isinstance(url, str) and url]


def call_of(call: v1.ToolCall, tool: str, *, label: str, approval: str = "") -> Call:
    """A call of `group/tool`."""
    group, _, name = tool.partition("/")
    kind = "web" if group_of(tool) == WEB else "files" if tool == FILES else "mcp"
    return Call(call=call, name=name, label=label or group, kind=kind, approval=approval)
