"""The workloads that every engine runs, as plain data: peers read this file in environments of their own."""

import json
import random
import time

THREADS = 2
VOCABULARY = (100, 49_000)  # ordinary tokens of SmolLM2
OUTPUT = 128
BATCH = 16
BATCH_PROMPT, BATCH_OUTPUT = 256, 64
SHARED, OWN = 1024, 8
PREFILLS = (1024, 4096)


def prompt(length: int, seed: object) -> list[int]:
    """Random token ids, the same for the same seed; another seed for every repetition, since engines cache prefixes."""
    source = random.Random(f"{seed}-{length}")
    return [source.randrange(*VOCABULARY) for _ in range(length)]


def single(seed: object) -> list[int]:
    """(a) One request: 128 tokens in, 128 out."""
    return prompt(128, f"a{seed}")


def batch(seed: object) -> list[list[int]]:
    """(c) Sixteen requests at once: 256 tokens in, 64 out."""
    return [prompt(BATCH_PROMPT, f"c{seed}{n}") for n in range(BATCH)]


def shared(seed: object) -> list[list[int]]:
    """(d) Sixteen requests at once that share 1,024 tokens and have 8 of their own, 64 out."""
    prefix = prompt(SHARED, f"d{seed}")
    return [prefix + prompt(OWN, f"own{seed}{n}") for n in range(BATCH)]


def say(**figures: float) -> None:
    """Hand figures to the benchmark that started this process."""
    print("FIGURES " + json.dumps(figures), flush=True)


def clock() -> float:
    """Seconds."""
    return time.perf_counter()
