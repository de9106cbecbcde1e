"""What the ranks of a worker do with each other's tensors: one interface, on CPUs and on GPUs."""

from __future__ import annotations

from typing import Protocol

import torch


class Exchanges(Protocol):
    """One rank's end. All ranks make the same calls in the same order, with tensors of one shape.

    A call ends when all ranks have made it; on a GPU, so does the work that it puts on the
    stream. It raises RuntimeError after ``abort``, and for a rank that does not come.
    """

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Each has the sum of all, the same to the bit; in place, contiguous."""

    def gather(self, part: torch.Tensor, *, at_lead: bool) -> list[torch.Tensor]:
        """All ranks' parts, in order. ``at_lead``: on rank 0 only, and none elsewhere."""

    def abort(self) -> None:
        """Ends a call that waits for a rank, from another thread, and all calls after it."""
