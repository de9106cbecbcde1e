"""One request between two workers that may decode it, and who does in the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Moving:
    """Until the source says how it ended, tokens of both are taken: those of the target may
    overtake the source's last ones. ``outcome`` is why it did not move, or None. With
    ``has_begun`` there were tokens of the target."""

    source_id: str
    target_id: str
    has_begun: bool = False
    outcome: asyncio.Future[str | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def takes_tokens_of(self, peer_id: str) -> bool:
        self.has_begun |= peer_id == self.target_id
        return peer_id in (self.source_id, self.target_id)

    def settle(self, failure: str | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(failure)
