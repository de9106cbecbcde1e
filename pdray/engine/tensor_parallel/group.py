"""The ranks of one worker as a group: what the split layers of a model ask of each other."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pdray.engine.tensor_parallel.exchanges import Exchanges


class RankGroup:
    """One rank's end. Every rank makes the same calls in the same order."""

    def __init__(self, *, rank: int, size: int, connect: Callable[[], Exchanges]) -> None:
        self.rank = rank
        self.size = size
        self._connect = connect
        self._exchanges: Exchanges | None = None

    def connect(self) -> None:
        """To be called once, when this rank's weights are there."""
        self._exchanges = self._connect()

    def abort(self) -> None:
        """Ends a call that waits for a rank that will never come; from any thread."""
        if self._exchanges is not None:
            self._exchanges.abort()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' tensors; it may be made in place."""
        tensor = tensor.contiguous()
        self._connected.all_reduce(tensor)
        return tensor

    def gather_columns(
        self, part: torch.Tensor, width: int, *, at_lead: bool = False
    ) -> torch.Tensor:
        """All ranks' parts side by side along the last dimension, ``width`` together: rank i has
        the i-th of equal slices, the last ones shorter where ``width`` does not divide.
        ``at_lead``: on rank 0; the others get the same shape, with numbers that mean nothing."""
        slice_width = -(-width // self.size)
        padded = torch.nn.functional.pad(part, (0, slice_width - part.shape[-1])).contiguous()
        parts = self._connected.gather(padded, at_lead=at_lead)
        if not parts:
            return padded[..., :1].expand(*part.shape[:-1], width)
        return torch.cat(parts, dim=-1)[..., :width]

    @property
    def _connected(self) -> Exchanges:
        assert self._exchanges is not None, "the ranks are not connected yet"
        return self._exchanges
