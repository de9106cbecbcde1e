"""Sequences that decode together, many steps at a time.

While nobody comes or goes, every step is longer than the one before it by what one more token of
context for each costs: so a whole stretch of steps has a closed form, and so do the blocks that
it takes, as each sequence takes one every ``block_size`` steps."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass

from pdray.core.step_time import StepTime, StepWork

from .gaps import GapCounts
from .kv_blocks import BlockNeeds
from .sequence import SimulatedSequence


@dataclass(frozen=True, slots=True)
class Stretch:
    """``num_steps`` steps, the first of ``first_s`` seconds, each ``growth_s`` longer than the one
    before."""

    num_steps: int
    first_s: float
    growth_s: float

    def seconds(self, num_steps: int) -> float:
        """Of its first so many steps."""
        return num_steps * (self.first_s + self.growth_s * (num_steps - 1) / 2)

    def steps_begun(self, seconds: float) -> int:
        """How many have begun after so long: at least one, and no more than there are."""
        num = seconds / self.first_s
        if self.growth_s > 0.0:
            # growth / 2 * n^2 + (first - growth / 2) * n = seconds, of which the positive root.
            linear_s = self.first_s - self.growth_s / 2
            root = math.sqrt(linear_s * linear_s + 2 * self.growth_s * seconds)
            num = 2 * seconds / (linear_s + root)
        steps = math.ceil(num)
        while self.seconds(steps) < seconds:
            steps += 1
        while steps > 1 and self.seconds(steps - 1) >= seconds:
            steps -= 1
        return max(1, min(steps, self.num_steps))

    def steps_within(self, limit_s: float) -> int:
        """How many of them take no longer than ``limit_s`` each: the first ones."""
        if self.first_s > limit_s:
            return 0
        if self.growth_s <= 0.0:
            return self.num_steps
        return min(self.num_steps, int((limit_s - self.first_s) / self.growth_s) + 1)


class DecodeBatch:
    """Counts steps since the worker began. ``step`` + 1 is the next one's number."""

    def __init__(
        self, step_time: StepTime, itl_s: float, needs: BlockNeeds, gaps: GapCounts
    ) -> None:
        self._step_time = step_time
        self.itl_s = itl_s
        self._needs = needs
        self._gaps = gaps
        self.step = 0
        self.num_context_tokens = 0
        self._late_steps = 0
        self._members: dict[int, SimulatedSequence] = {}
        self._stays = itertools.count()
        # (step, stay): when a sequence makes its last token; when it needs a first new block.
        self._ends: list[tuple[int, int]] = []
        self._growths: list[tuple[int, int]] = []
        # Stays that take a new block at steps with this remainder, and how many they are.
        self._growing: dict[int, int] = {}
        self._num_growing = [0] * needs.block_size
        self._fresh: list[SimulatedSequence] = []

    def __len__(self) -> int:
        return len(self._members)

    @property
    def work(self) -> StepWork:
        return StepWork(num_decodes=len(self), num_context_tokens=self.num_context_tokens)

    def join(self, seq: SimulatedSequence) -> None:
        """From the next step on."""
        request = seq.request
        stay = seq.stay = next(self._stays)
        seq.joined_step = self.step
        seq.late_steps_before = self._late_steps
        self._members[stay] = seq
        self._fresh.append(seq)
        self.num_context_tokens += request.num_tokens
        heapq.heappush(self._ends, (self.step + request.num_left, stay))
        if self._needs.num_growing:
            heapq.heappush(self._growths, (self._first_growth(seq), stay))

    def _first_growth(self, seq: SimulatedSequence) -> int:
        """The first step whose token does not fit into what it came with."""
        return seq.joined_step + seq.capacity_tokens - seq.request.num_tokens + 2

    def leave(self, seq: SimulatedSequence, now: float) -> None:
        """Between two steps. Its request gets the tokens of its stay, its holding the blocks."""
        assert seq.stay is not None, f"{seq.request.request_id} does not decode"
        num_steps = self.step - seq.joined_step
        if self._needs.num_growing:
            num_over = self.step - self._first_growth(seq)
            if num_over >= 0:
                num_new = num_over // self._needs.block_size + 1
                seq.holding.num_own += num_new * self._needs.num_growing
        residue = self._growing.pop(seq.stay, None)
        if residue is not None:
            self._num_growing[residue] -= 1
        del self._members[seq.stay]
        seq.stay = None
        if seq in self._fresh:
            self._fresh.remove(seq)
        self.num_context_tokens -= seq.request.num_tokens + num_steps
        if num_steps:
            seq.request.token_at = now
        seq.request.num_made += num_steps
        seq.request.num_late_gaps += self._late_steps - seq.late_steps_before

    def youngest(self) -> SimulatedSequence | None:
        return max(self._members.values(), key=lambda seq: seq.age, default=None)

    def members(self) -> list[SimulatedSequence]:
        return list(self._members.values())

    # Steps to come

    def stretch(self, num_available_blocks: int) -> Stretch | None:
        """Until one makes its last token, or takes its first block, or the blocks are used up; None
        where they do not suffice for one step."""
        num_steps = self._next(self._ends) - self.step
        if self._needs.num_growing:
            self._grow_due()
            if self._growths:
                num_steps = min(num_steps, self._growths[0][0] - 1 - self.step)
            num_steps = min(num_steps, self.steps_for(num_available_blocks, num_steps))
        if num_steps == 0:
            return None
        return Stretch(
            num_steps,
            self._step_time.step_s(self.work),
            self._step_time.context_token_s * len(self),
        )

    def blocks_for(self, num_steps: int) -> int:
        """New ones that the next so many steps take."""
        if not self._needs.num_growing:
            return 0
        self._grow_due()
        size = self._needs.block_size
        cycles, rest = divmod(num_steps, size)
        num_sequences = cycles * len(self._growing)
        num_sequences += sum(self._num_growing[(self.step + i) % size] for i in range(1, rest + 1))
        return num_sequences * self._needs.num_growing

    def _grow_due(self) -> None:
        """Those whose first new block is due with the next step take one every so often from now
        on."""
        self._next(self._growths)
        while self._growths and self._growths[0][0] <= self.step + 1:
            at, stay = heapq.heappop(self._growths)
            residue = self._growing[stay] = at % self._needs.block_size
            self._num_growing[residue] += 1
            self._next(self._growths)

    def _next(self, heap: list[tuple[int, int]]) -> int:
        """The first step in it, of a stay that goes on."""
        while heap and heap[0][1] not in self._members:
            heapq.heappop(heap)
        return heap[0][0] if heap else self.step

    def steps_for(self, num_blocks: int, max_steps: int) -> int:
        """As many of ``max_steps`` as the blocks suffice for."""
        size, num_growing = self._needs.block_size, self._needs.num_growing
        # Where there are plenty, which is mostly, they need not be counted.
        most = (max_steps // size + 1) * len(self._members) * num_growing
        if most <= num_blocks or self.blocks_for(max_steps) <= num_blocks:
            return max_steps
        steps = num_blocks // (len(self._growing) * num_growing) * size
        num_blocks -= self.blocks_for(steps)
        while True:
            num_blocks -= self._num_growing[(self.step + steps + 1) % size] * num_growing
            if num_blocks < 0:
                return steps
            steps += 1

    # Steps that were

    def advance(self, stretch: Stretch, num_steps: int, ended_at: float) -> list[SimulatedSequence]:
        """The first ``num_steps`` of the stretch are over, the last one at ``ended_at``. Returns
        those that have made their last token: they have left."""
        num_gaps = len(self) * num_steps - len(self._fresh)
        seconds = stretch.seconds(num_steps)
        if num_gaps:
            self._gaps.add(seconds / num_steps, num_gaps)
        self._late_steps += num_steps - min(stretch.steps_within(self.itl_s), num_steps)
        first_ended_at = ended_at - seconds + stretch.first_s
        for seq in self._fresh:
            gap_s = first_ended_at - seq.request.token_at
            self._gaps.add(gap_s)
            if gap_s > self.itl_s >= stretch.first_s:
                seq.request.num_late_gaps += 1
        self._fresh.clear()
        self.step += num_steps
        self.num_context_tokens += num_steps * len(self)
        return self._take_ended(ended_at)

    def _take_ended(self, now: float) -> list[SimulatedSequence]:
        ended: list[SimulatedSequence] = []
        while self._members and self._next(self._ends) <= self.step and self._ends:
            _, stay = heapq.heappop(self._ends)
            seq = self._members[stay]
            self.leave(seq, now)
            ended.append(seq)
        return ended
