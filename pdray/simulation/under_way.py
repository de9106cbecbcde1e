"""The step that a simulated worker makes now, or the stretch of steps."""

from __future__ import annotations

from dataclasses import dataclass

from .decode_batch import Stretch
from .sequence import SimulatedSequence
from .timeline import Action, Timeline, Timer


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of a prompt in one step."""

    seq: SimulatedSequence
    num_tokens: int


class UnderWay:
    """One step with ``chunks`` of prompts in it, or without any a stretch of decodes alone, of
    which ``num_steps`` will have been made when ``on_end`` is called."""

    def __init__(
        self, timeline: Timeline, stretch: Stretch, chunks: tuple[Chunk, ...], on_end: Action
    ) -> None:
        self.stretch = stretch
        self.chunks = chunks
        self.num_steps = stretch.num_steps
        self._timeline = timeline
        self._began_at = timeline.now
        self._on_end = on_end
        self._timer: Timer = timeline.after(stretch.seconds(stretch.num_steps), on_end)

    @property
    def num_begun(self) -> int:
        return self.stretch.steps_begun(self._timeline.now - self._began_at)

    def shorten(self, num_steps: int) -> None:
        """It ends after so many steps, if not before."""
        if num_steps < self.num_steps:
            self.num_steps = num_steps
            self._timer.cancel()
            ends_at = self._began_at + self.stretch.seconds(num_steps)
            self._timer = self._timeline.at(max(ends_at, self._timeline.now), self._on_end)
