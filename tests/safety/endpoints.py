"""Small HTTP servers that answer as endpoints elsewhere would, and keep what they were asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the endpoint sends."""

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False


@dataclass
class Endpoint:
    """A running endpoint."""

    url: str = ""
    paths: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


def as_json(value: object, status: int = 200) -> Reply:
    return Reply(json.dumps(value).encode(), status, {"content-type": "application/json"})


@contextmanager
def endpoint(answer: Reply | Callable[[str, dict[str, Any]], Reply]) -> Iterator[Endpoint]:
    """Answer POSTs and GETs with one reply, or by `answer(path, body)`, until the block ends."""
    made = Endpoint()
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base's name)
            """Say nothing."""

        def do_GET(self) -> None:
            self._send(answer if isinstance(answer, Reply) else answer(self.path, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            made.paths.append(self.path)
            made.asked.append(body)
            made.keys.append(self.headers.get("authorization", ""))
            self._send(answer if isinstance(answer, Reply) else answer(self.path, body))

        def _send(self, reply: Reply) -> None:
            if reply.hang:
                over.wait(30)
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)
            except OSError:
                pass  # the caller went away, as tests of deadlines and limits do

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        made.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield made
        finally:
            over.set()
            server.shutdown()
            thread.join(10)
