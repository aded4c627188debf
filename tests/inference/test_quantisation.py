"""Quantised models as clients see them, and with adapters and ranks."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llamastack import v1
from services.inference.engine.request import EngineLimits, Request
from services.llama.checkpoint import load_model
from services.llama.config import PRESETS, Quantisation
from stack_client.content import text_of
from stack_client.errors import InvalidArgumentError
from tests.inference.adapters import random_adapter
from tests.inference.conftest import SMOL, Node
from tests.inference.engines import torch_engine
from tests.inference.test_engine import run, tokens
from tests.inference.test_parallel import parallel_engine, saved


async def test_a_models_metadata_chooses_its_format(real: Node) -> None:
    for quantisation in ("int8", "int4"):
        await real.client.models.register(
            quantisation,
            provider_id="torch",
            provider_model_id=SMOL["provider_model_id"],
            metadata={"quantisation": quantisation},
        )
        model = await real.client.models.wait_ready(quantisation)
        assert model.metadata["quantisation"] == quantisation
    assert (await real.client.models.get(SMOL["model_id"])).metadata["quantisation"] == "none"
    question = "What is the capital of France?"
    answers = await asyncio.gather(
        *(real.client.inference.chat(name, question, max_tokens=12) for name in ("int8", "int4"))
    )
    for name, answer in zip(("int8", "int4"), answers, strict=True):
        assert "Paris" in text_of(answer.completion_message.content)
        await real.client.models.unregister(name)


@pytest.mark.parametrize(
    ("metadata", "options", "message"),
    [
        ({"quantisation": "int3"}, {}, "'int3' is none of none, int8, int4, fp8"),
        ({"quantisation": 8}, {}, "is none of none, int8, int4, fp8"),
        ({"quantisation": "fp8"}, {}, "fp8 needs a GPU"),
        ({"quantisation": "int8"}, {"model_type": v1.MODEL_TYPE_EMBEDDING}, "only text models are quantised"),
    ],
)
async def test_a_format_that_cannot_be_is_refused(
    real: Node, metadata: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    await real.client.models.register(
        "refused", provider_id="torch", provider_model_id=SMOL["provider_model_id"], metadata=metadata, **options
    )
    with pytest.raises(InvalidArgumentError, match=message):
        await real.client.models.wait_ready("refused")
    await real.client.models.unregister("refused")


@pytest.mark.parametrize("quantisation", ["int8", "int4"])
def test_two_processes_quantise_their_shards_to_the_whole_models_codes(
    tmp_path: Path, quantisation: Quantisation
) -> None:
    config = replace(PRESETS["tiny"], head_dim=32)  # so that half of the heads is a whole group
    saved(tmp_path / "m", config)
    whole = torch_engine(
        load_model(tmp_path / "m", dtype=torch.float32, quantisation=quantisation), limits=EngineLimits()
    )
    adapter = random_adapter(config, seed=1)
    answers = []
    limits = EngineLimits(cached_tokens=256)
    with parallel_engine(tmp_path / "m", count=2, limits=limits, quantisation=quantisation) as engine:
        for each in (whole, engine):
            each.load_adapter("lora", adapter)
            requests = [
                Request(request_id=name or "base", prompt_ids=tuple(range(20)), max_tokens=8, adapter=name)
                for name in ("", "lora")
            ]
            answers.append({name: tokens(emissions) for name, emissions in run(each, *requests).items()})
    assert answers[0] == answers[1]
    assert answers[0]["base"] != answers[0]["lora"]
