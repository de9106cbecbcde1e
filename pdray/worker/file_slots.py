"""The small arena through which one side of a loan of files reads or is read."""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass

import numpy as np

from pdray.kvcache.host_memory import map_host_memory
from pdray.transfer import create_transport
from pdray.transfer.base import KVRegion
from pdray.transfer.transfer_thread import TransferThread

NUM_SLOTS = 4
SLOT_BYTES = 8 << 20


@dataclass(slots=True, eq=False)
class FileSlots:
    """Blocks of host memory, and the transport that knows them."""

    memory: mmap.mmap
    transfer: TransferThread

    @classmethod
    def make(cls, transport: str, agent_id: str) -> FileSlots:
        """Takes some tenths of a second, and not on the event loop. Raises TransferError."""
        memory = map_host_memory(NUM_SLOTS * SLOT_BYTES)
        region = KVRegion(
            address=int(np.frombuffer(memory, np.uint8).ctypes.data),
            num_blocks=NUM_SLOTS,
            block_bytes=SLOT_BYTES,
            device_id=None,
        )
        transfer = TransferThread(lambda: create_transport(transport, agent_id, region))
        transfer.start()
        return cls(memory, transfer)

    def view(self, slot: int) -> memoryview:
        return memoryview(self.memory)[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]

    def close(self) -> None:
        """Does not wait: a read that hangs may take as long as its owner does, and what it reads
        into stays until it has ended."""

        def stop() -> None:
            self.transfer.stop()
            del self.memory

        threading.Thread(target=stop, name="pdray-file-slots-end", daemon=True).start()
