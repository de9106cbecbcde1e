"""Answers that take their time: sent as they come, given up when the client goes.

What is ready together leaves in one write. A client that does not read stops the generator,
as uvicorn's ``send`` waits; then the frontend's bound on unread tokens takes over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pdray.core.errors import PdrayError
from pdray.serve.completion import Bundle
from pdray.serve.ending import end_tasks
from pdray.serve.error_bodies import failure_of
from pdray.serve.openai_responses import Sent

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
SSE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def json_response(body: Sent, status: int = 200) -> Response:
    return Response(body.to_json(), status, media_type="application/json")


def error_response(error: PdrayError) -> Response:
    failure = failure_of(error)
    response = json_response(failure.body, failure.status)
    response.headers.update(failure.headers)
    return response


def sse_event(body: Sent) -> bytes:
    return b"data: " + body.to_json() + b"\n\n"


class JsonAnswer(Response):
    """A whole answer, made while the client waits for it. What ``headers`` gives then is of one
    that is no error."""

    def __init__(
        self,
        make: Callable[[], Coroutine[None, None, Sent]],
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        super().__init__()
        self._make = make
        self._make_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def respond() -> None:
            try:
                response = json_response(await self._make())
                response.headers.update(self._make_headers())
            except PdrayError as error:
                response = error_response(error)
            await response(scope, receive, send)

        await run_until_disconnect(receive, respond())


class SseAnswer(Response):
    """A stream of events. An error before the first is a proper HTTP error; a later one is the
    last event. A client that takes nothing for ``write_timeout_s`` is cut."""

    def __init__(self, bundles: AsyncGenerator[Bundle, None], *, write_timeout_s: float) -> None:
        super().__init__()
        self._bundles = bundles
        self._write_timeout_s = write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await run_until_disconnect(receive, self._respond(scope, receive, send))

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._bundles) as bundles:
            try:
                first = await anext(bundles)
            except PdrayError as error:
                await error_response(error)(scope, receive, send)
                return
            try:
                await self._send_events(first, bundles, send)
            except TimeoutError:
                # Returning with the body open makes the server close the connection.
                logger.warning("a client took nothing for %g s: cut", self._write_timeout_s)

    async def _send_events(
        self, first: Bundle, bundles: AsyncGenerator[Bundle, None], send: Send
    ) -> None:
        headers = Response(headers=SSE_HEADERS, media_type="text/event-stream").raw_headers
        headers = [(name, value) for name, value in headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await self._write(send, first)
            async for bundle in bundles:
                await self._write(send, bundle)
        except PdrayError as error:
            await self._send_body(send, sse_event(failure_of(error).body), is_last=True)

    async def _write(self, send: Send, bundle: Bundle) -> None:
        events = b"".join(map(sse_event, bundle.chunks)) + (DONE if bundle.is_last else b"")
        await self._send_body(send, events, is_last=bundle.is_last)

    async def _send_body(self, send: Send, body: bytes, *, is_last: bool) -> None:
        message: Message = {"type": "http.response.body", "body": body, "more_body": not is_last}
        async with asyncio.timeout(self._write_timeout_s):
            await send(message)


async def run_until_disconnect(receive: Receive, work: Coroutine[None, None, None]) -> None:
    """Runs ``work``, and cancels it when the client disconnects. The body must have been read."""
    running = asyncio.create_task(work)
    watching = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        await end_tasks((running, watching))


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
