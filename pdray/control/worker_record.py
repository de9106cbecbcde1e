"""One living worker: what it said last, and what was placed on it since."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from pdray.core.snapshot import WorkerInfo, WorkerSnapshot, WorkerState
from pdray.core.step_time import StepTime

from .decaying_sum import DecayingSum

# A placement travels to the frontend and on to the worker: a snapshot that arrives sooner
# after it than this does not count it yet.
_SUBMIT_DELAY_S = 0.05
_LATELY_S = 10.0


class Booked(NamedTuple):
    """Requests in flight that a worker decodes or will decode, and the tokens of their prompts."""

    num_requests: int
    num_tokens: int


NOTHING_BOOKED = Booked(0, 0)


class WorkerRecord:
    """The WorkerView that policies get. Only its fleet changes it: its place in the fleet's orders
    depends on what it says. ``number`` counts the workers that joined."""

    def __init__(self, info: WorkerInfo, number: int, now: float, booked: Booked) -> None:
        self.info = info
        self.number = number
        self.snapshot: WorkerSnapshot | None = None
        self.is_draining = False
        self.is_standby = False
        self.is_stale = False
        self.seen_at = now
        self.prefill_backlog_tokens = 0
        self.kv_utilization = 0.0
        self.step_time: StepTime | None = None
        self.booked(booked)
        self._unseen: deque[tuple[float, int]] = deque()
        self.prompt_load = 0.0
        """The share of its time that prompts took of late."""
        self._prefill_tokens_per_s = DecayingSum(_LATELY_S)

    @property
    def is_ready(self) -> bool:
        if self.is_draining or self.is_stale or self.is_standby:
            return False
        return self.snapshot is None or self.snapshot.state is WorkerState.READY

    @property
    def fullness(self) -> float:
        return max(self.num_decoding / self.info.max_batch_size, self.kv_utilization)

    def booked(self, booked: Booked) -> None:
        """All that it has to decode."""
        self.num_decoding, self.num_decoding_tokens = booked

    def update(self, snapshot: WorkerSnapshot, now: float) -> None:
        self.snapshot = snapshot
        self.seen_at = now
        self.is_stale = False
        while self._unseen and self._unseen[0][0] <= now - _SUBMIT_DELAY_S:
            self._unseen.popleft()
        self.prefill_backlog_tokens = self._count_backlog()
        self.kv_utilization = _kv_utilization(snapshot)
        self.step_time = snapshot.step_time
        self._rate(now)

    def add_prefill(self, num_tokens: int, now: float) -> None:
        self._unseen.append((now, num_tokens))
        self.prefill_backlog_tokens += num_tokens
        self._prefill_tokens_per_s.add(num_tokens / _LATELY_S, now)
        self._rate(now)

    def _rate(self, now: float) -> None:
        token_s = 0.0 if self.step_time is None else self.step_time.prefill_token_s
        self.prompt_load = self._prefill_tokens_per_s.at(now) * token_s

    def check_integrity(self, booked: Booked) -> None:
        assert self.prefill_backlog_tokens == self._count_backlog(), self.info.worker_id
        assert (self.num_decoding, self.num_decoding_tokens) == booked, self.info.worker_id

    def _count_backlog(self) -> int:
        reported = self.snapshot.prefill_backlog_tokens if self.snapshot else 0
        return reported + sum(num_tokens for _, num_tokens in self._unseen)


def _kv_utilization(snapshot: WorkerSnapshot) -> float:
    if snapshot.num_blocks == 0:
        return 0.0
    return (snapshot.num_held_blocks + snapshot.num_quarantined_blocks) / snapshot.num_blocks
