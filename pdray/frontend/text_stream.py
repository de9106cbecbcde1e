"""One request as a stream of text: tokens in, whole characters and no stop strings out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from pdray.core.logprobs import TokenLogprobs
from pdray.core.request import FinishReason, Request
from pdray.core.timeline import Timeline
from pdray.frontend.stop_strings import StopStrings
from pdray.frontend.text import Tokenizer
from pdray.frontend.token_stream import TokenDelta


class TokenSource(Protocol):
    """Runs requests: the Frontend."""

    def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """What came since the last one. ``text`` may be empty: characters or a possible stop string
    are held back. ``num_tokens`` counts the stop token too, as OpenAI does;
    ``num_cached_tokens`` is TokenDelta's. ``logprobs`` are of each of these tokens, and
    ``text_offsets`` say where each begins in the request's text. The last one may have the
    request's ``timeline``."""

    text: str
    num_tokens: int
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...] = ()
    text_offsets: tuple[int, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    num_cached_tokens: int | None = None
    timeline: Timeline | None = None


async def stream_text(
    source: TokenSource,
    tokenizer: Tokenizer,
    request: Request,
    stop: tuple[str, ...],
    *,
    is_stop_shown: bool = False,
) -> AsyncGenerator[TextDelta, None]:
    """Ends with the delta that has a finish reason. A stop string cancels the request and ends
    the stream with STOP; closing the generator cancels it too. What ended it, string or token,
    is no part of the text unless ``is_stop_shown``. Raises what ``source`` does."""
    text = _Text(tokenizer, request, stop, is_stop_shown=is_stop_shown)
    async with aclosing(source.generate(request)) as deltas:
        async for delta in deltas:
            text_delta = text.take(delta)
            yield text_delta
            if text_delta.finish_reason is not None:
                return


class _Text:
    """One request's text so far."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        request: Request,
        stop: tuple[str, ...],
        *,
        is_stop_shown: bool,
    ) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopStrings(stop, is_shown=is_stop_shown)
        self._is_stop_shown = is_stop_shown
        self._min_tokens = request.sampling.min_tokens
        self._is_by_token = bool(stop) or request.sampling.logprobs is not None
        self._num_tokens = 0
        self._num_chars = 0

    def take(self, delta: TokenDelta) -> TextDelta:
        shown: list[str] = []
        offsets: list[int] = []
        num_tokens = 0
        for piece, num_taken in self._pieces(delta):
            offsets += [self._num_chars] * num_taken
            num_tokens += num_taken
            self._num_tokens += num_taken
            self._num_chars += len(piece)
            may_end = self._num_tokens > self._min_tokens
            shown.append(self._stops.push(piece, may_end=may_end))
            if self._stops.is_matched:
                break
        finish_reason = FinishReason.STOP if self._stops.is_matched else delta.finish_reason
        has_ended = finish_reason is not None
        if has_ended:
            shown.append(self._stops.flush())
        logprobs = (delta.logprobs or ())[:num_tokens]
        return TextDelta(
            text="".join(shown),
            num_tokens=num_tokens,
            finish_reason=finish_reason,
            logprobs=logprobs,
            text_offsets=tuple(offsets) if logprobs else (),
            prompt_logprobs=delta.prompt_logprobs,
            num_cached_tokens=delta.num_cached_tokens,
            timeline=delta.timeline() if has_ended and delta.timeline is not None else None,
        )

    def _pieces(self, delta: TokenDelta) -> Iterator[tuple[str, int]]:
        """The delta's text, and how many more of its tokens that took. Token by token where a
        stop string may end it, so that the count does not depend on how tokens were bundled."""
        token_ids = delta.token_ids
        if delta.finish_reason is FinishReason.STOP and not self._is_stop_shown:
            token_ids = token_ids[:-1]
        if self._is_by_token:
            for token_id in token_ids:
                yield self._detokenizer.push((token_id,)), 1
        else:
            yield self._detokenizer.push(token_ids), len(token_ids)
        yield "", len(delta.token_ids) - len(token_ids)
        if delta.finish_reason is not None:
            yield self._detokenizer.flush(), 0
