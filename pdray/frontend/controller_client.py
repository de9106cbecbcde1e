"""What a frontend needs of a controller, wherever that runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pdray.core.placement import (
    KeptPrefix,
    MoveAsk,
    Placement,
    PlacementAsk,
    Queued,
    Refusal,
    ServingLimits,
    WorkerAddress,
)


class ControllerClient(Protocol):
    """One frontend's way to its controller. Survives the controller: calls wait for the next."""

    async def place(self, asks: Sequence[PlacementAsk]) -> Sequence[Placement | Queued | Refusal]:
        """Answers in the order of ``asks``. Asking twice for one request places it once."""

    async def wait(self, request_id: str) -> Placement | Refusal:
        """The answer to a Queued request, once there is one."""

    async def move(self, asks: Sequence[MoveAsk]) -> Sequence[WorkerAddress | None]:
        """Who could go on with each, in the order of ``asks``; None where nobody can now."""

    def finished(self, request_ids: Sequence[str], kept: Sequence[KeptPrefix] = ()) -> None:
        """These requests are over, placed or queued, and left ``kept`` in prefix caches. Does not
        wait; unknown ones are ignored."""

    async def limits(self) -> ServingLimits:
        """What the workers that are up can hold. Raises UnavailableError while none are."""
