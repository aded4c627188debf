"""An MCP server with one tool, as small as the protocol allows, and scripts of models that use the stack's tools."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}


class Shop(BaseHTTPRequestHandler):
    """Answers one message at a time, without sessions and without streams."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "id" not in asked:
            self.send_response(202)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        params = asked.get("params", {})
        answers: dict[str, Any] = {
            "initialize": {
                "protocolVersion": params.get("protocolVersion"),
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "shop", "version": "1"},
            },
            "tools/list": {"tools": [{"name": "look", "description": "Look", "inputSchema": WORDS}]},
            "tools/call": {"content": [{"type": "text", "text": "seen"}], "isError": False},
            "ping": {},
        }
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answers[asked["method"]]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send_error(405)

    def log_message(self, *_parts: Any) -> None:
        """Say nothing."""


SCRIPT = [
    {"role": "user", "tools": True, "match": "look", "tool_calls": [
        {"tool_name": "look", "arguments": {"word": "roof"}}]},
    {"role": "tool", "reply": "The tool says: {0}"},
    {"reply": "{0}"},
]  # fmt: skip

SEARCH = [
    {"role": "user", "tools": True, "match": "roof", "tool_calls": [
        {"tool_name": "knowledge_search", "arguments": {"query": "red roof"}}]},
    {"role": "tool", "reply": "The tool says: {0}"},
]  # fmt: skip


@contextlib.contextmanager
def open_shop() -> Iterator[dict[str, Any]]:
    """The server, as a tool of a response."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/mcp"
    yield {"type": "mcp", "server_label": "shop", "server_url": url, "require_approval": "never"}
    server.shutdown()
    server.server_close()
