"""What a grammar costs per token on the real small model, beside what the model itself costs."""

import os
import statistics
import tempfile
import time
from pathlib import Path

from services.inference.engine.commands import SPIN_COUNT

os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # as in the engine's process; before torch is loaded

import torch

from benchmarks.measure import report, report_median
from llamastack import v1
from services.inference.call_grammar import demanded_call, offered_calls
from services.inference.constraints import format_grammar
from services.inference.engine.engine import Engine
from services.inference.engine.grammar import Grammars
from services.inference.engine.request import Calls, EngineLimits, Request, Sampling
from services.inference.engine.runner import TorchRunner
from services.inference.hardware import choose_dtype
from services.inference.packaged import find_packaged
from services.llama import checkpoint
from services.llama.messages import ChatMessage, ToolDefinition
from stack_client.content import struct

ROUNDS = 7
TOKENS = 64
STRING = {"type": "string", "minLength": 400}  # long enough that no answer ends before it is measured
SCHEMA = {"type": "object", "properties": {"story": STRING, "age": {"type": "integer"}}, "required": ["story", "age"]}
TOOLS = [ToolDefinition(name=f"tell_{n}", description="Tell a story", parameters=SCHEMA) for n in range(5)]


def main() -> None:
    """Let the model answer under each kind of grammar, then time the grammar alone over the same tokens."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = checkpoint.prepare(find_packaged("smollm2-135m"), cache_dir=Path(folder))
        text = checkpoint.load_text(prepared)
        dtype = choose_dtype("auto", device="cpu")[0]
        model = checkpoint.load_model(prepared, dtype=getattr(torch, dtype), device="cpu")
    limits = EngineLimits(cached_tokens=4096)
    runner = TorchRunner(model, blocks=limits.blocks, block_size=limits.block_size)
    engine = Engine(runner, limits=limits, tokenizer=text.tokenizer)
    grammars = Grammars(text.tokenizer, vocab_size=model.config.vocab_size)
    prompt = text.chat_format.render([ChatMessage(role="user", content="Tell me a story about a fox.")], tools=TOOLS)
    schema = format_grammar(v1.ResponseFormat(json_schema=struct(SCHEMA)))
    call = demanded_call(TOOLS, choice="required", argument_key="arguments", tool_prompt_format="json")
    kinds: dict[str, tuple[str, Calls | None]] = {
        "text where 5 tools are offered": ("", offered_calls(TOOLS)),
        "JSON schema": (schema, None),
        "demanded call": (call, None),
    }
    tokens, steps = _decode(engine, _request("free", prompt))
    report("SmolLM2 decodes free text, median per token", statistics.median(steps), "us", note=f"{dtype}, torch")
    logits = torch.randn(model.config.vocab_size)
    for kind, (grammar, calls) in kinds.items():
        tokens, _ = _decode(engine, _request(kind, prompt, grammar=grammar, calls=calls))
        medians, means = [], []
        for _ in range(ROUNDS):
            constraint = grammars.constraint(grammar, calls)
            times = []
            for token in tokens:
                started = time.perf_counter()
                constraint.apply(logits)
                constraint.accept(token)
                times.append((time.perf_counter() - started) * 1e6)
            medians.append(statistics.median(times))
            means.append(statistics.mean(times))
        report_median(f"mask of {kind}, median per token", medians, "us")
        report_median(f"mask of {kind}, mean per token", means, "us", note=f"over {len(tokens)} tokens")


def _request(name: str, prompt: list[int], *, grammar: str = "", calls: Calls | None = None) -> Request:
    sampling = Sampling(temperature=0.7, seed=1)
    return Request(
        request_id=name, prompt_ids=tuple(prompt), max_tokens=TOKENS, sampling=sampling, grammar=grammar, calls=calls
    )


def _decode(engine: Engine, request: Request) -> tuple[list[int], list[float]]:
    """The answer, and the microseconds of every step after the prompt's."""
    engine.add(request)
    tokens, times = [], []
    while not engine.idle:
        started = time.perf_counter()
        tokens += [emission.token_id for emission in engine.step()]
        times.append((time.perf_counter() - started) * 1e6)
    return tokens, times[1:]


if __name__ == "__main__":
    main()
