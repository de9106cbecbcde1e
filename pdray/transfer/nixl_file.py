"""Files through NIXL and its POSIX backend: how KV blocks get to a disk and back.

As measured (nixl 1.5.1): a transfer is over when ``transfer`` returns, at the speed of the page
cache; one that a full disk, a size limit or the end of the file cuts short is an error, which
does not say how far it came.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from nixl._api import nixl_agent, nixl_agent_config

from pdray.core.errors import TransferError
from pdray.kvcache.tiers.base import Move
from pdray.transfer.nixl import NIXL_ERRORS, quieten_nixl, release_handle

logger = logging.getLogger(__name__)

_BACKEND = "POSIX"


class NixlFile:
    """A BlockFile with an agent of its own."""

    def __init__(self, path: Path, *, buffer_address: int, buffer_bytes: int) -> None:
        """Raises TransferError where the file cannot be opened, or NIXL has no POSIX backend."""
        self._path = path
        self._buffer_address = buffer_address
        quieten_nixl()
        self._agent = nixl_agent(
            f"file-{secrets.token_hex(4)}",
            nixl_agent_config(enable_prog_thread=False, backends=[]),
        )
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TransferError(f"{path} cannot be opened: {error}") from error
        try:
            self._agent.create_backend(_BACKEND)
            self._registrations = [
                self._agent.register_memory(
                    [(buffer_address, buffer_bytes, 0, "")], "DRAM", backends=[_BACKEND]
                ),
                self._agent.register_memory(
                    [(0, 0, self._descriptor, "")], "FILE", backends=[_BACKEND]
                ),
            ]
        except NIXL_ERRORS as error:
            os.close(self._descriptor)
            raise TransferError(f"NIXL cannot read and write {path}: {error!r}") from error
        self.num_bytes = os.fstat(self._descriptor).st_size

    def read(self, moves: Sequence[Move]) -> None:
        self._transfer("READ", moves)

    def write(self, moves: Sequence[Move]) -> None:
        self._transfer("WRITE", moves)

    def close(self) -> None:
        for registration in self._registrations:
            self._agent.deregister_memory(registration, backends=[_BACKEND])
        os.close(self._descriptor)
        del self._agent, self._registrations

    def _transfer(self, operation: str, moves: Sequence[Move]) -> None:
        try:
            handle = self._agent.initialize_xfer(
                operation,
                self._agent.get_xfer_descs(
                    [(self._buffer_address + m.buffer_offset, m.num_bytes, 0) for m in moves],
                    "DRAM",
                ),
                self._agent.get_xfer_descs(
                    [(m.file_offset, m.num_bytes, self._descriptor) for m in moves], "FILE"
                ),
                self._agent.name,
                backends=[_BACKEND],
            )
        except NIXL_ERRORS as error:
            raise TransferError(f"NIXL refused a {operation} of {self._path}: {error!r}") from error
        try:
            state = self._agent.transfer(handle)
            while state == "PROC":
                state = self._agent.check_xfer_state(handle)
        except NIXL_ERRORS as error:
            raise TransferError(f"a {operation} of {self._path} failed: {error!r}") from error
        finally:
            release_handle(handle)
        if state != "DONE":
            raise TransferError(f"a {operation} of {self._path} failed")
