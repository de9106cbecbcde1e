"""One attempt of a request on its way: asks where it is to run, and submits it there."""

from __future__ import annotations

import asyncio
from typing import TypeGuard

from pdray.core.parked import LeaseKey
from pdray.core.placement import Placement, PlacementAsk, Queued, Refusal, WorkerAddress
from pdray.core.request import RequestState
from pdray.frontend.controller_client import ControllerClient
from pdray.frontend.failures import lost, refusal_error
from pdray.frontend.live_request import LiveRequest
from pdray.link.connection import Connection
from pdray.link.messages import Submission, Submit
from pdray.link.peers import PeerLinks


class Placing:
    """Of one frontend. Lives on the event loop."""

    def __init__(self, controller: ControllerClient, peers: PeerLinks) -> None:
        self._controller = controller
        self._peers = peers
        self._outgoing: dict[Connection, list[Submission]] = {}

    async def place(self, live: LiveRequest) -> Placement:
        """Waits where it is queued. Raises InvalidRequestError, OverloadedError."""
        request = live.request
        assert live.names is not None, "placed before it was looked at"
        num_sent = len(request.output_token_ids)
        ask = PlacementAsk(
            request_id=request.request_id,
            num_prompt_tokens=request.num_prompt_tokens + num_sent,
            max_tokens=request.sampling.max_tokens - num_sent,
            prefix_names=live.names.names,
            session_id=request.session_id,
            priority=request.priority,
        )
        (answer,) = await self._controller.place([ask])
        if isinstance(answer, Queued):
            answer = await self._controller.wait(request.request_id)
        if isinstance(answer, Refusal):
            raise refusal_error(answer)
        live.timing.placed()
        return answer

    async def submit(
        self,
        live: LiveRequest,
        placement: Placement,
        *,
        is_parked: bool = False,
        claim: LeaseKey | None = None,
    ) -> None:
        """Links to every worker that may send tokens come first, so that none has to wait. Raises
        WorkerLostError: then nothing was sent."""
        assert placement.prefill is not None, "placed for decode alone"
        prefill, *decodes = await asyncio.gather(
            self._peers.get(placement.prefill),
            *(self._peers.get(address) for address in placement.decode_candidates),
            return_exceptions=True,
        )
        # A link that was there first may have been lost while the others were made.
        if not is_up(prefill):
            raise lost(placement.prefill, prefill)
        links: dict[str, Connection] = {}
        candidates: list[WorkerAddress] = []
        for address, link in zip(placement.decode_candidates, decodes, strict=True):
            if is_up(link):
                candidates.append(address)
                links[address.worker_id] = link
        if not candidates and not is_parked:
            raise lost(placement.decode_candidates[0], decodes[0])
        live.decode_ids = set(links)
        live.prefill_id = placement.prefill.worker_id
        live.links = links | {live.prefill_id: prefill}
        live.state = live.state.advance(RequestState.PREFILLING)
        self._send_soon(
            prefill,
            Submission(
                request=live.request,
                attempt=live.stream.attempt,
                decode_candidates=tuple(candidates),
                prefix_source=placement.prefix_source,
                is_parked=is_parked,
                claim=claim,
            ),
        )

    def _send_soon(self, link: Connection, submission: Submission) -> None:
        """Requests that are placed together leave in one message."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self.flush)
        self._outgoing.setdefault(link, []).append(submission)

    def flush(self) -> None:
        for link, submissions in self._outgoing.items():
            link.send(Submit(submissions=tuple(submissions)))
        self._outgoing.clear()


def is_up(link: Connection | BaseException) -> TypeGuard[Connection]:
    return isinstance(link, Connection) and not link.is_closed
