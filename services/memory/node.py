"""Putting the memory service together: database, indexes, banks, RPC edge."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc
import sqlalchemy as sa

from llamastack import v1
from services.memory.banks import BankStore
from services.memory.banks_service import MemoryBanksService
from services.memory.catalog import Catalog
from services.memory.config import MemoryConfig
from services.memory.database import Database
from services.memory.documents import DocumentStore
from services.memory.embedder import Embedder
from services.memory.entries import EntryStore, delete_entries
from services.memory.files_service import FilesService
from services.memory.graph import GraphStore, delete_graph
from services.memory.graph_legs import GraphLegs
from services.memory.graph_queries import GraphReader
from services.memory.guarded import Guard
from services.memory.ingest_metrics import IngestMetrics
from services.memory.ingestion import Ingestion
from services.memory.ingestor import Ingestor
from services.memory.questions import QuestionWriter
from services.memory.rag_service import RAGToolService
from services.memory.rerank import Reranker
from services.memory.retrieve import Retriever
from services.memory.store_files import StoreFiles
from services.memory.store_parts import StoreParts
from services.memory.store_progress import StoreProgress
from services.memory.strings import watched
from services.memory.vector_dbs_service import VectorDBsService
from services.memory.vector_io_service import VectorIOService
from services.memory.vector_stores import VectorStores, delete_store
from services.memory.vector_stores_service import VectorStoresService
from services.runtime.background import background, repeat
from services.runtime.config import ConfigError
from services.runtime.database_url import database_url
from services.runtime.service import ServiceContext
from stack_client.errors import FailedPreconditionError
from stack_client.safety import Safety

SERVICES = (
    "llamastack.v1.MemoryBanksService",
    "llamastack.v1.FilesService",
    "llamastack.v1.VectorDBsService",
    "llamastack.v1.VectorIOService",
    "llamastack.v1.RAGToolService",
    "llamastack.v1.VectorStoresService",
)


class MemoryNode:
    """The memory service of one process."""

    name = "memory"

    def __init__(self, context: ServiceContext) -> None:
        self.readiness = context.readiness
        self._context = context
        self._config = context.section(MemoryConfig)
        try:
            self._database = Database(
                database_url("memory", self._config.database, self._config.database_password_file, context.data_dir)
            )
        except (sa.exc.ArgumentError, OSError) as error:
            raise ConfigError(f"{context.config.file}: memory.database: {error}") from error
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the database and its indexes."""
        async with AsyncExitStack() as opening:
            try:
                await opening.enter_async_context(self._database)
            except FailedPreconditionError as error:  # starting again cannot help
                raise ConfigError(error.message) from error
            channel = self._context.open_channel("inference")
            opening.push_async_callback(channel.close, None)
            config = self._config
            self._embedder = Embedder(
                channel,
                self._database,
                batch=config.embed_batch,
                cached=config.cached_embeddings,
                default_model=config.embedding_model,
            )
            catalog = Catalog(self._database, config, self._context.data_dir / "indexes")
            self._catalog = await opening.enter_async_context(catalog)
            self._banks = BankStore(self._database, self._catalog)
            metrics = IngestMetrics(self._context.telemetry.registry)
            self._documents = DocumentStore(self._database, self._catalog, self._embedder, metrics=metrics)
            self._retriever = Retriever(self._database, self._catalog, self._embedder, Reranker(channel))
            self._questions = QuestionWriter(channel, model=config.chat_model)
            safety = None
            if "safety" in self._context.addresses:
                safety = self._context.open_channel("safety")
                opening.push_async_callback(safety.close, None)
            self._guard = Guard(None if safety is None else Safety(safety))
            self.ingestion = Ingestion(config, self._database, self._banks, self._embedder, channel, metrics=metrics)
            await opening.enter_async_context(self.ingestion)
            await opening.enter_async_context(self.ingestion.runner(self._documents))
            self._ingestor = Ingestor(self.ingestion.pipeline, self._documents)
            self.entries = EntryStore(self._database)
            await opening.enter_async_context(background(repeat(self._documents.sweep, wake=asyncio.Event())))
            self._banks.on_delete(delete_entries)
            self._banks.on_delete(delete_graph)
            await opening.enter_async_context(background(repeat(self.entries.sweep, wake=self.entries.due)))
            self.store_parts = self._make_stores()
            self._banks.on_delete(delete_store)
            await opening.enter_async_context(background(repeat(self.store_parts.sweep, wake=asyncio.Event())))
            self._resources = opening.pop_all()
        self.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what was opened."""
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the services."""
        graphs = GraphReader(self._database)
        banks = MemoryBanksService(
            self._database,
            self._banks,
            self._embedder,
            check_provider=self._catalog.check_provider,
            entries=self.entries,
            graph=GraphStore(self._database),
            graph_reader=graphs,
            documents=self._documents,
            ingestor=self._ingestor,
            retriever=self._retriever,
            catalog=self._catalog,
            graphs=GraphLegs(self.entries, graphs),
            jobs=self.ingestion.jobs,
            job_files=self.ingestion.files,
            job_draining=self._context.draining,
            job_grace_seconds=self._context.runtime.drain_grace_seconds,
            draining=self._context.draining,
            grace_seconds=self._context.runtime.drain_grace_seconds,
        )
        v1.add_MemoryBanksServiceServicer_to_server(watched(banks), server)
        databases = VectorDBsService(
            self._database, self._banks, self._embedder, check_provider=self._catalog.check_provider
        )
        v1.add_VectorDBsServiceServicer_to_server(watched(databases), server)
        chunks = VectorIOService(
            self._database, self._banks, self._documents, retriever=self._retriever, embedder=self._embedder
        )
        v1.add_VectorIOServiceServicer_to_server(watched(chunks), server)
        rag = RAGToolService(
            self._database,
            self._banks,
            ingestor=self._ingestor,
            retriever=self._retriever,
            embedder=self._embedder,
            questions=self._questions,
            guard=self._guard,
        )
        v1.add_RAGToolServiceServicer_to_server(watched(rag), server)
        files = FilesService(
            self._database,
            self.ingestion.files,
            draining=self._context.draining,
            grace_seconds=self._context.runtime.drain_grace_seconds,
        )
        v1.add_FilesServiceServicer_to_server(watched(files), server)
        stores = VectorStoresService(
            self.store_parts,
            embedder=self._embedder,
            retriever=self._retriever,
            questions=self._questions,
            check_provider=self._catalog.check_provider,
        )
        v1.add_VectorStoresServiceServicer_to_server(watched(stores), server)
        return SERVICES

    def _make_stores(self) -> StoreParts:
        files = StoreFiles(self._database, self.ingestion.jobs, self._documents)
        return StoreParts(
            database=self._database,
            banks=self._banks,
            documents=self._documents,
            jobs=self.ingestion.jobs,
            stores=VectorStores(self._database),
            files=files,
            progress=StoreProgress(self._database, self.ingestion.jobs, files),
            draining=self._context.draining,
            grace_seconds=self._context.runtime.drain_grace_seconds,
        )


def build(context: ServiceContext) -> MemoryNode:
    """Make the memory service."""
    return MemoryNode(context)
