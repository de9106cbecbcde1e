"""Running requests that are asked to move to another decode worker, and how long each was silent
on its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pdray.core.clock import Clock
from pdray.core.errors import LinkError, MigrationError
from pdray.core.placement import WorkerAddress
from pdray.frontend.live_request import LiveRequest
from pdray.link.messages import Migrate
from pdray.link.peers import PeerLinks
from pdray.metrics.prometheus import FrontendMetrics


@dataclass(slots=True)
class _Silence:
    """Since the last token of the worker that it leaves."""

    target_id: str
    since: float


class Migrations:
    """The moves of one frontend's requests. A link to the target comes first: its tokens must not
    have to wait for it."""

    def __init__(
        self,
        peers: PeerLinks,
        find: Callable[[str], LiveRequest | None],
        metrics: FrontendMetrics,
        clock: Clock,
    ) -> None:
        """``find`` gives a request that still wants tokens."""
        self._peers = peers
        self._find = find
        self._metrics = metrics
        self._clock = clock
        self._silences: dict[str, _Silence] = {}

    async def migrate(self, request_id: str, target: WorkerAddress) -> None:
        """Returns when ``target`` has taken over. Raises MigrationError where it has not: then the
        request goes on where it was, or has ended."""
        try:
            link = await self._peers.get(target)
        except LinkError as error:
            raise MigrationError(f"{target.worker_id} cannot be reached: {error}") from error
        live = self._find(request_id)
        if live is None:
            raise MigrationError(f"no request {request_id} runs here")
        if link.is_closed:
            raise MigrationError(f"the link to {target.worker_id} was lost")
        moving = live.begin_move(target.worker_id, link)
        self._silences[request_id] = _Silence(target.worker_id, self._clock.now())
        attempt = live.stream.attempt
        live.links[moving.source_id].send(
            Migrate(request_id=request_id, attempt=attempt, target=target)
        )
        failure = await moving.outcome
        if failure is not None:
            self._silences.pop(request_id, None)
            raise MigrationError(failure)

    def on_chunk(self, request_id: str, peer_id: str) -> None:
        """Before it is taken: tokens of the request have come, from one who may make them."""
        silence, now = self._silences.get(request_id), self._clock.now()
        if silence is None:
            return
        if peer_id == silence.target_id:
            self._metrics.migration_paused(now - silence.since)
            del self._silences[request_id]
        else:
            silence.since = now

    def forget(self, live: LiveRequest, why: str) -> None:
        """None of its workers goes on with the request."""
        self._silences.pop(live.request.request_id, None)
        if live.moving is not None:
            live.moving.settle(why)
