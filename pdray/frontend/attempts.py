"""The attempts of a request: where its workers are lost, it goes on elsewhere, from the tokens that
have come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pdray.core.errors import (
    GivenBackError,
    PdrayError,
    RequestFailedError,
    WorkerLostError,
)
from pdray.frontend.controller_client import ControllerClient
from pdray.frontend.live_request import LiveRequest, Submit
from pdray.metrics.prometheus import FrontendMetrics

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
"""More than workers that die by chance take; one that kills its workers must not take them all."""
PAUSE_S = 0.1
"""Between two tries: the controller may not know yet that the worker is lost."""


class Attempts:
    """Of one frontend's requests. The client sees nothing of another attempt but the pause."""

    def __init__(
        self,
        controller: ControllerClient,
        metrics: FrontendMetrics,
        fail: Callable[[LiveRequest, PdrayError], None],
        *,
        patience_s: float,
    ) -> None:
        """``fail`` ends a request that could not be placed again for ``patience_s``."""
        self._controller = controller
        self._metrics = metrics
        self._fail = fail
        self._patience_s = patience_s

    async def start(self, submit: Submit, live: LiveRequest) -> None:
        """The first one, of a request that may have others. Raises what ``submit`` does."""
        live.submit = submit
        try:
            await self._submit(live)
        except WorkerLostError as loss:
            await self._submit_in_time(live, loss)

    def begin_next(self, live: LiveRequest, loss: PdrayError) -> bool:
        """False where ``loss`` is the end of it."""
        is_lost = isinstance(loss, WorkerLostError) and not isinstance(loss, RequestFailedError)
        may_be_repeated = live.submit is not None and live.parked is None
        live.num_losses += not isinstance(loss, GivenBackError)
        if not (is_lost and may_be_repeated and live.num_losses < MAX_ATTEMPTS):
            return False
        logger.warning(
            "a request is placed again: %s, request_id=%s num_output_tokens=%d",
            *(loss, live.request.request_id, live.num_output_tokens),
        )
        live.begin_attempt()
        self._report_lost(live)
        live.placing_again = asyncio.get_running_loop().create_task(self._place_again(live, loss))
        return True

    async def _place_again(self, live: LiveRequest, loss: PdrayError) -> None:
        try:
            await asyncio.sleep(_pause_s(live, loss))
            await self._submit_in_time(live, loss)
        except PdrayError as error:
            self._fail(live, error)
        except Exception:  # a task's outermost level: the client must not wait for ever
            logger.exception("not placed again: request_id=%s", live.request.request_id)
            self._fail(live, loss)
        else:
            self._metrics.request_placed_again()

    async def _submit_in_time(self, live: LiveRequest, loss: PdrayError) -> None:
        """Raises ``loss`` where no try does."""
        try:
            async with asyncio.timeout(self._patience_s):
                while not await self._has_submitted(live):
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            raise loss from None

    async def _has_submitted(self, live: LiveRequest) -> bool:
        try:
            await self._submit(live)
        except PdrayError as error:
            # It was admitted once: a refusal is of those that are left, and others may come.
            logger.info("not placed again yet: %s, request_id=%s", error, live.request.request_id)
            return False
        return True

    async def _submit(self, live: LiveRequest) -> None:
        assert live.submit is not None, "it has one attempt only"
        try:
            await live.submit(live)
        except WorkerLostError:
            self._report_lost(live)
            raise

    def _report_lost(self, live: LiveRequest) -> None:
        """Asked again for what is in flight, the controller would give the same answer."""
        self._controller.finished([live.request.request_id])


def _pause_s(live: LiveRequest, loss: PdrayError) -> float:
    """Those that are lost again and again must not use up their attempts at once, and the
    controller may not know yet who drains."""
    return PAUSE_S * (1 if isinstance(loss, GivenBackError) else live.num_losses - 1)
