"""Fill a `Llama` from a checkpoint folder: safetensors, or Meta's consolidated files.

The only module of this package that imports torch.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import safe_open
from torch import Tensor

from services.llama.checkpoint.layout import TensorSpec, check_tensors, half_split, head_spec, tensor_specs
from services.llama.checkpoint.safetensors_file import stored_tensors
from services.llama.checkpoint.shard import WHOLE, Shard, Span
from services.llama.config import LlamaConfig, Quantisation
from services.llama.errors import CheckpointError
from services.llama.model import Llama
from services.llama.quant import packed_linears

# Tables that some writers store though the configuration implies them; ours are computed in fp32.
_DERIVED = re.compile(r"rope\.freqs|(model\.layers\.\d+\.self_attn\.)?(model\.)?rotary_emb\.inv_freq")
_LOADABLE = {torch.float32, torch.float16, torch.bfloat16}


def fill_model(
    folder: Path,
    *,
    config: LlamaConfig,
    dtype: torch.dtype | None,
    device: str | torch.device,
    shard: Shard = WHOLE,
    quantisation: Quantisation = "none",
) -> Llama:
    """A model of shape `config` with the weights in `folder`, in `dtype` on `device`, ready to run.

    Tensors already in `dtype` are used as they are mapped from the file, so that the same pages serve every process. Of
    a shard, no more than its own part of any tensor is ever copied into memory. Weights are quantised one by one, from
    the numbers in the file.

    Without `dtype` every tensor stays as it is stored.

    Raises:
        CheckpointError: names the tensor and the file at fault.
        ConfigError: the model cannot be divided among so many processes, or not be quantised like this.
    """
    with torch.device("meta"):
        model = Llama(shard.config(config))
        packed = packed_linears(model, quantisation)
    consolidated = sorted(folder.glob("consolidated.*.pth"))
    is_safetensors = any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json"))
    if not consolidated and not is_safetensors:
        raise CheckpointError(
            f"{folder}: no weights found; expected model.safetensors, model.safetensors.index.json with its shards, "
            "or consolidated.00.pth"
        )
    if is_safetensors:
        read = _read_safetensors(folder, config, shard)
    else:
        read = _read_consolidated(consolidated, config, shard)
    state: dict[str, Tensor] = {}
    for name, tensor in read:
        module = name.removesuffix(".weight")
        if module in packed:
            assert dtype is not None, "scales need a dtype"
            buffers = packed[module].pack(tensor.to(device), dtype=dtype)
            state.update({f"{module}.{buffer}": value for buffer, value in buffers.items()})
        else:
            state[name] = tensor.to(device=device, dtype=dtype).contiguous()
    model.load_state_dict(state, assign=True)
    model.reset_rope(device=device)
    return model.eval().requires_grad_(requires_grad=False)


def _read_safetensors(folder: Path, config: LlamaConfig, shard: Shard) -> Iterator[tuple[str, Tensor]]:
    stored, specs = stored_tensors(folder), tensor_specs(config)
    shapes = {name: shape for name, shape in stored.shapes.items() if not _DERIVED.fullmatch(name)}
    expected = {spec.hf: spec.shape for spec in specs}
    head, table = head_spec(config), specs[0]
    twin = config.tied_head and head.hf in shapes
    if twin:
        expected[head.hf] = head.shape
    check_tensors(shapes, expected=expected, files=stored.files, at=folder)
    opened = {path: safe_open(path, framework="pt") for path in set(stored.files.values())}

    def read(spec: TensorSpec) -> Tensor:
        # Slices of a mapped tensor are mapped too: nothing is read until it is used.
        tensor: Tensor = opened[stored.files[spec.hf]].get_tensor(spec.hf)  # type: ignore[no-untyped-call]
        return _part(tensor, shard.span(spec))

    if twin:
        _check_twin(head.hf, stored.files[head.hf], same=torch.equal(read(head), read(table)))
    for spec in specs:
        yield spec.ours, read(spec)


def _part(tensor: Tensor, span: Span) -> Tensor:
    return tensor.narrow(span.axis, span.start, span.stop - span.start)


def _check_twin(name: str, path: Path, *, same: bool) -> None:
    if not same:
        raise CheckpointError(
            f"{path}: tensor {name!r} differs from the embedding table, yet the configuration ties the two; "
            "set tie_word_embeddings to false if the model has a head of its own"
        )


def _read_consolidated(paths: list[Path], config: LlamaConfig, shard: Shard) -> Iterator[tuple[str, Tensor]]:
    """Merge Meta's model-parallel files, one tensor at a time, as far as they belong to the shard."""
    for number, path in enumerate(paths):
        if path.name != f"consolidated.{number:02d}.pth":
            raise CheckpointError(
                f"{path.with_name(f'consolidated.{number:02d}.pth')} is missing; {path.name} is there"
            )
    files = [_open_consolidated(path) for path in paths]
    specs = tensor_specs(config)
    head = head_spec(config)
    twin = config.tied_head and head.meta in files[0]
    wanted = [*specs, head] if twin else specs
    _check_files(files, paths, wanted)
    if twin:
        same = torch.equal(*(_join([file[spec.meta] for file in files], spec, shard) for spec in (head, specs[0])))
        _check_twin(head.meta, paths[0], same=same)
    for spec in specs:
        part = _join([file[spec.meta] for file in files], spec, shard)
        heads = spec.rotary_heads // shard.count
        yield spec.ours, half_split(part, heads=heads) if heads else part


