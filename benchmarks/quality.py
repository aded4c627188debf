"""What a format or a runner costs in quality: KL divergence, agreement and perplexity against bf16, teacher-forced.

Everything is measured on the path of prompts and on the path of decoding, which may be different code.

Letters: T positions measured, B texts, V vocabulary.
"""

import pydoc_data.topics
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.measure import report
from services.inference.engine.native import library
from services.inference.engine.native.loading import open_packed
from services.inference.engine.native.pack import Format
from services.inference.engine.native.runner import NativeRunner
from services.inference.engine.runner import Part, Runner, TorchRunner
from services.llama.checkpoint import find_packaged, load_config, load_model, load_text, prepare
from services.llama.config import Quantisation
from services.llama.tokenizer import Tokenizer

TOKENS = 1024
CHUNK = 8
DECODED = 129  # the first row is the prompt's
BLOCK = 16
PATHS: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")
Reference = dict[Literal["prefill", "decode"], list[tuple[Tensor, Tensor]]]
"""What `teacher_forced` gave for the runner that others are compared with, by path."""
FORMATS: tuple[Quantisation, ...] = ("int8", "int4", "fp8")
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How far one runner is from another."""

    mean_kl: float
    """Mean KL divergence from the reference's distribution of the next token, in nats."""
    p99_kl: float
    """99th percentile of it over positions."""
    top1: float
    """Share of positions where both think the same token most likely."""
    perplexity: float
    """Relative change of the perplexity of the text."""


