"""What stands for CUDA graphs where there is no GPU: an action that is simply run again, and
refused as a recording GPU would refuse it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# They wait for the device, or make a shape of the numbers that lie there.
UNRECORDABLE = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.bincount.default,
}


class _RefusingUnrecordable(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in UNRECORDABLE or _has_mask_as_index(func, args):
            raise RuntimeError(f"{func} cannot be recorded")
        with self:  # inference mode hands over operators that are made of others
            result = func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is NotImplemented else result


def _has_mask_as_index(func: Any, args: Any) -> bool:
    is_indexing = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
    return is_indexing and any(index is not None and index.dtype == torch.bool for index in args[1])


class RerunRecorder:
    def __init__(self) -> None:
        self.num_replays = 0

    def record(self, action: Callable[[], None]) -> Callable[[], None]:
        with _RefusingUnrecordable():
            action()

        def replay() -> None:
            self.num_replays += 1
            action()

        return replay
