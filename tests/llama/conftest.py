"""What the tests of the Llama family share: the packaged model, prepared once, Llama 3's tokenizer file, and a cache.

Letters: T tokens of the step, N query heads, K key/value heads, H head size, S cached tokens.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from services.llama.checkpoint import find_packaged, prepare
from services.llama.tokenizer import TiktokenTokenizer

os.environ["HF_HUB_OFFLINE"] = "1"  # or transformers waits for the network


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    try:
        return find_packaged("smollm2-135m")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(smollm2_gguf, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def llama3_tokenizer_file() -> Path:
    spec = importlib.util.find_spec("llama_models")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llama-models==0.3.0")
    return Path(spec.origin).parent / "llama3" / "tokenizer.model"


@pytest.fixture(scope="session")
def llama3_tokenizer(llama3_tokenizer_file: Path) -> TiktokenTokenizer:
    return TiktokenTokenizer(llama3_tokenizer_file)


class CachedAttention:
    """Many requests, each with its own keys and values; rows come flattened, any number of each request's."""

    def __init__(self) -> None:
        self.cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.rows: list[tuple[int, int]] = []  # request and number of its rows in this step

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        out, start = [], 0
        for request, count in self.rows:
            step = slice(start, start + count)
            k_SKH, v_SKH = k_TKH[step], v_TKH[step]
            if (layer, request) in self.cache:
                k_old, v_old = self.cache[layer, request]
                k_SKH, v_SKH = torch.cat([k_old, k_SKH]), torch.cat([v_old, v_SKH])
            self.cache[layer, request] = k_SKH, v_SKH
            seen = torch.ones(count, len(k_SKH), dtype=torch.bool).tril(len(k_SKH) - count)
            q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH[step], k_SKH, v_SKH))
            out.append(scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1))
            start += count
        return torch.cat(out)


@pytest.fixture(scope="session")
def cached_attention() -> type[CachedAttention]:
    return CachedAttention
