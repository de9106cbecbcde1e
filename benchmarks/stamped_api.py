"""Two HTTP servers whose every token is the time at which it was made.

``plain`` is FastAPI and nothing else; ``pdray`` is pdray's own ingress, tokenizer and stream,
over a source of tokens that needs no worker. Both write the same events. A stamp is
``time.monotonic_ns`` in microseconds, its last eight digits, as two tokens of four digits.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from pdray.core.errors import UnavailableError
from pdray.core.overview import Overview
from pdray.core.placement import ServingLimits
from pdray.core.request import FinishReason, Request
from pdray.core.scaling import TimedDecision
from pdray.frontend.text import Tokenizer
from pdray.frontend.token_stream import TokenDelta
from pdray.serve.completion import CompletionService
from pdray.serve.ingress import IngressState, make_api

MODEL = "stamps"
STAMP_DIGITS = 8
TOKEN_DIGITS = 4
TOKENS_PER_STAMP = STAMP_DIGITS // TOKEN_DIGITS
STAMP_WRAPS_US: int = 10**STAMP_DIGITS


def stamp_us() -> int:
    return (time.monotonic_ns() // 1000) % STAMP_WRAPS_US


async def stamps(num_stamps: int, interval_s: float) -> AsyncGenerator[int, None]:
    """Stamps at a steady pace; each is taken at the last moment before it is given on."""
    due_at = time.monotonic()
    for _ in range(num_stamps):
        due_at += interval_s
        await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        yield stamp_us()


def make_plain_api(interval_s: float) -> FastAPI:
    """Streams with as little work a token as FastAPI allows."""
    api = FastAPI(openapi_url=None)

    async def events(num_stamps: int) -> AsyncIterator[str]:
        heading = {"id": f"cmpl-{'0' * 32}", "object": "text_completion", "created": 1}
        async for stamp in stamps(num_stamps, interval_s):
            choice = {"index": 0, "text": f"{stamp:0{STAMP_DIGITS}}", "finish_reason": None}
            event = {**heading, "model": MODEL, "choices": [choice]}
            yield f"data: {json.dumps(event, separators=(',', ':'))}\n\n"
        yield "data: [DONE]\n\n"

    @api.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.post("/v1/completions")
    async def completions(body: dict[str, object]) -> StreamingResponse:
        num_stamps = int(str(body["max_tokens"])) // TOKENS_PER_STAMP
        return StreamingResponse(events(num_stamps), media_type="text/event-stream")

    return api


class StampSource:
    """A TokenSource whose tokens are stamps."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s

    async def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        num_left = request.sampling.max_tokens // TOKENS_PER_STAMP
        async for stamp in stamps(num_left, self._interval_s):
            num_left -= 1
            yield TokenDelta(
                token_ids=divmod(stamp, 10**TOKEN_DIGITS),
                finish_reason=None if num_left else FinishReason.LENGTH,
                num_cached_tokens=None,
            )


def make_pdray_api(interval_s: float, tokenizer_path: Path) -> FastAPI:
    """pdray's ingress as it is; ``tokenizer_path`` is a folder of ``save_stamp_tokenizer``."""

    async def limits() -> ServingLimits:
        return ServingLimits(max_model_len=10**6, max_sequence_tokens=10**6, model_digest="stamped")

    async def missing() -> str | None:
        return None

    async def metrics_text() -> bytes:
        return b""

    async def overview() -> Overview:
        raise UnavailableError("nobody runs here")

    async def scaling() -> tuple[TimedDecision, ...]:
        return ()

    service = CompletionService(
        StampSource(interval_s), Tokenizer(tokenizer_path), model_name=MODEL, limits=limits
    )
    return make_api(
        IngressState(
            service=service,
            missing=missing,
            metrics_text=metrics_text,
            overview=overview,
            scaling=scaling,
            max_ongoing_requests=1024,
            keys=None,
        )
    )


def save_stamp_tokenizer(folder: Path) -> None:
    """A tokenizer whose token i is the text of i in four digits."""
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import decoders, models
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    vocabulary = {f"{number:0{TOKEN_DIGITS}}": number for number in range(10**TOKEN_DIGITS)}
    tokenizer = RustTokenizer(models.WordLevel(vocab=vocabulary, unk_token="0000"))
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    LlamaConfig(vocab_size=len(vocabulary)).save_pretrained(folder)
