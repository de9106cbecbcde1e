"""A request's owner: places it, submits it, takes its tokens, cancels it.

Used by the HTTP ingress, `pdray batch` and the local cluster alike; knows no HTTP and no Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import TypeGuard

from pdray.core.clock import Clock, WallClock
from pdray.core.errors import (
    InvalidRequestError,
    LinkError,
    OverloadedError,
    PdrayError,
    SlowReaderError,
    UnavailableError,
    WorkerLostError,
)
from pdray.core.placement import (
    Placement,
    PlacementAsk,
    Queued,
    Refusal,
    ServingLimits,
    WorkerAddress,
)
from pdray.core.request import Request, RequestState, TokenChunk
from pdray.frontend.controller_client import ControllerClient
from pdray.frontend.live_request import LiveRequest
from pdray.frontend.prefix_names import PrefixNames
from pdray.frontend.timing import RequestTiming
from pdray.frontend.token_stream import TokenDelta, TokenStream
from pdray.link.connection import Connection
from pdray.link.messages import (
    WIRE_VERSION,
    Failed,
    GoesOn,
    HandedOff,
    Hello,
    Message,
    Submission,
    Submit,
    Tokens,
)
from pdray.link.peers import PeerLinks
from pdray.metrics.prometheus import FrontendMetrics, Outcome

logger = logging.getLogger(__name__)

FIRST_ATTEMPT = 1


class Frontend:
    """All methods are for one event loop. ``max_unread_tokens`` is what a slow client may
    leave unread before its request is cut."""

    def __init__(
        self,
        frontend_id: str,
        controller: ControllerClient,
        *,
        max_unread_tokens: int,
        clock: Clock | None = None,
    ) -> None:
        self.frontend_id = frontend_id
        self.metrics = FrontendMetrics(frontend_id)
        self._controller = controller
        self._max_unread_tokens = max_unread_tokens
        self._clock = clock or WallClock()
        self._peers = PeerLinks(self._hello, self._on_message, self._on_lost)
        self._live: dict[str, LiveRequest] = {}
        self._outgoing: dict[Connection, list[Submission]] = {}

    @property
    def num_in_flight(self) -> int:
        return len(self._live)

    async def stop(self) -> None:
        """Closes all links; workers cancel what was still running."""
        await self._peers.close()

    async def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """Yields new tokens as they come; the last delta has a finish reason.

        Closing the generator cancels the request on all workers. Raises InvalidRequestError for
        what could never fit, OverloadedError, UnavailableError, WorkerLostError, or
        SlowReaderError when this generator was not read.
        """
        timing = RequestTiming.start(self.metrics, self._clock, request.num_prompt_tokens)
        stream = TokenStream(
            attempt=FIRST_ATTEMPT,
            next_index=len(request.output_token_ids),
            max_unread_tokens=self._max_unread_tokens,
        )
        live = LiveRequest(request, stream, timing, PrefixNames(request))
        outcome = Outcome.CANCELLED
        self._live[request.request_id] = live
        try:
            check_fits(request, await self._controller.limits())
            await self._submit(live, await self._place(live))
            while True:
                delta = await stream.read()
                if delta.finish_reason is not None:
                    outcome = Outcome(delta.finish_reason.value)
                yield delta
                if delta.finish_reason is not None:
                    return
        except PdrayError as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._end(live, outcome)

    async def _place(self, live: LiveRequest) -> Placement:
        request = live.request
        ask = PlacementAsk(
            request_id=request.request_id,
            num_prompt_tokens=request.num_prompt_tokens,
            max_tokens=request.sampling.max_tokens,
            prefix_names=live.names.names,
        )
        (answer,) = await self._controller.place([ask])
        if isinstance(answer, Queued):
            answer = await self._controller.wait(request.request_id)
        if isinstance(answer, Refusal):
            raise refusal_error(answer)
        return answer

    async def _submit(self, live: LiveRequest, placement: Placement) -> None:
        """Links to every worker that may send tokens come first, so that none has to wait."""
        assert placement.prefill is not None, "placed for decode alone"
        prefill, *decodes = await asyncio.gather(
            self._peers.get(placement.prefill),
            *(self._peers.get(address) for address in placement.decode_candidates),
            return_exceptions=True,
        )
        # A link that was there first may have been lost while the others were made.
        if not is_up(prefill):
            raise lost(placement.prefill, prefill)
        candidates: list[WorkerAddress] = []
        for address, link in zip(placement.decode_candidates, decodes, strict=True):
            if is_up(link):
                candidates.append(address)
                live.links[address.worker_id] = link
        if not candidates:
            raise lost(placement.decode_candidates[0], decodes[0])
        live.decode_ids = set(live.links)
        live.prefill_id = placement.prefill.worker_id
        live.links[live.prefill_id] = prefill
        live.state = live.state.advance(RequestState.PREFILLING)
        self._send_soon(
            prefill,
            Submission(
                request=live.request,
                attempt=live.stream.attempt,
                decode_candidates=tuple(candidates),
                prefix_source=placement.prefix_source,
            ),
        )

    def _send_soon(self, link: Connection, submission: Submission) -> None:
        """Requests that are placed together leave in one message."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._send_submissions)
        self._outgoing.setdefault(link, []).append(submission)

    def _send_submissions(self) -> None:
        for link, submissions in self._outgoing.items():
            link.send(Submit(submissions=tuple(submissions)))
        self._outgoing.clear()

    def _end(self, live: LiveRequest, outcome: Outcome) -> None:
        del self._live[live.request.request_id]
        self._release(live)
        live.timing.end(outcome)

    def _fail(self, live: LiveRequest, error: PdrayError | None) -> None:
        """Does nothing without an error."""
        if error is not None:
            live.stream.fail(error)
            self._release(live)

    def _release(self, live: LiveRequest) -> None:
        """Its tokens have all come, or no more are wanted: its workers and its place at the
        controller are free, whether or not a slow client has read all of it."""
        if live.is_released:
            return
        live.is_released = True
        if not live.stream.is_finished:
            live.cancel()
        self._controller.finished([live.request.request_id], live.kept)

    def _hello(self) -> Hello:
        return Hello(
            wire_version=WIRE_VERSION,
            peer_id=self.frontend_id,
            pool=None,
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
                    self._on_failed(live, connection.peer_id, message.reason)
            case GoesOn():
                if live := self._current(message.request_id, message.attempt):
                    live.goes_on(message.worker_id)
            case HandedOff():
                if live := self._current(message.request_id, message.attempt):
                    self._fail(live, live.handed_off())
            case _:
                logger.warning("unexpected %s from %s", type(message).__name__, connection.peer_id)

    def _current(self, request_id: str, attempt: int) -> LiveRequest | None:
        """None for a message of one that has ended, or of another attempt."""
        live = self._live.get(request_id)
        is_current = live is not None and live.stream.attempt == attempt and not live.is_released
        return live if is_current else None

    def _on_failed(self, live: LiveRequest, peer_id: str, reason: str) -> None:
        """What a prefill worker says of a request that another decodes by now comes too late."""
        error = WorkerLostError(reason)
        if peer_id != live.prefill_id:
            self._fail(live, live.lose(peer_id, error))
        elif not live.has_decoded:
            self._fail(live, error)

    def _on_chunk(self, connection: Connection, chunk: TokenChunk) -> None:
        live = self._current(chunk.request_id, chunk.attempt)
        if live is None or not live.takes_tokens_of(connection.peer_id):
            return
        num_tokens = live.stream.push(chunk)
        if num_tokens:
            live.timing.tokens(num_tokens)
            state = next_state(live.state, live.stream)
            if state is not live.state:
                live.state = live.state.advance(state)
        if chunk.decode_worker_id is not None:
            live.goes_on(chunk.decode_worker_id)
        if live.stream.is_ended:
            self._release(live)

    def _on_lost(self, connection: Connection) -> None:
        # A worker that is told of a loss must know the request.
        self._send_submissions()
        peer_id = connection.peer_id
        for live in self._live.values():
            if live.is_linked_by(connection) and not live.is_released:
                self._fail(live, live.lose(peer_id, lost_worker(peer_id, live.state)))


def check_fits(request: Request, limits: ServingLimits) -> None:
    """Raises InvalidRequestError for a request that no worker could ever hold."""
    num_prompt, max_tokens = request.num_prompt_tokens, request.sampling.max_tokens
    code = "context_length_exceeded"
    if num_prompt == 0:
        raise InvalidRequestError(
            "the prompt is empty: at least one token is needed", param="prompt"
        )
    if num_prompt >= limits.max_model_len or request.max_total_tokens > limits.max_model_len:
        raise InvalidRequestError(
            f"this model's context is {limits.max_model_len} tokens; the prompt has {num_prompt} "
            f"and max_tokens asks for {max_tokens}: shorten either",
            param="prompt" if num_prompt >= limits.max_model_len else "max_tokens",
            code=code,
        )
    if request.max_total_tokens > limits.max_sequence_tokens:
        raise InvalidRequestError(
            f"prompt ({num_prompt}) and max_tokens ({max_tokens}) need {request.max_total_tokens} "
            f"tokens of KV memory; a worker here holds {limits.max_sequence_tokens}",
            param="max_tokens",
            code=code,
        )


def refusal_error(refusal: Refusal) -> PdrayError:
    if refusal.retry_after_s is None:
        return InvalidRequestError(refusal.reason)
    return OverloadedError(refusal.reason, retry_after_s=refusal.retry_after_s)


def is_up(link: Connection | BaseException) -> TypeGuard[Connection]:
    return isinstance(link, Connection) and not link.is_closed


def lost(address: WorkerAddress, cause: Connection | BaseException) -> PdrayError:
    """For a link that could not be made, or is down again; raises what is no such cause."""
    if isinstance(cause, Connection):
        return lost_worker(address.worker_id, RequestState.QUEUED)
    if not isinstance(cause, LinkError):
        raise cause
    return WorkerLostError(f"worker {address.worker_id} cannot be reached: {cause}")


def lost_worker(worker_id: str, state: RequestState) -> PdrayError:
    return WorkerLostError(f"worker {worker_id} was lost while the request was {state}")


def next_state(state: RequestState, stream: TokenStream) -> RequestState:
    """Where a request goes when tokens have come."""
    if stream.is_finished:
        return RequestState.FINISHED
    return RequestState.TRANSFERRING if state is RequestState.PREFILLING else RequestState.DECODING


def outcome_of(error: PdrayError) -> Outcome:
    match error:
        case InvalidRequestError():
            return Outcome.INVALID
        case OverloadedError() | UnavailableError():
            return Outcome.OVERLOADED
        case SlowReaderError():
            return Outcome.SLOW_READER
        case _:
            return Outcome.FAILED
