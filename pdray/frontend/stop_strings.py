"""Stop strings, matched across pieces of text: what may be the start of one is held back."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Cuts a text, given in pieces, where the first stop string is complete.

    Of several, the one that is complete first counts, and of those the longest: so the cut does
    not depend on how the text was split. Keeps fewer characters than the longest stop string.
    ``is_shown``: the text is cut after the stop string, not before it.
    """

    def __init__(self, stops: Sequence[str], *, is_shown: bool = False) -> None:
        assert all(stops), "an empty stop string would match everywhere"
        self._stops = tuple(stops)
        self._is_shown = is_shown
        self._held = ""
        self.is_matched = False

    def push(self, text: str, *, may_end: bool = True) -> str:
        """The text that can be shown now. Once ``is_matched``, nothing more is. Only a stop
        string that is complete in a text that ``may_end`` it counts."""
        if self.is_matched:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        cut = self._first_match(text, len(self._held)) if may_end else None
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

    def _first_match(self, text: str, num_old: int) -> int | None:
        """Where to cut: at the stop string that is complete first, beyond ``num_old``
        characters."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop, max(0, num_old - len(stop) + 1))
            if start >= 0:
                match = (start + len(stop), start)
                best = match if best is None else min(best, match)
        if best is None:
            return None
        end, start = best
        return end if self._is_shown else start

    def _num_held(self, text: str) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
