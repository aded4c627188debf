"""Read the header of a GGUF file: metadata and where each tensor lies. Torch-free.

Our own reader, because the `gguf` package's spends 2 s of CPU on the 98,000 strings of a tokenizer, and because a
truncated file must be named as such. Format: github.com/ggml-org/ggml, docs/gguf.md. Values are little-endian.
"""

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from services.llama.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_UNQUANTISED: dict[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.BF16: np.dtype("<u2"),
}


@dataclass(frozen=True, kw_only=True)
class GGUFTensor:
    """One tensor of the file."""

    name: str
    """As the file calls it."""
    shape: tuple[int, ...]
    """Numbers per axis, outermost first (the file stores them innermost first)."""
    kind: GGMLQuantizationType
    """How its numbers are packed."""
    start: int
    """First byte, from the start of the file."""
    size: int
    """Bytes."""

    @property
    def stored_dtype(self) -> str:
        """The safetensors dtype that holds every value exactly: F16 and BF16 as they are, all else as F32."""
        return self.kind.name if self.kind in _UNQUANTISED else "F32"


class GGUFFile:
    """Metadata and tensors of an open file; made by `open_gguf`."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self._data = data
        self._at = 0
        try:
            self.metadata, self.tensors = self._header()
        except (struct.error, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{path}: the header is cut off or damaged at byte {self._at}; fetch it again"
            ) from error

    def read(self, tensor: GGUFTensor) -> NDArray[Any]:
        """The tensor's exact values in `stored_dtype`; BF16 comes as its uint16 bit patterns."""
        raw = np.frombuffer(self._data, dtype=np.uint8, count=tensor.size, offset=tensor.start)
        if tensor.kind in _UNQUANTISED:
            plain: NDArray[Any] = raw.view(_UNQUANTISED[tensor.kind])
            return plain.reshape(tensor.shape)
        try:
            values: NDArray[Any] = dequantize(raw, tensor.kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {tensor.name!r} is packed as {tensor.kind.name}, which the gguf package cannot "
                "unpack; take a Q8_0, Q4_0, Q4_1, Q4_K or Q6_K file of the model"
            ) from error
        return values.reshape(tensor.shape)

    def _header(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
        if self._data[:4] != b"GGUF":
            raise CheckpointError(f"{self.path}: not a GGUF file (it does not begin with GGUF)")
        self._at = 4
        version, n_tensors, n_keys = self._scalar("I"), self._scalar("Q"), self._scalar("Q")
        if version not in {2, 3}:
            raise CheckpointError(f"{self.path}: GGUF version {version} is not supported; this package reads 2 and 3")
        metadata = {self._string(): self._value(self._scalar("I")) for _ in range(n_keys)}
        rows = [self._tensor_row() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        base = -(-self._at // alignment) * alignment
        return metadata, {row[0]: self._tensor(*row, base=base) for row in rows}

    def _tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_axes = self._string(), self._scalar("I")
        if n_axes > _MOST_DIMENSIONS:
            raise CheckpointError(f"{self.path}: tensor {name!r} claims {n_axes} axes; the file is damaged")
        axes = tuple(self._scalar("Q") for _ in range(n_axes))
        return name, axes[::-1], self._scalar("I"), self._scalar("Q")

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int, *, base: int) -> GGUFTensor:
        try:
            packing = GGMLQuantizationType(kind)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: tensor {name!r} has unknown packing {kind}") from error
        block, block_bytes = GGML_QUANT_SIZES[packing]
        if not shape or shape[-1] % block:
            raise CheckpointError(f"{self.path}: tensor {name!r} of shape {shape} does not fill {packing.name} blocks")
        tensor = GGUFTensor(
            name=name, shape=shape, kind=packing, start=base + offset, size=prod(shape) // block * block_bytes
        )
        if tensor.start + tensor.size > len(self._data):
            raise CheckpointError(
                f"{self.path}: truncated: tensor {name!r} ends at byte {tensor.start + tensor.size}, "
                f"the file at {len(self._data)}; fetch it again"
            )
        return tensor

    def _scalar(self, code: str) -> Any:  # noqa: ANN401 - as many types as codes
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        return self._bytes(self._scalar("Q")).decode("utf-8")

    def _bytes(self, length: int) -> bytes:
        if self._at + length > len(self._data):
            raise struct.error("past the end of the file")
        self._at += length
        return self._data[self._at - length : self._at]

    def _value(self, kind: int) -> Any:  # noqa: ANN401 - as many types as kinds
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise CheckpointError(f"{self.path}: unknown metadata type {kind} at byte {self._at}; the file is damaged")
        inner, count = self._scalar("I"), self._scalar("Q")
        if inner in _SCALARS:
            code = np.dtype("<" + _SCALARS[inner])
            return np.frombuffer(self._bytes(count * code.itemsize), dtype=code).tolist()
        if self._at + 8 * count > len(self._data):  # every string or array takes at least 8 bytes
            raise struct.error("past the end of the file")
        return [self._value(inner) for _ in range(count)]


@contextmanager
def open_gguf(path: Path) -> Iterator[GGUFFile]:
    """Map a GGUF file and read its header; tensors are read while the block lasts.

    Raises:
        CheckpointError: not GGUF, damaged, or cut off; names file and tensor.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise CheckpointError(f"{path}: the file is empty; fetch it again")
        # Not closed by hand: arrays read from the mapping may outlive the block and would make closing fail.
        yield GGUFFile(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
