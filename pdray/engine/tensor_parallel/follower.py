"""The process of a rank other than 0: its part of weights and KV, and no will of its own.

It runs each batch that rank 0 runs, and ends when rank 0 closes its sockets, or dies.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from pdray.engine.host import prepare_host
from pdray.engine.model import load_model
from pdray.engine.runner import Runner, make_layout, make_runner
from pdray.engine.tensor_parallel.exchanges import Exchanges
from pdray.engine.tensor_parallel.group import RankGroup
from pdray.engine.tensor_parallel.messages import Begin, Failed, Loaded, Ready
from pdray.kvcache.storage import KVStorage

logger = logging.getLogger(__name__)

Companion = Callable[[Connection, KVStorage], None]
"""What a follower does beside the batches, in a thread of its own: it talks to rank 0 over the
connection, and lets the EOFError out that is the connection's end."""


def main(steps_fd: int, side_fd: int) -> None:
    """Both are sockets to rank 0: one for batches, the other for a companion. Does not return."""
    # An interrupt at the terminal reaches all its processes: rank 0 decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO)
    steps = Connection(steps_fd)
    storage: Future[KVStorage] = Future()
    side = threading.Thread(target=_keep_company, args=(Connection(side_fd), storage), daemon=True)
    side.start()
    try:
        runner = _load(steps)
        storage.set_result(runner.storage)
        steps.send(Ready(runner.storage.layout.describe()))
        while True:
            runner.run(pickle.loads(steps.recv_bytes()))
    except (EOFError, ConnectionError):
        os._exit(0)
    except Exception as error:  # the process's outermost level: rank 0 reports it
        logger.exception("a tensor-parallel rank failed")
        steps.send(Failed(f"{type(error).__name__}: {error}"))
        os._exit(1)


def _load(steps: Connection) -> Runner:
    begin: Begin = steps.recv()
    config = begin.config
    if config.device != "cpu":
        os.environ["LOCAL_RANK"] = str(begin.rank)  # where transformers loads to
        config = replace(config, device=f"cuda:{begin.rank}")
        torch.cuda.set_device(begin.rank)
    prepare_host(config)

    def connect() -> Exchanges:
        steps.send(Loaded())
        return begin.place.join(begin.rank)

    group = RankGroup(rank=begin.rank, size=config.tensor_parallel, connect=connect)
    loaded = load_model(begin.model_path, dtype=config.dtype, device=config.device, group=group)
    return make_runner(loaded, config, make_layout(loaded, config))


def _keep_company(side: Connection, storage: Future[KVStorage]) -> None:
    """Ends the process with the connection: also while it loads, or waits within a step."""
    try:
        while True:
            companion: Companion = side.recv()
            companion(side, storage.result())
    except (EOFError, ConnectionError):
        os._exit(0)
    except Exception:  # the thread's outermost level: rank 0 sees that the process has ended
        logger.exception("a tensor-parallel rank's companion failed")
        os._exit(1)
