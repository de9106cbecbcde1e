"""A read between two processes as workers make it, with UCX's own words on how it went.

Run as ``python -m pdray.doctor.read_probe FOLDER OWNER READER``, the devices as in a config: the
logs of UCX and ``report.json`` are in FOLDER then. It is a process of its own, as UCX reads its
settings once, and as what is wrong with drivers may end it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from pdray.core.errors import TransferError
from pdray.doctor.probe_worker import probe_worker

NUM_BLOCKS = 64
BLOCK_BYTES = 2**20
UCX_LOGS = "ucx.*.log"
REPORT = "report.json"
_PATIENCE_S = 20.0
_MARK = 7


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True):
    """``failure`` is why nothing was read; None where all was."""

    num_bytes: int = 0
    read_s: float = 0.0
    failure: str | None = None


def main(folder: Path, owner_device: str, reader_device: str) -> None:
    """The owner is this process, and the reader its child: a parent may read its children where
    the system forbids it to others, as workers are to each other."""
    os.environ["UCX_PROTO_INFO"] = "y"
    os.environ["UCX_LOG_LEVEL"] = "info"
    os.environ["UCX_LOG_FILE"] = str(folder / UCX_LOGS.replace("*", "%p"))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    reader = context.Process(target=_read, args=(theirs, reader_device), daemon=True)
    reader.start()
    theirs.close()
    try:
        report = _lend(ours, owner_device)
    except (TransferError, EOFError) as error:
        report = ProbeReport(failure=str(error) or "the process that reads has ended")
    reader.join(_PATIENCE_S)  # UCX's log is whole then
    (folder / REPORT).write_bytes(msgspec.json.encode(report))


def _lend(reader: Connection, device: str) -> ProbeReport:
    with probe_worker("owner", device, NUM_BLOCKS, BLOCK_BYTES, fill=_MARK) as (thread, _):
        thread.begin_lending()
        reader.send(thread.describe())
        report = reader.recv()
    assert isinstance(report, ProbeReport)
    return report


def _read(owner: Connection, device: str) -> None:
    try:
        with probe_worker("reader", device, NUM_BLOCKS, BLOCK_BYTES, fill=0) as (thread, memory):
            thread.add_peer("owner", owner.recv()).result(_PATIENCE_S)
            # The first read makes the connection, as when workers meet.
            thread.pull("owner", [0], [0]).result(_PATIENCE_S)
            blocks = range(NUM_BLOCKS)
            pulled = thread.pull("owner", blocks, blocks).result(_PATIENCE_S)
            if not bool((memory == _MARK).all()):
                raise TransferError("other bytes came than were there to read")
    except (TransferError, TimeoutError) as error:
        owner.send(ProbeReport(failure=str(error) or f"nothing was read within {_PATIENCE_S:g} s"))
        return
    owner.send(ProbeReport(num_bytes=pulled.num_bytes, read_s=pulled.transfer_s))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
