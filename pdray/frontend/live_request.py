"""A request on its way: which workers it has, who makes its tokens, and who is to go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from pdray.core.errors import MigrationError, PdrayError, WorkerLostError
from pdray.core.placement import KeptPrefix
from pdray.core.request import FinishReason, Request, RequestState, TokenChunk, WorkerId
from pdray.frontend.moving import Moving
from pdray.frontend.prefix_names import PrefixNames
from pdray.frontend.timing import RequestTiming
from pdray.frontend.token_stream import TokenDelta, TokenStream
from pdray.link.connection import Connection
from pdray.link.messages import Cancel, DecodeLost, Moved, Parked, PrefillLost

Submit = Callable[["LiveRequest"], Awaitable[None]]


@dataclass(slots=True, eq=False)
class LiveRequest:
    """``links`` are to all workers that may know it, those to ``prefill_id`` and ``decode_ids``
    up. ``decode_id`` is who goes on after the first token, as the prefill worker said last: None
    while it looks for one. With that one's first token, ``has_decoded``, the others are out.

    Every method that finds the request lost returns the error to fail it with, else None.
    """

    request: Request
    stream: TokenStream
    timing: RequestTiming
    names: PrefixNames | None = None
    state: RequestState = RequestState.QUEUED
    links: dict[str, Connection] = field(default_factory=dict)
    prefill_id: str | None = None
    decode_ids: set[str] = field(default_factory=set)
    decode_id: str | None = None
    has_decoded: bool = False
    loss: PdrayError | None = None
    first: TokenChunk | None = None
    """Of a prompt that another application has computed: due when somebody goes on from it."""
    parked: Parked | None = None
    """Its prompt is computed, and its worker keeps that for whoever has the key."""
    submit: Submit | None = None
    """Begins an attempt, of a request that may have more than one."""
    placing_again: asyncio.Task[None] | None = None
    num_losses: int = 0
    """Attempts that were lost."""
    is_released: bool = False
    moving: Moving | None = None
    """It may go on with another decode worker, if that is not settled yet."""

    @property
    def key(self) -> tuple[str, int]:
        return self.request.request_id, self.stream.attempt

    @property
    def ends_with_first(self) -> bool:
        return self.first is not None and self.first.finish_reason is not None

    def expect_first(self, first: TokenChunk) -> None:
        """As it was made for another request with the same prompt, which did not say how many
        tokens are to follow."""
        reason = first.finish_reason
        if reason is None and self.request.sampling.max_tokens <= len(first.token_ids):
            reason = FinishReason.LENGTH
        request_id, attempt = self.key
        self.first = replace(first, request_id=request_id, attempt=attempt, finish_reason=reason)

    def first_chunk(self, delta: TokenDelta) -> TokenChunk:
        """The other way round: what was made of it so far, for another request."""
        return TokenChunk(
            request_id=self.request.request_id,
            attempt=self.stream.attempt,
            index=len(self.request.output_token_ids),
            token_ids=delta.token_ids,
            finish_reason=delta.finish_reason,
            decode_worker_id=None,
            logprobs=delta.logprobs,
            prompt_logprobs=delta.prompt_logprobs,
            num_cached_tokens=delta.num_cached_tokens,
        )

    @property
    def kept(self) -> list[KeptPrefix]:
        """What is left of it in the prefix cache of the worker that made its newest token."""
        worker_id = self.decode_id if self.has_decoded else self.prefill_id
        if worker_id is None or self.names is None or not self.stream.token_ids:
            return []
        return self.names.kept_by(WorkerId(worker_id), self.stream.token_ids)

    def is_linked_by(self, connection: Connection) -> bool:
        return self.links.get(connection.peer_id) is connection

    def takes_tokens_of(self, peer_id: str) -> bool:
        """Who decodes it is settled by the first token that comes from one who may: another who
        was given the same blocks and does not know yet that it is out must not mix in."""
        if self.moving is not None and self.moving.takes_tokens_of(peer_id):
            return True
        if peer_id == self.prefill_id:
            return True
        if peer_id not in self.decode_ids or self.decode_id not in (None, peer_id):
            return False
        self.decode_id, self.has_decoded = peer_id, True
        return True

    def goes_on(self, worker_id: WorkerId, prefill_id: str) -> None:
        """The prefill worker says who decodes it."""
        if self.has_decoded:
            if worker_id != self.decode_id:
                # Its first reader's acknowledgement was lost, and it has begun all the same.
                self._cancel_at(worker_id, prefill_id)
        elif worker_id in self.decode_ids:
            if self.decode_id not in (None, worker_id):
                self._cancel_at(self.decode_id)
            self.decode_id = worker_id

    @property
    def num_output_tokens(self) -> int:
        """Of all attempts, read or not."""
        return len(self.request.output_token_ids) + len(self.stream.token_ids)

    def begin_attempt(self) -> None:
        """Ends the one that is lost at all workers which may know it. The next one has the tokens
        that have come, and no workers yet."""
        self.cancel()
        sent = self.request.output_token_ids + tuple(self.stream.token_ids)
        self.request = replace(self.request, output_token_ids=sent)
        if self.names is not None:
            self.names = PrefixNames(self.request, self.names.model_digest)
        self.stream.begin_attempt()
        self.timing.lost()
        self.state = self.state.advance(RequestState.QUEUED)
        self.links = {}
        self.decode_ids = set()
        self.prefill_id = self.decode_id = self.loss = self.moving = None
        self.has_decoded = False

    def cancel(self) -> None:
        self._cancel_at(*self.links)

    def lose(self, peer_id: str, error: PdrayError) -> PdrayError | None:
        """Its link is lost, or it cannot go on with this request."""
        if self.moving is not None and peer_id in (self.moving.source_id, self.moving.target_id):
            return self._lose_while_moving(self.moving, peer_id, error)
        if peer_id == self.prefill_id:
            return self._lose_prefill(error)
        if peer_id not in self.decode_ids:
            return None
        self.decode_ids.discard(peer_id)
        if self.has_decoded:
            return error if peer_id == self.decode_id else None
        is_next, self.loss = peer_id == self.decode_id, error
        if self.prefill_id is None:
            return error if is_next else None
        if not self.decode_ids:
            return error
        if self.prefill_id in self.decode_ids:
            return None  # it decodes what it computes
        self.decode_id = None if is_next else self.decode_id
        request_id, attempt = self.key
        lost = DecodeLost(request_id=request_id, attempt=attempt, worker_id=WorkerId(peer_id))
        self.links[self.prefill_id].send(lost)
        return None

    @property
    def decoder_id(self) -> str | None:
        """Who makes its tokens; None before the first one of a decode worker."""
        if self.has_decoded:
            return self.decode_id
        keeps = self.decode_id is None and self.prefill_id in self.decode_ids
        return self.prefill_id if keeps and self.stream.token_ids else None

    def begin_move(self, target_id: str, link: Connection) -> Moving:
        """Its decoder is about to be asked to have ``target_id`` go on. Raises MigrationError."""
        source_id = self.decoder_id
        if source_id is None or not self.stream.token_ids:
            raise MigrationError("it does not decode yet")
        if self.moving is not None:
            raise MigrationError(f"it is on its way to {self.moving.target_id}")
        if source_id == target_id:
            raise MigrationError(f"it runs on {target_id} already")
        if source_id != self.prefill_id:
            self.prefill_id = None  # it has said all that it had to say
        self.links[target_id] = link
        self.decode_ids.add(target_id)
        self.moving = Moving(source_id, target_id)
        return self.moving

    def moved(self, message: Moved, source_id: str) -> PdrayError | None:
        """The source's last word on it. Where both may decode it, who was first goes on."""
        moving = self.moving
        if moving is None or (moving.source_id, moving.target_id) != (source_id, message.target_id):
            return None
        if message.failure is None or moving.has_begun:
            if message.failure is not None:
                self._cancel_at(source_id)
            self._go_on_at_target(moving)
            moving.settle(None)
            is_lost = moving.target_id not in self.decode_ids
            return (
                (self.loss or WorkerLostError(f"{moving.target_id} was lost")) if is_lost else None
            )
        self.moving = None
        self.decode_ids.discard(moving.target_id)
        if message.may_run_there:
            self._cancel_at(moving.target_id)
        moving.settle(message.failure)
        return None

    def _go_on_at_target(self, moving: Moving) -> None:
        self.moving = None
        self.decode_id, self.has_decoded = moving.target_id, True
        if self.prefill_id == moving.source_id:
            self.prefill_id = None

    def _lose_while_moving(
        self, moving: Moving, peer_id: str, error: PdrayError
    ) -> PdrayError | None:
        self.decode_ids.discard(peer_id)
        if peer_id == moving.source_id:
            self._go_on_at_target(moving)
            moving.settle(str(error))
            if moving.target_id not in self.decode_ids:
                return error
            # Failed comes back where it lacks something; else it goes on.
            request_id, attempt = self.key
            lost = PrefillLost(request_id=request_id, attempt=attempt)
            self.links[moving.target_id].send(lost)
            return None
        self.loss = error
        if not moving.has_begun:
            return None  # the source says whether that matters
        self._go_on_at_target(moving)
        moving.settle(str(error))
        return error

    def handed_off(self) -> PdrayError | None:
        """The prefill worker can name nobody else: whoever had the blocks is lost. Not so where
        it has named another before it heard of the loss."""
        if self.decode_id is not None:
            return None
        return self.loss or WorkerLostError("its blocks went to a decode worker that is lost")

    def _lose_prefill(self, error: PdrayError) -> PdrayError | None:
        self.prefill_id = None
        if self.decode_id is None:
            return error
        if not self.has_decoded:
            request_id, attempt = self.key
            self.links[self.decode_id].send(PrefillLost(request_id=request_id, attempt=attempt))
        return None

    def _cancel_at(self, *worker_ids: str | None) -> None:
        for worker_id in worker_ids:
            link = None if worker_id is None else self.links.get(worker_id)
            if link is not None:
                link.send(Cancel(attempts=(self.key,)))
