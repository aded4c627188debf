"""What an agent remembers of its own: `remember`, `recall`, `forget`, over a bank of the memory service."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llamastack import v1
from services.runtime.config import read_config
from services.tools.provider import Access, Call, ProviderContext
from services.tools.providers.over_memory import NO_MEMORY, OverMemory
from services.tools.providers.plain import answered, failed
from stack_client.content import struct
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from stack_client.memory import MemoryBanks, MemoryHit

SCOPES = ("session", "tenant")
MAX_CHARACTERS = 8000
NEAR = 0.9
"""Share of words from which two texts say the same."""
_MARK = re.compile(r"^\s*(?:[-*]\s*)?\[(memory-[0-9a-f]{16})\]\s*")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class RememberConfig:
    """Settings of the provider `agent-memory`."""

    embedding_model: str = ""
    """Model of the banks; empty means the memory service's default."""


def _tool(name: str, description: str, effect: "v1.ToolEffect.ValueType", **properties: object) -> v1.ToolDef:
    schema = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return v1.ToolDef(name=name, description=description, input_schema=struct(schema), effect=effect)


TOOLS = (
    _tool(
        "remember",
        "Keep a fact for later, such as what the user likes or has decided. One fact a call.",
        v1.TOOL_EFFECT_IDEMPOTENT_WRITE,
        text={
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_CHARACTERS,
            "description": "The fact, as one sentence.",
        },
    ),
    _tool(
        "recall",
        "Look up what was remembered before.",
        v1.TOOL_EFFECT_READ,
        query={"type": "string", "minLength": 1, "description": "What it is about."},
        limit={"type": "integer", "minimum": 1, "maximum": 20, "description": "Facts at most; 5 when left out."},
    ),
    _tool(
        "forget",
        "Delete something that was remembered.",
        v1.TOOL_EFFECT_IDEMPOTENT_WRITE,
        id={"type": "string", "pattern": "^memory-[0-9a-f]{16}$", "description": "As recall shows it, memory-..."},
    ),
)


class RememberProvider(OverMemory):
    """Keeps facts in a bank per tenant, or per session of a tenant.

    Args:
        context: Of the service.
    """

    arguments = frozenset({"scope"})

    def __init__(self, context: ProviderContext) -> None:
        super().__init__(context)
        file = context.service.config.file
        self._config = read_config(RememberConfig, context.config, file=file, at="tools.providers.agent-memory")

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        """Refuse scopes that there are not.

        Raises:
            InvalidArgumentError: Naming those that there are.
        """
        await super().check(group, access)
        if "scope" in group.args.fields and group.args.fields["scope"].string_value not in SCOPES:
            message = f"args.scope: give {' or '.join(SCOPES)}"
            raise InvalidArgumentError(message, field="args.scope")

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:  # noqa: ARG002 (interface)
        """The three tools."""
        return TOOLS

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """Remember, recall or forget."""
        if self._channel is None:
            return failed(NO_MEMORY, code=501)
        bank = bank_of(call)
        if not bank:
            message = (
                "Memory of a session needs a session; call with a session_id, or register the group with scope tenant."
            )
            return failed(message, code=400)
        banks = MemoryBanks(self._channel)
        match call.tool.name:
            case "remember":
                return await self._remember(banks, bank, str(call.arguments["text"]))
            case "recall":
                return await _recall(banks, bank, str(call.arguments["query"]), int(call.arguments.get("limit", 5)))
            case _:
                return await _forget(banks, bank, str(call.arguments["id"]))

    async def _remember(self, banks: MemoryBanks, bank: str, text: str) -> v1.ToolInvocationResult:
        fact = own_words(text)
        if not fact:
            return answered("That was recalled, so it is remembered already.", known=True)
        name = identifier(fact)
        await banks.create(bank, embedding_model=self._config.embedding_model)
        for hit in await _search(banks, bank, fact, limit=3):
            if hit.document_id == name or _near(fact, hit.text):
                return answered(f"Already known as [{hit.document_id}].", known=True, id=hit.document_id)
        stored = await banks.insert(bank, {"id": name, "text": fact})
        if stored.failures:
            return failed(f"It could not be kept: {stored.failures[0].error.message}")
        return answered(f"Remembered as [{name}].", known=False, id=name)


async def _recall(banks: MemoryBanks, bank: str, query: str, limit: int) -> v1.ToolInvocationResult:
    hits = await _search(banks, bank, query, limit=limit)
    if not hits:
        return answered("Nothing is remembered about that.", ids=[])
    return answered("\n".join(_line(hit) for hit in hits), ids=[hit.document_id for hit in hits])


async def _search(banks: MemoryBanks, bank: str, query: str, *, limit: int) -> list[MemoryHit]:
    """What is remembered; nothing where there is no bank yet, or nothing in it."""
    try:
        return await banks.search(bank, query, k=limit)
    except (NotFoundError, FailedPreconditionError):
        return []


async def _forget(banks: MemoryBanks, bank: str, name: str) -> v1.ToolInvocationResult:
    try:
        gone = await banks.delete_documents(bank, name)
    except NotFoundError:
        gone = 0
    return answered(f"[{name}] is forgotten." if gone else f"There is no [{name}].", forgotten=bool(gone))


def bank_of(call: Call) -> str:
    """The bank of a call; empty when a session's is wanted and there is no session."""
    given = call.group.args.fields
    if "scope" in given and given["scope"].string_value == "tenant":
        return "agent-memory"
    return f"agent-memory-{identifier(call.session_id)[-16:]}" if call.session_id else ""


def identifier(text: str) -> str:
    """The name of a fact: the same for texts that differ in case and space alone."""
    return f"memory-{hashlib.sha256(' '.join(text.lower().split()).encode()).hexdigest()[:16]}"


def own_words(text: str) -> str:
    """A text without the lines that were recalled: they begin with the mark that `recall` puts there."""
    return "\n".join(line for line in text.splitlines() if not _MARK.match(line)).strip()


def _line(hit: MemoryHit) -> str:
    return f"[{hit.document_id}] {' '.join(hit.text.split())}"


def _near(first: str, second: str) -> bool:
    one, other = set(_WORD.findall(first.lower())), set(_WORD.findall(second.lower()))
    # Words such as `not`, and numbers, turn a fact into another one: a single new word of a short fact is too many.
    return bool(one) and len(one & other) / len(one | other) >= NEAR
