"""The runner of a GPU: steps that only decode run in fixed sizes, as captured graphs; all others run as they come.

A decoding step is padded to the next size. Padded rows are requests of one token in a block that nobody is given.
Everything here but `graphs` works on any device.

Shapes: T rows of the step, R rows that need logits, B rows of a padded step, M blocks in a block table, L layers,
V vocabulary.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate

import torch
from torch import Tensor

from services.inference.engine.adapters import Adapters
from services.inference.engine.cuda.attention import LayerAttention, PagedAttention, Step
from services.inference.engine.cuda.drawing import UNREAD, Draw, Drawn
from services.inference.engine.cuda.graphs import Graphs, Run
from services.inference.engine.cuda.sampling import DeviceSampler
from services.inference.engine.cuda.transfer import on_device
from services.inference.engine.kv_cache import PagedCache
from services.inference.engine.runner import Part
from services.llama.lora import LoraAdapter
from services.llama.model import Llama

logger = logging.getLogger(__name__)

MOST_PADDED = 512


def padded_sizes(requests: int) -> list[int]:
    """Rows of the decode steps for up to `requests` requests: denser where one more costs relatively more."""
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, MOST_PADDED + 1, 16)]
    most = min(requests, MOST_PADDED)
    return [*(size for size in sizes if size < most), most]


class CudaRunner:
    """See `Runner` and `DrawingRunner`.

    Args:
        model: On its device.
        blocks: Blocks of the cache that parts may name.
        block_size: Tokens per block.
        requests: Requests per step, at most.
        attention: For this model and device.
    """

    def __init__(self, model: Llama, *, blocks: int, block_size: int, requests: int, attention: PagedAttention) -> None:
        self.config = config = model.config
        self._model = model
        self._device = model.embed.weight.device
        self._block_size = block_size
        self._attention = attention
        self._adapters = Adapters(model)
        self._sampler = DeviceSampler(vocab_size=config.vocab_size, device=self._device)
        self._dummy_block = blocks
        cache = PagedCache(
            n_layers=config.n_layers,
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            slots=(blocks + 1) * block_size,
            dtype=model.embed.weight.dtype,
            device=self._device,
        )
        for whole in (cache.k_LCKH, cache.v_LCKH):
            whole.zero_()  # masked values are still multiplied, by 0: they must be numbers
        in_blocks = (config.n_layers, blocks + 1, block_size, config.n_kv_heads, config.head_dim)
        self._caches = (cache.k_LCKH.view(in_blocks), cache.v_LCKH.view(in_blocks))
        self.sizes = padded_sizes(requests)
        self._runs: dict[int, Run] = {}
        self._step: Step | None = None
        most = self.sizes[-1]
        # What a captured step reads and writes stays in place: ids, positions and slots; lengths; tables; logits.
        self._numbers_3B = torch.zeros((3, most), dtype=torch.long, device=self._device)
        self._lengths_B = torch.ones(most, dtype=torch.int32, device=self._device)
        width = -(-config.max_context // block_size)
        self._tables_BM = torch.full((most, width), blocks, dtype=torch.int32, device=self._device)
        self._starts_B = torch.arange(most + 1, dtype=torch.int32, device=self._device)
        self._logits_BV = torch.empty((most, config.vocab_size), device=self._device)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture the decode steps, where the device and the attention can."""
        if self._device.type != "cuda" or not self._attention.captures:
            logger.info("decode steps are not captured (device=%s)", self._device)
            return
        graphs = Graphs()
        with self._here():
            for size in reversed(self.sizes):
                self._fill([], size=size)
                self._runs[size] = graphs.capture(self._padded_run(size))
        logger.info("captured decode steps of %d sizes up to %d rows", len(self.sizes), self.sizes[-1])

    @torch.inference_mode()
    def forward(self, parts: Sequence[Part]) -> Tensor:
        """See `Runner`."""
        with self._here():
            return self._logits(parts, []).to("cpu", copy=True)

    @torch.inference_mode()
    def launch(self, parts: Sequence[Part], draws: Sequence[Draw]) -> Drawn:
        """See `DrawingRunner`."""
        with self._here():
            return self._sampler.draw(self._logits(parts, draws), draws)

    def forget(self, request_id: str) -> None:
        """See `DrawingRunner`."""
        self._sampler.forget(request_id)

    def load_adapter(self, name: str, adapter: LoraAdapter) -> None:
        """See `Runner`."""
        self._adapters.load(name, adapter)

    def unload_adapter(self, name: str) -> None:
        """See `Runner`."""
        self._adapters.unload(name)

    def close(self) -> None:
        """See `Runner`."""

    def _here(self) -> AbstractContextManager[object]:
        """Streams, events and Triton's launches belong to the thread's current GPU, not to their tensors' one."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _logits(self, parts: Sequence[Part], draws: Sequence[Draw]) -> Tensor:
        """fp32, R x V, on the device; valid until the next step."""
        names = iter(draws)
        drawn_by = [next(names, None) if part.logits else None for part in parts]
        if len(parts) <= self.sizes[-1] and all(len(part.token_ids) == 1 and not part.adapter for part in parts):
            logits_RV = self._padded(parts, drawn_by)
            wanted = [row for row, part in enumerate(parts) if part.logits]
            return logits_RV if len(wanted) == len(parts) else logits_RV[on_device(wanted, self._device)]
        return self._unpadded(parts, drawn_by)

    def _padded(self, parts: Sequence[Part], drawn_by: Sequence[Draw | None]) -> Tensor:
        size = self.sizes[bisect_left(self.sizes, len(parts))]
        self._fill(parts, size=size)
        ids_R = self._numbers_3B[0, : len(parts)]
        ids_R.copy_(self._known(ids_R, [part.token_ids[-1] for part in parts], drawn_by))
        return self._runs.get(size, self._padded_run(size))()[: len(parts)]

    def _fill(self, parts: Sequence[Part], *, size: int) -> None:
        """Describe a padded step in the tensors that stay in place."""
        size_of, dummy = self._block_size, [self._dummy_block]
        padding = size - len(parts)
        tables = [[*part.blocks[: part.start // size_of + 1]] for part in parts] + [dummy] * padding
        positions = [part.start for part in parts] + [0] * padding
        ids = [max(part.token_ids[0], 0) for part in parts] + [0] * padding
        slots = [table[-1] * size_of + at % size_of for table, at in zip(tables, positions, strict=True)]
        lengths = [at + 1 for at in positions]
        tables_BM = _rectangle(tables)
        self._numbers_3B[:, :size].copy_(on_device([ids, positions, slots], self._device))
        self._lengths_B[:size].copy_(on_device(lengths, self._device, dtype=torch.int32))
        width = len(tables_BM[0])
        self._tables_BM[:size, :width].copy_(on_device(tables_BM, self._device, dtype=torch.int32))
        self._step = Step(
            counts=[1] * size,
            lengths=lengths,
            tables=tables,
            slots_T=self._numbers_3B[2, :size],
            starts_B=self._starts_B[: size + 1],
            lengths_B=self._lengths_B[:size],
            tables_BM=self._tables_BM[:size],
        )
        self._attention.plan(self._step)

    def _padded_run(self, size: int) -> Callable[[], Tensor]:
        """What a captured step does."""

        def run() -> Tensor:
            assert self._step is not None
            ids_B, positions_B = self._numbers_3B[0, :size], self._numbers_3B[1, :size]
            attend = LayerAttention(self._caches, self._attention, self._step)
            logits_BV = self._logits_BV[:size]
            # Into one tensor for all sizes: a graph's own output would stay allocated.
            logits_BV.copy_(self._model(ids_B, positions_T=positions_B, attend=attend))
            return logits_BV

        return run

    def _unpadded(self, parts: Sequence[Part], drawn_by: Sequence[Draw | None]) -> Tensor:
        """A step with prompts or adapters. Requests with one row go first, and the logits are put back in order."""
        order = sorted(range(len(parts)), key=lambda index: (len(parts[index].token_ids) > 1, parts[index].adapter))
        ordered = [parts[index] for index in order]
        counts = [len(part.token_ids) for part in ordered]
        ends = list(accumulate(counts))
        last_rows = {index: end - 1 for index, end in zip(order, ends, strict=True) if parts[index].logits}
        positions = [at for part in ordered for at in range(part.start, part.start + len(part.token_ids))]
        # Decoding requests lead, so each row of theirs has the number of its request.
        ids_T = on_device([max(token, 0) for part in ordered for token in part.token_ids], self._device)
        leading = [part.token_ids[-1] for part in ordered if len(part.token_ids) == 1]
        ids_T[: len(leading)] = self._known(ids_T[: len(leading)], leading, [drawn_by[index] for index in order])
        step = self._step_of(ordered, counts, starts=[0, *ends])
        self._attention.plan(step)
        with self._adapters.applied([(part.adapter, len(part.token_ids)) for part in ordered]):
            logits_RV: Tensor = self._model(
                ids_T,
                positions_T=on_device(positions, self._device),
                attend=LayerAttention(self._caches, self._attention, step),
                rows_R=on_device([last_rows[index] for index in sorted(last_rows)], self._device),
            )
        return logits_RV

    def _step_of(self, parts: Sequence[Part], counts: list[int], *, starts: list[int]) -> Step:
        size = self._block_size
        lengths = [part.start + count for part, count in zip(parts, counts, strict=True)]
        tables = [[*part.blocks[: -(-length // size)]] for part, length in zip(parts, lengths, strict=True)]
        slots = [
            table[at // size] * size + at % size
            for part, table, length in zip(parts, tables, lengths, strict=True)
            for at in range(part.start, length)
        ]
        return Step(
            counts=counts,
            lengths=lengths,
            tables=tables,
            slots_T=on_device(slots, self._device),
            starts_B=on_device(starts, self._device, dtype=torch.int32),
            lengths_B=on_device(lengths, self._device, dtype=torch.int32),
            tables_BM=on_device(_rectangle(tables), self._device, dtype=torch.int32),
        )

    def _known(self, ids_R: Tensor, tokens: Sequence[int], drawn_by: Sequence[Draw | None]) -> Tensor:
        """The ids, with those that the host has not read taken from where they were drawn."""
        rows = [row for row, token in enumerate(tokens) if token == UNREAD]
        if not rows:
            return ids_R
        names = [draw.request_id for draw in (drawn_by[row] for row in rows) if draw is not None]
        return ids_R.index_copy(0, on_device(rows, self._device), self._sampler.last_tokens(names))


def _rectangle(tables: Sequence[Sequence[int]]) -> list[list[int]]:
    """Tables of one width; any block serves beyond a table's end."""
    width = max(map(len, tables))
    return [[*table, *[0] * (width - len(table))] for table in tables]
