"""A prompt's way through a prefill worker: wait, reserve at decode, run, publish, hand off.

Knows nothing of how the blocks are read; `lending.py` keeps them until the reader is done.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
import math
import random

from pdray.core.clock import Clock
from pdray.core.errors import LinkError
from pdray.core.parked import LeaseKey
from pdray.core.placement import PrefixSource, WorkerAddress
from pdray.core.request import PhaseAges, WorkerId
from pdray.engine.engine import Engine
from pdray.engine.outputs import SequenceOutput
from pdray.engine.sequence import Sequence
from pdray.link.messages import DecodeLost, OfferReply, Submission
from pdray.worker.attempts import AttemptTable
from pdray.worker.borrowing import Borrowing
from pdray.worker.lending import Lending
from pdray.worker.offering import Offering
from pdray.worker.outbox import Outbox
from pdray.worker.parking import Parking
from pdray.worker.prompt import Phase, Prompt
from pdray.worker.tasks import Tasks
from pdray.worker.tiering import Tiering

logger = logging.getLogger(__name__)

RETRY_S = 0.02
"""Between two rounds of offers for a prompt that all candidates refused."""
PATIENCE = 10
"""Rounds that later prompts may overtake a refused one; then none passes it any more, so that
a long prompt cannot starve behind short ones."""
FETCH_S = 2.0
"""How long a prompt is held up for KV that tiers or another worker may have of it."""
SEEK_S = 30.0
"""How long a prompt that has lost its reader looks for another that has room for it."""


class Prefilling:
    """The prompts of one worker. Lives on the event loop; calls no blocking thing."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        max_tokens_per_step: int,
        engine: Engine,
        offering: Offering,
        borrowing: Borrowing,
        tiering: Tiering,
        lending: Lending,
        parking: Parking,
        outbox: Outbox,
        attempts: AttemptTable,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._worker_id = worker_id
        # The running step and the next one: enough that the engine never waits for an offer.
        self._lookahead_tokens = 2 * max_tokens_per_step
        self._engine = engine
        self._offering = offering
        self._borrowing = borrowing
        self._tiering = tiering
        self._lending = lending
        self._parking = parking
        self._outbox = outbox
        self._attempts = attempts
        self._tasks = tasks
        self._clock = clock
        self._waiting: list[Prompt] = []
        self._prompts: dict[tuple[str, int], Prompt] = {}
        self._by_lease: dict[str, Prompt] = {}
        self._numbers = itertools.count()
        self._random = random.Random(worker_id)

    @property
    def num_waiting(self) -> int:
        return sum(prompt.is_queued for prompt in self._prompts.values())

    @property
    def num_active(self) -> int:
        return len(self._prompts)

    @property
    def waiting_tokens(self) -> int:
        return sum(
            prompt.num_uncached_tokens for prompt in self._prompts.values() if prompt.is_queued
        )

    def submit(self, frontend_id: str, submission: Submission) -> None:
        """Queues a prompt; ``pump`` starts it."""
        if submission.claim is not None:
            self._claim(frontend_id, submission, submission.claim)
            return
        sequence = Sequence.from_request(submission.request, submission.attempt, is_lent=True)
        prompt = Prompt(next(self._numbers), frontend_id, submission, sequence)
        if submission.is_parked and not self._parking.take_room(prompt):
            return
        self._prompts[(prompt.request_id, prompt.attempt)] = prompt
        self._waiting.append(prompt)
        limit = self._engine.max_sequence_tokens
        if prompt.num_tokens > limit:
            reason = f"{prompt.num_tokens} tokens do not fit; accepted: up to {limit}"
            self._fail(prompt, reason, comes_again=True)
        elif not sequence.scores_prompt:
            prompt.prefix_source = submission.prefix_source
            prompt.fetch_above_blocks = 0

    def _fetch_ahead(self) -> None:
        """While the next prompts wait, what tiers and others have of their KV comes: for the
        first, and for no more than fit here together, or it would be evicted again before they
        run."""
        layout = self._engine.layout
        max_tokens = self._engine.pool.num_blocks // len(layout.groups) * layout.block_size
        num_tokens = 0
        for prompt in self._waiting:
            num_tokens += prompt.num_tokens
            if num_tokens > max_tokens and prompt is not self._waiting[0]:
                return
            least = None if prompt.is_fetching else prompt.fetch_above_blocks
            if least is not None and self._engine.pool.num_available_blocks > least:
                self._fetch(prompt)

    def _fetch(self, prompt: Prompt) -> None:
        prompt.fetch_above_blocks = None
        self._engine.prefix_cache.hash(prompt.sequence)
        hashes = tuple(prompt.sequence.prefix_hashes)
        source, prompt.prefix_source = prompt.prefix_source, None
        is_borrowed = source is not None and self._borrowing.is_worthwhile(source, hashes)
        if is_borrowed or self._tiering.has_more(hashes):
            prompt.is_fetching = True
            self._tasks.start(self._await_fetched(prompt, source, hashes))

    async def _await_fetched(
        self, prompt: Prompt, source: PrefixSource | None, hashes: tuple[bytes, ...]
    ) -> None:
        # What comes later is found by those that come later.
        asyncio.get_running_loop().call_later(FETCH_S, self._end_fetching, prompt)
        if not await self._tiering.promote(hashes):
            prompt.fetch_above_blocks = self._engine.pool.num_available_blocks
        if source is not None and self._borrowing.is_worthwhile(source, hashes):
            await self._borrowing.borrow(source, hashes)
        self._end_fetching(prompt)

    def _end_fetching(self, prompt: Prompt) -> None:
        if prompt.is_fetching:
            prompt.is_fetching = False
            self.pump()

    def _claim(self, frontend_id: str, submission: Submission, key: LeaseKey) -> None:
        """A parked prompt has found who wants it: it looks for a reader as others do."""
        prompt = self._parking.claim(next(self._numbers), frontend_id, submission, key)
        if prompt is not None:
            self._prompts[(prompt.request_id, prompt.attempt)] = prompt
            self._tasks.start(self._find_reader(prompt))

    def pump(self) -> None:
        """Starts the prompts that are about to run, in order of arrival."""
        self._fetch_ahead()
        num_ahead = self._ahead_tokens()
        last_number = self._last_number()
        for prompt in list(self._waiting):
            if num_ahead >= self._lookahead_tokens or prompt.number > last_number:
                return
            if prompt.is_resting or prompt.is_fetching:
                continue
            if not self._engine.allocate(prompt.sequence, prompt.num_tokens):
                return
            self._waiting.remove(prompt)
            num_ahead += prompt.num_uncached_tokens
            self._start(prompt)

    def _ahead_tokens(self) -> int:
        offered = sum(
            prompt.num_uncached_tokens
            for prompt in self._prompts.values()
            if prompt.phase is Phase.OFFERED
        )
        return offered + self._engine.prefill_backlog_tokens

    def _last_number(self) -> float:
        """Of the first prompt that was refused too often, asking again or not: no later one may
        start before it, or it would take the blocks that come free."""
        refused = (
            prompt.number
            for prompt in self._prompts.values()
            if prompt.is_queued and prompt.num_refusals >= PATIENCE
        )
        return min(refused, default=math.inf)

    def _start(self, prompt: Prompt) -> None:
        if not prompt.needs_handoff or prompt.submission.is_parked:
            self._run(prompt)
        elif any(each.worker_id == self._worker_id for each in prompt.candidates):
            self._keep(prompt)
        else:
            prompt.phase = Phase.OFFERED
            self._tasks.start(self._find_reader(prompt))

    def _run(self, prompt: Prompt) -> None:
        prompt.phase = Phase.RUNNING
        # What was in the prefix cache may be read at once.
        prompt.ready_tokens = prompt.sequence.num_computed_tokens
        self._publish(prompt)
        self._engine.add(prompt.sequence)

    def _keep(self, prompt: Prompt) -> None:
        """This worker decodes it, too: from here on it is a sequence like any other."""
        del self._prompts[(prompt.request_id, prompt.attempt)]
        prompt.sequence.is_lent = False
        self._engine.add(prompt.sequence)

    async def _find_reader(self, prompt: Prompt) -> None:
        """Asks the candidates in order; the first that says yes reads it from then on."""
        refusals: list[str] = []
        may_ask_again = False
        for candidate in prompt.candidates:
            if candidate.worker_id in prompt.lost:
                continue
            reply = await self._ask(prompt, candidate)
            is_wanted = not prompt.is_cancelled and candidate.worker_id not in prompt.lost
            if reply.refusal is not None:
                refusals.append(f"{candidate.worker_id}: {reply.refusal}")
                may_ask_again |= not reply.is_final
            elif is_wanted:
                self._take_reader(prompt, candidate.worker_id, reply.lease_id)
                return
            else:
                self._lending.withdraw(reply.lease_id)
            if prompt.is_cancelled:
                self._hold_nothing(prompt)
                return
        self._hold_nothing(prompt)
        if may_ask_again and not self._is_out_of_patience(prompt):
            self._wait_again(prompt)
            return
        refusals += [f"{worker_id}: {reason}" for worker_id, reason in prompt.lost.items()]
        self._fail(prompt, f"no decode worker takes the request ({'; '.join(refusals)})")

    async def _ask(self, prompt: Prompt, candidate: WorkerAddress) -> OfferReply:
        try:
            return await self._offering.ask(
                prompt.submission.request, prompt.attempt, prompt.frontend_id, candidate
            )
        except LinkError as error:
            return OfferReply(lease_id="", refusal=str(error), is_final=True)

    def _take_reader(self, prompt: Prompt, reader_id: WorkerId, lease_id: str) -> None:
        prompt.lease_id, prompt.reader_id = lease_id, reader_id
        self._by_lease[lease_id] = prompt
        if prompt.phase is Phase.OFFERED:
            self._run(prompt)
            return
        self._publish(prompt)
        if prompt.phase is Phase.HANDING_OFF:
            self._outbox.goes_on(prompt.frontend_id, prompt.request_id, prompt.attempt, reader_id)

    def _hold_nothing(self, prompt: Prompt) -> None:
        """One that has not run keeps no blocks while it has no reader."""
        if prompt.phase is Phase.OFFERED:
            self._engine.release(prompt.sequence)
            asyncio.get_running_loop().call_soon(self.pump)

    def _is_out_of_patience(self, prompt: Prompt) -> bool:
        """One that runs or has run keeps its blocks while it looks for a reader. Two workers whose
        prompts wait for each other's blocks must not do so for ever."""
        return not prompt.is_queued and self._clock.now() >= prompt.seek_until

    def _wait_again(self, prompt: Prompt) -> None:
        prompt.is_resting = True
        if prompt.phase is Phase.OFFERED:
            prompt.phase = Phase.WAITING
            prompt.num_refusals += 1
            bisect.insort(self._waiting, prompt, key=lambda each: each.number)
        # Unlike rests: two workers whose prompts need each other's blocks could refuse in step.
        rest_s = RETRY_S * self._random.uniform(0.5, 1.5)
        asyncio.get_running_loop().call_later(rest_s, self._retry, prompt)

    def _retry(self, prompt: Prompt) -> None:
        prompt.is_resting = False
        if prompt.is_queued:
            self.pump()
        elif not prompt.is_cancelled:
            self._tasks.start(self._find_reader(prompt))

    def on_step(self, output: SequenceOutput, ages: PhaseAges | None) -> None:
        """A chunk of a lent sequence is computed; after the last one there is a first token."""
        sequence = output.sequence
        prompt = self._prompts.get((sequence.request_id, sequence.attempt))
        if prompt is None or prompt.is_cancelled:
            return
        if output.error is not None:
            self._fail(prompt, output.error, comes_again=True)
            return
        prompt.ready_tokens = output.num_computed_tokens
        if output.token_ids:
            prompt.phase = Phase.HANDING_OFF
            (prompt.first_token_id,) = output.token_ids
            self._outbox.put(prompt.frontend_id, output, ages, decode_worker_id=prompt.reader_id)
        if output.finish_reason is not None:
            self._end(prompt)
        elif output.token_ids and prompt.submission.is_parked:
            self._parking.park(prompt)
            self._forget(prompt)
        else:
            self._publish(prompt)

    def _publish(self, prompt: Prompt) -> None:
        if prompt.lease_id is not None and prompt.ready_tokens:
            self._lending.publish(
                prompt.lease_id, prompt.sequence, prompt.ready_tokens, prompt.first_token_id
            )

    def on_lease_end(self, lease_id: str, failure: str | None) -> None:
        """The reader has it all, or will never: then the next candidate is asked, and reads what
        is computed already."""
        prompt = self._by_lease.pop(lease_id, None)
        if prompt is not None:
            assert prompt.reader_id is not None, f"{lease_id} had no reader"
            if failure is None:
                self._parking.leave(prompt, is_read=True)
                self._forget(prompt)
            else:
                prompt.lost[prompt.reader_id] = failure
                self._lose_reader(prompt)
        asyncio.get_running_loop().call_soon(self.pump)

    def on_decode_lost(self, frontend_id: str, message: DecodeLost) -> None:
        """A frontend has no link any more to one that was to decode its request."""
        prompt = self._prompts.get((message.request_id, message.attempt))
        if prompt is None:
            self._outbox.handed_off(frontend_id, message.request_id, message.attempt)
            return
        prompt.lost.setdefault(message.worker_id, "was lost to the frontend")
        if prompt.reader_id == message.worker_id:
            self._withdraw(prompt)
            self._lose_reader(prompt)

    def _lose_reader(self, prompt: Prompt) -> None:
        assert prompt.reader_id is not None, f"{prompt.request_id} has no reader to lose"
        logger.warning(
            "decode worker %s is to be replaced: %s, request_id=%s",
            *(prompt.reader_id, prompt.lost[prompt.reader_id], prompt.request_id),
        )
        prompt.lease_id = prompt.reader_id = None
        prompt.seek_until = self._clock.now() + SEEK_S
        self._tasks.start(self._find_reader(prompt))

    def cancel(self, request_id: str, attempt: int) -> None:
        prompt = self._prompts.get((request_id, attempt))
        if prompt is not None:
            self._end(prompt)
            self.pump()

    def _fail(self, prompt: Prompt, reason: str, *, comes_again: bool = False) -> None:
        self._outbox.fail(
            prompt.frontend_id, prompt.request_id, prompt.attempt, reason, comes_again=comes_again
        )
        self._end(prompt)

    def _end(self, prompt: Prompt) -> None:
        """Whatever its phase: the prompt stops, and gives its blocks back. Those that somebody
        may be reading its lease holds for as long."""
        prompt.is_cancelled = True
        self._forget(prompt)
        match prompt.phase:
            case Phase.WAITING:
                self._waiting.remove(prompt)
            case Phase.OFFERED:
                pass  # `_find_reader` sees the flag when its answer comes
            case Phase.RUNNING | Phase.HANDING_OFF:
                self._withdraw(prompt)
                self._parking.leave(prompt, is_read=False)

    def give_back(self) -> None:
        """What has not begun is for others to do."""
        for prompt in list(self._waiting):
            self._outbox.give_back(*prompt.owner, self._worker_id)
            self._end(prompt)

    def _withdraw(self, prompt: Prompt) -> None:
        if prompt.lease_id is not None:
            self._by_lease.pop(prompt.lease_id, None)
            self._lending.withdraw(prompt.lease_id)

    def _forget(self, prompt: Prompt) -> None:
        self._parking.give_room(prompt)
        self._prompts.pop((prompt.request_id, prompt.attempt), None)
        self._attempts.end(prompt.request_id, prompt.attempt)
