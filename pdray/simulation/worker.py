"""A simulated worker: prompts that wait, prompts in chunks, a batch that decodes, KV blocks.

Coarser than the shipped scheduler (engine/scheduler.py), whose rules it follows, so that days of
requests take minutes: while a batch decodes undisturbed, all its steps up to the next change are
one event. How much of a prompt joins a step, and how many may decode together, is decided by the
shipped step budget."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pdray.core.handoff import RESERVED_MARGIN_TOKENS
from pdray.core.snapshot import WorkerInfo
from pdray.core.step_time import StepTime, StepWork
from pdray.engine.step_budget import StepBudget

from .decode_batch import DecodeBatch, Stretch
from .gaps import GapCounts
from .kv_blocks import PIECE_TOKENS, BlockNeeds, KVBlocks
from .profile import WorkerProfile
from .sequence import SimulatedRequest, SimulatedSequence
from .timeline import Timeline
from .under_way import Chunk, UnderWay
from .worker_events import WorkerEvents

PATIENCE = 10
"""As worker/prefilling.py has it: refusals after which nobody passes a prompt any more."""


@dataclass(frozen=True, slots=True)
class KnownTimes:
    """What the step budget knows of steps here: what was measured."""

    step_time: StepTime
    high_ratio: float

    def knows(self, *, prompts: bool) -> bool:
        return True


class SimulatedWorker:
    """Its time is the timeline's. ``num_pulls`` counts what it has reserved and not yet got."""

    def __init__(
        self,
        info: WorkerInfo,
        profile: WorkerProfile,
        timeline: Timeline,
        events: WorkerEvents,
        gaps: GapCounts,
        *,
        itl_s: float,
    ) -> None:
        self.info = info
        self.needs = BlockNeeds(info.kv_spans, info.block_size)
        self.blocks = KVBlocks(info.num_blocks, self.needs.piece_blocks)
        self.batch = DecodeBatch(profile.step_time, itl_s, self.needs, gaps)
        self.is_draining = False
        self.num_pulls = 0
        self.num_lent = 0
        self.num_query_tokens = 0
        self.num_hit_tokens = 0
        self.num_preemptions = 0
        self._step_time = profile.step_time
        self._gaps = gaps
        self._timeline = timeline
        self._events = events
        self._budget = StepBudget(
            KnownTimes(profile.step_time, profile.high_ratio),
            max_tokens_per_step=info.max_tokens_per_step,
            max_batch_size=info.max_batch_size,
            itl_s=itl_s,
        )
        self._ages = itertools.count()
        self._submitted: deque[SimulatedSequence] = deque()  # without blocks
        self._ready: deque[SimulatedSequence] = deque()  # with blocks, without a seat
        self._prompts: list[SimulatedSequence] = []  # in the batch, oldest first
        self._preempted: deque[SimulatedSequence] = deque()
        self._under_way: UnderWay | None = None

    # What others read

    @property
    def num_waiting(self) -> int:
        return len(self._submitted) + len(self._ready) + len(self._preempted)

    @property
    def num_running(self) -> int:
        return len(self.batch) + len(self._prompts)

    @property
    def backlog_tokens(self) -> int:
        """Prompt tokens that are here and not computed yet."""
        waiting = itertools.chain(self._submitted, self._ready, self._preempted, self._prompts)
        return sum(seq.num_uncomputed for seq in waiting)

    @property
    def num_requests(self) -> int:
        return self.num_waiting + self.num_running + self.num_pulls + self.num_lent

    @property
    def is_refused(self) -> bool:
        """Whether some prompt waits for a worker that decodes it."""
        return any(seq.is_refused for seq in self._submitted)

    # What comes in

    def submit(self, seq: SimulatedSequence) -> None:
        """A prompt, to be computed when its turn has come."""
        seq.age = next(self._ages)
        seq.end_tokens = seq.request.num_tokens
        self._submitted.append(seq)
        self.look()

    def reserve(self, request: SimulatedRequest) -> SimulatedSequence | None:
        """Room for all of a prompt that is computed elsewhere, and some to grow; or none."""
        num_taken = self.num_pulls + self.num_running + len(self._ready) + len(self._preempted)
        if self.is_draining or num_taken >= min(self.info.max_batch_size, self._num_seats):
            return None
        if not self._may_take:
            return None
        seq = SimulatedSequence(request, age=next(self._ages), end_tokens=request.num_tokens)
        margin = min(RESERVED_MARGIN_TOKENS, request.ask.max_tokens - request.num_made)
        if not self._take(seq, request.num_tokens + margin, self.blocks.leading(request.piece_ids)):
            return None
        self.num_pulls += 1
        return seq

    def arrived(self, seq: SimulatedSequence) -> None:
        """All KV of a reserved sequence is here, and its request has its first token."""
        self.num_pulls -= 1
        seq.num_computed = seq.end_tokens
        self._name(seq)
        self._ready.append(seq)
        self._wake()

    def forget(self, seq: SimulatedSequence) -> None:
        """A reserved sequence is not wanted any more."""
        self.num_pulls -= 1
        self._release(seq)

    def read(self, seq: SimulatedSequence) -> None:
        """A lent sequence's blocks have been read."""
        self.num_lent -= 1
        self._release(seq)

    def kick(self) -> None:
        """Blocks or a seat may have come free, here or where its prompts are to be decoded."""
        self.look()
        if self._under_way is None:
            self._begin()

    def withdraw(self, seq: SimulatedSequence) -> None:
        """A prompt that was submitted and has not started is not wanted any more."""
        self._submitted.remove(seq)

    def look(self) -> None:
        """Starts the prompts that are about to run, in order of arrival."""
        if not self._submitted:
            return
        started = itertools.chain(self._prompts, self._ready, self._preempted)
        num_ahead = sum(seq.num_uncomputed for seq in started)
        has_started = False
        index = 0
        while index < len(self._submitted) and num_ahead < 2 * self.info.max_tokens_per_step:
            seq = self._submitted[index]
            if self._start(seq):
                del self._submitted[index]
                self._ready.append(seq)
                num_ahead += seq.num_uncomputed
                has_started = True
            elif seq.is_refused and seq.num_refusals < PATIENCE:
                index += 1
            else:
                break
        if has_started:
            self._wake()

    def _start(self, seq: SimulatedSequence) -> bool:
        request = seq.request
        leading = self.blocks.leading(request.piece_ids)
        if not self._may_take or not self._take(seq, request.num_tokens, leading):
            seq.is_refused = False
            return False
        if (
            seq.is_lent
            and request.needs_handoff
            and not self._events.reserve(self.info.worker_id, seq)
        ):
            self.blocks.release(seq.holding)
            seq.num_computed = 0
            seq.num_refusals += 1
            seq.is_refused = True
            return False
        seq.is_refused = False
        self.num_query_tokens += request.num_tokens
        self.num_hit_tokens += seq.num_computed
        return True

    @property
    def _may_take(self) -> bool:
        """Nobody who was preempted waits for blocks: newcomers must not starve them."""
        if not self._preempted:
            return True
        return self._can_start_again(self._preempted[0], self._promised_blocks())

    def _take(self, seq: SimulatedSequence, num_tokens: int, leading: list[int]) -> bool:
        """Blocks for so many tokens of a sequence, of which the ``leading`` pieces are here."""
        # One token at least is computed, whatever is here.
        num_found = min(len(leading) * PIECE_TOKENS, seq.request.num_tokens - 1)
        shared = leading[: num_found // PIECE_TOKENS]
        num_found = len(shared) * PIECE_TOKENS
        num_new = self.needs.growing(num_tokens) - self.needs.growing(num_found)
        num_new += self.needs.windowed(seq.request.num_final_tokens)
        if not self.blocks.take(seq.holding, num_new, shared, num_spare=self._promised_blocks()):
            return False
        size = self.info.block_size
        seq.capacity_tokens = -(-num_tokens // size) * size
        seq.num_computed = num_found
        self._shorten_to_blocks()
        return True

    def _promised_blocks(self) -> int:
        """What the steps that have begun will take."""
        steps = self._under_way
        return 0 if steps is None or steps.chunks else self.batch.blocks_for(steps.num_begun)

    def _release(self, seq: SimulatedSequence) -> None:
        self.blocks.release(seq.holding)
        self._events.has_room(self.info.worker_id)

    def _name(self, seq: SimulatedSequence) -> None:
        self.blocks.name(seq.holding, seq.request.piece_ids)

    # Steps

    @property
    def _num_seats(self) -> int:
        return self._budget.num_seats(self.batch.work)

    def _has_seat(self, seq: SimulatedSequence) -> bool:
        num_seats = self.info.max_batch_size if seq.is_lent else self._num_seats
        return self.num_running < num_seats

    def _wake(self) -> None:
        """Something has come for the next step: a stretch ends with the step under way."""
        if self._under_way is None:
            self._begin()
        else:
            self._under_way.shorten(self._under_way.num_begun)

    def _shorten_to_blocks(self) -> None:
        steps = self._under_way
        if steps is not None and not steps.chunks:
            steps.shorten(self.batch.steps_for(self.blocks.num_available, steps.num_steps))

    def _begin(self) -> None:
        assert self._under_way is None, "a step is under way"
        while True:
            while self._ready and self._has_seat(self._ready[0]):
                self._seat(self._ready.popleft())
            stretch = self._room_for_decodes()
            chunks = tuple(self._chunks(self.batch.work))
            # Whoever had the last seat may just have been preempted.
            if chunks or stretch or not self._ready or not self._has_seat(self._ready[0]):
                break
        if chunks:
            self.blocks.take_unowned(self.batch.blocks_for(1))
            stretch = Stretch(1, self._step_s(chunks), 0.0)
        if stretch is not None:
            self._under_way = UnderWay(self._timeline, stretch, chunks, self._end)

    def _seat(self, seq: SimulatedSequence) -> None:
        if seq.num_uncomputed:
            self._prompts.append(seq)
            self._prompts.sort(key=lambda each: each.age)
        else:
            self.batch.join(seq)

    def _room_for_decodes(self) -> Stretch | None:
        """The steps to come, if nothing else does; the youngest give way where blocks lack."""
        while len(self.batch):
            stretch = self.batch.stretch(self.blocks.num_available)
            if stretch is not None:
                return stretch
            self._preempt()
        return None

    def _preempt(self) -> None:
        candidates = [seq for seq in (*self._prompts, *self._ready) if not seq.is_lent]
        youngest = self.batch.youngest()
        assert youngest is not None, "nobody decodes"
        victim = max((youngest, *candidates), key=lambda seq: seq.age)
        if victim.stay is not None:
            self.batch.leave(victim, self._timeline.now)
        elif victim in self._prompts:
            self._prompts.remove(victim)
        else:
            self._ready.remove(victim)
        self.blocks.release(victim.holding)
        victim.num_computed, victim.end_tokens = 0, victim.request.num_tokens
        self._preempted.appendleft(victim)
        self.num_preemptions += 1

    def _can_start_again(self, seq: SimulatedSequence, num_promised: int) -> bool:
        num_new = self.needs.growing(seq.end_tokens)
        num_new += self.needs.windowed(seq.request.num_final_tokens)
        num_spare = self.num_running * len(self.info.kv_spans)
        return num_new + num_spare + num_promised <= self.blocks.num_available

    def _chunks(self, work: StepWork) -> Iterator[Chunk]:
        """Beside decodes that are ``work``."""
        prompts = deque(self._prompts)
        max_tokens = self._budget.max_tokens_per_step - work.num_decodes
        while (prompts or self._preempted) and self._budget.chunk_tokens(work, 0, max_tokens):
            seq = prompts.popleft() if prompts else self._start_again()
            if seq is None:
                return
            start, num_left = seq.num_computed, seq.num_uncomputed
            num_tokens = self._budget.chunk_tokens(work, start, min(max_tokens, num_left))
            if num_tokens == 0:
                return
            yield Chunk(seq, num_tokens)
            work = work.with_chunk(start, num_tokens)
            max_tokens -= num_tokens

    def _start_again(self) -> SimulatedSequence | None:
        seq = self._preempted[0]
        if not self._has_seat(seq) or not self._can_start_again(seq, self.batch.blocks_for(1)):
            return None
        leading = self.blocks.leading(seq.request.piece_ids)
        if not self._take(seq, seq.end_tokens, leading):
            return None
        self._preempted.popleft()
        self._seat(seq)
        return seq

    def _step_s(self, chunks: tuple[Chunk, ...]) -> float:
        work = self.batch.work
        for chunk in chunks:
            work = work.with_chunk(chunk.seq.num_computed, chunk.num_tokens)
        return self._step_time.step_s(work)

    def _end(self) -> None:
        steps, now = self._under_way, self._timeline.now
        assert steps is not None, "no step is under way"
        self._under_way = None
        if not steps.chunks:
            self.blocks.take_unowned(self.batch.blocks_for(steps.num_steps))
        ended = self.batch.advance(steps.stretch, steps.num_steps, now)
        for seq in ended:
            self._finish(seq)
        for chunk in steps.chunks:
            self._advance(chunk)
        self.look()
        if self._under_way is None:
            self._begin()

    def _advance(self, chunk: Chunk) -> None:
        seq = chunk.seq
        seq.num_computed += chunk.num_tokens
        is_last = seq.num_uncomputed == 0
        if is_last:
            self._prompts.remove(seq)
            self._name(seq)
            self._make_token(seq)
        if seq.is_lent:
            self.num_lent += is_last
            self._events.chunk_done(self.info.worker_id, seq)
        elif is_last:
            if seq.request.num_left:
                self.batch.join(seq)
            else:
                self._finish(seq)

    def _make_token(self, seq: SimulatedSequence) -> None:
        request, now = seq.request, self._timeline.now
        request.num_made += 1
        if request.first_token_at is None:
            request.first_token_at = now
        else:
            # Preempted, or moved: nobody has told of this gap yet.
            gap_s = now - request.token_at
            self._gaps.add(gap_s)
            request.num_late_gaps += gap_s > self.batch.itl_s
        request.token_at = now

    def _finish(self, seq: SimulatedSequence) -> None:
        self.blocks.release(seq.holding)
        seq.request.decoded_on = self.info.worker_id
        self._events.finished(self.info.worker_id, seq)

    def check_integrity(self) -> None:
        self.blocks.check_integrity()
