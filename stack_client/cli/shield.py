"""`stack shield`: list, add, remove and run shields."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from llamastack import v1
from stack_client.cli.connection import add_target, connected
from stack_client.cli.options import IntermixedParser, Subparsers, json_object, on_terminal, print_json
from stack_client.errors import InvalidArgumentError, NotFoundError
from stack_client.portal import SyncStackClient
from stack_client.safety import SURFACES, guard_preset

BLOCKED = 3
"""Exit code of `stack shield run` when the text must not be passed on."""


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command and its actions."""
    parser = subparsers.add_parser("shield", help="list, add, remove and run shields", parents=[_common()])
    parser.set_defaults(command=list_shields)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=IntermixedParser)
    common = _common(argument_default=argparse.SUPPRESS)
    actions.add_parser("list", help="list the shields (default)", parents=[common])
    add = actions.add_parser("add", help="add a shield, and load its guard model where one is given", parents=[common])
    add.add_argument("shield", metavar="NAME", help="its name; `llama-guard...` and `prompt-guard...` imply a provider")
    add.add_argument(
        "--model", default="", metavar="WHERE", help="the guard's folder, file or hub id, or a model's name"
    )
    add.add_argument("--provider", default="", metavar="NAME", help="llama-guard, prompt-guard, rules, pii, ...")
    add.add_argument("--params", type=json_object, default={}, metavar="JSON", help="parameters of every run")
    add.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="wait this long for the model")
    add.set_defaults(command=add_shield)
    remove = actions.add_parser("remove", help="remove shields; their models stay", parents=[common])
    remove.add_argument("shields", nargs="+", metavar="NAME")
    remove.set_defaults(command=remove_shields)
    run = actions.add_parser("run", help=f"judge a text; exit code {BLOCKED} when it is blocked", parents=[common])
    run.add_argument("shield", metavar="NAME", help="a shield, or `policy` for those that the policy binds")
    run.add_argument("text", nargs="?", metavar="TEXT", help="the text (default: what comes through a pipe)")
    run.add_argument("--surface", choices=sorted(SURFACES), default="", help="where the text stands (default: user)")
    run.add_argument("--question", default="", metavar="TEXT", help="the user's message before an answer")
    run.add_argument("--params", type=json_object, metavar="JSON", help="laid over the shield's own for this run")
    run.set_defaults(command=run_shield, usage_error=run.error)


def list_shields(arguments: argparse.Namespace) -> int:
    """List the shields."""
    with connected(arguments) as client:
        shields = [_facts(shield) for shield in client.shields.list()]
    if arguments.json:
        print_json(shields)
    elif on_terminal():
        table = Table("shield", "provider", "model", "surfaces", "parameters")
        for shield in shields:
            rest = {name: value for name, value in shield["params"].items() if name != "surfaces"}
            surfaces = ", ".join(shield["params"].get("surfaces", []))
            table.add_row(shield["shield"], _kind(shield), shield["model"], surfaces, json.dumps(rest) if rest else "")
        Console().print(table)
    else:
        for shield in shields:
            print(f"{shield['shield']} {_kind(shield)} {shield['model']}")
    return 0


def add_shield(arguments: argparse.Namespace) -> int:
    """Add a shield; 0 once its model is ready."""
    provider, surfaces = guard_preset(arguments.shield)
    provider = arguments.provider or provider
    if not provider:
        raise InvalidArgumentError(
            f"{arguments.shield!r} implies no provider; name one with --provider", field="provider"
        )
    params = {**({"surfaces": list(surfaces)} if surfaces else {}), **arguments.params}
    with connected(arguments) as client:
        model = _guard_model(client, arguments, provider) if arguments.model else ""
        shield: v1.Shield = client.shields.register(
            arguments.shield, provider_id=provider, provider_shield_id=model, params=params or None
        )
    if arguments.json:
        print_json(_facts(shield))
    else:
        watched = ", ".join(params.get("surfaces", []))
        print(f"{shield.identifier} judges by {shield.provider_resource_id}" + (f" on {watched}" if watched else ""))
    return 0


