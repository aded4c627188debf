"""`stack keys`: API keys of the gateway."""

import argparse
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

from llamastack import v1
from stack_client.cli.connection import add_target, connected
from stack_client.cli.options import IntermixedParser, Subparsers, on_terminal, print_json
from stack_client.keys import USUAL_SCOPES

SERVICE = "gateway"
_LENGTH = re.compile(r"(\d{1,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command and its actions."""
    parser = subparsers.add_parser("keys", help="make, list and revoke API keys", parents=[_common()])
    parser.set_defaults(command=list_keys, tenant="", all=False, json=False)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=IntermixedParser)
    common = _common(argument_default=argparse.SUPPRESS)
    _add_create(actions, common)
    listing = actions.add_parser("list", help="list the keys (default), without their secrets", parents=[common])
    listing.add_argument("--tenant", metavar="NAME", help="only those of this tenant")
    listing.add_argument("--all", action="store_true", help="revoked ones too")
    listing.add_argument("--json", action="store_true", help="one JSON document")
    listing.set_defaults(command=list_keys)
    revoke = actions.add_parser("revoke", help="end keys for good", parents=[common])
    revoke.add_argument("keys", nargs="+", metavar="KEY", help="id or prefix, as `stack keys list` shows it")
    revoke.set_defaults(command=revoke_keys)


def _common(**options: Any) -> IntermixedParser:  # noqa: ANN401 (argparse's)
    common = IntermixedParser(add_help=False, **options)
    add_target(common, service=SERVICE)
    return common


def _add_create(actions: Any, common: IntermixedParser) -> None:  # noqa: ANN401
    create = actions.add_parser(
        "create", help="make a key; it alone goes to stdout, and is shown only then", parents=[common]
    )
    create.add_argument("name", metavar="NAME", help="what it is for")
    create.add_argument(
        "--scope", action="append", default=[], metavar="SCOPE",
        help=f"what its bearer may do; may be repeated (default: {', '.join(USUAL_SCOPES)}; others: telemetry.read, "
        "and admin, which implies all)",
    )  # fmt: skip
    create.add_argument("--tenant", default="", metavar="NAME", help="for whom its bearer's work is done")
    create.add_argument(
        "--expires", type=_expiry, metavar="WHEN", help="90d, 12h, 30m; or a moment, 2027-01-31T12:00 (UTC)"
    )
    create.add_argument("--requests-per-minute", type=int, metavar="N", help="default: no limit")
    create.add_argument("--tokens-per-minute", type=int, metavar="N", help="of prompts and answers; default: no limit")
    create.add_argument("--json", action="store_true", help="key and secret as one JSON document")
    create.set_defaults(command=create_key)


def create_key(arguments: argparse.Namespace) -> int:
    """Make a key."""
    expires = arguments.expires
    with connected(arguments, service=SERVICE) as client:
        made: v1.CreateKeyResponse = client.keys.create(
            arguments.name,
            arguments.scope or USUAL_SCOPES,
            tenant=arguments.tenant,
            ttl=expires if isinstance(expires, timedelta) else None,
            expires_at=expires if isinstance(expires, datetime) else None,
            requests_per_minute=arguments.requests_per_minute,
            tokens_per_minute=arguments.tokens_per_minute,
        )
    if arguments.json:
        print_json({**_facts(made.key), "secret": made.secret})
        return 0
    print(made.secret)
    print(f"This is the key {made.key.name!r} ({made.key.prefix}). Keep it: nobody can show it again.", file=sys.stderr)
    return 0


def list_keys(arguments: argparse.Namespace) -> int:
    """List keys."""
    with connected(arguments, service=SERVICE) as client:
        keys: list[v1.ApiKey] = client.keys.list(arguments.tenant or "", include_revoked=arguments.all)
    if arguments.json:
        print_json([_facts(key) for key in keys])
    elif on_terminal():
        table = Table("key", "name", "tenant", "scopes", "limits", "used", "ends")
        for key in keys:
            table.add_row(key.prefix, key.name, key.tenant, " ".join(key.scopes), _limits(key), _used(key), _end(key))
        Console().print(table)
    else:
        for key in keys:
            print("\t".join([key.prefix, key.name, key.tenant, " ".join(key.scopes), _limits(key), _end(key)]))
    return 0


def revoke_keys(arguments: argparse.Namespace) -> int:
    """End keys."""
    with connected(arguments, service=SERVICE) as client:
        for name in arguments.keys:
            key: v1.ApiKey = client.keys.revoke(name)
            print(f"{key.prefix} ({key.name}) is revoked")
    return 0


def _expiry(text: str) -> timedelta | datetime:
    length = _LENGTH.fullmatch(text)
    if length is not None:
        return timedelta(**{_UNITS[length[2]]: int(length[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither 90d, 12h, 30m nor a moment such as 2027-01-31"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _limits(key: v1.ApiKey) -> str:
    limits = []
    if key.HasField("requests_per_minute"):
        limits.append(f"{key.requests_per_minute} requests/min")
    if key.HasField("tokens_per_minute"):
        limits.append(f"{key.tokens_per_minute} tokens/min")
    return ", ".join(limits)


def _used(key: v1.ApiKey) -> str:
    return _time(key.last_used_at) if key.HasField("last_used_at") else "never"


def _end(key: v1.ApiKey) -> str:
    if key.HasField("revoked_at"):
        return f"revoked {_time(key.revoked_at)}"
    return _time(key.expires_at) if key.HasField("expires_at") else "never"


def _time(stamp: Timestamp) -> str:
    return stamp.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M")


def _facts(key: v1.ApiKey) -> dict[str, Any]:
    return json_format.MessageToDict(key, preserving_proto_field_name=True)
