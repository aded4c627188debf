"""A process that works on the jobs of a database until they have ended: `python -m tests.memory.ingest.worker URL JOB`.

It is killed at any point by the test of durability.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import grpc

from services.memory.banks import BankStore
from services.memory.catalog import Catalog
from services.memory.config import MemoryConfig
from services.memory.database import Database
from services.memory.documents import DocumentStore
from services.memory.embedder import Embedder
from services.memory.ingestion import Ingestion
from services.memory.jobs import ENDED


async def main(url: str, job_id: str) -> None:
    config = MemoryConfig(parse_children=1, documents_at_once=3)
    async with (
        Database(url) as database,
        grpc.aio.insecure_channel("127.0.0.1:1") as nobody,
        Catalog(database, config, Path(tempfile.mkdtemp())) as catalog,
    ):
        banks = BankStore(database, catalog)
        embedder = Embedder(nobody, database, batch=8, cached=0, default_model="none")
        documents = DocumentStore(database, catalog, embedder)
        async with Ingestion(config, database, banks, embedder, nobody) as ingestion:
            async with ingestion.runner(documents):
                print("working", flush=True)
                while (await ingestion.jobs.get(job_id, tenant=""))["status"] not in ENDED:
                    await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
