"""The timelines of one API call: how a client asks for them, and how they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from fastapi import Request

from pdray.core.errors import InvalidRequestError
from pdray.core.timeline import Timeline
from pdray.serve.openai_responses import ChoiceTimeline, PhaseTime
from pdray.serve.request_checks import shown

HEADER = "X-Pdray-Timeline"
MAX_CHOICES = 8
"""Of a whole answer, whose timelines must all fit into a header: proxies take 8 KiB or less."""


@dataclass(slots=True)
class CallTimelines:
    """Those of its choices that have ended well. The client wants them where ``is_wanted``."""

    is_wanted: bool = False
    num_choices: int = 0
    by_choice: dict[int, Timeline] = field(default_factory=dict)

    def begin(self, num_choices: int, *, is_stream: bool) -> None:
        """Before the choices run, each time they do. Raises InvalidRequestError."""
        if self.is_wanted and not is_stream and num_choices > MAX_CHOICES:
            raise InvalidRequestError(
                f"{HEADER}: 1 with {num_choices} choices in a whole answer; accepted: up to "
                f"{MAX_CHOICES}, or stream: true",
                param=HEADER,
            )
        self.num_choices = num_choices
        self.by_choice.clear()

    @property
    def is_whole(self) -> bool:
        return len(self.by_choice) == self.num_choices

    def sent(self) -> tuple[ChoiceTimeline, ...]:
        return tuple(_sent(index, each) for index, each in sorted(self.by_choice.items()))

    def headers(self) -> Mapping[str, str]:
        """Of a whole answer."""
        return {HEADER: msgspec.json.encode(self.sent()).decode()} if self.is_wanted else {}


def timelines_of(request: Request) -> CallTimelines:
    """A call's own, which whoever has the request finds in its state. Raises
    InvalidRequestError."""
    value = request.headers.get(HEADER, "0")
    if value not in {"0", "1"}:
        raise InvalidRequestError(
            f"the header {HEADER} is {shown(value)}; accepted: 0 or 1", param=HEADER
        )
    timelines = CallTimelines(is_wanted=value == "1")
    request.state.timelines = timelines
    return timelines


def _sent(index: int, timeline: Timeline) -> ChoiceTimeline:
    return ChoiceTimeline(
        index=index,
        total_ms=_ms(timeline.total_s),
        phases=tuple(
            PhaseTime(name=each.name, ms=_ms(each.duration_s), worker=each.worker_id)
            for each in timeline.phases
        ),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
