"""One streamed request to an OpenAI endpoint, with the time of everything that came back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from benchmarks.sse import SseDecoder
from pdray.metrics.latency import RequestRecord

COMPLETE = "complete"
OVERLOADED = "http_429"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to send. ``prompt`` is a text or token ids."""

    prompt: str | tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to send it, and how. ``endpoint`` is ``completions`` or ``chat``."""

    base_url: str
    model: str
    endpoint: str
    ignore_eos: bool
    timeout_s: float

    @property
    def url(self) -> str:
        path = {"completions": "completions", "chat": "chat/completions"}[self.endpoint]
        return f"{self.base_url.rstrip('/')}/v1/{path}"

    def body(self, ask: Ask) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self.model,
            "max_tokens": ask.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": ask.prompt}]
        else:
            body["prompt"] = ask.prompt
        return body


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request's course; times are ``time.monotonic`` seconds.

    ``event_times`` are those of events that carried text; events that one read brought have
    the same time. ``outcome`` is ``complete``, else the kind of error. Token counts are the
    server's own (``usage``), None where it sent none.
    """

    sent_at: float
    ended_at: float | None = None
    event_times: list[float] = field(default_factory=list)
    outcome: str = "cut_short"
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None

    @property
    def is_complete(self) -> bool:
        return self.outcome == COMPLETE

    @property
    def has_more_events_than_tokens(self) -> bool:
        count = self.num_output_tokens
        return count is not None and len(self.event_times) > count

    def record(self) -> RequestRecord:
        """Tokens that had no event of their own came with another one's, so each of them is a
        gap of zero: which event it was changes neither TTFT, TPOT nor the set of gaps."""
        times = list(self.event_times)
        if times and self.num_output_tokens is not None:
            times += [times[-1]] * (self.num_output_tokens - len(times))
        return RequestRecord(
            arrival_at=self.sent_at,
            token_times=tuple(times),
            num_prompt_tokens=self.num_prompt_tokens or 0,
            is_complete=self.is_complete,
        )


async def exchange(
    session: aiohttp.ClientSession, target: Target, ask: Ask, seen: Exchange | None = None
) -> Exchange:
    """Sends one request and reads its stream to the end; errors end up in ``outcome``. What comes
    is in ``seen`` at once, for those who look meanwhile."""
    timeout = aiohttp.ClientTimeout(total=target.timeout_s)
    body = json.dumps(target.body(ask)).encode()
    headers = {"Content-Type": "application/json"}
    seen = seen or Exchange(sent_at=time.monotonic())
    try:
        async with session.post(target.url, data=body, headers=headers, timeout=timeout) as answer:
            if answer.status != 200:
                seen.outcome = f"http_{answer.status}"
                await answer.read()
            else:
                await _read_stream(answer, seen)
    except TimeoutError:
        seen.outcome = "timeout"
    except aiohttp.ClientError as error:
        seen.outcome = f"connection_{type(error).__name__}"
    except json.JSONDecodeError:
        seen.outcome = "malformed_event"
    seen.ended_at = time.monotonic()
    return seen


async def _read_stream(answer: aiohttp.ClientResponse, seen: Exchange) -> None:
    decoder = SseDecoder()
    async for piece in answer.content.iter_any():
        now = time.monotonic()
        for data in decoder.feed(piece):
            if data != "[DONE]":
                note_event(seen, json.loads(data), now)


def note_event(seen: Exchange, event: Mapping[str, object], now: float) -> None:
    """Takes one event's text, end and usage into ``seen``."""
    if "error" in event:
        seen.outcome = "stream_error"
        return
    usage = event.get("usage")
    if isinstance(usage, dict):
        seen.num_prompt_tokens = int(usage["prompt_tokens"])
        seen.num_output_tokens = int(usage["completion_tokens"])
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices:
        return
    choice = choices[0]
    delta = choice.get("delta") or {}
    if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
        seen.event_times.append(now)
    if choice.get("finish_reason") is not None and seen.outcome != "stream_error":
        seen.outcome = COMPLETE


async def first_model(session: aiohttp.ClientSession, base_url: str) -> str:
    """The first model that the server lists. Raises ValueError where it lists none."""
    async with session.get(f"{base_url.rstrip('/')}/v1/models") as answer:
        answer.raise_for_status()
        models = (await answer.json())["data"]
    if not models:
        raise ValueError(f"{base_url} lists no models; name one with --model")
    return str(models[0]["id"])
