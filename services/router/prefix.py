"""What requests begin with, as chains of hashes: two requests share as many blocks as their prompts share beginnings.

The prompt itself is unknown here, for the nodes render it; tools and messages in their order stand for it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from llamastack import v1

MAX_BLOCKS = 1024
"""Blocks compared at most; what follows does not change the choice of a node."""


def chat_chain(request: v1.ChatCompletionRequest, *, tenant: str, block_bytes: int) -> list[bytes]:
    """The chain of a dialog."""
    salt = request.tool_config.SerializeToString(deterministic=True)
    return _chain(_dialog(request), root=_root(request.model_id, tenant, salt), block_bytes=block_bytes)


def completion_chain(request: v1.CompletionRequest, *, tenant: str, block_bytes: int) -> list[bytes]:
    """The chain of a text or of token ids."""
    ids = [b"%d " % token for token in request.token_ids]
    parts = ids or _content(request.content)
    return _chain(parts, root=_root(request.model_id, tenant, b"text"), block_bytes=block_bytes)


class PrefixMemory:
    """The blocks that a node has read lately, as far as this router knows.

    Args:
        size: Blocks kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        """Blocks kept now."""
        return len(self._blocks)

    def matched(self, chain: Sequence[bytes]) -> int:
        """How many blocks of the chain's beginning are there."""
        for count, block in enumerate(chain):
            if block not in self._blocks:
                return count
        return len(chain)

    def add(self, chain: Sequence[bytes]) -> None:
        """Remember a chain; of one chain the end is forgotten first, for its beginning is what others share."""
        for block in reversed(chain):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._size:
            self._blocks.popitem(last=False)


def _chain(parts: Iterable[bytes], *, root: bytes, block_bytes: int) -> list[bytes]:
    chain: list[bytes] = []
    rest = bytearray()
    for part in parts:
        rest += part
        while len(rest) >= block_bytes:
            root = hashlib.blake2b(root + rest[:block_bytes], digest_size=12).digest()
            chain.append(root)
            del rest[:block_bytes]
            if len(chain) == MAX_BLOCKS:
                return chain
    return chain


def _root(model_id: str, tenant: str, salt: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join([model_id.encode(), tenant.encode(), salt]), digest_size=12).digest()


def _dialog(request: v1.ChatCompletionRequest) -> Iterator[bytes]:
    for tool in request.tools:
        yield tool.SerializeToString(deterministic=True)
    for message in request.messages:
        role = message.WhichOneof("message") or ""
        yield f"\0{role}\0".encode()
        match role:
            case "user":
                yield from _content(message.user.content)
                yield from _content(message.user.context)
            case "system":
                yield from _content(message.system.content)
            case "tool":
                yield from _content(message.tool.content)
            case "assistant":
                yield from _content(message.assistant.content)
                for call in message.assistant.tool_calls:
                    yield call.SerializeToString(deterministic=True)


def _content(content: v1.InterleavedContent) -> Iterator[bytes]:
    for item in content.items:
        if item.WhichOneof("item") == "image":
            yield hashlib.sha256(item.image.SerializeToString(deterministic=True)).digest()
        else:
            yield item.text.encode()
