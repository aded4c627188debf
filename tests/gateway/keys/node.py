"""A service with nothing but API keys, behind a unix socket in this process."""

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from llamastack import v1
from services.gateway.keys import Keys, KeysService, upgrade
from services.runtime.config import RuntimeConfig, StackConfig
from services.runtime.database import Database
from services.runtime.process import drain, hosting
from services.runtime.service import ServiceContext
from stack_client import StackClient


class KeysNode:
    """Hosts the keys of a database; looks at no clock but the test's for what it remembers."""

    name = "gateway"

    def __init__(self, context: ServiceContext, database: str) -> None:
        self.readiness = context.readiness
        self.moment = 0.0
        """Seconds of the cache's clock."""
        self.database = Database(database, owner="gateway", upgrade=upgrade)
        self.keys = Keys(self.database, clock=lambda: self.moment)
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._resources.enter_async_context(self.database)
        await self._resources.enter_async_context(self.keys.running())
        self.readiness.ready()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        v1.add_KeysServiceServicer_to_server(KeysService(self.keys), server)
        return ["llamastack.v1.KeysService"]


@dataclass
class KeysMesh:
    """The running service."""

    client: StackClient
    node: KeysNode
    home: Path
    stub: Any = field(init=False)

    def __post_init__(self) -> None:
        self.stub = v1.KeysServiceStub(self.client.channel("gateway"))

    @property
    def keys(self) -> Keys:
        return self.node.keys

    async def create(self, *, caller: str = "", **fields: Any) -> v1.CreateKeyResponse:
        request = v1.CreateKeyRequest(**{"name": "test", "scopes": ["inference"], **fields})
        response: v1.CreateKeyResponse = await self.stub.CreateKey(request, metadata=of(caller))
        return response

    async def list(self, *, caller: str = "", **fields: Any) -> v1.ListKeysResponse:
        response: v1.ListKeysResponse = await self.stub.ListKeys(v1.ListKeysRequest(**fields), metadata=of(caller))
        return response

    async def revoke(self, key_id: str, *, caller: str = "") -> v1.ApiKey:
        response = await self.stub.RevokeKey(v1.RevokeKeyRequest(key_id=key_id), metadata=of(caller))
        key: v1.ApiKey = response.key
        return key


def of(tenant: str) -> grpc.aio.Metadata | None:
    return grpc.aio.Metadata(("x-tenant", tenant)) if tenant else None


@asynccontextmanager
async def keys_mesh(database: str = "") -> AsyncIterator[KeysMesh]:
    """The service over a database, a SQLite file of its own where none is named."""
    nodes: list[KeysNode] = []
    # Not pytest's folder: paths of unix sockets must be short.
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        home = Path(folder)

        def build(context: ServiceContext) -> KeysNode:
            nodes.append(KeysNode(context, database or f"sqlite:///{home}/keys.db"))
            return nodes[-1]

        config = StackConfig(
            file="test",
            addresses={"gateway": f"unix:{home}/run/gateway.sock"},
            runtime=RuntimeConfig(
                tcp=False, socket_dir=home / "run", drain_grace_seconds=0.3, drain_notice_seconds=0, log_level="WARNING"
            ),
        )
        async with (
            hosting({"gateway": build}, config=config, home=home) as hosted,
            StackClient(config.addresses) as client,
        ):
            try:
                yield KeysMesh(client=client, node=nodes[-1], home=home)
            finally:
                await drain(hosted)
