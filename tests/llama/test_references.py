"""Logits against two implementations that share no code with ours: transformers, and Meta's own in llama-models."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.llama.chat_format import ChatMessage
from services.llama.checkpoint import load_model, load_text
from services.llama.config import PRESETS, LlamaConfig
from services.llama.config_readers import hf_config
from services.llama.model import CausalAttention

pytestmark = pytest.mark.reference
TINY = PRESETS["tiny"]
TOLERANCE = 1e-4


def _ids(count: int, vocab_size: int = TINY.vocab_size) -> Tensor:
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(count))


def _ours(folder: Path, ids: Tensor) -> Tensor:
    model = load_model(folder, dtype=torch.float32)
    logits: Tensor = model(ids, positions_T=torch.arange(len(ids)), attend=CausalAttention())
    return logits


def _transformers(config: LlamaConfig, *, seed: int = 0) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_config(config)))
    with torch.no_grad():  # the library starts every norm at 1, which would hide a norm that is never applied
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0, 0.1)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "change",
    [{}, {"tied_head": True}, {"n_kv_heads": 4}, {"head_dim": 32}, {"rope_scaling": None}],
    ids=["grouped", "tied", "all kv heads", "wide heads", "unscaled"],
)
@pytest.mark.parametrize("shard", ["5GB", "200KB"], ids=["one file", "sharded"])
def test_logits_equal_transformers(change: dict[str, Any], shard: str, tmp_path: Path) -> None:
    reference = _transformers(replace(TINY, **change))
    reference.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "200KB")
    ids = _ids(64)
    expected = reference(ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(_ours(tmp_path, ids), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_logits_equal_transformers_beyond_8k_positions(factor: float, tmp_path: Path) -> None:
    assert TINY.rope_scaling
    reference = _transformers(replace(TINY, rope_scaling=replace(TINY.rope_scaling, factor=factor)))
    reference.save_pretrained(tmp_path)
    ids = _ids(9000)
    expected = reference(ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(_ours(tmp_path, ids), expected, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def _one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    pytest.importorskip("llama_models", reason="pip install --no-deps llama-models==0.3.0 fairscale")
    initialize = pytest.importorskip("fairscale.nn.model_parallel.initialize")
    store = tmp_path_factory.mktemp("store") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    initialize.initialize_model_parallel(1)
    yield
    initialize.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def _meta(folder: Path, *, scaled: bool, length: int) -> Any:
    """A random reference model of the tiny shape, saved the way Meta publishes them."""
    from llama_models.llama3.args import ModelArgs  # noqa: PLC0415 - an optional package
    from llama_models.llama3.model import Transformer  # noqa: PLC0415

    params = {
        "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512, "multiple_of": 32,
        "ffn_dim_multiplier": 0.7, "norm_eps": 1e-5, "rope_theta": 500_000.0, "use_scaled_rope": scaled,
    }  # fmt: skip
    model = Transformer(ModelArgs(**params, max_batch_size=1, max_seq_len=length))
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=source)
            else:
                parameter.normal_(0, 0.1, generator=source)
    (folder / "params.json").write_text(json.dumps(params | {"rope_scaling_factor": 8.0}))
    return model.eval().requires_grad_(False)


def _meta_logits(model: Any, ids: Tensor, *, chunk: int = 512) -> Tensor:
    starts = range(0, len(ids), chunk)
    return torch.cat([model.forward(ids[None, start : start + chunk], start)[0] for start in starts])


@pytest.mark.parametrize(("scaled", "length"), [(True, 200), (False, 200), (True, 9000)])
@pytest.mark.usefixtures("_one_process")
def test_logits_equal_meta_s_reference(scaled: bool, length: int, tmp_path: Path) -> None:
    reference, ids = _meta(tmp_path, scaled=scaled, length=length + 8), _ids(length)
    torch.save(reference.state_dict(), tmp_path / "consolidated.00.pth")
    torch.testing.assert_close(_ours(tmp_path, ids), _meta_logits(reference, ids), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("n_shards", [2, 4])
@pytest.mark.parametrize("embedding_axis", [0, 1])
@pytest.mark.usefixtures("_one_process")
def test_model_parallel_files_of_meta_are_merged(n_shards: int, embedding_axis: int, tmp_path: Path) -> None:
    reference, ids = _meta(tmp_path, scaled=True, length=80), _ids(64)
    axes = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1}
    axes["tok_embeddings"] = embedding_axis
    shards: list[dict[str, Tensor]] = [{"rope.freqs": torch.zeros(8)} for _ in range(n_shards)]
    for name, tensor in reference.state_dict().items():
        axis = axes.get(name.split(".")[-2])
        parts = [tensor] * n_shards if axis is None else tensor.chunk(n_shards, dim=axis)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.clone()
    for number, shard in enumerate(shards):
        torch.save(shard, tmp_path / f"consolidated.{number:02d}.pth")
    torch.testing.assert_close(_ours(tmp_path, ids), _meta_logits(reference, ids), atol=TOLERANCE, rtol=0)


PROMPTS = [
    "What is the capital of France?",
    "Write a short poem about rain.",
    "Explain gravity to a child.",
    "List three uses of a paper clip.",
    "def fibonacci(n):",
    "Translate to French: good morning, my friend.",
    "Why is the sky blue?",
    "2 + 2 * 3 = ?",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet? 🎭",
]


def test_smollm2_writes_what_transformers_writes_on_the_same_weights(
    smollm2: Path, cached_attention: Callable[[], Any]
) -> None:
    """64 greedy tokens of ten prompts, batched; transformers must choose the same token after every prefix."""
    transformers = pytest.importorskip("transformers")
    text, model = load_text(smollm2), load_model(smollm2, dtype=torch.float32)
    texts = [text.chat_format.render([ChatMessage(role="user", content=prompt)]) for prompt in PROMPTS]
    starts, attend = [len(ids) for ids in texts], cached_attention()
    fresh = texts
    for _ in range(64):
        attend.rows = [(number, len(ids)) for number, ids in enumerate(fresh)]
        done = [len(whole) - len(ids) for whole, ids in zip(texts, fresh, strict=True)]
        positions = [start + i for start, ids in zip(done, fresh, strict=True) for i in range(len(ids))]
        logits = model(
            torch.tensor([token for ids in fresh for token in ids]),
            positions_T=torch.tensor(positions),
            attend=attend,
            rows_R=torch.tensor([len(ids) for ids in fresh]).cumsum(0) - 1,
        )
        fresh = [[int(row.argmax())] for row in logits]
        texts = [whole + ids for whole, ids in zip(texts, fresh, strict=True)]
    reference = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    for whole, start in zip(texts, starts, strict=True):
        with torch.no_grad():
            chosen = reference(torch.tensor([whole]), use_cache=False).logits[0].argmax(dim=-1).tolist()
        assert chosen[start - 1 : -1] == whole[start:]
    assert "Paris" in text.tokenizer.decode(texts[0][starts[0] :])


def test_smollm2_prompt_ids_equal_transformers_apply_chat_template(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference, text = transformers.AutoTokenizer.from_pretrained(smollm2), load_text(smollm2)
    for system in ("", "Be brief."):
        for prompt in PROMPTS:
            messages = [{"role": "system", "content": system}] if system else []
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": "a <b> [c] 1234"}]
            messages += [{"role": "user", "content": f"  {prompt}\n\n{prompt}"}]
            expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert text.chat_format.render([ChatMessage(**message) for message in messages]) == expected  # type: ignore[arg-type]
