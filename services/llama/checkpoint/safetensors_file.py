"""Find and check the tensors of a safetensors checkpoint, one file or sharded, before any of them is read. Torch-free.

Format: github.com/huggingface/safetensors, README. Headers are read here rather than by the library so that a
truncated file is reported with the tensor it lost.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.llama.errors import CheckpointError

_LOADABLE = {"F32", "F16", "BF16"}
_MAX_HEADER = 100_000_000  # bytes; the library's own limit


@dataclass(frozen=True, kw_only=True)
class StoredTensors:
    """Where a checkpoint keeps its tensors."""

    shapes: dict[str, tuple[int, ...]]
    """Name to shape."""
    files: dict[str, Path]
    """Name to the file that holds it."""


def stored_tensors(folder: Path) -> StoredTensors:
    """List the tensors of a folder with `model.safetensors` or `model.safetensors.index.json`.

    Raises:
        CheckpointError: a file is missing, truncated or unreadable, a tensor is not where the index says, or it holds
            numbers of a kind the model is not computed in.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return _merge([folder / "model.safetensors"])
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: not a safetensors index (no weight_map); fetch it again") from error
    for name, shard in weight_map.items():
        if Path(shard).name != shard or not (folder / shard).exists():
            raise CheckpointError(f"{folder / shard}: this shard is missing; {index} keeps tensor {name!r} in it")
    found = _merge([folder / shard for shard in sorted(set(weight_map.values()))])
    for name, shard in weight_map.items():
        if found.files.get(name) != folder / shard:
            raise CheckpointError(f"{folder / shard}: tensor {name!r} is missing, though {index} says it is there")
    return found


def _merge(paths: list[Path]) -> StoredTensors:
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, Path] = {}
    for path in paths:
        for name, shape in _read_header(path).items():
            if name in files:
                raise CheckpointError(f"{path}: tensor {name!r} is in {files[name]} too; remove one of the two files")
            shapes[name], files[name] = shape, path
    return StoredTensors(shapes=shapes, files=files)


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= min(size - 8, _MAX_HEADER) else b""
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        rows = [(name, row["dtype"], tuple(row["shape"]), int(row["data_offsets"][1])) for name, row in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its safetensors header is cut off or damaged; fetch it again") from error
    for name, dtype, _, end in sorted(rows, key=lambda row: row[3]):
        if 8 + length + end > size:
            raise CheckpointError(
                f"{path}: truncated: tensor {name!r} ends at byte {8 + length + end}, "
                f"the file at {size}; fetch it again"
            )
        if dtype not in _LOADABLE:
            raise CheckpointError(f"{path}: tensor {name!r} is {dtype}; this package loads {sorted(_LOADABLE)}")
    return {name: shape for name, _, shape, _ in rows}
