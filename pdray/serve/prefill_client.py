"""The prefill application, as a decode application sees it: a URL that gives handles."""

from __future__ import annotations

import asyncio
import logging

import httpx
import msgspec

from pdray.core.clock import WallClock
from pdray.core.errors import PrefillRefusedError, UnavailableError
from pdray.serve.handle_bodies import Fields
from pdray.serve.handle_responses import Prefilled

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 1.0
GIVE_UP_AFTER_S = 20.0
"""Longer than it takes until another replica answers in place of one that has ended."""

_PASSING = {502, 503, 504}


class PrefillClient:
    """Asks again where the application is being replaced: a prompt may be computed twice, as its
    first handle then runs out unused. All methods are for one event loop."""

    def __init__(self, url: str, *, give_up_after_s: float = GIVE_UP_AFTER_S) -> None:
        self._url = url
        self._give_up_after_s = give_up_after_s
        self._clock = WallClock()
        # How long a prompt takes is between the client and the prefill application.
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def prefill(self, fields: Fields, authorization: str | None) -> str:
        """The handle. ``authorization`` is the client's own. Raises PrefillRefusedError with what
        was answered, and UnavailableError where nobody answers."""
        give_up_at = self._clock.now() + self._give_up_after_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await self._ask(fields, authorization)
            except (PrefillRefusedError, UnavailableError) as error:
                passes = isinstance(error, UnavailableError) or error.status in _PASSING
                if not passes or self._clock.now() + pause_s > give_up_at:
                    raise
                logger.info("asked again for a prompt: %s", error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _ask(self, fields: Fields, authorization: str | None) -> str:
        headers = {"content-type": "application/json"}
        if authorization is not None:
            headers["authorization"] = authorization
        try:
            answer = await self._http.post(
                f"{self._url}/v1/prefill", content=msgspec.json.encode(fields), headers=headers
            )
        except httpx.TransportError as error:
            raise UnavailableError(
                f"the prefill application at {self._url} does not answer: "
                f"{type(error).__name__} {error}"
            ) from error
        if answer.status_code != httpx.codes.OK:
            retry_after = answer.headers.get("retry-after")
            raise PrefillRefusedError(answer.status_code, answer.content, retry_after=retry_after)
        return msgspec.json.decode(answer.content, type=Prefilled).kv_handle
