"""Which stack and which model a command speaks to."""

import argparse
import contextlib
from collections.abc import Iterator

from llamastack import v1
from stack_client import addresses
from stack_client.cli.options import add_home, home_of
from stack_client.errors import NOTHING_ANSWERS, FailedPreconditionError, UnavailableError
from stack_client.portal import SyncStackClient

_KINDS = {v1.MODEL_TYPE_LLM: "llm", v1.MODEL_TYPE_EMBEDDING: "embedding"}


def add_target(parser: argparse.ArgumentParser, *, service: str = "inference") -> None:
    """`--home DIR` or `--address WHERE`, which may be that of the one service that the command needs."""
    add_home(parser)
    parser.add_argument(
        "--address", metavar="WHERE", help=f"a stack elsewhere: its host, or host:port of its {service} service"
    )


@contextlib.contextmanager
def connected(arguments: argparse.Namespace, *, service: str = "inference") -> Iterator[SyncStackClient]:
    """A client of the chosen stack.

    Args:
        arguments: Of the command.
        service: Whose address `--address host:port` is.

    Raises:
        FailedPreconditionError: If no stack runs in the home that was chosen.
        UnavailableError: If nothing answers.
    """
    where = arguments.address
    if not where:
        target = addresses.running(home_of(arguments))
    else:
        target = {service: where} if ":" in where else addresses.resolve(where)
    with SyncStackClient(target) as client:
        try:
            yield client
        except UnavailableError as error:
            if error.message.startswith(NOTHING_ANSWERS):
                message = f"nothing answers at {target[service]}; is a stack running there? (`stack status`)"
                raise UnavailableError(message) from error
            raise


def choose_model(
    client: SyncStackClient, given: str | None, *, of_type: "v1.ModelType.ValueType" = v1.MODEL_TYPE_LLM
) -> str:
    """The model given, else the first ready one of a type.

    Raises:
        FailedPreconditionError: If none is ready.
    """
    if given:
        return given
    models: list[v1.Model] = [model for model in client.models.list() if model.model_type == of_type]
    for model in models:
        if model.state == v1.MODEL_STATE_READY:
            return model.identifier
    if models:
        waits = ", ".join(f"{model.identifier} ({model.state_message or 'loading'})" for model in models)
        raise FailedPreconditionError(f"no {_KINDS[of_type]} model is ready: {waits}; see `stack models`")
    raise FailedPreconditionError(
        f"this stack serves no {_KINDS[of_type]} model; register one with `stack models register`"
    )
