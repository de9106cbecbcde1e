"""Recording GPU work once, to repeat it without the host's share of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

Action = Callable[[], None]


class Recorder(Protocol):
    """Makes an action that runs on tensors which stay where they are repeatable."""

    def record(self, action: Action) -> Action:
        """May run the action several times. What it returns does it again, with what lies in
        the same tensors then. Raises RuntimeError for an action that waits for the device, or
        that depends on the numbers in its tensors in another way than by computing with them."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """A graph reads and writes addresses: the action keeps the tensors that lie there."""

    graph: torch.cuda.CUDAGraph
    action: Action

    def __call__(self) -> None:
        self.graph.replay()


class CudaRecorder:
    """CUDA graphs. All share one pool of memory: no two may run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, action: Action) -> Action:
        self._warm_up(action)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may use the device meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            action()
        return _Recording(graph, action)

    def _warm_up(self, action: Action) -> None:
        """Kernels are compiled and libraries make their workspaces on first use, which cannot be
        recorded."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                action()
        current.wait_stream(self._stream)


def recorder_for(device: str) -> Recorder | None:
    """None where there is nothing to gain."""
    torch_device = torch.device(device)
    return CudaRecorder(torch_device) if torch_device.type == "cuda" else None
