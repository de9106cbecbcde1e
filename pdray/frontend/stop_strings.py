"""Stop strings, matched across pieces of text: what may be the start of one is held back."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Cuts a text, given in pieces, where the first stop string is complete.

    Of several, the one that is complete first counts, and of those the longest: so the cut does
    not depend on how the text was split. Keeps fewer characters than the longest stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would match everywhere"
        self._stops = tuple(stops)
        self._held = ""
        self.is_matched = False

    def push(self, text: str) -> str:
        """The text that can be shown now. Once ``is_matched``, nothing more is."""
        if self.is_matched:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        cut = self._first_match(text)
        self.is_matched = cut is not None
        if cut is None:
            cut = len(text) - self._num_held(text)
            self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held = "" if self.is_matched else self._held
        self._held = ""
        return held

    def _first_match(self, text: str) -> int | None:
        """Where the stop string begins that is complete first."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                match = (start + len(stop), start)
                best = match if best is None else min(best, match)
        return None if best is None else best[1]

    def _num_held(self, text: str) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
