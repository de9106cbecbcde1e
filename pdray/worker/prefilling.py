"""A prompt's way through a prefill worker: wait, reserve at decode, run, publish, hand off.

Knows nothing of how the blocks are read; `lending.py` keeps them until the reader is done.
"""

from __future__ import annotations

import asyncio
import bisect
import enum
import itertools
import math
from dataclasses import dataclass

from pdray.core.errors import LinkError
from pdray.core.handoff import Watermark
from pdray.core.request import WorkerId
from pdray.engine.engine import Engine
from pdray.engine.outputs import SequenceOutput
from pdray.engine.sequence import Sequence
from pdray.link.messages import OfferReply, Submission
from pdray.worker.attempts import AttemptTable
from pdray.worker.lending import Lending
from pdray.worker.offering import Offering
from pdray.worker.outbox import Outbox
from pdray.worker.tasks import Tasks

RETRY_S = 0.02
"""Between two rounds of offers for a prompt that all candidates refused."""
PATIENCE = 10
"""Rounds that later prompts may overtake a refused one; then none passes it any more, so that
a long prompt cannot starve behind short ones."""


class Phase(enum.StrEnum):
    """WAITING -> OFFERED -> RUNNING -> HANDING_OFF; OFFERED goes back when all refuse.

    A prompt that is decoded where it is computed is none of ours any more once it runs.
    """

    WAITING = "waiting"
    OFFERED = "offered"
    RUNNING = "running"
    HANDING_OFF = "handing_off"


@dataclass(slots=True, eq=False)
class Prompt:
    number: int
    frontend_id: str
    submission: Submission
    sequence: Sequence
    phase: Phase = Phase.WAITING
    lease_id: str | None = None
    reader_id: WorkerId | None = None
    num_refusals: int = 0
    is_resting: bool = False
    is_cancelled: bool = False

    @property
    def request_id(self) -> str:
        return self.submission.request.request_id

    @property
    def attempt(self) -> int:
        return self.submission.attempt

    @property
    def num_tokens(self) -> int:
        """The prompt, and what earlier attempts have put behind it."""
        request = self.submission.request
        return len(request.prompt_token_ids) + len(request.output_token_ids)

    @property
    def num_uncached_tokens(self) -> int:
        """To be computed here, for one that is queued: all of them before it has its blocks, and
        with them what the prefix cache has of it."""
        return self.sequence.num_uncomputed_tokens

    @property
    def is_queued(self) -> bool:
        """Not in the engine yet."""
        return self.phase in (Phase.WAITING, Phase.OFFERED)

    @property
    def needs_handoff(self) -> bool:
        request = self.submission.request
        return request.sampling.max_tokens - len(request.output_token_ids) > 1


