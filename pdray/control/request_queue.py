"""Requests that wait to be placed: the most urgent first, then first come, first served."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from pdray.core.placement import PlacementAsk


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRequest:
    frontend_id: str
    ask: PlacementAsk
    queued_at: float


class RequestQueue:
    def __init__(self) -> None:
        self._by_arrival: dict[str, QueuedRequest] = {}
        self._places: dict[str, tuple[int, int, str]] = {}
        self._by_urgency: list[tuple[int, int, str]] = []
        self._num_arrived = 0
        self.num_prompt_tokens = 0
        """Of all that wait."""

    def __len__(self) -> int:
        return len(self._by_arrival)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_arrival

    def get(self, request_id: str) -> QueuedRequest | None:
        return self._by_arrival.get(request_id)

    @property
    def first(self) -> QueuedRequest | None:
        """Whose turn it is."""
        return self._by_arrival[self._by_urgency[0][2]] if self._by_urgency else None

    @property
    def oldest(self) -> QueuedRequest | None:
        return next(iter(self._by_arrival.values()), None)

    def is_next(self, priority: int) -> bool:
        """Whether one that came now with this priority would be the first."""
        return not self._by_urgency or priority < self._by_urgency[0][0]

    def put(self, queued: QueuedRequest) -> None:
        request_id = queued.ask.request_id
        assert request_id not in self._by_arrival, f"{request_id} is queued twice"
        place = (queued.ask.priority, self._num_arrived, request_id)
        self._num_arrived += 1
        self._by_arrival[request_id] = queued
        self.num_prompt_tokens += queued.ask.num_prompt_tokens
        self._places[request_id] = place
        insort(self._by_urgency, place)

    def remove(self, request_id: str) -> None:
        queued = self._by_arrival.pop(request_id)
        self.num_prompt_tokens -= queued.ask.num_prompt_tokens
        del self._by_urgency[bisect_left(self._by_urgency, self._places.pop(request_id))]

    def of_frontend(self, frontend_id: str) -> list[str]:
        return [rid for rid, each in self._by_arrival.items() if each.frontend_id == frontend_id]

    def check_integrity(self) -> None:
        expected = [
            queued.ask.request_id
            for queued in sorted(self._by_arrival.values(), key=lambda each: each.ask.priority)
        ]
        assert [request_id for _, _, request_id in self._by_urgency] == expected
        num_tokens = sum(queued.ask.num_prompt_tokens for queued in self._by_arrival.values())
        assert self.num_prompt_tokens == num_tokens
        queued_at = [queued.queued_at for queued in self._by_arrival.values()]
        assert queued_at == sorted(queued_at), "the queue is not in order of arrival"
