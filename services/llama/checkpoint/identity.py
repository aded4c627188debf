"""What identifies a model's weights, so that an adapter is never put on another base. Torch-free."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.llama.checkpoint.convert import content_hash

_CONVERTED = re.compile(r"([0-9a-f]{32})-v\d+")
_WEIGHT_FILES = ("*.safetensors", "consolidated.*.pth")
_READERS = 4  # hashing is as fast as one core is, and large models have many files


def weights_hash(prepared: Path, *, cache_dir: Path) -> str:
    """The identity of the weights in a prepared folder: equal files, equal identity.

    It is made of the files' bytes, not of the numbers in them: a model that was saved again, sharded otherwise or in
    another dtype, is another base. `gguf:` and half a SHA-256 of the GGUF file for what was converted from one, else
    `sha256:` of the names and hashes of all weight files. Hashes of files are remembered under `cache_dir`, by path,
    size and modification time.
    """
    converted = _CONVERTED.fullmatch(prepared.name)
    if converted and prepared.parent == cache_dir:
        return f"gguf:{converted[1]}"
    files = sorted(file for pattern in _WEIGHT_FILES for file in prepared.glob(pattern))
    with ThreadPoolExecutor(_READERS) as pool:
        hashes = list(pool.map(lambda file: content_hash(file, cache_dir=cache_dir), files))
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, hashes, strict=True))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
