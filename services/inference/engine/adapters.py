"""LoRA on the linears of one running model: each row of a step gets the adapter of its own request.

The model does not know of it: its linears carry a hook that adds B (A x) to the rows of requests with an adapter. Rows
of one request lie together and requests of one adapter too, so an adapter costs two small products per linear. The
hooks are there only while an adapter is loaded.

Letters: T rows of the step, t rows of one adapter, I inputs of a linear, O outputs, R LoRA rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from services.llama.checkpoint.layout import linear_specs
from services.llama.lora import LoraAdapter, LoraPair
from services.llama.model import Llama


class Adapters:
    """The adapters that one model has loaded."""

    def __init__(self, model: Llama) -> None:
        self._model = model
        weights = model.embed.weight
        self._device, self._dtype = weights.device, weights.dtype
        self._loaded: dict[str, Mapping[str, LoraPair]] = {}
        self._hooks: list[RemovableHandle] = []
        self._spans: list[tuple[slice, Mapping[str, LoraPair]]] = []

    def load(self, name: str, adapter: LoraAdapter) -> None:
        """Take an adapter into the model's dtype, on its device; another one of that name must not be loaded."""
        assert name not in self._loaded, f"adapter {name} is loaded already"
        self._loaded[name] = {
            linear_name: LoraPair(pair.a_RI.to(self._device, self._dtype), pair.b_OR.to(self._device, self._dtype))
            for linear_name, pair in adapter.pairs.items()
        }
        if not self._hooks:
            for spec in linear_specs(self._model.config):
                module_name = spec.ours.removesuffix(".weight")
                # Before other hooks: where a linear's output is summed over processes, this belongs into the sum.
                hook = partial(self._add, module_name)
                module = self._model.get_submodule(module_name)
                self._hooks.append(module.register_forward_hook(hook, prepend=True))

    def unload(self, name: str) -> None:
        """Free an adapter."""
        del self._loaded[name]
        if not self._loaded:
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()

    @contextmanager
    def applied(self, rows: Sequence[tuple[str, int]]) -> Iterator[None]:
        """Run the model with these adapters.

        Args:
            rows: Adapter ("" is none) and number of rows, in the order of the step's rows.
        """
        start = 0
        last = ""
        for name, count in rows:
            end = start + count
            if name and name == last:
                span, pairs = self._spans.pop()
                self._spans.append((slice(span.start, end), pairs))
            elif name:
                self._spans.append((slice(start, end), self._loaded[name]))
            start, last = end, name
        try:
            yield
        finally:
            self._spans.clear()

    def _add(self, name: str, _: nn.Module, inputs: tuple[Tensor], y_TO: Tensor) -> Tensor:
        """Forward hook of the linear `name`."""
        (x_TI,) = inputs
        for span, pairs in self._spans:
            pair = pairs.get(name)
            if pair is not None:
                y_TO[span] += linear(linear(x_TI[span], pair.a_RI), pair.b_OR)
        return y_TO
