"""Tensor parallel: several processes give the tokens of one, each with its part of the weights only."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from services.inference.engine.engine import Engine
from services.inference.engine.parallel import TensorParallelRunner
from services.inference.engine.request import EngineLimits, Request
from services.llama.checkpoint import load_model
from services.llama.checkpoint.layout import tensor_specs
from services.llama.checkpoint.shard import Shard
from services.llama.config import PRESETS, LlamaConfig, Quantisation
from services.llama.config_readers import hf_config
from services.llama.errors import ConfigError
from services.llama.model import Llama
from stack_client.errors import StackError
from tests.inference.adapters import random_adapter
from tests.inference.conftest import SMOL, Node, running_node
from tests.inference.engines import torch_engine
from tests.inference.test_engine import run, tokens

TINY = PRESETS["tiny"]


def saved(folder: Path, config: LlamaConfig) -> Llama:
    """Write a seeded model as a checkpoint; returns it."""
    model = Llama.seeded(config, seed=1)
    state = model.state_dict()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    save_file({spec.hf: state[spec.ours].clone() for spec in tensor_specs(config)}, folder / "model.safetensors")
    return model


@contextmanager
def parallel_engine(
    folder: Path, *, count: int, limits: EngineLimits, quantisation: Quantisation = "none"
) -> Iterator[Engine]:
    runner = TensorParallelRunner(
        folder, count=count, dtype="float32", device="cpu", threads=2, quantisation=quantisation
    )
    runner.load()
    try:
        runner.allocate(blocks=limits.blocks, block_size=limits.block_size)
        yield Engine(runner, limits=limits)
    finally:
        runner.close()


@pytest.mark.parametrize("changes", [{}, {"tied_head": True, "vocab_size": 511}])
def test_two_processes_give_the_tokens_of_one_with_and_without_adapters(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = LlamaConfig.from_json(json.dumps(json.loads(TINY.to_json()) | changes))
    whole = torch_engine(saved(tmp_path / "m", config), limits=EngineLimits())
    limits = EngineLimits(cached_tokens=1024, step_tokens=32)
    with parallel_engine(tmp_path / "m", count=2, limits=limits) as engine:
        adapter = random_adapter(config, seed=1)
        answers = []
        for each in (whole, engine):
            each.load_adapter("lora", adapter)
            requests = [
                Request(request_id=f"{i}", prompt_ids=tuple(range(i, 50)), max_tokens=12, adapter=name)
                for i, name in enumerate(("", "lora", "", "lora"))
            ]
            answers.append({name: tokens(emissions) for name, emissions in run(each, *requests).items()})
            each.unload_adapter("lora")
            assert tokens(run(each, Request(request_id="x", prompt_ids=(1,), max_tokens=3))["x"])
        assert answers[0] == answers[1]
        assert answers[0]["0"] != answers[0]["1"]


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the largest tensor that any operation made, views apart."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage().data_ptr() for x in (*args, *(kwargs or {}).values()) if torch.is_tensor(x)}
        if torch.is_tensor(out) and out.device.type != "meta" and out.untyped_storage().data_ptr() not in inputs:
            self.largest = max(self.largest, out.numel())
        return out


def meta_folder(folder: Path, model: Llama, *, files: int) -> Path:
    """The model as Meta's consolidated files; query and key rows are taken as they are."""
    config = model.config
    folder.mkdir()
    params = {
        "dim": config.dim, "n_layers": config.n_layers, "n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size, "norm_eps": config.norm_eps, "rope_theta": config.rope_theta,
        "multiple_of": config.ffn_dim, "ffn_dim_multiplier": 0.5, "use_scaled_rope": True, "max_seq_len": 8192,
    }  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params))
    state = model.state_dict()
    for number in range(files):
        part = {}
        for spec in tensor_specs(config):
            span = Shard(rank=number, count=files).span(spec)
            part[spec.meta] = state[spec.ours].narrow(span.axis, span.start, span.stop - span.start).clone()
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "one file of Meta's", "four files of Meta's"])
def test_a_rank_reads_only_its_shard(tmp_path: Path, kind: str) -> None:
    config = LlamaConfig.from_json(json.dumps(json.loads(TINY.to_json()) | {"n_kv_heads": 4}))
    model = saved(tmp_path / "hf", config)
    folder = tmp_path / "hf"
    if kind != "safetensors":
        folder = meta_folder(tmp_path / "meta", model, files=1 if kind.startswith("one") else 4)
    whole = load_model(folder, dtype=torch.bfloat16)
    bytes_whole = sum(parameter.nbytes for parameter in whole.parameters())
    for rank in range(2):
        shard = Shard(rank=rank, count=2)
        with Allocations() as allocations:
            part = load_model(folder, dtype=torch.bfloat16, shard=shard)
        assert allocations.largest <= config.vocab_size * config.dim // 2
        held = sum(parameter.untyped_storage().nbytes() for parameter in part.parameters())
        assert bytes_whole / 2 < held < bytes_whole * 0.51
        for spec in tensor_specs(whole.config):
            span = shard.span(spec)
            expected = whole.state_dict()[spec.ours].narrow(span.axis, span.start, span.stop - span.start)
            assert torch.equal(part.state_dict()[spec.ours], expected), spec.ours


def test_a_model_that_cannot_be_divided_is_refused_with_what_can(tmp_path: Path) -> None:
    saved(tmp_path / "m", TINY)
    runner = TensorParallelRunner(tmp_path / "m", count=3, dtype="float32", device="cpu", threads=1)
    with pytest.raises(
        ConfigError, match="tensor_parallel 3 does not divide the model's n_kv_heads 2; possible are 1, 2"
    ):
        runner.load()


@pytest.mark.slow
async def test_three_processes_serve_the_real_model_and_come_back_when_one_dies(real: Node, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(real.torch._cache_dir / "models")
    settings = {"dtype": "float32", "cached_tokens": 1024, "tensor_parallel": 3}
    question = "What is the capital of France, and what is it known for?"
    expected = await real.client.inference.chat(SMOL["model_id"], question, max_tokens=24)
    async with running_node(tmp_path, [SMOL], torch=settings) as node, asyncio.timeout(120):
        answer = await node.client.inference.chat(SMOL["model_id"], question, max_tokens=24)
        assert answer.completion_message == expected.completion_message
        engine = psutil.Process(node.torch.engine.pid)
        ranks = [child for child in engine.children() if "engine.ranks" in " ".join(child.cmdline())]
        assert len(ranks) == 2
        os.kill(ranks[0].pid, signal.SIGKILL)
        while node.torch.engine.pid == engine.pid:
            await asyncio.sleep(0.05)
        while True:
            try:
                answer = await node.client.inference.chat(SMOL["model_id"], question, max_tokens=24)
                break
            except StackError as error:
                assert error.reason in {"ENGINE_DIED", "NOT_READY"}  # noqa: PT017
                await asyncio.sleep(0.1)
        assert answer.completion_message == expected.completion_message
        ranks += psutil.Process(node.torch.engine.pid).children()
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive
