"""Long outputs: the model gets head and tail, the whole is kept as a file of the memory service, or here."""

import logging
import secrets

import sqlalchemy as sa
from google.protobuf import json_format

from llamastack import v1
from services.runtime.database import Database
from services.runtime.moments import now
from services.tools.metrics import ToolMetrics
from services.tools.tables import outputs
from stack_client.content import struct
from stack_client.errors import StackError
from stack_client.files import Files

logger = logging.getLogger(__name__)

HEAD_SHARE = 0.75
SECONDS_A_DAY = 24 * 3600
UPLOAD_SECONDS = 30.0


class Outputs:
    """Cuts what is too long.

    Args:
        database: Keeps outputs where there is no memory service.
        files: Of the memory service; None without one.
        most: Bytes of text in a result.
        days: That outputs are kept.
        metrics: Told of each cut.
    """

    def __init__(self, database: Database, files: Files | None, *, most: int, days: int, metrics: ToolMetrics) -> None:
        self._database = database
        self._files = files
        self._most = most
        self._days = days
        self._metrics = metrics

    async def fit(self, result: v1.ToolInvocationResult, *, tenant: str, tool_name: str) -> str | None:
        """Cut a result's text, where it is too long; returns the id of the whole when it is kept here."""
        text = "".join(item.text for item in result.content.items)
        data = text.encode()
        if len(data) <= self._most:
            return await self._fit_message(result, tenant=tenant, tool_name=tool_name)
        file_id, output_id = await self._keep(data, tenant=tenant, tool_name=tool_name)
        where = f"the whole is file {file_id}" if file_id else "the whole is kept with the call, see GetInvocation"
        images = [item for item in result.content.items if item.WhichOneof("item") != "text"]
        head = data[: int(self._most * HEAD_SHARE)].decode(errors="ignore")
        tail = data[-int(self._most * (1 - HEAD_SHARE)) :].decode(errors="ignore")
        left_out = len(data) - len(head.encode()) - len(tail.encode())
        shown = f"{head}\n[... {left_out} bytes left out; {where} ...]\n{tail}"
        del result.content.items[:]
        result.content.items.extend([v1.ContentItem(text=shown), *images])
        _told(result, size=len(data), kept="memory" if file_id else "tools", days=self._days)
        if file_id:
            result.full_output_file_id = file_id
        return output_id

    async def whole(self, output_id: str) -> str | None:
        """An output that is kept here; None when it is gone."""
        async with self._database.read() as connection:
            wanted = sa.select(outputs.c.content).where(outputs.c.output_id == output_id)
            found = (await connection.execute(wanted)).scalar_one_or_none()
        return None if found is None else bytes(found).decode()

    async def _keep(self, data: bytes, *, tenant: str, tool_name: str) -> tuple[str, str | None]:
        """File id and own id, of which one is set."""
        if self._files is not None:
            try:
                seconds = self._days * SECONDS_A_DAY
                name = f"{tool_name.rpartition('/')[2]}-output.txt"
                file = await self._files.upload(
                    data, filename=name, purpose="user_data", mime_type="text/plain", expires_seconds=seconds,
                    timeout=UPLOAD_SECONDS,
                )  # fmt: skip
            except StackError as error:
                logger.warning("output cannot be kept by the memory service", extra={"error": error.message})
            else:
                self._metrics.cut("memory")
                return file.id, None
        output_id = f"output-{secrets.token_hex(12)}"
        values = {"output_id": output_id, "tenant": tenant, "content": data, "created_at": now()}
        async with self._database.write() as connection:
            await connection.execute(sa.insert(outputs).values(**values))
        self._metrics.cut("tools")
        return "", output_id

    async def _fit_message(self, result: v1.ToolInvocationResult, *, tenant: str, tool_name: str) -> str | None:
        """Long errors are cut too: they are for a model to read."""
        data = result.error_message.encode()
        if len(data) <= self._most:
            return None
        file_id, output_id = await self._keep(data, tenant=tenant, tool_name=tool_name)
        where = f"the whole is file {file_id}" if file_id else "the whole is kept with the call, see GetInvocation"
        result.error_message = f"{data[: self._most // 2].decode(errors='ignore')} [... cut; {where}]"
        _told(result, size=len(data), kept="memory" if file_id else "tools", days=self._days)
        if file_id:
            result.full_output_file_id = file_id
        return output_id


def _told(result: v1.ToolInvocationResult, *, size: int, kept: str, days: int) -> None:
    facts = json_format.MessageToDict(result.metadata)
    facts["full_output"] = {"bytes": size, "kept": kept, "days": days}
    result.metadata.CopyFrom(struct(facts) or result.metadata)
