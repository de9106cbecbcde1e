"""Who sends a request: by its API key, before its body is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request

from pdray.serve.keys import KeyRing


def tenant_check(keys: KeyRing | None) -> Callable[[Request], Awaitable[None]]:
    """A dependency of routes: sets ``request.state.tenant``, or raises AuthenticationError before
    the body is read. Without keys there is one tenant, who has no name."""

    async def check(request: Request) -> None:
        authorization = request.headers.get("authorization")
        request.state.tenant = None if keys is None else keys.tenant_of(authorization)

    return check
