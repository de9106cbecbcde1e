"""A process that lends a model's files, as a worker does, until it is told to end, or killed."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.engine.model_files import list_model_files
from pdray.link.connection import Connection
from pdray.link.messages import WIRE_VERSION, AskChunk, AskFiles, Hello, Message
from pdray.link.peers import PeerLinks
from pdray.link.server import LinkServer
from pdray.worker.file_lending import FileLending
from pdray.worker.tasks import Tasks

WORKER_ID = WorkerId("owner")
LINK_KEY = b"k" * 32


class FileOwnerProcess:
    """Of the model at ``path``, found there when it starts."""

    def __init__(self, path: Path) -> None:
        # Processes are forked from one that has imported nixl, which takes seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pytest", "nixl._api", "tests.owner_process"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_own, args=(theirs, path), daemon=True)
        self._process.start()
        theirs.close()
        port: int = self._pipe.recv()
        self.address = WorkerAddress(
            worker_id=WORKER_ID, host="127.0.0.1", port=port, link_key=LINK_KEY
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        self.kill()
        self._pipe.close()


def _own(pipe: Pipe, path: Path) -> None:
    asyncio.run(_lend(pipe, path))


async def _lend(pipe: Pipe, path: Path) -> None:
    def crashed(error: BaseException) -> None:
        raise error

    lending = FileLending(
        worker_id=WORKER_ID, transport="nixl", files=list_model_files(path), tasks=Tasks(crashed)
    )

    def hello() -> Hello:
        return Hello(
            wire_version=WIRE_VERSION,
            peer_id=WORKER_ID,
            pool="mixed",
            node_group="laptop",
            layout_digest="layout",
            layout_text="layout",
            transfer_description=b"",
        )

    def on_message(link: Connection, message: Message) -> None:
        if isinstance(message, AskFiles):
            lending.on_ask_files(link)
        elif isinstance(message, AskChunk):
            lending.on_ask_chunk(link, message)

    server, peers = LinkServer(), PeerLinks(hello, on_message, lending.on_lost)
    await server.start("127.0.0.1", 0, LINK_KEY, hello, peers.serve)
    pipe.send(server.port)
    await asyncio.to_thread(pipe.poll, None)
