"""Putting ingestion together: parser, fetcher, cutter, files, jobs."""

import asyncio
from contextlib import AsyncExitStack
from typing import Self

import grpc

from services.memory.banks import BankStore
from services.memory.config import MemoryConfig
from services.memory.cut.context import ContextWriter
from services.memory.database import Database
from services.memory.embedder import Embedder
from services.memory.fetch import Fetcher, FetchRules
from services.memory.files import FileStore
from services.memory.ingest_metrics import IngestMetrics
from services.memory.job_runner import Documents, JobRunner
from services.memory.jobs import JobStore, refuse_while_running
from services.memory.parse.extract import Limits
from services.memory.parse.pool import ParserPool, check_parser
from services.memory.pipeline import Pipeline
from services.runtime.background import background, repeat
from services.runtime.config import ConfigError
from stack_client.errors import StackError

SWEEP_SECONDS = 60.0
MOST_FILE_BYTES = (1 << 32) - 1


class Ingestion:
    """What turns files, URLs and texts into documents. Use `async with`, and `runner` for the jobs.

    Attributes:
        pipeline: Reads and cuts documents.
        files: Uploaded files.
        jobs: Work in the background.

    Args:
        config: The service's.
        database: Where files and jobs are.
        banks: Where documents go.
        embedder: Knows embedding models.
        channel: To the inference service.
        metrics: Told the seconds of each stage; None measures nothing.

    Raises:
        ConfigError: If a value of the configuration is wrong.
    """

    def __init__(
        self,
        config: MemoryConfig,
        database: Database,
        banks: BankStore,
        embedder: Embedder,
        channel: grpc.aio.Channel,
        *,
        metrics: IngestMetrics | None = None,
    ) -> None:
        rules = FetchRules(
            allow=config.fetch_allow,
            folders=config.fetch_folders,
            max_bytes=config.fetch_max_bytes,
            seconds=config.fetch_seconds,
        )
        try:
            check_parser(config.parser)
            fetcher = Fetcher(rules)
        except StackError as error:  # starting again cannot help
            raise ConfigError(error.message) from error
        if not 0 < config.max_file_bytes <= MOST_FILE_BYTES:
            raise ConfigError(f"memory.max_file_bytes is {config.max_file_bytes}; allowed: 1 to {MOST_FILE_BYTES}")
        limits = Limits(seconds=config.parse_seconds, memory_bytes=config.parse_memory_bytes)
        self._parser = ParserPool(children=config.parse_children, limits=limits, parser=config.parser)
        self._metrics = metrics
        self._config = config
        self._banks = banks
        self._embedder = embedder
        self.pipeline = Pipeline(
            parser=self._parser,
            embedder=embedder,
            fetcher=fetcher,
            contexts=ContextWriter(channel, default_model=config.chat_model),
            metrics=self._metrics,
        )
        self.files = FileStore(database, max_bytes=config.max_file_bytes)
        self.jobs = JobStore(database, lease_seconds=config.lease_seconds)
        banks.on_delete(refuse_while_running)
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Erase what broken uploads left, and begin to sweep."""
        async with AsyncExitStack() as opening:
            await opening.enter_async_context(self._parser)
            await self.files.sweep(starting=True)
            await opening.enter_async_context(background(repeat(self._sweep, wake=asyncio.Event())))
            self._resources = opening.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop, and end the processes that parse."""
        await self._resources.aclose()

    def runner(self, documents: Documents, *, jobs_at_once: int | None = None) -> JobRunner:
        """The worker of the jobs; use `async with`.

        Args:
            documents: What stores them.
            jobs_at_once: Jobs worked on at once; None means as configured.
        """
        return JobRunner(
            self.jobs,
            banks=self._banks,
            documents=documents,
            files=self.files,
            pipeline=self.pipeline,
            embedder=self._embedder,
            metrics=self._metrics,
            jobs_at_once=self._config.jobs_at_once if jobs_at_once is None else jobs_at_once,
            documents_at_once=self._config.documents_at_once,
            lease_seconds=self._config.lease_seconds,
        )

    async def _sweep(self) -> float:
        """A round of sweeping; answers the seconds until the next."""
        await self.files.sweep()
        await self.jobs.sweep()
        return SWEEP_SECONDS
