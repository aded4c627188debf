"""bf16 weights in the order that oneDNN wants on this CPU, made once: products of few rows take half the time.

Letters: T rows, I inputs, O outputs.
"""

import torch
from torch import Tensor, nn

from services.llama.model import Llama


class PrepackedLinear(nn.Module):
    """A linear without bias whose weight is kept in oneDNN's own layout only."""

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        # The operators that torch.compile uses; they are not public, so a test pins what they do.
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), None)  # noqa: SLF001

    def forward(self, x_TI: Tensor) -> Tensor:
        """The product x W^T."""
        y_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, self._packed, None, "none", [], "")  # noqa: SLF001
        return y_TO


def can_prepack(model: Llama) -> bool:
    """Whether the model is in bf16 on a CPU that multiplies it."""
    weights = model.embed.weight
    if weights.device.type != "cpu" or weights.dtype != torch.bfloat16:
        return False
    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built_in and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001


@torch.inference_mode()
def prepack(model: Llama) -> None:
    """Replace every linear of the model, the head among them; a tied head gets a copy of the table."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], PrepackedLinear(module.weight))
    if model.head is None:
        model.head = PrepackedLinear(model.embed.weight)
