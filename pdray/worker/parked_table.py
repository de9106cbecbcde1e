"""Computed prompts that wait for a reader nobody knows yet: who may claim them, and until when.

A parked prompt keeps its blocks by its sequence; once claimed, it looks for a decode worker as any
other does (`prefilling.py`), and comes back here where none has taken it.
"""

from __future__ import annotations

import hmac
import itertools
import logging
import secrets
from dataclasses import dataclass

from pdray.core.clock import Clock
from pdray.core.errors import HandleProblem, OverloadedError
from pdray.core.parked import LeaseKey, lease_refused
from pdray.core.request import WorkerId
from pdray.engine.block_needs import first_needed_block, num_blocks_of
from pdray.engine.engine import Engine
from pdray.engine.sequence import Sequence

logger = logging.getLogger(__name__)

SECRET_BYTES = 16
REMEMBERED_S = 600.0
"""How long it is known what became of a lease; then it counts as expired."""
RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkingLimits:
    """``lease_s`` is how long a prompt waits to be claimed, unless it is renewed. All of them
    together take ``max_fraction`` of the KV blocks at most."""

    lease_s: float = 60.0
    max_fraction: float = 0.5


@dataclass(slots=True, eq=False)
class Parked:
    """One prompt. ``num_blocks`` is its share of what may be parked."""

    key: LeaseKey
    sequence: Sequence
    ready_tokens: int
    first_token_id: int
    num_blocks: int
    expires_at: float
    is_claimed: bool = False


class ParkedTable:
    """Lives on the event loop. Room is taken before a prompt is queued (``take_room``), and given
    back once: by ``give_room`` where it never came to be parked, else with its end here."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        engine: Engine,
        limits: ParkingLimits,
        clock: Clock,
    ) -> None:
        self._worker_id = worker_id
        self._engine = engine
        self._limits = limits
        self._clock = clock
        self._max_blocks = int(limits.max_fraction * engine.pool.num_blocks)
        self._num_taken_blocks = 0
        self._parked: dict[str, Parked] = {}
        self._ended: dict[str, tuple[HandleProblem, float]] = {}
        self._numbers = itertools.count()

    @property
    def lease_s(self) -> float:
        return self._limits.lease_s

    @property
    def num_active(self) -> int:
        return len(self._parked)

    @property
    def num_taken_blocks(self) -> int:
        """Of those that are parked, and of those that will be."""
        return self._num_taken_blocks

    def take_room(self, num_tokens: int) -> int:
        """The blocks taken, for a prompt that is to be parked. Raises OverloadedError where they
        would be too many; one alone never is."""
        num_blocks = self._num_blocks(num_tokens)
        if self._num_taken_blocks and self._num_taken_blocks + num_blocks > self._max_blocks:
            raise OverloadedError(
                f"{self._num_taken_blocks} KV blocks of {self._worker_id} wait to be claimed, and "
                f"at most {self._max_blocks} may",
                retry_after_s=RETRY_AFTER_S,
            )
        self._num_taken_blocks += num_blocks
        return num_blocks

    def give_room(self, num_blocks: int) -> None:
        self._num_taken_blocks -= num_blocks
        assert self._num_taken_blocks >= 0, "room is given back twice"

    def park(
        self, sequence: Sequence, *, ready_tokens: int, first_token_id: int, num_blocks: int
    ) -> LeaseKey:
        """Keeps the sequence's blocks from here on."""
        key = LeaseKey(
            lease_id=f"{self._worker_id}/parked/{next(self._numbers)}",
            secret=secrets.token_bytes(SECRET_BYTES),
        )
        self._parked[key.lease_id] = Parked(
            key=key,
            sequence=sequence,
            ready_tokens=ready_tokens,
            first_token_id=first_token_id,
            num_blocks=num_blocks,
            expires_at=self._clock.now() + self._limits.lease_s,
        )
        return key

    def claim(self, key: LeaseKey) -> Parked:
        """The prompt, for one reader at a time: ``put_back`` or ``use_up`` follows. Raises
        HandleRefusedError."""
        parked = self._find(key)
        parked.is_claimed = True
        return parked

    def put_back(self, parked: Parked) -> None:
        """Nobody has read it to its end: it can be claimed again, for as long as it was to be."""
        parked.is_claimed = False
        self.tick()

    def use_up(self, parked: Parked) -> None:
        """Its reader has it all. The caller has released the sequence."""
        self._end(parked, HandleProblem.USED_UP)

    def renew(self, key: LeaseKey, *, may_extend: bool) -> float:
        """How long it has from now on: longer than before, where it may. Raises
        HandleRefusedError."""
        parked, now = self._find(key), self._clock.now()
        if may_extend:
            parked.expires_at = now + self._limits.lease_s
        return parked.expires_at - now

    def release(self, key: LeaseKey) -> float:
        """Its blocks are free, and it has no time any more. Raises HandleRefusedError, where they
        are free already, too."""
        self._drop(self._find(key), HandleProblem.USED_UP)
        return 0.0

    def tick(self) -> None:
        """Ends what nobody has claimed in time."""
        now = self._clock.now()
        for parked in list(self._parked.values()):
            if parked.expires_at <= now and not parked.is_claimed:
                logger.info("nobody claimed it in time: lease_id=%s", parked.key.lease_id)
                self._drop(parked, HandleProblem.EXPIRED)
        while self._ended:
            lease_id, (_, forget_at) = next(iter(self._ended.items()))
            if forget_at > now:
                return
            del self._ended[lease_id]

    def _find(self, key: LeaseKey) -> Parked:
        parked = self._parked.get(key.lease_id)
        if parked is None:
            problem, _ = self._ended.get(key.lease_id, (HandleProblem.EXPIRED, 0.0))
            raise lease_refused(problem)
        if not hmac.compare_digest(parked.key.secret, key.secret):
            raise lease_refused(HandleProblem.FORGED)
        if parked.is_claimed:
            raise lease_refused(HandleProblem.USED_UP)
        if parked.expires_at <= self._clock.now():
            raise lease_refused(HandleProblem.EXPIRED)
        return parked

    def _drop(self, parked: Parked, problem: HandleProblem) -> None:
        self._engine.release(parked.sequence)
        self._end(parked, problem)

    def _end(self, parked: Parked, problem: HandleProblem) -> None:
        del self._parked[parked.key.lease_id]
        self.give_room(parked.num_blocks)
        self._ended[parked.key.lease_id] = (problem, self._clock.now() + REMEMBERED_S)

    def _num_blocks(self, num_tokens: int) -> int:
        """What decode needs of a prompt, and so what stays."""
        layout = self._engine.layout
        end = num_blocks_of(num_tokens, layout.block_size)
        return sum(
            end - first_needed_block(group, num_tokens, layout.block_size)
            for group in layout.groups
        )
