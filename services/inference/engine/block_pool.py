"""Blocks of the key/value cache: who holds them, which are free, and which prefix each one keeps.

A block holds the keys and values of `block_size` consecutive tokens of one prefix. A full block is known by a hash of
everything up to its last token, so that any request with the same beginning can hold it too. A block that nobody holds
any more keeps its content in the free list until it is handed out again: least recently freed first, and of one request
the last blocks first, since the beginning of a prompt is what others share.
"""

import hashlib
from collections.abc import Iterable, Sequence


class Block:
    """One block; the links are those of the free list."""

    __slots__ = ("index", "next", "prefix_hash", "previous", "refs")

    def __init__(self, index: int) -> None:
        self.index = index
        self.refs = 0
        self.prefix_hash: bytes | None = None
        self.previous: Block | None = None
        self.next: Block | None = None


class NoFreeBlocksError(Exception):
    """The pool has fewer free blocks than asked for."""


class BlockPool:
    """All blocks of one engine. Every operation takes time in the blocks that it touches, none in the pool's size."""

    def __init__(self, *, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._blocks = [Block(index) for index in range(blocks)]
        self._by_hash: dict[bytes, Block] = {}
        # A ring through a block that is never handed out: `next` of it is freed longest ago, `previous` most recently.
        self._ring = Block(-1)
        self._ring.next = self._ring.previous = self._ring
        self.free = 0
        for block in self._blocks:
            self._append(block)

    @property
    def size(self) -> int:
        """Blocks in all."""
        return len(self._blocks)

    @property
    def cached(self) -> int:
        """Blocks that keep a known prefix, held or free."""
        return len(self._by_hash)

    def allocate(self, count: int) -> list[Block]:
        """Take free blocks; what they kept is forgotten.

        Raises:
            NoFreeBlocksError: If there are fewer; then none is taken.
        """
        if count > self.free:
            raise NoFreeBlocksError(f"{count} blocks are wanted, {self.free} of {self.size} are free")
        taken = []
        for _ in range(count):
            block = self._ring.next
            assert block is not None
            self._unlink(block)
            if block.prefix_hash is not None:
                del self._by_hash[block.prefix_hash]
                block.prefix_hash = None
            block.refs = 1
            taken.append(block)
        return taken

    def find(self, prefix_hash: bytes) -> Block | None:
        """The block that keeps a prefix, or None; it is not held by this."""
        return self._by_hash.get(prefix_hash)

    def hold(self, block: Block) -> None:
        """Hold a block that keeps a prefix, together with whoever holds it already."""
        if block.refs == 0:
            self._unlink(block)
        block.refs += 1

    def remember(self, block: Block, prefix_hash: bytes) -> None:
        """Make a full block findable. If another block keeps the same prefix, that one stays the one that is found."""
        assert block.refs > 0
        if block.prefix_hash is None and prefix_hash not in self._by_hash:
            block.prefix_hash = prefix_hash
            self._by_hash[prefix_hash] = block

    def release(self, blocks: Iterable[Block]) -> None:
        """Let go of a request's blocks, given in the order of its tokens."""
        for block in reversed(list(blocks)):
            assert block.refs > 0
            block.refs -= 1
            if block.refs == 0:
                self._append(block)

    def check_integrity(self, held: Sequence[Sequence[Block]]) -> None:
        """Assert that the books agree with `held`, the blocks of every request."""
        refs = [0] * self.size
        for blocks in held:
            for kept in blocks:
                refs[kept.index] += 1
        assert refs == [block.refs for block in self._blocks], "reference counts differ from the holders"
        free = set()
        block: Block | None = self._ring.next
        while block is not self._ring:
            assert block is not None
            assert block.index not in free, "the free list is a loop"
            assert block.next is not None
            assert block.next.previous is block, "the free list's links disagree"
            free.add(block.index)
            block = block.next
        assert free == {index for index, count in enumerate(refs) if count == 0}, "free list and holders disagree"
        assert self.free == len(free)
        assert {h: b.index for h, b in self._by_hash.items()} == {
            b.prefix_hash: b.index for b in self._blocks if b.prefix_hash is not None
        }, "the table of prefixes disagrees with the blocks"

    def _append(self, block: Block) -> None:
        last = self._ring.previous
        assert last is not None
        last.next, block.previous, block.next, self._ring.previous = block, last, self._ring, block
        self.free += 1

    def _unlink(self, block: Block) -> None:
        assert block.previous is not None
        assert block.next is not None
        block.previous.next, block.next.previous = block.next, block.previous
        block.previous = block.next = None
        self.free -= 1


def root_hash(*, salt: str, adapter: str) -> bytes:
    """Where a chain of hashes begins: prompts of different tenants or adapters never share a block.

    Without the salt one tenant could tell from the time to the first token what another one has asked.
    """
    return hashlib.sha256(f"{len(salt)}:{salt}:{adapter}".encode()).digest()


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of a full block: everything before it, then its tokens. SHA-256, since a collision would leak a prompt."""
    return hashlib.sha256(parent + b"".join(token.to_bytes(4, "little") for token in token_ids)).digest()
