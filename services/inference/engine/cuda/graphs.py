"""Decode steps as CUDA graphs: launched as one, without the host's work per kernel, in one memory pool."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UP_RUNS = 2

Run = Callable[[], Tensor]
"""Computes from tensors that stay where they are, and returns one of them."""


class Graphs:
    """Captures on the current device; the largest step comes first, so that the others fit into its memory."""

    def __init__(self) -> None:
        self._pool: Any = None  # a handle

    def capture(self, run: Run) -> Run:
        """Record `run`, and return what runs the recording."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):  # compiles kernels and lets libraries allocate, which a capture may not
                run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Models load in a thread of their own while others serve: only this thread must keep to the rules.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = run()
        self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
