"""What /metrics says of requests and of the engine, scraped as Prometheus would."""

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llamastack import v1
from services.inference.engine.request import EngineLimits
from services.inference.engine_metrics import EngineMetrics
from services.llama.config import PRESETS
from services.llama.model import Llama
from stack_client.errors import StackError
from tests.inference.conftest import Node
from tests.inference.engines import torch_engine
from tests.inference.test_paging import ask

SMOL = "smollm2-135m"


class Scrape:
    """All samples of one scrape."""

    def __init__(self, node: Node) -> None:
        text = node.hosted.context.telemetry.text().decode()
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def labels(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self.samples if sample.name == name]


def of(model: str, operation: str = "chat") -> dict[str, str]:
    return {"gen_ai_request_model": model, "gen_ai_operation_name": operation}


async def test_every_token_and_request_of_any_provider_is_counted(scripted: Node) -> None:
    for _ in range(3):
        await scripted.client.inference.chat("scripted", "slow a b c d e")
    [event async for event in scripted.client.inference.stream_chat("scripted", "slow a b c", max_tokens=2)]
    await scripted.client.inference.complete("scripted", "slow a b")
    after = Scrape(scripted)
    labels: dict[str, str] = {**of("scripted"), "gen_ai_provider_name": "scripted"}
    assert after.value("inference_tokens_total", gen_ai_token_type="output", **labels) == 17
    assert after.value("inference_tokens_total", gen_ai_token_type="input", **labels) == 22
    assert after.value("inference_requests_total", outcome="stop", **labels) == 3
    assert after.value("inference_requests_total", outcome="length", **labels) == 1
    assert after.value("gen_ai_server_time_to_first_token_seconds_count", **labels) == 4
    assert after.value("gen_ai_server_time_per_output_token_seconds_count", **labels) == 4
    assert after.value("gen_ai_server_request_duration_seconds_count", **labels) == 4
    assert after.value("inference_inter_token_seconds_count", **labels) == 13
    assert after.value("inference_inter_token_seconds_bucket", le="+Inf", **labels) == 13
    assert after.value("inference_inter_token_seconds_sum", **labels) > 0
    assert after.value("inference_requests_total", **of("scripted", "text_completion")) == 1


async def test_a_tool_call_without_text_is_a_first_token_too(scripted: Node) -> None:
    script = [{"tool_calls": [{"tool_name": "f"}]}]
    await scripted.client.models.register("caller", provider_id="scripted", metadata={"script": script})
    await scripted.client.models.wait_ready("caller")
    await scripted.client.inference.chat("caller", "x", tools=[v1.ToolDefinition(tool_name="f")])
    after = Scrape(scripted)
    assert after.value("inference_requests_total", outcome="tool_calls", **of("caller")) == 1
    assert after.value("gen_ai_server_time_to_first_token_seconds_count", **of("caller")) == 1


async def test_failed_and_cancelled_requests_are_counted_by_what_ended_them(scripted: Node) -> None:
    with pytest.raises(StackError):
        await scripted.client.inference.chat("scripted", "break")
    stream = scripted.client.inference.stream_chat("scripted", "hang")
    async for event in stream:
        if event.WhichOneof("event") == "progress":
            break
    await stream.aclose()
    async with asyncio.timeout(10):
        while not Scrape(scripted).value("inference_requests_total", outcome="cancelled"):
            await asyncio.sleep(0)
    after = Scrape(scripted)
    failed = after.value("inference_requests_total", outcome="unavailable", **of("scripted"))
    assert failed >= 1  # the client tries again
    assert after.value("gen_ai_server_request_duration_seconds_count", **of("scripted")) == failed + 1


async def test_embedded_texts_and_their_tokens_are_counted(scripted: Node) -> None:
    await scripted.client.inference.embed("scripted-embed", ["one two", "three"])
    after = Scrape(scripted)
    assert after.value("inference_embedded_texts_total", **of("scripted-embed", "embeddings")) == 2
    assert after.value("inference_tokens_total", **of("scripted-embed", "embeddings")) == 3


async def test_the_series_of_a_model_go_with_it(scripted: Node) -> None:
    await scripted.client.models.register("passing", provider_id="scripted")
    await scripted.client.models.wait_ready("passing")
    await scripted.client.inference.chat("passing", "a b c")
    assert Scrape(scripted).value("inference_inter_token_seconds_count", **of("passing")) == 2
    await scripted.client.models.unregister("passing")
    assert not [s for s in Scrape(scripted).samples if s.labels.get("gen_ai_request_model") == "passing"]


