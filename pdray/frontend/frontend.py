"""A request's owner: places it, submits it, takes its tokens, cancels it.

Used by the HTTP ingress, `pdray batch` and the local cluster alike; knows no HTTP and no Ray.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from pdray.core.clock import Clock, WallClock
from pdray.core.errors import PdrayError
from pdray.core.parked import LeaseKey, ParkedPrompt
from pdray.core.placement import WorkerAddress
from pdray.core.request import Request, RequestState, TokenChunk, WorkerId
from pdray.frontend.attempts import Attempts
from pdray.frontend.check_fits import check_fits
from pdray.frontend.controller_client import ControllerClient
from pdray.frontend.evacuation import Evacuation
from pdray.frontend.failures import failure_of, lost_worker, outcome_of
from pdray.frontend.live_request import LiveRequest
from pdray.frontend.migrations import Migrations
from pdray.frontend.parked_leases import ParkedLeases, lease_of
from pdray.frontend.placing import Placing
from pdray.frontend.prefix_names import PrefixNames
from pdray.frontend.timing import RequestTiming
from pdray.frontend.token_stream import TokenDelta, TokenStream
from pdray.link.connection import Connection
from pdray.link.messages import (
    WIRE_VERSION,
    Draining,
    Failed,
    GoesOn,
    HandedOff,
    Hello,
    Message,
    Moved,
    Parked,
    ParkedAnswer,
    Tokens,
)
from pdray.link.peers import PeerLinks
from pdray.metrics.prometheus import FrontendMetrics, Outcome

logger = logging.getLogger(__name__)

FIRST_ATTEMPT = 1


class Frontend:
    """All methods are for one event loop. ``max_unread_tokens`` is what a slow client may
    leave unread before its request is cut, ``patience_s`` how long one that has lost its worker
    may take until it is placed again."""

    def __init__(
        self,
        frontend_id: str,
        controller: ControllerClient,
        *,
        max_unread_tokens: int,
        patience_s: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        self.frontend_id = frontend_id
        self.metrics = FrontendMetrics(frontend_id)
        self._controller = controller
        self._max_unread_tokens = max_unread_tokens
        self._clock = clock or WallClock()
        self._peers = PeerLinks(self._hello, self._on_message, self._on_lost)
        self._parked = ParkedLeases(self._peers)
        self._migrations = Migrations(self._peers, self._find, self.metrics, self._clock)
        self._evacuation = Evacuation(controller, self._migrations, self._decoding_at)
        self._placing = Placing(controller, self._peers)
        self._attempts = Attempts(controller, self.metrics, self._give_up, patience_s=patience_s)
        self._live: dict[str, LiveRequest] = {}

    @property
    def num_in_flight(self) -> int:
        return len(self._live)

    async def stop(self) -> None:
        """Closes all links; workers cancel what was still running."""
        self._evacuation.stop()
        await self._peers.close()

    def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """Yields new tokens as they come; the last delta has a finish reason.

        Closing the generator cancels the request on all workers. One whose worker is lost goes on
        elsewhere. Raises InvalidRequestError for what could never fit, OverloadedError,
        UnavailableError, WorkerLostError where no worker could go on, or SlowReaderError when this
        generator was not read.
        """

        async def submit(live: LiveRequest) -> None:
            await self._placing.submit(live, await self._placing.place(live))

        return self._deltas(request, partial(self._attempts.start, submit))

    async def park(self, request: Request) -> ParkedPrompt:
        """Has the prompt computed, and kept for whoever comes for it. Cancelled, it cancels that.
        Raises what ``generate`` does."""
        owner: WorkerAddress | None = None

        async def submit(live: LiveRequest) -> None:
            nonlocal owner
            placement = await self._placing.place(live)
            owner = placement.prefill
            await self._placing.submit(live, placement, is_parked=True)

        start = partial(self._attempts.start, submit)
        async with aclosing(self._deltas(request, start)) as deltas:
            delta = await anext(deltas)
            live = self._live[request.request_id]
            first = live.first_chunk(delta)
            if live.parked is None:
                return ParkedPrompt(first=first, lease=None, lease_s=0.0)
            assert owner is not None, "placed for decode alone"
            lease = lease_of(live.parked, owner, live.links[owner.worker_id])
            return ParkedPrompt(first=first, lease=lease, lease_s=live.parked.lease_s)

    def resume(
        self, request: Request, parked: ParkedPrompt, owner: WorkerAddress | None
    ) -> AsyncGenerator[TokenDelta, None]:
        """As ``generate``, of a request whose prompt is computed and, unless its first token has
        ended it, parked at ``owner``. Raises HandleRefusedError, too: before the first delta."""

        async def start(live: LiveRequest) -> None:
            live.expect_first(parked.first)
            if parked.lease is None or owner is None or live.ends_with_first:
                live.state = live.state.advance(RequestState.PREFILLING)
                self._push_first(live)
                if parked.lease is not None and owner is not None:
                    self.drop(owner, parked.lease.key)
                return
            placement = replace(await self._placing.place(live), prefill=owner)
            await self._placing.submit(live, placement, claim=parked.lease.key)

        return self._deltas(request, start)

    async def renew(self, owner: WorkerAddress, key: LeaseKey) -> float:
        """How long a parked prompt has from now on. Raises HandleRefusedError, WorkerLostError."""
        return await self._parked.renew(owner, key)

    async def release(self, owner: WorkerAddress, key: LeaseKey) -> None:
        """Gives a parked prompt up. Raises HandleRefusedError, WorkerLostError."""
        await self._parked.release(owner, key)

    def drop(self, owner: WorkerAddress, key: LeaseKey) -> None:
        """The same without waiting; where it fails, the lease runs out by itself."""
        self._parked.drop(owner, key)

    async def migrate(self, request_id: str, target: WorkerAddress) -> None:
        """Has another worker go on with a running request; its client sees nothing of it but the
        pause. Returns when that is so. Raises MigrationError where it goes on where it was, or has
        ended."""
        await self._migrations.migrate(request_id, target)

    def decoding_at(self, worker_id: WorkerId) -> list[str]:
        """The requests whose tokens this worker makes: what a drain would have to move."""
        return [live.request.request_id for live in self._decoding_at(worker_id)]

    def _decoding_at(self, worker_id: str) -> list[LiveRequest]:
        return [
            live
            for live in self._live.values()
            if live.decoder_id == worker_id and not live.is_released
        ]

    def _find(self, request_id: str) -> LiveRequest | None:
        """One that still wants tokens."""
        live = self._live.get(request_id)
        return None if live is None or live.is_released else live

    async def _deltas(
        self, request: Request, start: Callable[[LiveRequest], Awaitable[None]]
    ) -> AsyncGenerator[TokenDelta, None]:
        timing = RequestTiming.start(self.metrics, self._clock, request.num_prompt_tokens)
        stream = TokenStream(
            attempt=FIRST_ATTEMPT,
            next_index=len(request.output_token_ids),
            max_unread_tokens=self._max_unread_tokens,
            timeline=timing.timeline,
        )
        live = LiveRequest(request, stream, timing)
        outcome = Outcome.CANCELLED
        self._live[request.request_id] = live
        try:
            limits = await self._controller.limits()
            check_fits(request, limits)
            live.names = PrefixNames(request, limits.model_digest)
            await start(live)
            while True:
                delta = await stream.read()
                if delta.finish_reason is not None:
                    outcome = Outcome(delta.finish_reason.value)
                elif live.parked is not None:
                    outcome = Outcome.PARKED
                yield delta
                if delta.finish_reason is not None:
                    return
        except PdrayError as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._end(live, outcome)

    def _end(self, live: LiveRequest, outcome: Outcome) -> None:
        del self._live[live.request.request_id]
        if live.placing_again is not None:
            live.placing_again.cancel()
        self._release(live)
        # Where its worker is lost, so is what was parked.
        owner_id, parked = live.prefill_id, live.parked
        if parked is not None and owner_id is not None and outcome is not Outcome.PARKED:
            self._parked.give_up(live.links[owner_id], parked.key)
        live.timing.end(outcome)

    def _fail(self, live: LiveRequest, error: PdrayError | None) -> None:
        """It goes on elsewhere where it can; does nothing without an error."""
        if error is not None:
            self._migrations.forget(live, "its worker was lost")
            if not self._attempts.begin_next(live, error):
                self._give_up(live, error)

    def _give_up(self, live: LiveRequest, error: PdrayError) -> None:
        live.stream.fail(error)
        self._release(live)

    def _release(self, live: LiveRequest) -> None:
        """Its tokens have all come, or no more are wanted: its workers and its place at the
        controller are free, whether or not a slow client has read all of it."""
        if live.is_released:
            return
        live.is_released = True
        self._migrations.forget(live, "the request has ended")
        if not live.stream.is_finished and live.parked is None:
            live.cancel()
        self._controller.finished([live.request.request_id], live.kept)

    def _hello(self) -> Hello:
        return Hello(
            wire_version=WIRE_VERSION,
            peer_id=self.frontend_id,
            pool=None,
            node_group=None,
            layout_digest=None,
            layout_text=None,
            transfer_description=None,
        )

    def _on_message(self, connection: Connection, message: Message) -> None:
        match message:
            case Tokens():
                for chunk in message.chunks:
                    self._on_chunk(connection, chunk)
            case Failed():
                if live := self._current(message.request_id, message.attempt):
                    self._on_failed(live, connection.peer_id, failure_of(message))
            case Draining():
                self._evacuation.begin(connection.peer_id)
            case Parked():
                if live := self._current(message.request_id, message.attempt):
                    live.parked = message
                else:
                    # Nobody waits for it any more, and its key is known here alone.
                    self._parked.give_up(connection, message.key)
            case ParkedAnswer():
                self._parked.on_answer(connection, message)
            case GoesOn():
                if live := self._current(message.request_id, message.attempt):
                    live.goes_on(message.worker_id, connection.peer_id)
                    self._push_first(live)
            case Moved():
                if live := self._current(message.request_id, message.attempt):
                    self._fail(live, live.moved(message, connection.peer_id))
            case HandedOff():
                if live := self._current(message.request_id, message.attempt):
                    self._fail(live, live.handed_off())
            case _:
                logger.warning("unexpected %s from %s", type(message).__name__, connection.peer_id)

    def _current(self, request_id: str, attempt: int) -> LiveRequest | None:
        """None for a message of one that has ended, or of another attempt."""
        live = self._find(request_id)
        return live if live is not None and live.stream.attempt == attempt else None

    def _on_failed(self, live: LiveRequest, peer_id: str, error: PdrayError) -> None:
        """What a prefill worker says of a request that another decodes by now comes too late."""
        if peer_id != live.prefill_id:
            self._fail(live, live.lose(peer_id, error))
        elif not live.has_decoded:
            self._fail(live, error)

    def _on_chunk(self, connection: Connection, chunk: TokenChunk) -> None:
        live = self._current(chunk.request_id, chunk.attempt)
        if live is None or not live.takes_tokens_of(connection.peer_id):
            return
        self._migrations.on_chunk(chunk.request_id, connection.peer_id)
        live.timing.tokens_came(connection.peer_id, chunk)
        self._push_first(live)
        self._push(live, chunk)
        if chunk.decode_worker_id is not None:
            live.goes_on(chunk.decode_worker_id, connection.peer_id)

    def _push_first(self, live: LiveRequest) -> None:
        """The token that came with a parked prompt, once it is settled that others follow."""
        chunk, live.first = live.first, None
        if chunk is not None:
            self._push(live, chunk)

    def _push(self, live: LiveRequest, chunk: TokenChunk) -> None:
        num_tokens = live.stream.push(chunk)
        if num_tokens:
            live.timing.tokens(num_tokens)
            state = next_state(live.state, live.stream)
            if state is not live.state:
                live.state = live.state.advance(state)
        if live.stream.is_ended:
            self._release(live)

    def _on_lost(self, connection: Connection) -> None:
        # A worker that is told of a loss must know the request.
        self._placing.flush()
        self._parked.on_lost(connection)
        peer_id = connection.peer_id
        self._evacuation.end(peer_id)
        for live in self._live.values():
            if live.is_linked_by(connection) and not live.is_released:
                self._fail(live, live.lose(peer_id, lost_worker(peer_id, live.state)))


def next_state(state: RequestState, stream: TokenStream) -> RequestState:
    """Where a request goes when tokens have come."""
    if stream.is_finished:
        return RequestState.FINISHED
    return RequestState.TRANSFERRING if state is RequestState.PREFILLING else RequestState.DECODING
