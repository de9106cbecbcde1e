"""Where the ranks of a worker meet: rank 0 opens a place, and the others are told of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pdray.engine.tensor_parallel.exchanges import Exchanges


@dataclass(frozen=True, slots=True)
class MeetingPlace:
    """On CPUs memory, whose descriptor the others inherit; on GPUs a port of loopback."""

    num_ranks: int
    memory_fd: int | None
    store_port: int | None

    def join(self, rank: int) -> Exchanges:
        """Once, by each rank."""
        if self.memory_fd is not None:
            # Imported late: it is compiled with that, which takes most of a second.
            from pdray.engine.tensor_parallel.shared_memory import SharedMemoryExchanges

            return SharedMemoryExchanges(self.memory_fd, rank, self.num_ranks)
        # Where there is no GPU, torch has no NCCL.
        from pdray.engine.tensor_parallel.nccl import NcclExchanges, reach_store

        assert self.store_port is not None, "a place without a way to it"
        return NcclExchanges(reach_store(self.store_port), rank, self.num_ranks)


class Meeting:
    """Rank 0's hold on the place: it is there until ``close``."""

    def __init__(self, device: str, num_ranks: int) -> None:
        if device == "cpu":
            from pdray.engine.tensor_parallel.shared_memory import make_shared_memory

            self._store = None
            self.place = MeetingPlace(num_ranks, make_shared_memory(num_ranks), None)
            return
        from pdray.engine.tensor_parallel.nccl import serve_store

        self._store, port = serve_store()
        self.place = MeetingPlace(num_ranks, None, port)

    def close(self) -> None:
        """Once. What has been joined goes on."""
        self._store = None
        if self.place.memory_fd is not None:
            os.close(self.place.memory_fd)
