"""What a worker says to frontends: all tokens of a step in one message to each of them."""

from __future__ import annotations

import logging

from pdray.core.errors import HandleRefusedError, OverloadedError, PdrayError
from pdray.core.request import PhaseAges, TokenChunk, WorkerId
from pdray.engine.outputs import SequenceOutput
from pdray.link.connection import Connection
from pdray.link.messages import (
    Draining,
    Failed,
    GoesOn,
    HandedOff,
    Message,
    Moved,
    Parked,
    Tokens,
)

logger = logging.getLogger(__name__)


class Outbox:
    """Collects chunks until ``flush``; frontends that have gone are not written to."""

    def __init__(self) -> None:
        self._frontends: dict[str, Connection] = {}
        self._chunks: dict[str, list[TokenChunk]] = {}

    def attach(self, connection: Connection) -> None:
        self._frontends[connection.peer_id] = connection

    def detach(self, connection: Connection) -> bool:
        """False where it was no frontend's link."""
        if self._frontends.get(connection.peer_id) is not connection:
            return False
        del self._frontends[connection.peer_id]
        self._chunks.pop(connection.peer_id, None)
        return True

    def put(
        self,
        frontend_id: str,
        output: SequenceOutput,
        ages: PhaseAges | None,
        *,
        decode_worker_id: WorkerId | None = None,
    ) -> None:
        sequence = output.sequence
        is_first = output.index == len(sequence.request.output_token_ids)
        chunk = TokenChunk(
            request_id=sequence.request_id,
            attempt=sequence.attempt,
            index=output.index,
            token_ids=output.token_ids,
            finish_reason=output.finish_reason,
            decode_worker_id=decode_worker_id,
            logprobs=output.logprobs,
            prompt_logprobs=output.prompt_logprobs,
            num_cached_tokens=sequence.num_cached_tokens if is_first else None,
            ages=ages,
        )
        self._chunks.setdefault(frontend_id, []).append(chunk)

    def flush(self) -> None:
        for frontend_id, chunks in self._chunks.items():
            connection = self._frontends.get(frontend_id)
            if connection is not None:
                connection.send(Tokens(chunks=tuple(chunks)))
        self._chunks.clear()

    def fail(
        self,
        frontend_id: str,
        request_id: str,
        attempt: int,
        reason: str,
        *,
        comes_again: bool = False,
    ) -> None:
        logger.warning("request failed: %s, request_id=%s attempt=%d", reason, request_id, attempt)
        failed = Failed(
            request_id=request_id, attempt=attempt, reason=reason, comes_again=comes_again
        )
        self._send(frontend_id, failed)

    def give_back(self, frontend_id: str, request_id: str, attempt: int, worker_id: str) -> None:
        """It has not begun here, and others can do it."""
        failed = Failed(
            request_id=request_id,
            attempt=attempt,
            reason=f"worker {worker_id} drains",
            is_given_back=True,
        )
        self._send(frontend_id, failed)

    def draining(self) -> None:
        """To every frontend."""
        for connection in self._frontends.values():
            connection.send(Draining())

    def refuse(self, frontend_id: str, request_id: str, attempt: int, error: PdrayError) -> None:
        """Its claim is at fault, or there is no room for it."""
        logger.info("request refused: %s, request_id=%s attempt=%d", error, request_id, attempt)
        failed = Failed(
            request_id=request_id,
            attempt=attempt,
            reason=str(error),
            problem=error.problem if isinstance(error, HandleRefusedError) else None,
            retry_after_s=error.retry_after_s if isinstance(error, OverloadedError) else None,
        )
        self._send(frontend_id, failed)

    def parked(self, frontend_id: str, message: Parked) -> None:
        """To be called before the first token leaves: they arrive in this order."""
        self._send(frontend_id, message)

    def goes_on(self, frontend_id: str, request_id: str, attempt: int, worker_id: WorkerId) -> None:
        self._send(frontend_id, GoesOn(request_id=request_id, attempt=attempt, worker_id=worker_id))

    def handed_off(self, frontend_id: str, request_id: str, attempt: int) -> None:
        self._send(frontend_id, HandedOff(request_id=request_id, attempt=attempt))

    def moved(
        self,
        frontend_id: str,
        request_id: str,
        attempt: int,
        target_id: WorkerId,
        failure: str | None,
        *,
        may_run_there: bool = False,
    ) -> None:
        """Behind all tokens made so far."""
        self.flush()
        moved = Moved(
            request_id=request_id,
            attempt=attempt,
            target_id=target_id,
            failure=failure,
            may_run_there=may_run_there,
        )
        self._send(frontend_id, moved)

    def _send(self, frontend_id: str, message: Message) -> None:
        connection = self._frontends.get(frontend_id)
        if connection is not None:
            connection.send(message)
