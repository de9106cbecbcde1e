"""Where the last request of each conversation went."""

from __future__ import annotations

from collections import OrderedDict

from pdray.core.request import WorkerId

Pair = tuple[WorkerId | None, WorkerId | None]


class Sessions:
    """Of those past ``max_sessions``, the ones that nobody spoke of for the longest are
    forgotten. What it says may be of workers that have left."""

    def __init__(self, max_sessions: int) -> None:
        self._max_sessions = max_sessions
        self._pairs: OrderedDict[str, Pair] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pairs)

    def put(self, session_id: str, prefill_id: WorkerId | None, decode_id: WorkerId | None) -> None:
        self._pairs[session_id] = (prefill_id, decode_id)
        self._pairs.move_to_end(session_id)
        if len(self._pairs) > self._max_sessions:
            self._pairs.popitem(last=False)

    def get(self, session_id: str) -> Pair:
        return self._pairs.get(session_id, (None, None))
