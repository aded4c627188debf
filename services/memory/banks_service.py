"""The RPC edge of the banks, put together from its parts."""

from llamastack import v1
from services.memory.registry_service import BankCalls


class MemoryBanksService(BankCalls, v1.MemoryBanksServiceServicer):
    """`llamastack.v1.MemoryBanksService`: each part implements the calls of one kind of bank or work."""
