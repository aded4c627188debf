"""Who computes what in the next step: one budget of rows over running and waiting requests. No tensors here.

Every step hands out a budget of rows (tokens). Requests that decode get one row each; what is left goes to prompts, in
chunks where they are long, first of running requests, then of waiting ones. Waiting requests are admitted by priority,
within one priority fairly between tenants, within one tenant in order of arrival. When blocks run out, the running
request of the lowest priority that came last gives up its blocks and computes them again later.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator

from services.inference.engine.block_pool import Block, BlockPool, chain_hash, root_hash
from services.inference.engine.request import EngineLimits, Figures, Request


class Sequence:
    """A request in the engine: its tokens so far, and how many of them are in the cache."""

    def __init__(self, request: Request, *, arrival: int) -> None:
        self.request = request
        self.arrival = arrival
        self.tokens = list(request.prompt_ids)
        self.unread = 0
        """Last ones of `tokens` that are chosen but not known here yet; their values mean nothing."""
        self.computed = 0
        self.findable = 0
        """Its first blocks that others can find."""
        self.cached_tokens = 0
        """Prompt tokens that came from other requests' blocks when it was first admitted."""
        self.admitted = False
        self.blocks: list[Block] = []
        self.hashes: list[bytes] = []
        """Hashes of the full blocks of `tokens`, as far as they were needed."""
        self.root = root_hash(salt=request.tenant, adapter=request.adapter)

    @property
    def generated(self) -> int:
        """New tokens so far."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet (or must see again)."""
        return len(self.tokens) - self.computed

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts those first that give up their blocks last."""
        return (-self.request.priority, self.arrival)

    def hash_blocks(self, count: int, *, block_size: int) -> None:
        """Know the hashes of the first `count` full blocks."""
        while len(self.hashes) < count:
            start = len(self.hashes) * block_size
            parent = self.hashes[-1] if self.hashes else self.root
            self.hashes.append(chain_hash(parent, self.tokens[start : start + block_size]))


class Scheduler:
    """The waiting and the running queue, and the blocks."""

    def __init__(self, *, limits: EngineLimits) -> None:
        self._limits = limits
        self.pool = BlockPool(blocks=limits.blocks, block_size=limits.block_size)
        self._waiting: dict[str, deque[Sequence]] = {}
        self._served: dict[str, int] = {}
        self._running: dict[str, Sequence] = {}
        self._filling: dict[bytes, str] = {}
        self._arrivals = 0
        self.preemptions = 0
        self.rows = 0
        self._prefix_queried = 0
        self._prefix_hit = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or runs."""
        return not self._running and not self._waiting

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """Requests that run."""
        return len(self._running)

    @property
    def figures(self) -> Figures:
        """How it is doing."""
        return Figures(
            waiting=self.waiting,
            running=self.running,
            running_limit=self._limits.running_requests,
            held=self.pool.size - self.pool.free,
            blocks=self.pool.size,
            block_size=self.pool.block_size,
            preemptions=self.preemptions,
            prefix_queried=self._prefix_queried,
            prefix_hit=self._prefix_hit,
            rows=self.rows,
            waiting_adapters=_by_adapter(self._queued()),
            running_adapters=_by_adapter(self._running.values()),
        )

    def __contains__(self, request_id: str) -> bool:
        """Whether a request waits or runs."""
        return request_id in self._running or any(s.request.request_id == request_id for s in self._queued())

    def add(self, request: Request) -> Sequence:
        """Queue a request.

        Raises:
            ValueError: If it could not even run alone.
        """
        length = len(request.prompt_ids) + request.max_tokens
        if -(-length // self.pool.block_size) > self.pool.size:
            room = self.pool.size * self.pool.block_size
            raise ValueError(f"{length} tokens are needed and the cache of this engine holds {room}")
        self._arrivals += 1
        sequence = Sequence(request, arrival=self._arrivals)
        active = {*self._waiting, *(other.request.tenant for other in self._running.values())}
        if request.tenant not in active:
            # A tenant that was away gets no credit for it: it begins level with the least served one that is here.
            self._served = {tenant: served for tenant, served in self._served.items() if tenant in active}
            self._served[request.tenant] = min(self._served.values(), default=0)
        queue = self._waiting.setdefault(request.tenant, deque())
        place = next((i for i, other in enumerate(queue) if other.request.priority < request.priority), len(queue))
        queue.insert(place, sequence)
        return sequence

    def remove(self, request_id: str) -> bool:
        """Forget a request, wherever it is; False when it is not here."""
        sequence = self._running.pop(request_id, None)
        if sequence is not None:
            self._free(sequence)
            return True
        for sequence in self._queued():
            if sequence.request.request_id == request_id:
                self._dequeue(sequence)
                return True
        return False

    def requests_of(self, *, adapter: str) -> list[str]:
        """Ids of the requests, waiting or running, that use an adapter."""
        sequences = [*self._running.values(), *self._queued()]
        return [s.request.request_id for s in sequences if s.request.adapter == adapter]

    def plan(self) -> list[tuple[Sequence, int]]:
        """Rows of the next step, by request; their blocks are there. Decoding requests come first."""
        budget = self._limits.step_tokens
        chosen: dict[str, tuple[Sequence, int]] = {}
        preempted = False
        in_order = sorted(self._running.values(), key=lambda s: (s.pending > 1, s.rank))
        for sequence in in_order:
            if sequence.request.request_id not in self._running:  # preempted for one before it
                continue
            rows = min(sequence.pending, budget)
            if rows == 0 or sequence.generated >= sequence.request.max_tokens:  # whole, but its end is not read yet
                continue
            while not self._make_room(sequence, sequence.computed + rows):
                victim = max(self._running.values(), key=lambda s: s.rank)
                _, refund = chosen.pop(victim.request.request_id, (victim, 0))
                budget += refund
                self._preempt(victim)
                preempted = True
                if victim is sequence:
                    break
            else:
                chosen[sequence.request.request_id] = (sequence, rows)
                budget -= rows
        if not preempted:
            self._admit(chosen, budget)
        for sequence, rows in chosen.values():
            self._served[sequence.request.tenant] = self._served.get(sequence.request.tenant, 0) + rows
            self.rows += rows
        return list(chosen.values())

    def computed(self, sequence: Sequence, rows: int) -> None:
        """The rows of a plan are in the cache: make its full blocks findable, as far as their tokens are known."""
        size = self.pool.block_size
        sequence.computed += rows
        before, sequence.findable = (
            sequence.findable,
            min(sequence.computed // size, (len(sequence.tokens) - sequence.unread) // size),
        )
        sequence.hash_blocks(sequence.findable, block_size=size)
        for place in range(before, sequence.findable):
            self.pool.remember(sequence.blocks[place], sequence.hashes[place])
            self._filling.pop(sequence.hashes[place], None)

    def check_integrity(self) -> None:
        """Assert that blocks, queues and books agree."""
        self.pool.check_integrity([sequence.blocks for sequence in self._running.values()])
        assert all(not sequence.blocks and sequence.computed == 0 for sequence in self._queued())
        assert all(owner in self._running for owner in self._filling.values())
        for sequence in self._running.values():
            assert len(sequence.blocks) * self.pool.block_size >= sequence.computed
            assert sequence.computed <= len(sequence.tokens)

    def _admit(self, chosen: dict[str, tuple[Sequence, int]], budget: int) -> None:
        """Move waiting requests to running while rows, places and blocks allow."""
        for sequence in self._candidates():
            if budget == 0 or len(self._running) >= self._limits.running_requests:
                return
            found = self._cached_prefix(sequence)
            if found is None:
                continue  # somebody is computing this very prefix: waiting for it is cheaper than doing it again
            start = len(found) * self.pool.block_size
            rows = min(len(sequence.tokens) - start, budget)
            needed = -(-(start + rows) // self.pool.block_size) - len(found)
            if needed > self.pool.free - sum(block.refs == 0 for block in found):
                return
            for block in found:
                self.pool.hold(block)
            sequence.blocks = [*found, *self.pool.allocate(needed)]
            sequence.computed, sequence.findable = start, len(found)
            if not sequence.admitted:
                sequence.admitted, sequence.cached_tokens = True, start
                self._prefix_queried += len(sequence.tokens)
                self._prefix_hit += start
            self._dequeue(sequence)
            self._running[sequence.request.request_id] = sequence
            for prefix_hash in sequence.hashes[len(found) :]:
                self._filling.setdefault(prefix_hash, sequence.request.request_id)
            chosen[sequence.request.request_id] = (sequence, rows)
            budget -= rows

    def _cached_prefix(self, sequence: Sequence) -> list[Block] | None:
        """The blocks of the longest prefix that is in the cache; None when the next one is being computed right now.

        The last token is never taken from the cache: its logits are needed.
        """
        count = (len(sequence.tokens) - 1) // self.pool.block_size
        sequence.hash_blocks(count, block_size=self.pool.block_size)
        found: list[Block] = []
        for prefix_hash in sequence.hashes[:count]:
            block = self.pool.find(prefix_hash)
            if block is None:
                return None if prefix_hash in self._filling else found
            found.append(block)
        return found

    def _candidates(self) -> Iterator[Sequence]:
        """Waiting requests in the order of admission."""
        heads = {tenant: list(queue) for tenant, queue in self._waiting.items()}
        served = {tenant: self._served.get(tenant, 0) for tenant in heads}
        while heads:
            best = min(heads, key=lambda tenant: (-heads[tenant][0].request.priority, served[tenant]))
            sequence = heads[best].pop(0)
            if not heads[best]:
                del heads[best]
            served[best] += sequence.pending
            yield sequence

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Give a running request blocks for `tokens` tokens; False when there are too few."""
        needed = -(-tokens // self.pool.block_size) - len(sequence.blocks)
        if needed > self.pool.free:
            return False
        sequence.blocks += self.pool.allocate(max(needed, 0))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running request's blocks; it waits, first of its tenant, and computes again what is lost by then."""
        self.preemptions += 1
        del self._running[sequence.request.request_id]
        self._free(sequence)
        self._waiting.setdefault(sequence.request.tenant, deque()).appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.findable = 0
        owner = sequence.request.request_id
        self._filling = {key: value for key, value in self._filling.items() if value != owner}

    def _queued(self) -> Iterator[Sequence]:
        for queue in self._waiting.values():
            yield from queue

    def _dequeue(self, sequence: Sequence) -> None:
        queue = self._waiting[sequence.request.tenant]
        queue.remove(sequence)
        if not queue:
            del self._waiting[sequence.request.tenant]


def _by_adapter(sequences: Iterable[Sequence]) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(s.request.adapter for s in sequences if s.request.adapter).items())