async def test_the_engine_reports_queue_cache_and_rows(real: Node) -> None:
    before = Scrape(real)
    question = "Which of the colours of the rainbow is the warmest, and why do people call it so?"
    answers = [await real.client.inference.chat(SMOL, question, max_tokens=4) for _ in range(2)]
    after = Scrape(real)

    def grown(name: str, **labels: str) -> float:
        return after.value(name, gen_ai_request_model=SMOL, **labels) - before.value(
            name, gen_ai_request_model=SMOL, **labels
        )

    prompt = answers[0].usage.prompt_tokens
    assert answers[1].usage.cached_tokens > 0
    assert grown("inference_queue_seconds_count") == 2
    assert grown("inference_prefix_tokens_queried_total") == 2 * prompt
    assert grown("inference_prefix_tokens_hit_total") == sum(answer.usage.cached_tokens for answer in answers)
    assert grown("inference_tokens_total", gen_ai_token_type="cached") == grown("inference_prefix_tokens_hit_total")
    computed = 2 * prompt - grown("inference_prefix_tokens_hit_total") + 2 * 3
    assert grown("inference_rows_computed_total") == computed
    assert after.value("inference_requests_running", gen_ai_request_model=SMOL) == 0
    assert after.value("inference_kv_cache_tokens", gen_ai_request_model=SMOL) == 0
    assert after.value("inference_kv_cache_capacity_tokens", gen_ai_request_model=SMOL) > 1000


async def test_the_five_names_that_gateways_scrape_are_there_before_any_request(real: Node) -> None:
    scrape = Scrape(real)
    for name in ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
        assert scrape.labels(name) == [{"model_name": SMOL, "engine": "0"}]
    [cache] = scrape.labels("vllm:cache_config_info")
    assert cache["block_size"] == "16"
    assert int(cache["num_gpu_blocks"]) > 100
    [lora] = scrape.labels("vllm:lora_requests_info")
    assert lora == {"max_lora": "32", "running_lora_adapters": "", "waiting_lora_adapters": ""}


async def test_an_aborted_request_leaves_the_figures_at_once(real: Node) -> None:
    stream = real.client.inference.stream_chat(SMOL, "Tell me a very long story.", max_tokens=2000)
    async for event in stream:
        if event.WhichOneof("event") == "progress":
            break
    assert Scrape(real).value("vllm:num_requests_running") == 1
    assert Scrape(real).value("vllm:kv_cache_usage_perc") > 0
    await stream.aclose()
    async with asyncio.timeout(10):
        while Scrape(real).value("vllm:num_requests_running"):
            await asyncio.sleep(0)
    assert Scrape(real).value("vllm:kv_cache_usage_perc") == 0


def test_adapters_are_counted_by_name_running_and_waiting() -> None:
    engine = torch_engine(Llama.seeded(PRESETS["tiny"], seed=1), limits=EngineLimits(running_requests=2))
    for name, adapter in (("a", "poet"), ("b", "poet"), ("c", "lawyer"), ("d", "")):
        engine.scheduler.add(ask(name, (1, 2, 3), adapter=adapter))
    engine.scheduler.plan()
    figures = engine.figures
    assert figures.running_adapters == (("poet", 2),)
    assert figures.waiting_adapters == (("lawyer", 1),)
    samples: list[Any] = [
        sample for family in EngineMetrics(lambda: {"m": figures}).collect() for sample in family.samples
    ]
    [lora] = [sample for sample in samples if sample.name == "vllm:lora_requests_info"]
    assert lora.labels == {"max_lora": "2", "running_lora_adapters": "poet", "waiting_lora_adapters": "lawyer"}
    by_adapter = {
        (s.labels["adapter"], s.labels["state"]): s.value for s in samples if s.name == "inference_adapter_requests"
    }
    assert by_adapter == {("poet", "running"): 2, ("lawyer", "waiting"): 1}


def test_preemptions_show_in_rows_and_requests_are_counted_once() -> None:
    engine = torch_engine(Llama.seeded(PRESETS["tiny"], seed=1), limits=EngineLimits(cached_tokens=96))
    for number in range(3):
        engine.add(ask(str(number), tuple(range(number, number + 20)), max_tokens=40))
    while not engine.idle:
        engine.step()
    figures = engine.figures
    assert figures.preemptions > 0
    assert figures.prefix_queried == 60
    assert figures.rows > 60 + 3 * 39  # what was given up was computed again
    assert len(engine.queued) == 3
