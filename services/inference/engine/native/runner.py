"""A model on the compiled kernels: keeps the packed weights mapped and hands the rows of a step over in one call."""

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from services.inference.engine.native import library
from services.inference.engine.native.pack import Array
from services.inference.engine.runner import Part
from services.llama.config import LlamaConfig
from services.llama.lora import LoraAdapter

TILE = 16
_LINEARS = {
    "q": "attention.q", "k": "attention.k", "v": "attention.v", "out": "attention.o",
    "gate": "ffn.gate", "up": "ffn.up", "down": "ffn.down",
}  # fmt: skip


class NativeRunner:
    """`Runner` on the kernels of one variant.

    What it computes for a row does not depend on the other rows: products are exact integers times scales that belong
    to one row, and everything else is done row by row in a fixed order.

    Args:
        config: Of the model.
        arrays: What `pack.unpack` returned.
        variant: Of the kernels, as `library.choose` names it.
        threads: That work on a step, this one among them.
        blocks: Of the key/value cache.
        block_size: Tokens per block, a multiple of 16.

    Raises:
        MemoryError: If the key/value cache cannot be reserved.
    """

    def __init__(
        self,
        config: LlamaConfig,
        arrays: Mapping[str, Array],
        *,
        variant: str,
        threads: int,
        blocks: int,
        block_size: int,
    ) -> None:
        self.config = config
        self._library = library.load(variant)
        self._tiles_per_block = block_size // TILE
        self._arrays = arrays
        self._adapters: dict[str, _NativeAdapter] = {}
        shape = library.Shape(
            vocab=config.vocab_size, dim=config.dim, layers=config.n_layers, heads=config.n_heads,
            kv_heads=config.n_kv_heads, head_dim=config.head_dim, ffn=config.ffn_dim,
            tiles=blocks * self._tiles_per_block, norm_eps=config.norm_eps,
        )  # fmt: skip
        self._layers = (library.Layer * config.n_layers)(*map(self._layer, range(config.n_layers)))
        self._head = self._linear("head")
        weights = library.Weights(
            embedding=_address(arrays["embedding"]),
            norm=_address(arrays["norm"]),
            frequencies=_address(arrays["frequencies"]),
            layers=self._layers,
            head=self._head,
        )
        self._model = self._library.model_create(ctypes.byref(shape), ctypes.byref(weights), threads)
        if not self._model:
            raise MemoryError("the key/value cache cannot be reserved; lower inference.providers.torch.cached_tokens")

    def close(self) -> None:
        """See `Runner`: free the cache and end the threads."""
        if self._model:
            self._library.model_destroy(self._model)
            self._model = None

    def __del__(self) -> None:
        """Nobody can close it any more."""
        if hasattr(self, "_model"):
            self.close()

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """See `Runner`."""
        counts = np.array([len(part.token_ids) for part in parts], dtype=np.int32)
        starts = np.array([part.start for part in parts], dtype=np.int32)
        ids = np.array([token for part in parts for token in part.token_ids], dtype=np.int32)
        wanted = np.array([part.logits for part in parts], dtype=np.uint8)
        lengths = np.array([len(part.blocks) for part in parts], dtype=np.int32) * self._tiles_per_block
        tables = self._tiles([block for part in parts for block in part.blocks])
        table_starts = np.concatenate([[0], lengths.cumsum()[:-1]]).astype(np.int32)
        # Unset entries are null: the base model.
        adapters = (ctypes.c_void_p * len(parts))()
        for index, part in enumerate(parts):
            if part.adapter:
                adapters[index] = ctypes.addressof(self._adapters[part.adapter].layers)
        logits = np.empty((int(wanted.sum()), self._head.columns), dtype=np.float32)
        step = library.Step(
            parts=len(parts), counts=_address(counts), starts=_address(starts), tables=_address(tables),
            table_starts=_address(table_starts), ids=_address(ids), wanted=_address(wanted),
            adapters=ctypes.addressof(adapters), logits=_address(logits),
        )  # fmt: skip
        if self._library.model_step(self._model, ctypes.byref(step)):
            raise MemoryError(f"no memory for a step of {len(ids)} rows; lower inference.providers.torch.step_tokens")
        return torch.from_numpy(logits[:, : self.config.vocab_size])

    def load_adapter(self, name: str, adapter: LoraAdapter) -> None:
        """See `Runner`. Its products stay in fp32 and read rows as they are before they are rotated and rounded."""
        assert name not in self._adapters, f"adapter {name} is loaded already"
        self._adapters[name] = _NativeAdapter(adapter, layers=self.config.n_layers)

    def unload_adapter(self, name: str) -> None:
        """See `Runner`."""
        del self._adapters[name]

    def _tiles(self, blocks: list[int]) -> Array:
        table = np.array(blocks, dtype=np.int32)
        if self._tiles_per_block == 1:
            return table
        first = table[:, None] * self._tiles_per_block
        return (first + np.arange(self._tiles_per_block, dtype=np.int32)).ravel()

    def _layer(self, layer: int) -> library.Layer:
        prefix = f"layers.{layer}"
        return library.Layer(
            attention_norm=_address(self._arrays[f"{prefix}.attention_norm"]),
            ffn_norm=_address(self._arrays[f"{prefix}.ffn_norm"]),
            **{name: self._linear(f"{prefix}.{name}") for name in ("qkv", "out", "gate_up", "down")},
        )

    def _linear(self, name: str) -> library.Linear:
        weights, scales = self._arrays[f"{name}.weights"], self._arrays[f"{name}.scales"]
        minima = self._arrays.get(f"{name}.minima")
        bits = 8 if minima is None else 4
        inputs = weights.shape[1] * 8 // bits // 32
        return library.Linear(
            weights=_address(weights), scales=_address(scales), minima=None if minima is None else _address(minima),
            inputs=inputs, columns=scales.shape[1], group=inputs // len(scales), rotate=bits == 8,
        )  # fmt: skip


class _NativeAdapter:
    """An adapter's matrices where the kernels find them."""

    def __init__(self, adapter: LoraAdapter, *, layers: int) -> None:
        self._arrays: list[Array] = []
        self.layers = (library.AdapterLayer * layers)()
        for layer in range(layers):
            for field, linear in _LINEARS.items():
                pair = adapter.pairs.get(f"layers.{layer}.{linear}")
                if pair is not None:
                    a, b = (matrix.float().contiguous().numpy() for matrix in (pair.a_RI, pair.b_OR))
                    self._arrays += [a, b]
                    setattr(self.layers[layer], field, library.LowRank(a=_address(a), b=_address(b), rank=len(a)))


def _address(array: Array) -> int:
    address: int = array.ctypes.data
    return address
