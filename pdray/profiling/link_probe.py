"""How long one worker takes to read another's KV blocks on this machine, by how many they are."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.connection import Connection

from pdray.core.errors import TransferError
from pdray.core.link_cost import LinkCost, LinkFit
from pdray.doctor.probe_worker import probe_worker
from pdray.transfer.transfer_thread import TransferThread

_NUM_BLOCKS = 256
_READ_BLOCKS = (1, 4, 16, 64)
_PATIENCE_S = 20.0


def probe_link(owner_device: str, reader_device: str, block_bytes: int, seconds: float) -> LinkCost:
    """Through NIXL, between this process and a child that reads, for so long. Raises
    TransferError."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    reader = context.Process(
        target=_read, args=(theirs, reader_device, block_bytes, seconds), daemon=True
    )
    reader.start()
    theirs.close()
    try:
        with probe_worker("owner", owner_device, _NUM_BLOCKS, block_bytes, fill=1) as (thread, _):
            thread.begin_lending()
            ours.send(thread.describe())
            found = ours.recv()
    except EOFError:
        raise TransferError("the process that reads has ended; what it said is above") from None
    finally:
        ours.close()
        reader.join(_PATIENCE_S)
        reader.kill()
        reader.join()
    if isinstance(found, TransferError):
        raise found
    assert isinstance(found, LinkCost), f"{found!r}"
    return found


def _read(pipe: Connection, device: str, block_bytes: int, seconds: float) -> None:
    """In the child."""
    try:
        with probe_worker("reader", device, _NUM_BLOCKS, block_bytes, fill=1) as (thread, _):
            thread.add_peer("owner", pipe.recv()).result(_PATIENCE_S)
            # The first read makes the connection, as when workers meet.
            thread.pull("owner", [0], [0]).result(_PATIENCE_S)
            cost = _time_reads(thread, seconds)
    except TransferError as error:
        pipe.send(error)
    except TimeoutError:
        pipe.send(TransferError(f"nothing was read within {_PATIENCE_S:g} s"))
    else:
        pipe.send(cost)


def _time_reads(thread: TransferThread, seconds: float) -> LinkCost:
    rng, fit = random.Random(0), LinkFit("owner")
    end_at = time.perf_counter() + seconds
    cost = None
    while cost is None or time.perf_counter() < end_at:
        block_ids = rng.sample(range(_NUM_BLOCKS), rng.choice(_READ_BLOCKS))
        report = thread.pull("owner", block_ids, block_ids).result(_PATIENCE_S)
        fit.add(report.num_bytes, report.transfer_s)
        cost = fit.cost()
    return cost