class Prefilling:
    """The prompts of one worker. Lives on the event loop; calls no blocking thing."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        max_tokens_per_step: int,
        engine: Engine,
        offering: Offering,
        lending: Lending,
        outbox: Outbox,
        attempts: AttemptTable,
        tasks: Tasks,
    ) -> None:
        self._worker_id = worker_id
        # The running step and the next one: enough that the engine never waits for an offer.
        self._lookahead_tokens = 2 * max_tokens_per_step
        self._engine = engine
        self._offering = offering
        self._lending = lending
        self._outbox = outbox
        self._attempts = attempts
        self._tasks = tasks
        self._waiting: list[Prompt] = []
        self._prompts: dict[tuple[str, int], Prompt] = {}
        self._by_lease: dict[str, Prompt] = {}
        self._numbers = itertools.count()

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
        sequence = Sequence.from_request(submission.request, submission.attempt, is_lent=True)
        prompt = Prompt(next(self._numbers), frontend_id, submission, sequence)
        self._prompts[(prompt.request_id, prompt.attempt)] = prompt
        self._waiting.append(prompt)
        limit = self._engine.max_sequence_tokens
        if prompt.num_tokens > limit:
            self._fail(prompt, f"{prompt.num_tokens} tokens do not fit; accepted: up to {limit}")

    def pump(self) -> None:
        """Starts the prompts that are about to run, in order of arrival."""
        num_ahead = self._ahead_tokens()
        last_number = self._last_number()
        for prompt in list(self._waiting):
            if num_ahead >= self._lookahead_tokens or prompt.number > last_number:
                return
            if prompt.is_resting:
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
        candidates = prompt.submission.decode_candidates
        if not prompt.needs_handoff:
            self._run(prompt)
        elif any(candidate.worker_id == self._worker_id for candidate in candidates):
            self._keep(prompt)
        else:
            prompt.phase = Phase.OFFERED
            self._tasks.start(self._offer(prompt))

    def _run(self, prompt: Prompt) -> None:
        prompt.phase = Phase.RUNNING
        if prompt.lease_id is not None and prompt.sequence.num_computed_tokens:
            self._publish(prompt.lease_id, prompt.sequence)
        self._engine.add(prompt.sequence)

    def _keep(self, prompt: Prompt) -> None:
        """This worker decodes it, too: from here on it is a sequence like any other."""
        del self._prompts[(prompt.request_id, prompt.attempt)]
        prompt.sequence.is_lent = False
        self._engine.add(prompt.sequence)

    async def _offer(self, prompt: Prompt) -> None:
        """Asks the candidates in order; runs the prompt at the first yes."""
        refusals: list[str] = []
        may_ask_again = False
        for candidate in prompt.submission.decode_candidates:
            try:
                reply = await self._offering.ask(prompt.sequence, prompt.frontend_id, candidate)
            except LinkError as error:
                reply = OfferReply(lease_id="", refusal=str(error), is_final=True)
            if reply.refusal is None:
                prompt.lease_id, prompt.reader_id = reply.lease_id, candidate.worker_id
                self._by_lease[reply.lease_id] = prompt
            if prompt.is_cancelled:
                self._drop_offered(prompt)
                return
            if reply.refusal is None:
                self._run(prompt)
                return
            refusals.append(f"{candidate.worker_id}: {reply.refusal}")
            may_ask_again |= not reply.is_final
        self._engine.release(prompt.sequence)
        if may_ask_again:
            self._wait_again(prompt)
        else:
            self._fail(prompt, f"no decode worker takes the request ({'; '.join(refusals)})")

    def _drop_offered(self, prompt: Prompt) -> None:
        if prompt.lease_id is not None:
            self._lending.withdraw(prompt.lease_id)
        else:
            self._engine.release(prompt.sequence)
        self.pump()

    def _wait_again(self, prompt: Prompt) -> None:
        prompt.phase = Phase.WAITING
        prompt.num_refusals += 1
        prompt.is_resting = True
        bisect.insort(self._waiting, prompt, key=lambda each: each.number)
        asyncio.get_running_loop().call_later(RETRY_S, self._retry, prompt)
        self.pump()

    def _retry(self, prompt: Prompt) -> None:
        prompt.is_resting = False
        self.pump()

    def on_step(self, output: SequenceOutput) -> None:
        """A chunk of a lent sequence is computed; after the last one there is a first token."""
        sequence = output.sequence
        prompt = self._prompts.get((sequence.request_id, sequence.attempt))
        if prompt is None or prompt.is_cancelled:
            return
        if output.error is not None:
            self._fail(prompt, output.error)
            return
        is_done = bool(output.token_ids)
        if is_done:
            self._outbox.put(prompt.frontend_id, output, decode_worker_id=prompt.reader_id)
        is_over = output.finish_reason is not None
        if prompt.lease_id is not None and not is_over:
            self._publish(prompt.lease_id, sequence, output)
        if is_over:
            self._end(prompt)
        elif is_done:
            prompt.phase = Phase.HANDING_OFF

    def _publish(
        self, lease_id: str, sequence: Sequence, output: SequenceOutput | None = None
    ) -> None:
        """What a step has computed; without one, what was in the prefix cache."""
        num_ready = output.num_computed_tokens if output else sequence.num_computed_tokens
        watermark = Watermark(
            lease_id=lease_id,
            ready_tokens=num_ready,
            runs=self._engine.runs(sequence, num_ready),
            first_token_id=output.token_ids[0] if output and output.token_ids else None,
        )
        self._lending.publish(watermark)

    def on_lease_end(self, lease_id: str, failure: str | None) -> None:
        """The reader is done, or lost: the prompt's work is over, its blocks go back next."""
        prompt = self._by_lease.pop(lease_id, None)
        if prompt is not None and not prompt.is_cancelled:
            if failure is None:
                self._forget(prompt)
            else:
                self._fail(prompt, failure)
        asyncio.get_running_loop().call_soon(self.pump)

    def cancel(self, request_id: str, attempt: int) -> None:
        prompt = self._prompts.get((request_id, attempt))
        if prompt is not None:
            self._end(prompt)
            self.pump()

    def _fail(self, prompt: Prompt, reason: str) -> None:
        self._outbox.fail(prompt.frontend_id, prompt.request_id, prompt.attempt, reason)
        self._end(prompt)

    def _end(self, prompt: Prompt) -> None:
        """Whatever its phase: the prompt stops, and its blocks go back when nobody reads them."""
        prompt.is_cancelled = True
        self._forget(prompt)
        match prompt.phase:
            case Phase.WAITING:
                self._waiting.remove(prompt)
            case Phase.OFFERED:
                pass  # `_offer` sees the flag when its answer comes
            case Phase.RUNNING | Phase.HANDING_OFF:
                self._engine.abort(prompt.request_id, prompt.attempt)
                if prompt.lease_id is not None:
                    self._lending.withdraw(prompt.lease_id)
                else:
                    self._engine.release(prompt.sequence)

    def _forget(self, prompt: Prompt) -> None:
        self._prompts.pop((prompt.request_id, prompt.attempt), None)
        self._attempts.end(prompt.request_id, prompt.attempt)
