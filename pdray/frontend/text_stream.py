"""One request as a stream of text: tokens in, whole characters and no stop strings out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from pdray.core.request import FinishReason, Request
from pdray.frontend.stop_strings import StopStrings
from pdray.frontend.text import Tokenizer
from pdray.frontend.token_stream import TokenDelta


class TokenSource(Protocol):
    """Runs requests: the Frontend."""

    def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """What came since the last one. ``text`` may be empty: characters or a possible stop string
    are held back. ``num_tokens`` counts the stop token too, as OpenAI does."""

    text: str
    num_tokens: int
    finish_reason: FinishReason | None


async def stream_text(
    source: TokenSource, tokenizer: Tokenizer, request: Request, stop: tuple[str, ...]
) -> AsyncGenerator[TextDelta, None]:
    """Ends with the delta that has a finish reason. A stop string cancels the request and ends
    the stream with STOP; closing the generator cancels it too. Raises what ``source`` does."""
    text = _Text(tokenizer, stop)
    async with aclosing(source.generate(request)) as deltas:
        async for delta in deltas:
            text_delta = text.take(delta)
            yield text_delta
            if text_delta.finish_reason is not None:
                return


class _Text:
    """One request's text so far."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopStrings(stop)
        self._has_stops = bool(stop)

    def take(self, delta: TokenDelta) -> TextDelta:
        shown: list[str] = []
        num_tokens = len(delta.token_ids)
        for piece, num_taken in self._pieces(delta):
            shown.append(self._stops.push(piece))
            if self._stops.is_matched:
                num_tokens = num_taken
                break
        finish_reason = FinishReason.STOP if self._stops.is_matched else delta.finish_reason
        if finish_reason is not None:
            shown.append(self._stops.flush())
        return TextDelta(text="".join(shown), num_tokens=num_tokens, finish_reason=finish_reason)

    def _pieces(self, delta: TokenDelta) -> Iterator[tuple[str, int]]:
        """The delta's text, and how many of its tokens it took. Token by token where a stop
        string may end it, so that the count does not depend on how tokens were bundled."""
        token_ids = delta.token_ids
        if delta.finish_reason is FinishReason.STOP:
            token_ids = token_ids[:-1]
        if self._has_stops:
            for index, token_id in enumerate(token_ids):
                yield self._detokenizer.push((token_id,)), index + 1
            yield "", len(delta.token_ids)
        else:
            yield self._detokenizer.push(token_ids), len(delta.token_ids)
        if delta.finish_reason is not None:
            yield self._detokenizer.flush(), len(delta.token_ids)
