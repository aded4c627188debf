"""OpenVINO GenAI on a GGUF file: `peer_openvino.py FILE SEED`, in an environment of its own."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

sys.path.insert(0, str(Path(__file__).parent))
import workloads


def settings(outputs: int) -> Any:  # noqa: ANN401 (the library has no types)
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = outputs, True, False
    return config


def tensor(prompt: list[int]) -> Any:  # noqa: ANN401
    return ov.Tensor(np.array([prompt], dtype=np.int64))


def single(pipeline: Any, prompt: list[int], outputs: int) -> Any:  # noqa: ANN401
    inputs = genai.TokenizedInputs(tensor(prompt), tensor([1] * len(prompt)))
    return pipeline.generate(inputs, settings(outputs)).perf_metrics


def batched(pipeline: Any, prompts: list[list[int]]) -> float:  # noqa: ANN401
    config = settings(workloads.BATCH_OUTPUT)
    started = workloads.clock()
    pipeline.generate([tensor(prompt) for prompt in prompts], [config] * len(prompts))
    return float(workloads.clock() - started)


def main() -> None:
    """Run every workload once."""
    file, seed = sys.argv[1], sys.argv[2]
    options = {"INFERENCE_NUM_THREADS": workloads.THREADS}
    pipeline = genai.LLMPipeline(file, "CPU", **options)
    single(pipeline, workloads.single("warm"), 4)
    metrics = single(pipeline, workloads.single(seed), workloads.OUTPUT)
    figures = {"a decode tok/s": 1000 / metrics.get_tpot().mean}
    for length in workloads.PREFILLS:
        metrics = single(pipeline, workloads.prompt(length, seed), 1)
        figures[f"b prefill {length} tok/s"] = 1000 * length / metrics.get_ttft().mean
    del pipeline
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.enable_prefix_caching, scheduler.max_num_batched_tokens = 2, True, 512
    together = genai.ContinuousBatchingPipeline(file, scheduler, "CPU", options)
    batched(together, workloads.batch("warm")[:2])
    outputs = workloads.BATCH * workloads.BATCH_OUTPUT
    figures["c output tok/s"] = outputs / batched(together, workloads.batch(seed))
    figures["d cold output tok/s"] = outputs / batched(together, workloads.shared(seed))
    figures["d warm output tok/s"] = outputs / batched(together, workloads.shared(seed))
    workloads.say(**figures)


if __name__ == "__main__":
    main()
