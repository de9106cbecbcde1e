"""A source of tokens that says what it is told to: for tests of text, formats and HTTP only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from pdray.core.errors import PdrayError, UnavailableError
from pdray.core.logprobs import TokenLogprobs
from pdray.core.placement import ServingLimits
from pdray.core.request import FinishReason, Request
from pdray.frontend.frontend import check_fits
from pdray.frontend.token_stream import TokenDelta

Script = Sequence[TokenDelta | PdrayError | asyncio.Event]


def delta(
    *token_ids: int,
    finish: FinishReason | None = None,
    logprobs: tuple[TokenLogprobs, ...] | None = None,
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None,
) -> TokenDelta:
    return TokenDelta(
        token_ids=token_ids,
        finish_reason=finish,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def spelled(
    token_ids: Sequence[int], finish: FinishReason = FinishReason.LENGTH
) -> list[TokenDelta]:
    """One token at a time, the last with the finish reason."""
    return [delta(token_id) for token_id in token_ids[:-1]] + [delta(token_ids[-1], finish=finish)]


@dataclass
class ScriptedSource:
    """Plays ``script_of(request)``: yields deltas, raises errors, waits at events."""

    script_of: Callable[[Request], Script]
    max_model_len: int = 100
    max_sequence_tokens: int = 100
    is_up: bool = True
    requests: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    num_open: int = 0
    num_yielded: int = 0

    async def limits(self) -> ServingLimits:
        if not self.is_up:
            raise UnavailableError("no decode worker is up")
        return ServingLimits(
            max_model_len=self.max_model_len,
            max_sequence_tokens=self.max_sequence_tokens,
            model_digest="scripted",
        )

    async def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        check_fits(request, await self.limits())
        self.requests.append(request)
        self.num_open += 1
        is_whole = False
        try:
            for step in self.script_of(request):
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, PdrayError):
                    is_whole = True
                    raise step
                else:
                    self.num_yielded += 1
                    is_whole = step.finish_reason is not None
                    yield step
                    await asyncio.sleep(0)
        finally:
            self.num_open -= 1
            if not is_whole:
                self.cancelled.append(request.request_id)
