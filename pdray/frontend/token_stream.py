"""The tokens of one request between the workers that make them and the client that reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pdray.core.errors import PdrayError, SlowReaderError
from pdray.core.logprobs import TokenLogprobs
from pdray.core.request import FinishReason, TokenChunk
from pdray.core.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDelta:
    """The next tokens of a request: all that came since the reader last asked. Logprobs as in
    TokenChunk. ``num_cached_tokens`` of its prompt had their KV in a prefix cache, None where
    nobody said. ``timeline`` makes the request's own, up to the newest token."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    num_cached_tokens: int | None = None
    timeline: Callable[[], Timeline] | None = None


class TokenStream:
    """Puts chunks of the current attempt in order, and keeps a bounded number for the reader.

    Chunks come from two workers over two links, so decode's first may overtake prefill's only
    one; doubled ones are dropped. ``max_unread_tokens`` bounds what a slow reader may leave.
    ``token_ids`` are all that have come in this attempt, read or not. ``timeline`` goes with every
    delta.
    """

    def __init__(
        self,
        *,
        attempt: int,
        next_index: int,
        max_unread_tokens: int,
        timeline: Callable[[], Timeline] | None = None,
    ) -> None:
        self.attempt = attempt
        self.token_ids: list[int] = []
        self._next_index = next_index
        self._max_unread_tokens = max_unread_tokens
        self._timeline = timeline
        self._early: dict[int, TokenChunk] = {}
        self._unread: list[int] = []
        self._unread_logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
        self._finish_reason: FinishReason | None = None
        self._num_cached_tokens: int | None = None
        self._error: PdrayError | None = None
        self._changed = asyncio.Event()

    def begin_attempt(self) -> None:
        """From here on tokens are another attempt's, which goes on behind those that have come."""
        self.attempt += 1
        self.token_ids = []
        self._early.clear()

    @property
    def is_finished(self) -> bool:
        return self._finish_reason is not None

    @property
    def is_cut(self) -> bool:
        return isinstance(self._error, SlowReaderError)

    @property
    def is_ended(self) -> bool:
        return self.is_finished or self._error is not None

    def push(self, chunk: TokenChunk) -> int:
        """Takes a chunk; returns how many tokens became readable."""
        if chunk.attempt != self.attempt or self.is_ended or chunk.index < self._next_index:
            return 0
        self._early[chunk.index] = chunk
        num_new = 0
        while (ready := self._early.pop(self._next_index, None)) is not None:
            self.token_ids += ready.token_ids
            self._unread += ready.token_ids
            self._unread_logprobs += ready.logprobs or ()
            if ready.prompt_logprobs is not None:
                self._prompt_logprobs = ready.prompt_logprobs
            self._next_index += len(ready.token_ids)
            num_new += len(ready.token_ids)
            self._finish_reason = ready.finish_reason
            # The first attempt's word: what it computed, the next may find in a cache.
            if self._num_cached_tokens is None:
                self._num_cached_tokens = ready.num_cached_tokens
            if not ready.token_ids:
                break
        if not self.is_finished and len(self._unread) > self._max_unread_tokens:
            self.fail(
                SlowReaderError(
                    f"the client left {len(self._unread)} tokens of its stream unread "
                    f"(limit {self._max_unread_tokens})"
                )
            )
        elif num_new or self.is_ended:
            self._changed.set()
        return num_new

    def fail(self, error: PdrayError) -> None:
        """Ends the stream: the reader gets what came before, then the error."""
        if not self.is_ended:
            self._error = error
            self._changed.set()

    async def read(self) -> TokenDelta:
        """Waits for the next tokens. The last delta has a finish reason. Raises the error that
        the stream failed with, after all tokens that came before it."""
        await self._changed.wait()
        if self._error is not None and not self._unread:
            raise self._error
        delta = TokenDelta(
            token_ids=tuple(self._unread),
            finish_reason=self._finish_reason,
            logprobs=tuple(self._unread_logprobs) or None,
            prompt_logprobs=self._prompt_logprobs,
            num_cached_tokens=self._num_cached_tokens,
            timeline=self._timeline,
        )
        self._unread.clear()
        self._unread_logprobs.clear()
        self._prompt_logprobs = None
        if self._error is None:
            self._changed.clear()
        return delta
