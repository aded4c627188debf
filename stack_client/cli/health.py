"""`stack health`: one check of grpc.health.v1, for containers and scripts."""

import argparse
import asyncio

import grpc

from stack_client import channel
from stack_client.cli.options import Subparsers
from stack_client.errors import UnavailableError, from_rpc_error

SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}; the protocol's one message that matters here


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("health", help="check one service once; exit code 0 when it serves")
    parser.add_argument("address", metavar="ADDRESS", help="host:port or unix:/path")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="give up after (default 5)")
    parser.set_defaults(command=health)


def health(arguments: argparse.Namespace) -> int:
    """Ask for the overall health."""
    asyncio.run(_check(arguments.address, arguments.timeout))
    print(f"{arguments.address} is serving")
    return 0


async def _check(address: str, timeout: float) -> None:
    async with channel.connect(address) as opened:
        call = opened.unary_unary("/grpc.health.v1.Health/Check")  # type: ignore[call-arg] # bytes in, bytes out
        try:
            answer = await call(b"", timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
    if not answer.startswith(SERVING):
        raise UnavailableError(f"{address} answers, but is not serving", reason="NOT_READY")