def remove_shields(arguments: argparse.Namespace) -> int:
    """Remove shields."""
    with connected(arguments) as client:
        for shield in arguments.shields:
            client.shields.unregister(shield)
            if not arguments.json:
                print(f"{shield} is gone")
    if arguments.json:
        print_json({"unregistered": arguments.shields})
    return 0


def run_shield(arguments: argparse.Namespace) -> int:
    """Judge one text."""
    text = arguments.text
    if text is None and not sys.stdin.isatty():
        text = sys.stdin.read()
    if not text:
        arguments.usage_error("there is no text; give it as an argument or through a pipe")
    answers = arguments.surface in {"assistant", "tool_arguments", "code"}
    messages = [{"role": "user", "content": arguments.question}] if arguments.question or answers else []
    messages.append({"role": "assistant" if answers else "user", "content": text})
    with connected(arguments) as client:
        response: v1.RunShieldResponse = client.safety.run_shield(
            arguments.shield, messages, params=arguments.params, surface=arguments.surface
        )
    verdict = response.verdict
    if arguments.json:
        print_json(json_format.MessageToDict(response, preserving_proto_field_name=True))
    else:
        for line in _lines(verdict):
            print(line)
    return BLOCKED if verdict.action >= v1.SAFETY_ACTION_HOLD else 0


def _guard_model(client: SyncStackClient, arguments: argparse.Namespace, provider: str) -> str:
    """Name of the guard's model, loaded under the shield's name where weights were given.

    Raises:
        NotFoundError: If it is neither registered nor anything that could be loaded.
    """
    given = arguments.model
    path = Path(given).expanduser()
    if not path.exists() and "/" not in given and not given.startswith("packaged:"):
        try:
            client.models.get(given)
        except NotFoundError as error:
            message = f"{given!r} is neither a file or folder nor a hub id (owner/name) nor a registered model"
            raise NotFoundError(message, field="model") from error
        return str(given)
    kind = v1.MODEL_TYPE_CLASSIFIER if provider.endswith("prompt-guard") else v1.MODEL_TYPE_LLM
    source = str(path.absolute()) if path.exists() else given
    with Console(stderr=True).status(f"loading {arguments.shield}"):
        client.models.register(arguments.shield, provider_model_id=source, provider_id="torch", model_type=kind)
        client.models.wait_ready(arguments.shield, timeout=arguments.timeout)
    return str(arguments.shield)


def _lines(verdict: v1.Verdict) -> list[str]:
    """A verdict for people."""
    action = v1.SafetyAction.Name(verdict.action).removeprefix("SAFETY_ACTION_").lower()
    score = f", score {verdict.score:.3f}" if verdict.HasField("score") else ""
    codes = f": {', '.join(verdict.codes)}" if verdict.codes else ""
    lines = [f"{action}{codes}{score}  ({verdict.shield_id}{', baseline' if verdict.baseline else ''})"]
    if verdict.HasField("error"):
        lines.append(f"not judged: {verdict.error.message}")
    lines += [
        f"  {code} {score:.3f}" for code, score in sorted(verdict.category_scores.items(), key=lambda one: -one[1])
    ]
    if "redacted_text" in verdict.metadata:
        lines.append(str(verdict.metadata["redacted_text"]))
    lines.append(f"policy {verdict.policy_version[:12]}, verdict {verdict.verdict_id}")
    return lines


def _facts(shield: v1.Shield) -> dict[str, Any]:
    return {
        "shield": shield.identifier,
        "provider": shield.provider_id,
        "model": shield.provider_resource_id,
        "params": json_format.MessageToDict(shield.params),
    }


def _kind(shield: dict[str, Any]) -> str:
    """The provider; the embedded one says what it is."""
    return f"{shield['provider']} (baseline)" if shield["provider"] == "embedded" else str(shield["provider"])


def _common(argument_default: str | None = None) -> IntermixedParser:
    parser = IntermixedParser(add_help=False, argument_default=argument_default)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_target(parser)
    return parser
