"""The RPC edge of the banks, put together from its parts."""

from llamastack import v1
from services.memory.documents_service import DocumentCalls
from services.memory.entries_service import EntryCalls
from services.memory.graph_service import GraphCalls
from services.memory.jobs_service import JobCalls
from services.memory.query_service import QueryCalls
from services.memory.registry_service import BankCalls


# Each part takes its own arguments and hands the others on; `BankCalls`, which takes the rest, is the last.
class MemoryBanksService(  # type: ignore[misc] # streams may be coroutines that write, too
    DocumentCalls,
    QueryCalls,
    EntryCalls,
    GraphCalls,
    JobCalls,
    BankCalls,
    v1.MemoryBanksServiceServicer,
):
    """`llamastack.v1.MemoryBanksService`: each part implements the calls of one kind of bank or work."""
