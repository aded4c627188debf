"""`stack tools`: groups of tools, and calling tools."""

import argparse
import sys
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from llamastack import v1
from stack_client.cli.connection import add_target, connected
from stack_client.cli.options import IntermixedParser, Subparsers, json_object, on_terminal, print_json
from stack_client.content import plain, text_of
from stack_client.errors import InvalidArgumentError
from stack_client.portal import SyncStackClient
from stack_client.toolgroups import APPROVALS, EFFECTS

OPENAPI = "openapi"


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command and its actions."""
    parser = subparsers.add_parser("tools", help="list, call, add and remove tools", parents=[_common()])
    parser.set_defaults(command=list_tools, group="", json=False)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=IntermixedParser)
    common = _common(argument_default=argparse.SUPPRESS)
    listing = actions.add_parser("list", help="list the tools (default), or those of a group", parents=[common])
    listing.add_argument("group", nargs="?", default="", metavar="GROUP")
    listing.add_argument("--json", action="store_true", help="one JSON document")
    listing.set_defaults(command=list_tools)
    _add_call(actions, common)
    _add_add(actions, common)
    remove = actions.add_parser("remove", help="remove a group", parents=[common])
    remove.add_argument("group", metavar="NAME")
    remove.set_defaults(command=remove_group)


def _common(**options: Any) -> IntermixedParser:  # noqa: ANN401 (argparse's)
    common = IntermixedParser(add_help=False, **options)
    add_target(common)
    return common


def _add_call(actions: Any, common: IntermixedParser) -> None:  # noqa: ANN401
    call = actions.add_parser(
        "call", help="call a tool; progress goes to stderr, exit code 1 when the tool fails", parents=[common]
    )
    call.add_argument("tool", metavar="GROUP/TOOL", help="the bare name of a tool does when one group has it")
    call.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="an argument; may be repeated")
    call.add_argument("--json", type=json_object, default={}, metavar="JSON", help="the arguments as one object")
    call.add_argument("--key", default="", help="idempotency key; a repeat gets the stored result")
    call.add_argument("--session", default="", metavar="ID", help="session on whose behalf the tool runs")
    call.add_argument("--seconds", type=float, metavar="N", help="longest run (default: the group's)")
    call.add_argument("--approved-by", default="", metavar="WHO", help="where the group demands an approval")
    call.add_argument("--whole", action="store_true", help="print the whole result as JSON")
    call.set_defaults(command=call_tool)


def _add_add(actions: Any, common: IntermixedParser) -> None:  # noqa: ANN401
    add = actions.add_parser("add", help="register a group of tools", parents=[common])
    add.add_argument("group", metavar="NAME", help="for example mcp::tickets")
    kind = add.add_mutually_exclusive_group(required=True)
    kind.add_argument("--mcp", default="", metavar="URL", help="an MCP server")
    kind.add_argument("--openapi", default="", metavar="FILE", help="an OpenAPI document, as file or URL")
    kind.add_argument("--provider", default="", metavar="ID", help="another provider")
    add.add_argument(
        "--args", type=json_object, metavar="JSON", help="settings of the provider, arguments of all calls"
    )
    add.add_argument("--effect", choices=EFFECTS, default="", help="of tools that do not say")
    add.add_argument("--approval", choices=APPROVALS, default="", help="when a person must allow a call")
    add.add_argument("--seconds", type=float, metavar="N", help="longest run of a call")
    add.add_argument("--at-once", type=int, metavar="N", help="calls that run at once")
    add.add_argument("--host", action="append", default=[], metavar="HOST", help="a host that the tools may reach")
    add.add_argument("--secret", default="", metavar="NAME", help="a secret of the service")
    add.set_defaults(command=add_group)


def list_tools(arguments: argparse.Namespace) -> int:
    """List tools."""
    with connected(arguments) as client:
        tools: list[v1.Tool] = client.tools.list(arguments.group)
    rows = [(tool.identifier, _effect(tool), _first_line(tool.description)) for tool in tools]
    if arguments.json:
        print_json([_facts(tool) for tool in tools])
    elif on_terminal():
        table = Table("tool", "effect", "description")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        for row in rows:
            print("\t".join(row))
    return 0


def call_tool(arguments: argparse.Namespace) -> int:
    """Call a tool and follow it."""
    given = {**arguments.json, **dict(_pair(text) for text in arguments.arg)}
    with connected(arguments) as client:
        result = _follow(client, arguments, given)
    if arguments.whole:
        print_json(_facts(result))
    elif result.HasField("input_required"):
        print(f"the tool asks: {result.input_required.message}", file=sys.stderr)
    elif not result.error_code:
        print(text_of(result.content))
    if result.error_code and not arguments.whole:
        print(f"error {result.error_code}: {result.error_message}", file=sys.stderr)
    for attachment in result.attachments if not arguments.whole else ():
        print(f"attached: {attachment.mime_type or 'a file'}", file=sys.stderr)
    return 1 if result.error_code or result.HasField("input_required") else 0


def add_group(arguments: argparse.Namespace) -> int:
    """Register a group."""
    args: dict[str, Any] = dict(arguments.args or {})
    if arguments.openapi:
        args["openapi"] = _document(arguments.openapi)
    with connected(arguments) as client:
        group: v1.ToolGroup = client.tools.register(
            arguments.group,
            OPENAPI if arguments.openapi else arguments.provider,
            mcp_endpoint=arguments.mcp,
            args=args or None,
            effect=arguments.effect,
            approval=arguments.approval,
            timeout_seconds=arguments.seconds,
            max_concurrency=arguments.at_once,
            egress_hosts=arguments.host,
            secrets_ref=arguments.secret,
        )
        tools: list[v1.Tool] = client.tools.list(group.identifier)
    print(f"{group.identifier} has {len(tools)} tools: {', '.join(tool.name for tool in tools)}")
    return 0


def remove_group(arguments: argparse.Namespace) -> int:
    """Remove a group."""
    with connected(arguments) as client:
        client.tools.unregister(arguments.group)
    print(f"{arguments.group} is gone")
    return 0


def _follow(client: SyncStackClient, arguments: argparse.Namespace, given: dict[str, Any]) -> v1.ToolInvocationResult:
    events = client.tools.stream(
        arguments.tool,
        given,
        idempotency_key=arguments.key,
        session_id=arguments.session,
        timeout_seconds=arguments.seconds,
        approved_by=arguments.approved_by,
    )
    result = v1.ToolInvocationResult()
    with events:
        for event in events:
            match event.WhichOneof("event"):
                case "progress":
                    share = f"{event.progress.fraction:.0%} " if event.progress.HasField("fraction") else ""
                    print(f"{share}{event.progress.message}".strip(), file=sys.stderr)
                case "output":
                    print(event.output.text, end="", file=sys.stderr, flush=True)
                case "result":
                    result.CopyFrom(event.result)
    return result


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidArgumentError(f"--arg {text!r}: give NAME=VALUE", field="arg")
    return name, value


def _document(source: str) -> str:
    if source.startswith(("http://", "https://")):
        return source
    try:
        return Path(source).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{source} is no text", field="openapi") from error


def _effect(tool: v1.Tool) -> str:
    return v1.ToolEffect.Name(tool.effect).removeprefix("TOOL_EFFECT_").lower()


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:100]


def _facts(message: Any) -> Any:  # noqa: ANN401 (a message as JSON)
    return plain(json_format.MessageToDict(message, preserving_proto_field_name=True))
