"""The RPC edge of the banks, put together from its parts."""

from llamastack import v1
from services.memory.jobs_service import JobCalls
from services.memory.registry_service import BankCalls


# Each part takes its own arguments and hands the others on; `BankCalls`, which takes the rest, is the last.
class MemoryBanksService(  # type: ignore[misc] # streams may be coroutines that write, too
    JobCalls,
    BankCalls,
    v1.MemoryBanksServiceServicer,
):
    """`llamastack.v1.MemoryBanksService`: each part implements the calls of one kind of bank or work."""
