"""transformers, eager, bf16: `peer_transformers.py CACHE SEED`; CACHE is the conversion cache of our engine."""

import statistics
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import workloads


def generate(model: torch.nn.Module, prompts: list[list[int]], outputs: int) -> tuple[float, list[float]]:
    """Greedy, all prompts of one length; returns seconds in all and per step."""
    ids = torch.tensor(prompts)
    cache = None
    started = workloads.clock()
    steps = []
    with torch.inference_mode():
        for _ in range(outputs):
            began = workloads.clock()
            answer = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = answer.past_key_values
            ids = answer.logits[:, -1:].argmax(-1)
            steps.append(workloads.clock() - began)
    return workloads.clock() - started, steps[1:]


def main() -> None:
    """Run every workload once."""
    torch.set_num_threads(workloads.THREADS)
    folder = next(path.parent for path in Path(sys.argv[1]).glob("*/config.json"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    seed = sys.argv[2]
    generate(model, [workloads.single("warm")], 4)
    figures = {"a decode tok/s": 1 / statistics.median(generate(model, [workloads.single(seed)], 64)[1])}
    for length in workloads.PREFILLS:
        figures[f"b prefill {length} tok/s"] = length / generate(model, [workloads.prompt(length, seed)], 1)[0]
    for name, prompts in (("c", workloads.batch(seed)), ("d cold", workloads.shared(seed))):
        if name == "d cold":
            continue  # it has no cache to share; sixteen times the prefix would only tell that
        seconds, steps = generate(model, prompts, workloads.BATCH_OUTPUT)
        figures[f"{name} output tok/s"] = len(prompts) * workloads.BATCH_OUTPUT / seconds
        figures[f"{name} decode tok/s"] = len(prompts) / statistics.median(steps)
    workloads.say(**figures)


if __name__ == "__main__":
    main()
