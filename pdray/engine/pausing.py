"""Running sequences that leave the batch for a while, each as soon as no token of it is on its
way."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import Future

from pdray.engine.scheduler import Scheduler
from pdray.engine.sequence import Sequence, SequenceState


class Pausing:
    """The sequences of one engine. Any thread may call: ``lock`` is the engine's.

    A step that was launched ahead of what is read is not waited for: the sequence's part in it is
    dropped, and computed again where it goes on.
    """

    def __init__(self, scheduler: Scheduler, lock: threading.Condition) -> None:
        self._scheduler = scheduler
        self._lock = lock
        self._computing: Collection[Sequence] = ()
        self._asked: dict[Sequence, Future[bool]] = {}

    def pause(self, seq: Sequence) -> Future[bool]:
        """Takes a running sequence out of the batch, with its blocks, once it has the token that is
        being computed. Ends with whether it has left: not one that ended meanwhile, was put back,
        or has its prompt to compute. Then ``resume``, or the engine's release or abort."""
        with self._lock:
            asked = self._asked.get(seq)
            if asked is None:
                asked = self._asked[seq] = Future()
                if seq not in self._computing:
                    self._settle(seq)
            return asked

    def resume(self, seq: Sequence) -> None:
        """A paused sequence goes on as if nothing had been; one that was aborted does not."""
        with self._lock:
            if seq.state is SequenceState.PAUSED:
                self._scheduler.resume(seq)
                self._lock.notify_all()

    def begin_step(self, sequences: Collection[Sequence]) -> None:
        """For the engine: their tokens will be read next."""
        with self._lock:
            self._computing = sequences

    def end_step(self) -> None:
        """For the engine: the sequences have their tokens, and its caller has been told."""
        with self._lock:
            self._computing = ()
            for seq in list(self._asked):
                self._settle(seq)

    def _settle(self, seq: Sequence) -> None:
        can_pause = seq.is_under_way
        if can_pause:
            self._scheduler.pause(seq)
        self._asked.pop(seq).set_result(can_pause)
