from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pdray.engine.cuda_graphs import CudaRecorder


@pytest.mark.gpu
def test_a_recording_keeps_what_its_action_works_on() -> None:
    """Else other tensors come to lie where it reads, and it computes with them."""
    device = torch.device("cuda", 0)
    source, out = torch.arange(64.0, device=device), torch.zeros(64, device=device)

    def recorded() -> Callable[[], None]:
        rows = torch.arange(63, -1, -1, device=device)
        return CudaRecorder(device).record(lambda: out.copy_(source[rows]))

    replay = recorded()
    others = [torch.zeros(64, dtype=torch.int64, device=device) for _ in range(64)]
    replay()
    assert out.tolist() == list(range(63, -1, -1))
    assert not any(other.any() for other in others)
