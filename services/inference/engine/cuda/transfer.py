"""Small numbers on their way between host and device, without either waiting for the other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def on_device(
    values: Sequence[float] | Sequence[Sequence[float]], device: torch.device, *, dtype: torch.dtype = torch.long
) -> Tensor:
    """A tensor of these numbers on the device; the copy runs in the order of the device's work."""
    return sent(torch.tensor(values, dtype=dtype), device)


def sent(host: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; on a CPU the tensor itself."""
    # Pinned memory is given out again only after the copies from it are done.
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


class Arriving:
    """Tensors on their way to the host."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if not tensors or tensors[0].device.type == "cpu":
            self._host = list(tensors)
            return
        self._host = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in tensors]
        for there, here in zip(self._host, tensors, strict=True):
            there.copy_(here, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> list[Tensor]:
        """The tensors, when they are here."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