def texts(tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Three kinds of text, of `TOKENS` tokens each: our documents, our code, Python's language reference."""
    topics = pydoc_data.topics.topics
    kinds = {
        "documents": "".join((_ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "DECISIONS.md")),
        "code": (_ROOT / "services/llama/model.py").read_text(encoding="utf-8"),
        "reference": "".join(topics[name] for name in ("compound", "exceptions", "formatstrings")),
    }
    ids = {kind: tokenizer.encode(text)[:TOKENS] for kind, text in kinds.items()}
    assert all(len(tokens) == TOKENS for tokens in ids.values())
    return ids


def blocks_for(texts: Sequence[Sequence[int]]) -> int:
    """Blocks of `BLOCK` tokens that a runner needs to be measured on these texts."""
    return sum(-(-len(ids) // BLOCK) for ids in texts)


def teacher_forced(
    runner: Runner, texts: Sequence[Sequence[int]], *, path: Literal["prefill", "decode"]
) -> list[tuple[Tensor, Tensor]]:
    """For every text logits (T x V) and the tokens that follow (T); the texts, of one length, share every step.

    Prefill reads the texts in chunks of `CHUNK` rows and measures the last row of each; decode reads all but the last
    `DECODED` tokens as prompts, and measures those one by one.
    """
    length = len(texts[0])
    per_text = -(-length // BLOCK)
    ends = list(range(CHUNK, length, CHUNK)) if path == "prefill" else list(range(length - DECODED, length))
    rows: list[Tensor] = []
    for start, end in zip([0, *ends], ends, strict=False):
        parts = [
            Part(
                token_ids=ids[start:end],
                start=start,
                blocks=range(number * per_text, (number + 1) * per_text),
                logits=True,
            )
            for number, ids in enumerate(texts)
        ]
        rows.append(runner.forward(parts))
    skipped = 1 if path == "decode" else 0  # the first row came from the prompt
    logits_TBV = torch.stack(rows[skipped:])
    return [
        (logits_TBV[:, number], torch.tensor([ids[end] for end in ends[skipped:]])) for number, ids in enumerate(texts)
    ]


def compare(reference_TV: Tensor, other_TV: Tensor, following_T: Tensor) -> Quality:
    """How far the other's logits are from the reference's."""
    reference_TV, other_TV = reference_TV.log_softmax(-1), other_TV.log_softmax(-1)
    kl_T = (reference_TV.exp() * (reference_TV - other_TV)).sum(-1)
    loss = [-logits.gather(1, following_T[:, None]).mean() for logits in (reference_TV, other_TV)]
    return Quality(
        mean_kl=kl_T.mean().item(),
        p99_kl=kl_T.quantile(0.99).item(),
        top1=(reference_TV.argmax(-1) == other_TV.argmax(-1)).float().mean().item(),
        perplexity=((loss[1] - loss[0]).exp() - 1).item(),
    )


def report_quality(name: str, other: Runner, tokenizer: Tokenizer, reference: Reference) -> None:
    """Print the quality of a runner on every text and path."""
    kinds = texts(tokenizer)
    for path in PATHS:
        measured = teacher_forced(other, list(kinds.values()), path=path)
        for kind, (logits_TV, _), (reference_TV, following_T) in zip(kinds, measured, reference[path], strict=True):
            quality = compare(reference_TV, logits_TV, following_T)
            label = f"quality, {name}, {kind}, {path}"
            report(f"{label}: mean KL", quality.mean_kl, "nats", note=f"{len(following_T)} positions")
            report(f"{label}: 99th percentile KL", quality.p99_kl, "nats")
            report(f"{label}: top-1 agreement", quality.top1 * 100, "%")
            report(f"{label}: change of perplexity", quality.perplexity * 100, "%")


def reference_of(runner: Runner, tokenizer: Tokenizer) -> Reference:
    """Measure the runner that others are compared with."""
    return {path: teacher_forced(runner, list(texts(tokenizer).values()), path=path) for path in PATHS}


def bf16_copy(folder: Path, copy: Path) -> Path:
    """The same model with weights in bf16, as models are published, and its channels in another order.

    The weights come from blocks of 32 four-bit numbers with a grid for each: groups of 32 would find those grids again
    and lose nothing. In another order of residual, inner and value channels the model computes the same, and a group
    holds numbers of many grids, as it does in models that were never packed.
    """
    shutil.copytree(folder, copy)
    config = load_config(folder)
    source = torch.Generator().manual_seed(0)
    width_D, inner_I, head_H = (
        torch.randperm(n, generator=source) for n in (config.dim, config.ffn_dim, config.head_dim)
    )
    values_K, values_N = (
        (torch.arange(heads)[:, None] * config.head_dim + head_H).flatten()
        for heads in (config.n_kv_heads, config.n_heads)
    )
    everything = slice(None)
    rows = {"o_proj": width_D, "down_proj": width_D, "gate_proj": inner_I, "up_proj": inner_I, "v_proj": values_K}
    columns = {"o_proj": values_N, "down_proj": inner_I}
    weights = copy / "model.safetensors"
    shuffled = {}
    for name, tensor in load_file(folder / weights.name).items():
        kind = name.split(".")[-2]
        if tensor.dim() == 1:
            shuffled[name] = tensor[width_D].bfloat16()
        else:
            shuffled[name] = tensor[rows.get(kind, everything)][:, columns.get(kind, width_D)].bfloat16().contiguous()
    save_file(shuffled, weights)
    return copy


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        shipped = prepare(find_packaged("smollm2-135m"), cache_dir=Path(scratch))
        kernels(shipped, cache_dir=Path(scratch))
        folder = bf16_copy(shipped, Path(scratch) / "bf16")
        tokenizer = load_text(folder).tokenizer
        reference = reference_of(_bf16(folder, tokenizer), tokenizer)
        for quantisation in FORMATS:
            report_quality(
                f"plain {quantisation} against bf16", _bf16(folder, tokenizer, quantisation), tokenizer, reference
            )


def kernels(folder: Path, *, cache_dir: Path) -> None:
    """The compiled kernels on the model as it is shipped, in 4-bit blocks, against its bf16."""
    variant, reason = library.choose()
    if not variant:
        print(f"compiled kernels are not measured: {reason}")
        return
    tokenizer = load_text(folder).tokenizer
    reference = reference_of(_bf16(folder, tokenizer), tokenizer)
    forms: tuple[Format, ...] = ("int8", "int4")
    for form in forms:
        arrays = open_packed(folder, form=form, cache_dir=cache_dir, report=print)
        blocks = blocks_for(list(texts(tokenizer).values()))
        runner = NativeRunner(load_config(folder), arrays, variant=variant, threads=2, blocks=blocks, block_size=BLOCK)
        report_quality(f"kernels {form} against bf16", runner, tokenizer, reference)
        runner.close()


def _bf16(folder: Path, tokenizer: Tokenizer, quantisation: Quantisation = "none") -> TorchRunner:
    model = load_model(folder, dtype=torch.bfloat16, quantisation=quantisation)
    return TorchRunner(model, blocks=blocks_for(list(texts(tokenizer).values())), block_size=BLOCK)
