"""`stack trace`: the spans of a trace as a tree, or the newest traces."""

import argparse
from collections.abc import Iterator, Mapping

from google.protobuf import json_format

from llamastack import v1
from stack_client.cli.connection import add_target, connected
from stack_client.cli.options import Subparsers, print_json
from stack_client.errors import InvalidArgumentError, NotFoundError
from stack_client.portal import SyncStackClient

SHOWN = (
    "error.type", "gen_ai.request.model", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens",
    "llamastack.turn_id", "llamastack.turn_status",
)  # fmt: skip
"""Attributes that a line shows."""
FOUND_BY = ("llamastack.turn_id", "llamastack.session_id", "llamastack.request_id")
"""Attributes by which a trace is found, beside its own id."""


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("trace", help="show what every service did for a request, as a tree of spans")
    parser.add_argument(
        "id", nargs="?", help="id of a trace, turn, session or request; without it the newest traces are listed"
    )
    parser.add_argument("--limit", type=int, default=20, help="traces listed (default 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_target(parser)
    parser.set_defaults(command=show)


def show(arguments: argparse.Namespace) -> int:
    """Print one trace, or the list."""
    with connected(arguments) as client:
        if not arguments.id:
            return _list(client, arguments)
        found = [(trace, client.telemetry.tree(trace.root_span_id)) for trace in _traces(client, arguments.id)]
    if arguments.json:
        print_json([_json(trace, tree) for trace, tree in found])
        return 0
    for place, (trace, tree) in enumerate(found):
        if place:
            print()
        for line in lines(trace, tree):
            print(line)
    return 0


def lines(trace: v1.Trace, tree: Mapping[str, v1.Span]) -> Iterator[str]:
    """A trace for people: each span with when it began, how long it took, and what it says."""
    yield f"trace {trace.trace_id}  {trace.start_time.ToDatetime():%Y-%m-%d %H:%M:%S}  {_took(trace)}"
    children: dict[str, list[v1.Span]] = {}
    for span in sorted(tree.values(), key=lambda one: one.start_time.ToNanoseconds()):
        if span.span_id != trace.root_span_id:
            children.setdefault(span.parent_span_id, []).append(span)
    waiting = [(tree[trace.root_span_id], 0)]
    while waiting:
        span, depth = waiting.pop()
        after = (span.start_time.ToNanoseconds() - trace.start_time.ToNanoseconds()) / 1e6
        yield f"  {after:9.1f} ms  {'  ' * depth}{_shown(span.name)}  {_took(span)}{_facts(span)}"
        waiting += [(child, depth + 1) for child in reversed(children.get(span.span_id, []))]


def _list(client: SyncStackClient, arguments: argparse.Namespace) -> int:
    traces = client.telemetry.query_traces(limit=arguments.limit)
    if arguments.json:
        print_json([_json(trace, {}) for trace in traces])
        return 0
    for trace in traces:
        root = client.telemetry.span(trace.trace_id, trace.root_span_id)
        print(
            f"{trace.trace_id}  {trace.start_time.ToDatetime():%Y-%m-%d %H:%M:%S}  {_took(trace)}  {_shown(root.name)}"
        )
    return 0


def _traces(client: SyncStackClient, wanted: str) -> list[v1.Trace]:
    try:
        return [client.telemetry.trace(wanted)]
    except (NotFoundError, InvalidArgumentError):  # not the id of a trace
        pass
    for attribute in FOUND_BY:
        spans = client.telemetry.spans((attribute, "eq", wanted), attributes=[attribute])
        ids = list(dict.fromkeys(span.trace_id for span in reversed(spans)))  # oldest first
        if ids:
            return [client.telemetry.trace(trace_id) for trace_id in ids]
    raise NotFoundError(
        f"no trace, turn, session or request {wanted!r} was recorded; it may be too old, or not sent yet (a second)"
    )


def _facts(span: v1.Span) -> str:
    said = json_format.MessageToDict(span.attributes)
    code = said.get("rpc.status_code", "OK")
    shown = [] if code == "OK" else [str(code)]
    shown += [
        f"{name.rpartition('.')[2]}={said[name]:g}"
        if isinstance(said[name], float)
        else f"{name.rpartition('.')[2]}={_shown(str(said[name]))}"
        for name in SHOWN
        if name in said
    ]
    return f"  {' '.join(shown)}" if shown else ""


def _took(one: v1.Trace | v1.Span) -> str:
    if not one.HasField("end_time"):
        return "runs"
    return f"{(one.end_time.ToNanoseconds() - one.start_time.ToNanoseconds()) / 1e6:.1f} ms"


def _shown(text: str) -> str:
    """A name of others, harmless for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text.removeprefix("llamastack.v1."))


def _json(trace: v1.Trace, tree: Mapping[str, v1.Span]) -> dict[str, object]:
    said: dict[str, object] = json_format.MessageToDict(trace, preserving_proto_field_name=True)
    if tree:
        spans = sorted(tree.values(), key=lambda one: one.start_time.ToNanoseconds())
        said["spans"] = [json_format.MessageToDict(span, preserving_proto_field_name=True) for span in spans]
    return said
