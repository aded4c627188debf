"""A process that works on the jobs of a database until they have ended: `python -m tests.memory.ingest.worker URL JOB`.

It is killed at any point by the test of durability.
"""

import asyncio
import sys
from typing import TYPE_CHECKING, cast

import grpc

from services.memory.banks import BankStore
from services.memory.config import MemoryConfig
from services.memory.database import Database
from services.memory.embedder import Embedder
from services.memory.ingestion import Ingestion
from services.memory.jobs import ENDED
from tests.memory.ingest.plain_store import PlainStore

if TYPE_CHECKING:
    from services.memory.catalog import Catalog

NO_INDEXES = cast("Catalog", None)
"""No bank is deleted here."""


async def main(url: str, job_id: str) -> None:
    async with Database(url) as database, grpc.aio.insecure_channel("127.0.0.1:1") as nobody:
        banks = BankStore(database, NO_INDEXES)
        embedder = Embedder(nobody, database, batch=8, cached=0, default_model="none")
        config = MemoryConfig(parse_children=1, documents_at_once=3)
        async with Ingestion(config, database, banks, embedder, nobody) as ingestion:
            async with ingestion.runner(PlainStore(database)):
                print("working", flush=True)
                while (await ingestion.jobs.get(job_id, tenant=""))["status"] not in ENDED:
                    await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
