"""The dashboard: one page, and the numbers that it draws."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

import msgspec
from fastapi import FastAPI
from starlette.responses import Response

from pdray.core.overview import Overview
from pdray.core.scaling import TimedDecision

_PAGE_HEADERS = {
    # All that the page needs is in it, and its numbers come from here.
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src data:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "cache-control": "no-cache",
}


def add_dashboard_routes(
    api: FastAPI,
    overview: Callable[[], Awaitable[Overview]],
    scaling: Callable[[], Awaitable[tuple[TimedDecision, ...]]],
) -> None:
    page = resources.files(__package__).joinpath("page.html").read_bytes()

    @api.get("/dashboard")
    async def dashboard() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)

    @api.get("/dashboard/data")
    async def data() -> Response:
        return _json(await overview())

    @api.get("/dashboard/scaling")
    async def decisions() -> Response:
        return _json(await scaling())


def _json(value: object) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, media_type="application/json", headers={"cache-control": "no-store"})
