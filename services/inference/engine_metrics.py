"""The engine's figures as Prometheus metrics, made when somebody scrapes: a step costs nothing but keeping its figures.

The names with a colon are vLLM's, with the labels that vLLM gives them: by these, inference gateways for Kubernetes
choose a node (Gateway API Inference Extension, proposal 003, model server protocol).
"""

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.inference.engine.request import Figures
from services.inference.metrics import MODEL

ENGINE = "0"  # the number of the engine process; vLLM's series have it as a label

Reading = tuple[str, str, Callable[[Figures], float]]

_WAITING: Reading = ("inference_requests_waiting", "Requests that wait for room in the batch.", lambda f: f.waiting)
_RUNNING: Reading = ("inference_requests_running", "Requests in the batch.", lambda f: f.running)
_GAUGES: tuple[Reading, ...] = (
    _WAITING,
    _RUNNING,
    ("inference_kv_cache_tokens", "Tokens' worth of cache blocks that requests hold.", lambda f: f.held * f.block_size),
    ("inference_kv_cache_capacity_tokens", "Tokens that the cache holds.", lambda f: f.blocks * f.block_size),
)
_COUNTERS: tuple[Reading, ...] = (
    ("inference_preemptions", "Times a request gave up its blocks to others.", lambda f: f.preemptions),
    ("inference_prefix_tokens_queried", "Prompt tokens looked up in the prefix cache.", lambda f: f.prefix_queried),
    ("inference_prefix_tokens_hit", "Prompt tokens that the prefix cache served.", lambda f: f.prefix_hit),
    ("inference_rows_computed", "Tokens that the model computed, of prompts and answers.", lambda f: f.rows),
)
_VLLM: tuple[Reading, ...] = (
    ("vllm:num_requests_waiting", *_WAITING[1:]),
    ("vllm:num_requests_running", *_RUNNING[1:]),
    ("vllm:kv_cache_usage_perc", "Share of cache blocks that requests hold, 0 to 1.", lambda f: f.held / f.blocks),
)


class EngineMetrics(Collector):
    """One engine process.

    Args:
        figures: Called for every scrape: the figures of every text model that the engine serves.
    """

    def __init__(self, figures: Callable[[], Mapping[str, Figures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Called for every scrape."""
        models = self._figures()
        for name, meaning, read in _GAUGES:
            gauge = GaugeMetricFamily(name, meaning, labels=[MODEL])
            for model, figures in models.items():
                gauge.add_metric([model], read(figures))
            yield gauge
        for name, meaning, read in _COUNTERS:
            counter = CounterMetricFamily(name, meaning, labels=[MODEL])
            for model, figures in models.items():
                counter.add_metric([model], read(figures))
            yield counter
        adapters = GaugeMetricFamily(
            "inference_adapter_requests", "Requests of each LoRA adapter.", labels=[MODEL, "adapter", "state"]
        )
        for model, figures in models.items():
            for state, counts in (("waiting", figures.waiting_adapters), ("running", figures.running_adapters)):
                for adapter, count in counts:
                    adapters.add_metric([model, adapter, state], count)
        yield adapters
        yield from _for_gateways(models)


def _for_gateways(models: Mapping[str, Figures]) -> Iterator[Metric]:
    for name, meaning, read in _VLLM:
        gauge = GaugeMetricFamily(name, meaning, labels=["model_name", "engine"])
        for model, figures in models.items():
            gauge.add_metric([model, ENGINE], read(figures))
        yield gauge
    cache = GaugeMetricFamily(
        "vllm:cache_config_info",
        "The cache's shape, in labels.",
        labels=["model_name", "engine", "block_size", "num_gpu_blocks"],
    )
    for model, figures in models.items():
        cache.add_metric([model, ENGINE, str(figures.block_size), str(figures.blocks)], 1)
    yield cache
    # One series for the process, as gateways expect; its value is the time, by which they know the newest.
    names = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
    lora = GaugeMetricFamily("vllm:lora_requests_info", "LoRA adapters in use, in labels.", labels=names)
    if models:
        running = {name for figures in models.values() for name, _ in figures.running_adapters}
        waiting = {name for figures in models.values() for name, _ in figures.waiting_adapters}
        most = max(figures.running_limit for figures in models.values())
        lora.add_metric([str(most), ",".join(sorted(running)), ",".join(sorted(waiting))], time.time())
    yield lora
