"""Actor handles with types: Ray's own ones know neither methods nor what they return."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import ParamSpec, Protocol, TypeVar

from pdray.core.overview import Overview
from pdray.core.placement import (
    InFlight,
    MoveAsk,
    Placement,
    PlacementAsk,
    Refusal,
    WorkerAddress,
)
from pdray.core.request import WorkerId
from pdray.core.scaling import TimedDecision
from pdray.core.snapshot import WorkerInfo

from .messages import (
    Claim,
    ControllerStatus,
    FrontendReport,
    Heartbeat,
    HeartbeatReply,
    Renewal,
    StartFailure,
)

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class RemoteMethod(Protocol[P, R_co]):
    """Calls leave at once, awaited or not. Awaiting raises RayActorError where the actor died."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R_co]: ...


class WorkerHandle(Protocol):
    """``WorkerActor`` from outside."""

    ping: RemoteMethod[[], None]
    start: RemoteMethod[[float, Sequence[WorkerAddress]], WorkerInfo | StartFailure]
    join: RemoteMethod[[], str]
    meet: RemoteMethod[[Sequence[WorkerAddress]], dict[WorkerId, str]]
    metrics_text: RemoteMethod[[], bytes]
    drain: RemoteMethod[[float, bool], None]
    stop: RemoteMethod[[str], None]


class ControllerHandle(Protocol):
    """``ControllerActor`` from outside."""

    exchange: RemoteMethod[[str, bytes], bytes]
    wait: RemoteMethod[[str], Placement | Refusal | None]
    move: RemoteMethod[[str, Sequence[MoveAsk]], list[WorkerAddress | None]]
    renew: RemoteMethod[[str, float, FrontendReport], Renewal]
    resume: RemoteMethod[[str, Sequence[InFlight]], None]
    frontend_gone: RemoteMethod[[str], None]
    metrics: RemoteMethod[[str], list[bytes]]
    heartbeat: RemoteMethod[[Heartbeat], HeartbeatReply]
    hold: RemoteMethod[[float], None]
    status: RemoteMethod[[], ControllerStatus]
    overview: RemoteMethod[[], Overview]
    scaling: RemoteMethod[[], tuple[TimedDecision, ...]]
    claim: RemoteMethod[[], Claim]
    give_up_worker: RemoteMethod[[], None]
    find_targets: RemoteMethod[
        [Sequence[tuple[WorkerInfo | None, MoveAsk]]], list[WorkerAddress | None]
    ]
    place_for: RemoteMethod[[str, PlacementAsk, str], Placement | None]
    shutdown: RemoteMethod[[], None]
