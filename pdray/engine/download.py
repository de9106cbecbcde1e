"""Results to the host, on their way as soon as they are there."""

from __future__ import annotations

import torch


class Download:
    """A tensor's copy on the host, begun when this is made: after what the device was given to
    do before, and before what it gets later."""

    def __init__(self, tensor: torch.Tensor) -> None:
        """Does not wait for the device. On a CPU it is the tensor itself."""
        self._host = tensor
        self._done: torch.cuda.Event | None = None
        if tensor.is_cuda:
            # To other memory than pinned, the copy would be waited for here.
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> torch.Tensor:
        """Waits for the copy, and for nothing that the device was given after it."""
        if self._done is not None:
            self._done.synchronize()
        return self._host
