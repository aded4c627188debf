"""`stack models`: list, register, unregister."""

import argparse
from typing import Any

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from llamastack import v1
from stack_client.cli.connection import add_target, connected
from stack_client.cli.options import Subparsers, json_object, on_terminal, print_json

_TYPES = {
    "llm": v1.MODEL_TYPE_LLM,
    "embedding": v1.MODEL_TYPE_EMBEDDING,
    "classifier": v1.MODEL_TYPE_CLASSIFIER,
    "rerank": v1.MODEL_TYPE_RERANK,
}


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command and its actions."""
    parser = subparsers.add_parser("models", help="list, register and unregister models", parents=[_common()])
    parser.set_defaults(command=list_models)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    # An action must not overwrite what was said before it with defaults of its own.
    common = _common(argument_default=argparse.SUPPRESS)
    actions.add_parser("list", help="list the models (default)", parents=[common])
    add = actions.add_parser("register", help="register a model and wait until it is ready", parents=[common])
    add.add_argument("model", metavar="NAME", help="identifier that requests will use; BASE@NAME for an adapter")
    source = "a folder, a file, `packaged:NAME` or a hub id, OWNER/NAME (default: same as NAME)"
    add.add_argument("source", nargs="?", default="", metavar="SOURCE", help=source)
    add.add_argument(
        "--provider", default="", metavar="NAME", help="may be left out for adapters, or when there is only one"
    )
    add.add_argument("--type", choices=sorted(_TYPES), default="llm", help="what the model is for (default: llm)")
    add.add_argument("--metadata", type=json_object, metavar="JSON", help="facts to keep with it")
    add.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="wait this long (default 600)")
    add.add_argument("--no-wait", action="store_true", help="return at once; `stack models` shows how far it is")
    add.set_defaults(command=register)
    remove = actions.add_parser("unregister", help="remove models and free their memory", parents=[common])
    remove.add_argument("models", nargs="+", metavar="NAME", help="identifiers")
    remove.set_defaults(command=unregister)


def list_models(arguments: argparse.Namespace) -> int:
    """List the models."""
    with connected(arguments) as client:
        models = [_facts(model) for model in client.models.list()]
    if arguments.json:
        print_json(models)
    elif on_terminal():
        table = Table("model", "type", "state", "provider", "source")
        for model in models:
            state = ": ".join(filter(None, [model["state"], model["state_message"]]))
            table.add_row(model["model"], model["type"], state, model["provider"], model["source"])
        Console().print(table)
    else:
        for model in models:
            waits = f" ({model['state_message']})" if model["state_message"] else ""
            print(f"{model['model']} {model['type']} {model['state']}{waits} {model['provider']} {model['source']}")
    return 0


def register(arguments: argparse.Namespace) -> int:
    """Register a model; 0 once it is ready."""
    with connected(arguments) as client:
        model: v1.Model = client.models.register(
            arguments.model,
            provider_model_id=arguments.source,
            provider_id=arguments.provider,
            model_type=_TYPES[arguments.type],
            metadata=arguments.metadata,
        )
        if not arguments.no_wait:
            with Console(stderr=True).status(f"loading {arguments.model}"):
                model = client.models.wait_ready(arguments.model, timeout=arguments.timeout)
    facts = _facts(model)
    if arguments.json:
        print_json(facts)
    else:
        print(f"{facts['model']} is {facts['state']}")
    return 0


def unregister(arguments: argparse.Namespace) -> int:
    """Remove models."""
    with connected(arguments) as client:
        for model in arguments.models:
            client.models.unregister(model)
            if not arguments.json:
                print(f"{model} is gone")
    if arguments.json:
        print_json({"unregistered": arguments.models})
    return 0


def _common(argument_default: str | None = None) -> argparse.ArgumentParser:
    """`--json`, `--home`, `--address`."""
    parser = argparse.ArgumentParser(add_help=False, argument_default=argument_default)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_target(parser)
    return parser


def _facts(model: v1.Model) -> dict[str, Any]:
    return {
        "model": model.identifier,
        "type": v1.ModelType.Name(model.model_type).removeprefix("MODEL_TYPE_").lower(),
        "state": v1.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
        "state_message": model.state_message,
        "provider": model.provider_id,
        "source": model.provider_resource_id,
        "metadata": json_format.MessageToDict(model.metadata),
    }
