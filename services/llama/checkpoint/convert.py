"""Convert a GGUF file, once, into a folder that every loader reads: Hugging Face names, exact values.

Values are kept exactly: F16 and BF16 tensors as they are, packed ones as the fp32 numbers that their blocks stand for
(a Q4_1 value is an fp16 scale times a 4-bit number plus an fp16 offset, which no 16-bit format holds). Rounding to
another dtype is the loader's choice. The price is disk: 540 MB for SmolLM2-135M.

Safe against kills and races: a folder is built under `NAME.partial` while holding a lock on `NAME.lock`, and renamed
to `NAME` when complete. The kernel drops the lock of a killed process, so whoever holds it may delete the remains.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from services.llama.checkpoint.gguf_file import GGUFFile, GGUFTensor, open_gguf
from services.llama.checkpoint.gguf_tokenizer import tokenizer_json
from services.llama.checkpoint.layout import TensorSpec, check_tensors, half_split, tensor_specs
from services.llama.config import LlamaConfig
from services.llama.config_readers import config_from_gguf, hf_config

VERSION = 1
"""Part of the folder's name: raise it when conversion writes something else than before."""
_ITEM_SIZE = {"F32": 4, "F16": 2, "BF16": 2}
_PIECE = 1 << 22  # bytes hashed at a time


def convert_gguf(path: Path, *, cache_dir: Path) -> Path:
    """The folder under `cache_dir` that holds the converted file, made if it is not there yet.

    Raises:
        CheckpointError, ConfigError, TokenizerError: the file cannot be used; nothing is left behind.
        OSError: the cache cannot be written.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    target = cache_dir / f"{content_hash(path, cache_dir=cache_dir)[:32]}-v{VERSION}"
    if target.is_dir():
        return target
    with _lock(target):
        if not target.is_dir():  # another process may have made it while this one waited
            _sweep(cache_dir)
            partial = _partial(target)
            try:
                _write_folder(path, partial)
                _sync(partial)
                partial.rename(target)
                _sync(cache_dir)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


@contextmanager
def _lock(target: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock that goes with `target`; yields whether it was got, which may be False only without `wait`."""
    with target.with_name(target.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _sweep(cache_dir: Path) -> None:
    """Delete what killed conversions of any file left; those still running hold their lock and are passed over."""
    for partial in cache_dir.glob("*.partial"):
        target = partial.with_suffix("")
        with _lock(target, wait=False) as held:
            if held:
                shutil.rmtree(partial, ignore_errors=True)


def content_hash(path: Path, *, cache_dir: Path) -> str:
    """SHA-256 of the file; remembered by path, size and modification time, so that warm starts read nothing."""
    state = path.stat()
    key = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    note = cache_dir / "hashes" / hashlib.sha256(key.encode()).hexdigest()[:32]
    with suppress(FileNotFoundError):
        if len(known := note.read_text()) == hashlib.sha256().digest_size * 2:
            return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    note.parent.mkdir(parents=True, exist_ok=True)
    fresh = note.with_name(f"{note.name}.{os.getpid()}")
    fresh.write_text(digest.hexdigest())
    fresh.replace(note)
    return digest.hexdigest()


def _write_folder(path: Path, folder: Path) -> None:
    """Read and check everything small before the first byte of weights is written."""
    with open_gguf(path) as gguf:
        config = _config(gguf)
        specs = tensor_specs(config)
        stored = {name: tensor for name, tensor in gguf.tensors.items() if name != "rope_freqs.weight"}
        check_tensors(
            {name: tensor.shape for name, tensor in stored.items()},
            expected={spec.gguf: spec.shape for spec in specs},
            files=dict.fromkeys(stored, path),
            at=path,
        )
        texts = _texts(gguf.metadata, config=config, source=path.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
            _sync(folder / name)
        _write_weights(gguf, folder / "model.safetensors", specs=specs)


def _config(gguf: GGUFFile) -> LlamaConfig:
    factors, table = gguf.tensors.get("rope_freqs.weight"), gguf.tensors.get("token_embd.weight")
    return config_from_gguf(
        gguf.metadata,
        source=str(gguf.path),
        # Without a table the check of the tensors reports it; any positive size will do until then.
        vocab_size=table.shape[0] if table else gguf.metadata.get("llama.vocab_size", 1),
        tied_head="output.weight" not in gguf.tensors,
        rope_factors=None if factors is None else gguf.read(factors).astype(np.float32).tolist(),
    )


def _texts(metadata: Mapping[str, Any], *, config: LlamaConfig, source: str) -> dict[str, str]:
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    tokenizer = tokenizer_json(metadata, source=source)
    names = {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
    template = metadata.get("tokenizer.chat_template")
    texts = {
        "config.json": json.dumps(hf_config(config, bos_id=ids["bos"], eos_id=ids["eos"]), indent=2),
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}, indent=2),
    }
    return texts if template is None else texts | {"chat_template.jinja": template}


def _write_weights(gguf: GGUFFile, path: Path, *, specs: list[TensorSpec]) -> None:
    """Stream the tensors into one safetensors file, one at a time in memory."""
    sources = [(spec, gguf.tensors[spec.gguf]) for spec in specs]
    sources.sort(key=lambda pair: -_ITEM_SIZE[pair[1].stored_dtype])  # wide numbers first keeps all of them aligned
    with path.open("wb") as file:
        file.write(_safetensors_header(sources))
        for spec, tensor in sources:
            values = gguf.read(tensor)
            if spec.rotary_heads:
                values = half_split(values, heads=spec.rotary_heads)
            file.write(np.ascontiguousarray(values).data)
        file.flush()
        os.fsync(file.fileno())


def _safetensors_header(sources: list[tuple[TensorSpec, GGUFTensor]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec, tensor in sources:
        start, end = end, end + int(np.prod(spec.shape)) * _ITEM_SIZE[tensor.stored_dtype]
        header[spec.hf] = {"dtype": tensor.stored_dtype, "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _sync(path: Path) -> None:
    """Make a file or a folder's entries survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
