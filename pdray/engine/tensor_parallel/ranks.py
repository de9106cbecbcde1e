"""Rank 0's side of a worker's other ranks: starts them, gives them each batch, sees them die."""

from __future__ import annotations

import contextlib
import logging
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from pdray.core.errors import RankLostError
from pdray.engine.batch import Batch
from pdray.engine.config import EngineConfig
from pdray.engine.head import Score
from pdray.engine.runner import Runner, drop_logits
from pdray.engine.tensor_parallel.exchanges import Exchanges
from pdray.engine.tensor_parallel.group import RankGroup
from pdray.engine.tensor_parallel.meeting import Meeting
from pdray.engine.tensor_parallel.messages import Begin, Failed, Loaded, Ready

logger = logging.getLogger(__name__)

_EXIT_S = 5.0
_EXPLAIN_S = 2.0
"""A collective may fail before it is seen which rank has died."""


@dataclass(frozen=True, slots=True, eq=False)
class _Follower:
    rank: int
    process: subprocess.Popen[bytes]
    sockets: tuple[socket.socket, socket.socket]
    steps: Connection
    side: Connection


class Ranks:
    """Ranks 1 to N-1 of this worker, each a process on this machine. They end with ``close``, and
    by themselves when this process dies, however it does."""

    def __init__(self, model_path: Path, config: EngineConfig) -> None:
        """Starts the processes, which load their part of the model meanwhile."""
        num_ranks = config.tensor_parallel
        self._meeting = Meeting(config.device, num_ranks)
        self._changed = threading.Condition()
        # Under the condition's lock.
        self._num_loaded = 0
        self._layout_texts: list[str] = []
        self._failure: str | None = None
        self._is_closing = False
        self._on_failure: Callable[[], None] = _do_nothing
        self.group = RankGroup(rank=0, size=num_ranks, connect=self._connect)
        self._followers = [
            _start(Begin(rank, model_path, config, self._meeting.place))
            for rank in range(1, num_ranks)
        ]
        self._watcher = threading.Thread(target=self._watch, name="pdray-ranks", daemon=True)
        self._watcher.start()

    @property
    def side_connections(self) -> list[Connection]:
        """To each rank's companion (see follower.py), from rank 1 on."""
        return [follower.side for follower in self._followers]

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Of ranks 1 and up."""
        return [follower.process for follower in self._followers]

    def begin(self, layout_text: str, on_failure: Callable[[], None]) -> None:
        """Returns when all ranks wait for a batch. From then on ``on_failure`` is called, from a
        thread, when a rank has died. Raises RankLostError."""
        self._wait_for(lambda: len(self._layout_texts) == len(self._followers))
        assert set(self._layout_texts) == {layout_text}, "the ranks' layouts are not alike"
        self._on_failure = on_failure
        self.check()

    def send(self, batch: Batch) -> None:
        """All ranks run it now. Raises RankLostError."""
        data = pickle.dumps(replace(batch, sampled_chunks=()), pickle.HIGHEST_PROTOCOL)
        try:
            for follower in self._followers:
                follower.steps.send_bytes(data)
        except OSError as error:
            self.explain(error)
            raise

    def check(self) -> None:
        """Raises RankLostError if a rank has died."""
        if self._failure is not None:
            raise RankLostError(self._failure)

    def explain(self, error: Exception) -> None:
        """Raises RankLostError if it is a rank's death that ``error`` comes of."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None, _EXPLAIN_S)
        if self._failure is not None:
            raise RankLostError(self._failure) from error

    def close(self) -> None:
        """Ends the processes, by force where it must be. May be called twice."""
        with self._changed:
            if self._is_closing:
                return
            self._is_closing = True
        for follower in self._followers:
            for each in follower.sockets:
                each.shutdown(socket.SHUT_RDWR)
        for follower in self._followers:
            try:
                follower.process.wait(_EXIT_S)
            except subprocess.TimeoutExpired:
                logger.warning("rank %s does not end: it is killed", follower.rank)
                follower.process.kill()
                follower.process.wait()
        self._watcher.join()
        for follower in self._followers:
            for each in follower.sockets:
                each.close()
            follower.steps.close()
            follower.side.close()
        self._meeting.close()

    def _connect(self) -> Exchanges:
        self._wait_for(lambda: self._num_loaded == len(self._followers))
        return self._meeting.place.join(0)

    def _wait_for(self, is_so: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or is_so())
        self.check()

    # The watcher's own thread

    def _watch(self) -> None:
        alive = {follower.steps: follower for follower in self._followers}
        while alive:
            for steps in wait(list(alive)):
                assert isinstance(steps, Connection)
                try:
                    self._hear(alive[steps], steps.recv())
                except (EOFError, ConnectionError):
                    self._on_end(alive.pop(steps))

    def _hear(self, follower: _Follower, message: Loaded | Ready | Failed) -> None:
        if isinstance(message, Failed):
            self._fail(f"rank {follower.rank} failed: {message.reason}")
            return
        with self._changed:
            if isinstance(message, Loaded):
                self._num_loaded += 1
            else:
                self._layout_texts.append(message.layout_text)
            self._changed.notify_all()

    def _on_end(self, follower: _Follower) -> None:
        if not self._is_closing:
            self._fail(f"rank {follower.rank} {_describe_end(follower.process)}")

    def _fail(self, reason: str) -> None:
        with self._changed:
            if self._failure is not None:
                return
            self._failure = f"tensor parallelism: {reason}"
            self._changed.notify_all()
        logger.error("%s", self._failure)
        self.group.abort()
        self._on_failure()


class LeadRunner:
    """Rank 0's runner, which makes the others run too."""

    def __init__(self, runner: Runner, ranks: Ranks) -> None:
        self._runner = runner
        self._ranks = ranks

    def run(self, batch: Batch, score: Score = drop_logits) -> torch.Tensor:
        """As Runner.run. Raises RankLostError."""
        self._ranks.send(batch)
        try:
            return self._runner.run(batch, score)
        except RuntimeError as error:
            self._ranks.explain(error)
            raise


def _start(begin: Begin) -> _Follower:
    ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
    fds = [each.fileno() for each in theirs]
    # A fresh interpreter, told what to import: this process's main module may be anything.
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from {__package__}.follower import main; main({fds[0]}, {fds[1]})"
    )
    command = [sys.executable, "-c", code]
    if begin.place.memory_fd is not None:
        fds.append(begin.place.memory_fd)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds)
    for each in theirs:
        each.close()
    steps, side = (Connection(each.dup().detach()) for each in ours)
    with contextlib.suppress(ConnectionError):  # one that is dead already: the watcher sees it
        steps.send(begin)
    return _Follower(begin.rank, process, ours, steps, side)


def _describe_end(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended by itself with exit code {code}"


def _do_nothing() -> None:
    """Until somebody wants to know."""
