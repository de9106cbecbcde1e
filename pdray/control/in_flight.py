"""Requests that are placed and not finished, by whom, and on which workers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from pdray.core.placement import Placement
from pdray.core.request import WorkerId

from .fleet import Fleet
from .worker_record import Booked

_RATE_WINDOW_S = 30.0
_MAX_FINISHES_KEPT = 1024


@dataclass(slots=True, kw_only=True)
class PlacedRequest:
    """``placement`` is None where a frontend told of it after the controller was remade."""

    request_id: str
    frontend_id: str
    num_prompt_tokens: int
    prefill_id: WorkerId | None
    decode_id: WorkerId | None
    placement: Placement | None


class InFlightTable:
    """Books every placed request on its first decode candidate, and takes it off again."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._placed: dict[str, PlacedRequest] = {}
        self._finished_at: deque[float] = deque(maxlen=_MAX_FINISHES_KEPT)

    def __len__(self) -> int:
        return len(self._placed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._placed)

    def get(self, request_id: str) -> PlacedRequest | None:
        return self._placed.get(request_id)

    def of_frontend(self, frontend_id: str) -> list[str]:
        return [rid for rid, placed in self._placed.items() if placed.frontend_id == frontend_id]

    def add(self, placed: PlacedRequest) -> None:
        """A request that is known is booked anew."""
        self.remove(placed.request_id)
        self._placed[placed.request_id] = placed
        self._book(placed, 1)

    def remove(self, request_id: str) -> bool:
        """False where it is unknown."""
        placed = self._placed.pop(request_id, None)
        if placed is None:
            return False
        self._book(placed, -1)
        return True

    def _book(self, placed: PlacedRequest, sign: int) -> None:
        if placed.decode_id is not None:
            self._fleet.book_decode(placed.decode_id, sign, sign * placed.num_prompt_tokens)

    def finish(self, request_id: str, now: float) -> bool:
        if not self.remove(request_id):
            return False
        self._finished_at.append(now)
        return True

    def finished_per_s(self, now: float) -> float:
        while self._finished_at and self._finished_at[0] < now - _RATE_WINDOW_S:
            self._finished_at.popleft()
        if not self._finished_at:
            return 0.0
        return len(self._finished_at) / max(now - self._finished_at[0], 1.0)

    def check_integrity(self) -> None:
        num_requests: Counter[WorkerId] = Counter()
        num_tokens: Counter[WorkerId] = Counter()
        for placed in self._placed.values():
            if placed.decode_id is not None:
                num_requests[placed.decode_id] += 1
                num_tokens[placed.decode_id] += placed.num_prompt_tokens
        booked = self._fleet.decoding()
        expected = {each: Booked(num, num_tokens[each]) for each, num in num_requests.items()}
        assert booked == expected, f"booked on workers {booked}, in flight {expected}"