def _open_consolidated(path: Path) -> dict[str, Tensor]:
    """Map one file. A cut-off file has lost its table of contents, which is at the end, so no tensor can be named."""
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: truncated or damaged, no tensor of it can be read ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: not a table of tensors; expected Meta's consolidated checkpoint")
    for name, tensor in state.items():
        if tensor.dtype not in _LOADABLE:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.dtype}; this package loads float32, 16 and bfloat16"
            )
    return {name: tensor for name, tensor in state.items() if not _DERIVED.fullmatch(name)}


def _check_files(files: list[dict[str, Tensor]], paths: list[Path], specs: list[TensorSpec]) -> None:
    for file, path in zip(files, paths, strict=True):
        shapes = {name: tuple(tensor.shape) for name, tensor in file.items()}
        expected = {spec.meta: _file_shape(spec, shapes.get(spec.meta), n_files=len(paths)) for spec in specs}
        check_tensors(shapes, expected=expected, files=dict.fromkeys(shapes, path), at=path)


def _file_shape(spec: TensorSpec, found: tuple[int, ...] | None, *, n_files: int) -> tuple[int, ...]:
    """What one of `n_files` files should hold of a tensor."""
    if spec.split == "copied":
        return spec.shape
    by_rows = (spec.shape[0] // n_files, spec.shape[1])
    by_columns = (spec.shape[0], spec.shape[1] // n_files)
    # Llama 3 divides the embedding by vocabulary, its predecessors by width: the shape tells which.
    columns = found == by_columns if spec.split == "either" else spec.split == "columns"
    return by_columns if columns else by_rows


def _join(parts: list[Tensor], spec: TensorSpec, shard: Shard) -> Tensor:
    """The shard's part of a tensor that Meta's files divide, along the same axis or the other one."""
    span = shard.span(spec)
    if len(parts) == 1 or spec.split == "copied":
        return _part(parts[0], span)
    axis = 0 if parts[0].shape[1] == spec.shape[1] else 1
    if axis != span.axis:
        return torch.cat([_part(part, span) for part in parts], dim=axis)
    size = parts[0].shape[axis]
    pieces = []
    for number, part in enumerate(parts):
        start, stop = (min(max(edge - number * size, 0), size) for edge in (span.start, span.stop))
        if start < stop:
            pieces.append(part.narrow(axis, start, stop - start))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=axis)
